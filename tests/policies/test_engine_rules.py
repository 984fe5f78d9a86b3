"""Controllers of engines people run, and of papers near them, step by step by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from policies.bandits.remote import SpecStop, UCBSpecStop
from policies.base import Draft, Outcome, Policy, View
from policies.confidence.dsde import HELD, HIGH, LOW, Dsde, divergence, variance_ratio
from policies.confidence.entropy_gate import EntropyGate
from policies.counts.context_tables import ContextTable, LengthTable
from policies.counts.leading import LeadingPositions
from policies.counts.llama_adaptive import LENGTH, CreditBucket, Zones
from policies.goodput.ollama import OllamaDepth, cost_at
from policies.goodput.onnx_genai import GAMMA, OnnxAdaptiveK
from policies.randomness import Rng
from simulator.replay.hindsight import best_fixed
from simulator.replay.replay import replay
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate

RNG = Rng(1)
FULL = 99  # the target would accept everything
LN2 = math.log(2.0)


def view(room: int = 30, batch_size: int = 1, context_tokens: int = 100) -> View:
    """A draft step costs 1, a target step 6."""
    return View(context_tokens, batch_size, 0, room, 1.0, np.asarray([0.0] + [6.0] * 40))


def settle(
    policy: Policy, state: Any, gamma: int, accepted: int, seconds: float, *, ended: bool = False
) -> None:
    """One round of gamma drafts in slot 0 is over."""
    emitted = accepted if ended else accepted + 1
    outcome = Outcome(gamma, gamma, accepted, emitted, ended, seconds, seconds)
    policy.learn(state, 0, view(), outcome)


def play(policy: Policy, state: Any, accepts: list[int], fixed_s: float = 10.0) -> list[int]:
    """Gamma of each round when the target would accept `accepts` tokens, and one last gamma. A
    round takes fixed_s + gamma / 10 * fixed_s.
    """
    shown = []
    for accept in accepts:
        gamma = policy.gamma(state, 0, view(), RNG)
        settle(policy, state, gamma, min(gamma, accept), fixed_s * (1.0 + gamma / 10.0))
        shown.append(gamma)
    return [*shown, policy.gamma(state, 0, view(), RNG)]


# -- Ollama --


def test_ollama_climbs_one_depth_at_a_time() -> None:
    policy = OllamaDepth(gamma_max=3, samples=2)
    state = policy.new_state(1)
    # Depth 0 twice (only the second round is as deep as the one before it: a sample, 10), 1 twice
    # (11; two outcomes: the frontier is 1). 2 tokens / 11 beats 1 / 10, and depth 2, at the cost of
    # 1 until it is measured and the rate of 1, beats that: 2 twice. Then 3 twice; it is the limit.
    assert play(policy, state, [FULL] * 9) == [0, 0, 1, 1, 2, 2, 3, 3, 3, 3]
    assert state.cost.tolist() == [10.0, 11.0, 12.0, 13.0]
    assert state.seen.tolist() == [7, 5, 3]
    # The next request starts where this one was, but its first round is no sample of the cost.
    policy.admit(state, 0)
    assert policy.gamma(state, 0, view(), RNG) == 3
    settle(policy, state, 3, 3, 50.0)
    assert float(state.cost[3]) == 13.0
    # A stall: 100 is 87 off, cut to a quarter of 13; 0.3 of that is added.
    settle(policy, state, 3, 3, 100.0)
    assert float(state.cost[3]) == pytest.approx(13.0 + 0.3 * 3.25)


def test_ollama_stops_and_probes_ever_more_seldom() -> None:
    policy = OllamaDepth(gamma_max=3, samples=2)
    state = policy.new_state(1)
    # Nothing is ever accepted. A probe after round 4, then depth 2 for its cost (rounds 6 and 7);
    # the probe changed nothing, so the next is due 8 rounds later, and the one after that 16.
    expected = [0, 0, 1, 1, 1, 2, 2, *[0] * 5, 1, *[0] * 15, 1, 0]
    assert play(policy, state, [0] * (len(expected) - 1)) == expected


def test_ollama_reads_costs_off_a_line_and_acceptance_off_what_was_judged() -> None:
    policy = OllamaDepth(gamma_max=4)
    state = policy.new_state(1)
    state.cost[1], state.cost[3] = 10.0, 14.0
    assert [cost_at(state, depth) for depth in range(5)] == [10.0, 10.0, 12.0, 14.0, 14.0]
    settle(policy, state, 4, 1, 1.0)
    assert state.seen.tolist() == [1, 1, 0, 0] and state.rate.tolist()[:2] == [1.0, 0.0]
    # The reply ended at the second token: both were accepted, nothing behind them was judged.
    settle(policy, state, 4, 2, 1.0, ended=True)
    assert state.seen.tolist() == [2, 2, 0, 0] and float(state.rate[1]) == pytest.approx(0.1)


def test_ollama_finds_the_best_length_of_a_still_world() -> None:
    trace = synthetic.constant(0.8, np.random.default_rng(0), requests=20, reply_tokens=200)
    costs = tabulate(Affine(draft_fixed=1e-3, target_fixed=6e-3))
    tuned, log = best_fixed(trace, costs)
    seconds = float(replay(OllamaDepth(), trace, costs).elapsed_s.sum())
    assert 3 <= tuned <= 8
    assert seconds < 1.05 * float(log.elapsed_s.sum())


# -- ONNX Runtime GenAI --


def test_onnx_keeps_a_faster_neighbour_and_leaves_a_much_slower_one_at_once() -> None:
    policy = OnnxAdaptiveK()
    state = policy.new_state(1)
    # Two rounds of 2, two of 3: 4 tokens / 13 s against 3 / 12. Kept: one round is passed over.
    assert play(policy, state, [FULL] * 6) == [2, 2, 3, 3, 3, 3, 4]
    # 5 tokens in 30 s are 0.54 of 4 in 13: back at once, and six rounds are passed over.
    settle(policy, state, 4, 4, 30.0)
    assert play(policy, state, [FULL] * 7) == [3] * 7 + [4]


def test_onnx_goes_down_where_little_is_accepted() -> None:
    policy = OnnxAdaptiveK(gamma_min=1)
    state = policy.new_state(1)
    state.plan[0, GAMMA] = 3
    # Below 0.5 after two rounds; one token in 12 s is more than 0.97 of one in 13.
    assert play(policy, state, [0] * 6) == [3, 3, 2, 2, 2, 2, 1]
    policy.admit(state, 0)
    assert policy.gamma(state, 0, view(), RNG) == 1


def test_onnx_gives_up_a_probe_that_is_a_little_slower_or_accepts_less() -> None:
    for accepted, seconds in ((3, 16.6), (2, 10.0)):
        policy = OnnxAdaptiveK()
        state = policy.new_state(1)
        assert play(policy, state, [FULL] * 2) == [2, 2, 3]
        # 4 / 16.6 is 0.964 of 3 / 12; 2 of 3 judged tokens are less than 0.75.
        settle(policy, state, 3, accepted, seconds)
        assert policy.gamma(state, 0, view(), RNG) == 3
        settle(policy, state, 3, accepted, seconds)
        assert policy.gamma(state, 0, view(), RNG) == 2


def test_onnx_learns_from_full_rounds_only() -> None:
    policy = OnnxAdaptiveK()
    state = policy.new_state(1)
    settle(policy, state, 1, 1, 1.0)  # there was room for one token only
    settle(policy, state, 2, 2, 1.0, ended=True)
    assert int(state.rounds.sum()) == 0
    settle(policy, state, 2, 1, 4.0)  # one of two judged
    settle(policy, state, 2, 0, 8.0)  # none of one
    # 2 - 0.25, 4 + 1, 0.5 - 0.125.
    assert state.seen[0, 2].tolist() == [1.75, 5.0, 0.375]


# -- vLLM --


def test_leading_positions_by_hand() -> None:
    policy = LeadingPositions(gamma_max=3, threshold=0.5, window=4, probe_every=8, hysteresis=0.1)
    state = policy.new_state(1)
    # Rates 0.75, 0.25, 0.25 after four drafts: one leading position. Step 8 drafts all three.
    assert play(policy, state, [3, 1, 1, 0, 1, 1, 1]) == [3, 3, 3, 3, 1, 1, 1, 3]
    assert float(state.rate[0]) == pytest.approx(1.0 - 0.25 * 0.75**3)
    # Position 2: 0.25 + 0.75 / 4 = 0.4375; 0.5781 at step 16: over the threshold, not over 0.6.
    # 0.6836 at step 24: on again, and so is position 3, which never was looked at.
    assert play(policy, state, [3] * 9)[1:] == [1] * 7 + [3, 1]
    assert float(state.rate[1]) == pytest.approx(0.578125)
    assert play(policy, state, [3] * 8)[-2:] == [3, 3]


def test_leading_positions_turn_off_and_count_what_was_judged() -> None:
    policy = LeadingPositions(gamma_max=2, window=2, probe_every=0)
    state = policy.new_state(1)
    settle(policy, state, 2, 1, 1.0, ended=True)
    assert state.seen.tolist() == [1, 0]
    settle(policy, state, 2, 0, 1.0)
    settle(policy, state, 2, 0, 1.0)
    # 1/2 after two drafts, 1/4 after three: below 0.4, and without probes that is the end.
    assert play(policy, state, [2, 2]) == [0, 0, 0]
    assert play(LeadingPositions(gamma_min=1, gamma_max=2, window=2), state, []) == [1]


def test_a_step_is_a_whole_batch() -> None:
    policy = LeadingPositions(gamma_max=3, window=1, probe_every=2)
    state, two = policy.new_state(2), view(batch_size=2)
    outcome = Outcome(3, 3, 0, 1, False, 1.0, 1.0)
    policy.learn(state, 0, two, outcome)
    assert state.clock.tolist() == [1, 0, 1]
    assert policy.gamma(state, 0, two, RNG) == 3  # nothing is switched within a step
    policy.learn(state, 1, two, outcome)
    assert state.clock.tolist() == [2, 1, 0]
    assert policy.gamma(state, 0, two, RNG) == 3  # step 2 probes
    for slot in range(2):
        policy.learn(state, slot, two, outcome)
    assert policy.gamma(state, 0, two, RNG) == 0


def test_tables_by_context() -> None:
    policy = ContextTable()
    state = policy.new_state(1)
    found = [
        policy.gamma(state, 0, view(batch_size=batch, context_tokens=context), RNG)
        for batch in (64, 65, 256, 257)
        for context in (768, 769)
    ]
    assert found == [3, 3, 0, 3, 0, 3, 0, 0]
    rows = LengthTable(context1=100, gamma1=5, context2=200, gamma2=2)
    lengths = [rows.gamma(state, 0, view(context_tokens=c), RNG) for c in (1, 100, 101, 200, 201)]
    assert lengths == [5, 5, 2, 2, 0]


# -- llama.cpp --


def test_credit_bucket_by_hand() -> None:
    policy = CreditBucket()
    state = policy.new_state(1)
    assert (int(state.gamma[0]), int(state.bucket[0])) == (3, 20)
    # Each full acceptance of 3 adds 2: the tenth reaches 40. Then 3 each: the seventh reaches 41,
    # one too many, which the bucket of depth 5 starts with.
    assert play(policy, state, [FULL] * 17)[9:] == [3] + [4] * 7 + [5]
    assert int(state.bucket[0]) == 21
    # Five misses of five: 16, 11, 6, 1, -4. Depth 4 starts at 20 + 20, less 20 and 4.
    assert play(policy, state, [0] * 5)[-1] == 4
    assert int(state.bucket[0]) == 16
    # One short of full takes 1, also where the draft itself was one short.
    settle(policy, state, 4, 3, 1.0)
    settle(policy, state, 3, 3, 1.0)
    assert int(state.bucket[0]) == 14
    # At the floor the bucket stays at 0.
    assert play(policy, state, [0] * 20)[-1] == 3 and int(state.bucket[0]) == 0
    policy.admit(state, 0)
    assert (int(state.gamma[0]), int(state.bucket[0])) == (3, 20)


def test_credit_bucket_at_depth() -> None:
    policy = CreditBucket(gamma_min=8, gamma_max=9)
    state = policy.new_state(1)
    # D = 32: full at 52, 7 for each full acceptance: three make 53, so depth 9 (D = 36) has 37.
    assert play(policy, state, [FULL] * 3) == [8, 8, 8, 9] and int(state.bucket[0]) == 37
    assert play(policy, state, [FULL] * 4)[-1] == 9 and int(state.bucket[0]) == 56
    # 56 - 7 * 9 = -7: depth 8 has 32 + 20 - 36 - 7.
    assert play(policy, state, [0] * 7)[-1] == 8 and int(state.bucket[0]) == 9


def test_zones_do_the_example_of_their_header() -> None:
    policy = Zones(
        gamma_min=4, gamma_max=12, rounds=3, bias=1, window=8, positive=4, negative=3,
        hold_tokens=16,
    )  # fmt: skip
    state = policy.new_state(1)
    assert play(policy, state, [4, 4, 4, 4, 3, 4]) == [4, 4, 4, 4, 4, 4, 5]
    # A new window: 5 tokens a round, so four rounds are held; three in the zone are needed too.
    assert play(policy, state, [5] * 6) == [5] * 6 + [6]


def test_zones_go_down_and_forget_the_oldest() -> None:
    policy = Zones(gamma_min=1, rounds=3, window=5, positive=4, negative=3)
    state = policy.new_state(1)
    state.counts[0, LENGTH] = 3
    # Failures in the window: 1, 1, 2, 3, 3, then 2, for the first of all has left it: the row of
    # rounds in the zone breaks. 3, 3, 3: a token less, and the window starts anew.
    assert play(policy, state, [0, 3, 0, 0, 3, 3, 0, 0, 0]) == [*[3] * 9, 2]
    assert play(policy, state, [0] * 5) == [*[2] * 5, 1]
    policy.admit(state, 0)
    assert policy.gamma(state, 0, view(), RNG) == 1


# -- DSDE --


def draft_and_settle(
    policy: Policy, state: Any, probs: list[float], accepted: int, *, ended: bool = False
) -> None:
    for k, prob in enumerate(probs):
        assert policy.proceed(state, 0, Draft(k + 1, prob, 0.0))
    settle(policy, state, len(probs), accepted, 1.0, ended=ended)


def test_dsde_warms_up_then_sets_its_bounds() -> None:
    policy = Dsde(gamma0=1, gamma_min=1, gamma_max=8, window=4)
    state = policy.new_state(1)
    draft_and_settle(policy, state, [0.5], 1)
    assert policy.gamma(state, 0, view(), RNG) == 2  # all accepted: twice as long
    draft_and_settle(policy, state, [0.5, 0.5], 1)
    assert policy.gamma(state, 0, view(), RNG) == 2 and int(state.counts[0, HELD]) == 3
    assert state.ring[0, :3].tolist() == pytest.approx([LN2] * 3)  # - ln 0.5, - ln (1 - 0.5)
    # The window fills. The warm-up's divergences are all equal: (1 + 0.5) 1 = 1.5, rounded to 2.
    draft_and_settle(policy, state, [0.5, 0.9], 2)
    assert (int(state.counts[0, LOW]), int(state.counts[0, HIGH])) == (1, 2)
    # The newest third is one value, without variance: as long as may be.
    assert policy.gamma(state, 0, view(), RNG) == 2
    policy.admit(state, 0)
    assert policy.gamma(state, 0, view(), RNG) == 1 and float(state.ring.sum()) == 0.0


def test_dsde_length_by_hand() -> None:
    policy = Dsde(gamma_min=2, window=6, memory=0.5)
    state = policy.new_state(1)
    state.counts[0, LOW], state.counts[0, HIGH], state.counts[0, HELD] = 2, 12, 6
    # Divergence - ln 0.9, five zeros before it. SF = 1 / 0.81 - 1 = 0.2346. Newest two, weights 1
    # and 1/2: variance 2/9 of its square; all six: mean 32/63, variance 32/63 31/63: WVIR 0.8891.
    draft_and_settle(policy, state, [0.9], 1)
    assert variance_ratio(state, 0, 0.5) == pytest.approx(2 / 9 / (32 / 63 * 31 / 63))
    # ceil(10 (1 - 0.2086) + 2) = ceil(9.914).
    assert policy.gamma(state, 0, view(), RNG) == 10
    # A rejected token of which the draft was all but sure: SF is huge.
    draft_and_settle(policy, state, [0.999], 0)
    assert policy.gamma(state, 0, view(), RNG) == 2


def test_dsde_without_variance_is_unstable() -> None:
    policy = Dsde(gamma_min=2, window=6)
    state = policy.new_state(1)
    state.counts[0, LOW], state.counts[0, HIGH] = 2, 12
    for _ in range(6):
        draft_and_settle(policy, state, [0.9], 1)
    # The ratio is 20: 20 * 0.2346 > 1.
    assert variance_ratio(state, 0, 0.9) == 20.0
    assert policy.gamma(state, 0, view(), RNG) == 2


def test_dsde_takes_the_verdict_where_there_is_one() -> None:
    assert divergence(0.25, True) == pytest.approx(2 * LN2)
    assert divergence(0.75, False) == pytest.approx(2 * LN2)
    assert divergence(1.0, False) == pytest.approx(-math.log(1e-8))
    policy = Dsde()
    state = policy.new_state(1)
    draft_and_settle(policy, state, [0.5, 0.5, 0.5, 0.5], 1)  # accepted, rejected
    draft_and_settle(policy, state, [0.5, 0.5], 1, ended=True)  # accepted
    assert int(state.counts[0, HELD]) == 3


# -- the entropy gate --


def look(policy: Policy, state: Any, bits: float) -> bool:
    """The first token of a round has this entropy; the round is over. Was it to go on?"""
    gamma = policy.gamma(state, 0, view(), RNG)
    if gamma == 0:
        settle(policy, state, 0, 0, 1.0)
        return False
    going = policy.proceed(state, 0, Draft(1, 0.5, bits * LN2))
    settle(policy, state, gamma if going else 1, 0, 1.0)
    return going


def test_entropy_gate_by_hand() -> None:
    policy = EntropyGate()
    state = policy.new_state(1)
    # 0.5, then 0.35 1.5 + 0.65 0.5 = 0.85: shut. 0.7975: between the thresholds, shut still.
    # 0.5184: open. 0.337 + 0.35 = 0.687: between them, and open still.
    assert [look(policy, state, bits) for bits in (0.5, 1.5, 0.7, 0.0, 1.0)] == [
        True, False, False, True, True,
    ]  # fmt: skip
    assert float(state.entropy[0]) == pytest.approx(0.35 + 0.65 * 0.65 * 0.7975)
    assert policy.proceed(state, 0, Draft(2, 0.1, 9.0))  # later tokens are not looked at
    policy.admit(state, 0)
    assert float(state.entropy[0]) == 0.0


def test_a_shut_gate_looks_now_and_then() -> None:
    policy = EntropyGate(look_every=3)
    state = policy.new_state(1)
    shown = []
    for _ in range(8):
        shown.append(policy.gamma(state, 0, view(), RNG))
        look(policy, state, 2.0)
    assert shown == [5, 0, 0, 5, 0, 0, 5, 0]


# -- a remote draft --


def test_specstop_grows_with_the_way() -> None:
    found = []
    for delay_ms in (0.0, 10_000.0, 1e6):
        policy = SpecStop(delay_ms=delay_ms)
        found.append(policy.gamma(policy.new_state(1), 0, view(), RNG))
    # (k + 6) / (1 + ... + 0.7^k): 8 / 2.19, 9 / 2.533, 10 / 2.773: 3 is best. With 20 s of way
    # 31 / 2.941, 32 / 3.059, 33 / 3.141: 6. In the end as long as may be.
    assert found == [3, 6, 10]


def test_specstop_learns_its_rate() -> None:
    policy = SpecStop()
    state = policy.new_state(1)
    settle(policy, state, 3, 1, 1.0)
    settle(policy, state, 3, 2, 1.0, ended=True)
    assert float(state.judged[0]) == pytest.approx(0.999 * 2 + 2)
    assert float(state.passed[0]) == pytest.approx(0.999 * 1 + 2)
    for _ in range(40):
        settle(policy, state, 1, 0, 1.0)
    # Below 0.3: 7 / 1.29 is less than 8 / 1.37.
    assert policy.gamma(state, 0, view(), RNG) == 1
    assert policy.gamma(state, 0, view(room=0), RNG) == 0


def test_ucb_specstop_by_hand() -> None:
    for beta_ms, chosen in ((1.0, 2), (100.0, 1)):
        policy = UCBSpecStop(gamma_max=2, beta_ms=beta_ms)
        state = policy.new_state(1)
        assert policy.gamma(state, 0, view(), RNG) == 1
        settle(policy, state, 1, 0, 0.010)
        assert policy.gamma(state, 0, view(), RNG) == 2
        settle(policy, state, 2, 2, 0.012)
        # sqrt(ln 3) = 1.048: (10 - 1.048) / 1 and (12 - 1.048) / 3. With 100 times as much
        # -94.8 / 1 and -92.8 / 3.
        assert policy.gamma(state, 0, view(), RNG) == chosen
        assert policy.gamma(state, 0, view(room=1), RNG) == 1
        assert policy.gamma(state, 0, view(room=0), RNG) == 0
