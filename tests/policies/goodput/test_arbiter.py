"""The arbiter around other policies: when it switches by hand, and what its probes cost."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from policies.base import Outcome, field_values, reads_seconds, uses_signals
from policies.confidence.thresholds import TailPruning
from policies.counts.gammatune import GammaTune
from policies.fields import origins
from policies.fixed import Fixed, Never
from policies.goodput import arbiter as arbiter_module
from policies.goodput.arbiter import (
    CHOSEN,
    PLAYING,
    SERIAL,
    SPECULATE,
    TOKENS,
    WINS,
    Arbitration,
    arbiter,
)
from simulator.replay.replay import replay
from tests.policies.goodput.rounds_by_hand import RNG, tell, view
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate


def test_the_wrapper_is_the_policy_and_more() -> None:
    cls = arbiter(GammaTune)
    assert cls is arbiter(GammaTune) and issubclass(cls, GammaTune)
    policy = cls(eta=0.5, arbiter_wins=3)
    inside = list(field_values(GammaTune()))
    assert list(field_values(policy))[: len(inside)] == inside
    assert cls.name == "arbiter/gammatune" and cls.forgets(policy)
    assert list(origins(policy)) == list(field_values(policy))
    state = policy.new_state(2)
    assert state._fields[:2] == ("gamma", "ema") and state.arbiter_played.shape == (2,)
    assert pickle.loads(pickle.dumps(state))._fields == state._fields


def test_the_wrapper_travels_to_a_process_that_has_not_made_it() -> None:
    policy = arbiter(GammaTune)(eta=0.5, arbiter_wins=3)
    assert pickle.loads(pickle.dumps(policy)) == policy
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer))"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(policy),
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert shown.stdout.decode().strip() == repr(policy)


def test_signals_are_read_only_if_the_policy_inside_reads_them() -> None:
    assert not uses_signals(arbiter(Fixed)()) and uses_signals(arbiter(TailPruning)())
    assert arbiter(TailPruning).proceed is TailPruning.proceed
    assert reads_seconds(arbiter(Fixed)())


def test_a_second_policy_of_the_same_name_is_refused() -> None:
    arbiter(Fixed)

    class Other(Never):
        name = "fixed"

    with pytest.raises(ValueError, match="fixed"):
        arbiter(Other)
    assert issubclass(arbiter_module.Arbiter_fixed, Arbitration)


def test_arbiter_switches_by_hand() -> None:
    policy = arbiter(Fixed)(gamma_tokens=4, arbiter_window_rounds=2)
    state = policy.new_state(1)
    # Nothing accepted: 2 tokens in 20 s, .1 token/s. Serial is not known: a probe at once,
    # 2 tokens in 12 s. It wins that window and the next one of its own: serial is chosen.
    assert [tell(policy, state, 0, view()) for _ in range(6)] == [4, 4, 0, 0, 4, 4]
    assert state.arbiter_speed[:, 0] == pytest.approx([0.1, 1 / 6])
    assert int(state.arbiter_mode[CHOSEN]) == SERIAL
    # 256 serial tokens, then one window of drafts: it does not win, back to serial.
    assert [tell(policy, state, 0, view()) for _ in range(260)] == [0] * 256 + [4, 4, 0, 0]
    # From here on everything is accepted: 5 tokens in 10 s. 254 more serial tokens until a probe.
    # It replaces the .1 by .5, which wins, and wins again over the next serial window.
    gammas = [tell(policy, state, 9, view()) for _ in range(254 + 2 + 2 + 2)]
    assert gammas == [0] * 254 + [4, 4] + [0, 0] + [4, 4]
    assert state.arbiter_speed[SPECULATE, 0] == pytest.approx(0.5)
    # The next window blends: 2 tokens in 20 s, .7 .5 + .3 .1 = .38, .28 away from it.
    tell(policy, state, 0, view())
    tell(policy, state, 0, view())
    assert state.arbiter_speed[SPECULATE, 0] == pytest.approx(0.38)
    assert state.arbiter_speed[SPECULATE, 1] == pytest.approx(0.3 * 0.28)


def test_a_probe_replaces_the_average_and_halves_the_deviation() -> None:
    policy = arbiter(Fixed)(gamma_tokens=4, arbiter_window_rounds=1, arbiter_draft_tokens=5)
    state = policy.new_state(1)
    assert [tell(policy, state, 9, view()) for _ in range(2)] == [4, 0]
    assert float(state.arbiter_speed[SERIAL, 0]) == pytest.approx(1 / 6)
    state.arbiter_speed[SERIAL, 1] = 0.08
    # 5 tokens are due at once; the target has become four times as fast.
    assert tell(policy, state, 9, view()) == 4
    assert tell(policy, state, 9, view(verify_s=1.5)) == 0
    assert state.arbiter_speed[SERIAL, :2].tolist() == pytest.approx([2 / 3, 0.04])


def test_arbiter_probes_while_it_speculates() -> None:
    policy = arbiter(Fixed)(gamma_tokens=4, arbiter_window_rounds=2, arbiter_draft_tokens=25)
    state = policy.new_state(1)
    # 5 tokens a round. First window, probe; then 25 tokens are five rounds, the last of which cuts
    # its window short, and a probe.
    gammas = [tell(policy, state, 9, view()) for _ in range(11)]
    assert gammas == [4, 4, 0, 0, 4, 4, 4, 4, 4, 0, 0]
    assert int(state.arbiter_mode[TOKENS]) == 0 and int(state.arbiter_mode[WINS]) == 0


def test_arbiter_measures_anew_in_another_regime_of_the_context() -> None:
    policy = arbiter(Fixed)(gamma_tokens=4, arbiter_window_rounds=1)
    state = policy.new_state(1)

    def at(context: int, verify_s: float = 6.0) -> int:
        return tell(policy, state, 9, view(context=context, verify_s=verify_s))

    # Below the floor of 512 all contexts are alike, and up to twice as much.
    assert [at(40), at(40), at(500), at(30), at(1023)] == [4, 0, 4, 4, 4]
    assert float(state.arbiter_speed[SPECULATE, 0]) == pytest.approx(0.5)
    # At 1024 both are stale: this window replaces the average (5 tokens in 20 s), a probe is due.
    assert at(1024, 16.0) == 4
    assert state.arbiter_speed[SPECULATE].tolist() == pytest.approx([0.25, 0.0, 0.0])
    assert float(state.arbiter_speed[SERIAL, 2]) == 1.0
    assert at(1025, 16.0) == 0
    assert state.arbiter_speed[SERIAL].tolist() == pytest.approx([1 / 16, 0.0, 0.0])
    # And back again, once the context is half of where that was.
    assert at(513) == 4 and float(state.arbiter_speed[SERIAL, 2]) == 0.0
    assert at(512) == 4 and float(state.arbiter_speed[SERIAL, 2]) == 1.0
    assert at(512) == 0


def test_serial_rounds_teach_the_policy_inside_nothing() -> None:
    policy = arbiter(GammaTune)(arbiter_window_rounds=1)
    state = policy.new_state(1)
    assert tell(policy, state, 9, view()) == 3
    assert int(state.gamma[0]) == 5
    assert tell(policy, state, 9, view()) == 0
    assert int(state.gamma[0]) == 5 and tell(policy, state, 9, view()) == 5


def test_a_round_of_the_window_before_counts_for_none() -> None:
    policy = arbiter(GammaTune)(arbiter_window_rounds=1)
    state = policy.new_state(2)
    seen = view()
    for slot in range(2):
        assert policy.gamma(state, slot, seen, RNG) == 3
    for slot in range(2):  # the first closes the window of speculation, a serial probe is next
        policy.learn(state, slot, seen, Outcome(3, 3, 3, 4, False, 9.0, 9.0))
    assert int(state.arbiter_mode[PLAYING]) == SERIAL and int(state.arbiter_mode[2]) == 0
    assert state.gamma.tolist() == [5, 5]  # but the policy inside learns from both


@pytest.mark.parametrize("tokens", [40, 500, 2000])
def test_the_probe_tax_is_bounded(tokens: int) -> None:
    """Acceptance 0 and a dear draft: what Fixed(8) costs above never drafting is the probes."""
    # One long prompt, so that no context doubles.
    trace = synthetic.constant(
        0.0, np.random.default_rng(0), requests=1, reply_tokens=tokens, prompt_tokens=4000
    )
    draft_s, target_s = 5e-3, 10e-3
    costs = tabulate(Affine(draft_fixed=draft_s, target_fixed=target_s))
    policy = arbiter(Fixed)(gamma_tokens=8)
    log, never = replay(policy, trace, costs), replay(Never(), trace, costs)
    # Windows of 16: drafts, serial, drafts; from there on 256 serial rounds and 16 of drafts.
    windows = 2 + max(0, math.ceil((tokens - 48) / 272))
    assert int((log.gamma > 0).sum()) <= 16 * windows
    tax_s = float(log.elapsed_s.sum() - never.elapsed_s.sum())
    assert 0.0 < tax_s <= 16 * windows * 8 * draft_s + 1e-9
    if tokens == 2000:
        # The prompt is beyond the floor: the first window ends at its first round. Then 16 serial
        # rounds, 16 of drafts, and of the other 1967 7 whole cycles and 63 serial ones.
        assert int((log.gamma > 0).sum()) == 1 + 16 * 8
        assert tax_s == pytest.approx((1 + 16 * 8) * 8 * draft_s)
        fixed = replay(Fixed(8), trace, costs)
        assert float(fixed.elapsed_s.sum()) > 3.0 * float(log.elapsed_s.sum())


def test_a_good_draft_is_kept() -> None:
    trace = synthetic.constant(1.0, np.random.default_rng(0), requests=1, reply_tokens=3000)
    costs = tabulate(Affine())
    policy = arbiter(Fixed)(gamma_tokens=8)
    log = replay(policy, trace, costs)
    # Serial only in probes: the first, those of 1024 tokens, and those of a doubled context.
    doublings = math.ceil(math.log2(3032 / 32))
    assert int((log.gamma == 0).sum()) <= 16 * (1 + 3000 // 1024 + doublings) + 1
