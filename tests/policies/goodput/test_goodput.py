"""Servers' goodput rules and Cascade: every update rule by hand; the whole room conforms."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from policies.base import Outcome, Policy, View, field_values
from policies.confidence.thresholds import TailPruning
from policies.conformance import check_policy
from policies.counts.gammatune import GammaTune
from policies.fixed import Fixed
from policies.goodput.adaptive_k import AdaptiveK
from policies.goodput.arbiter import (
    arbiter,
)
from policies.goodput.cascade import Cascade
from policies.goodput.rounds import judged_tokens
from policies.goodput.sglang_throughput import SGLangThroughput, extrapolated
from policies.goodput.smartspec import SmartSpec
from policies.goodput.vllm_dynamic import VLLMDynamic
from policies.ours.goodput import AlphaGoodput
from simulator.replay.replay import replay, replay_interpreted
from tests.policies.goodput.rounds_by_hand import RNG, tell, view
from tests.specimens import random_costs, random_trace
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate

POLICIES: list[Policy] = [
    VLLMDynamic(),
    VLLMDynamic(gamma_max=3, warmup_rounds=0, probe_every=2),
    SGLangThroughput(),
    SGLangThroughput(gamma_max=3, window=3, update_every=2, hysteresis=0.0),
    SmartSpec(),
    SmartSpec(gamma_max=3, memory=0.5, alpha0=0.1, decide_every=3, probe_every=2),
    AlphaGoodput(),
    AlphaGoodput(gamma_max=3, memory=0.5, alpha0=0.1, probe_every=2),
    AdaptiveK(),
    AdaptiveK(gamma_max=3, window=2, cooldown_rounds=0, hysteresis_tokens=0, probe_every=2),
    Cascade(),
    Cascade(gamma_max=2, trial_rounds=1, trials=2, set_rounds=3, doublings=1),
    arbiter(Fixed)(),
    arbiter(GammaTune)(arbiter_window_rounds=3, arbiter_serial_tokens=8, arbiter_draft_tokens=8),
    arbiter(TailPruning)(arbiter_window_rounds=2, arbiter_wins=1, arbiter_serial_tokens=4),
]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_conforms(policy: Policy) -> None:
    check_policy(policy)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_compiled_takes_the_same_decisions(policy: Policy) -> None:
    generator = np.random.default_rng(7)
    costs = tabulate(Affine(context_token=1e-6, signal=1e-4, control=2e-4, prefill_token=1e-4))
    size = {"requests": 3, "reply_tokens": 150, "signals": True}
    for trace in (
        synthetic.constant(0.8, generator, **size),
        synthetic.constant(0.1, generator, **size),
        synthetic.bursty(0.95, 0.2, generator, **size),
    ):
        assert replay(policy, trace, costs).same_rounds(replay_interpreted(policy, trace, costs))
    for depth in (1, 4, 24):
        trace, costs = random_trace(generator, 3, depth), random_costs(generator, depth)
        assert replay(policy, trace, costs).same_rounds(replay_interpreted(policy, trace, costs))


def test_judged_tokens() -> None:
    assert judged_tokens(Outcome(5, 5, 2, 3, False, 1.0, 1.0)) == 3  # two accepted, one rejected
    assert judged_tokens(Outcome(5, 5, 5, 6, False, 1.0, 1.0)) == 5
    assert judged_tokens(Outcome(5, 5, 2, 2, True, 1.0, 1.0)) == 2  # the reply ended
    assert judged_tokens(Outcome(0, 0, 0, 1, False, 1.0, 1.0)) == 0


# vllm-dynamic


def test_vllm_warms_up_on_the_prior() -> None:
    policy = VLLMDynamic(gamma_max=4, warmup_rounds=2, prior_rate=0.5)
    state = policy.new_state(1)
    # Seconds 6 + k. Goodput 1/6 = .1667, 1.5/7 = .2143, 1.75/8 = .2188, 1.875/9 = .2083.
    assert [tell(policy, state, 9, view()), tell(policy, state, 0, view())] == [2, 2]
    # Now counts: both positions were drafted twice and accepted once; positions 3 and 4 count as 0.
    # 1/6, 1.5/7 = .2143, 2/8 = .25, 2/9, 2/10.
    assert state.drafted.tolist() == [2, 2, 0, 0] and state.accepted.tolist() == [1, 1, 0, 0]
    assert policy.gamma(state, 0, view(), RNG) == 2
    assert policy.gamma(state, 0, view(room=1), RNG) == 1


def test_vllm_ties_go_to_the_smallest() -> None:
    policy = VLLMDynamic(gamma_max=2, warmup_rounds=0)
    state = policy.new_state(1)
    state.drafted[:] = 4
    state.accepted[:] = [2, 1]
    # Seconds 2 + k: 1/2 = 1.5/3, and 1.75/4 is less.
    assert policy.gamma(state, 0, view(verify_s=2.0), RNG) == 0


def test_vllm_probes_after_silence() -> None:
    policy = VLLMDynamic(gamma_max=4, warmup_rounds=0, probe_every=3)
    state = policy.new_state(1)
    # Nothing drafted: every rate is 0. Three plain rounds, then one token; it is accepted, and
    # (1 + 1) / 7 beats 1 / 6.
    assert [tell(policy, state, 9, view()) for _ in range(5)] == [0, 0, 0, 1, 1]


# sglang-throughput


def test_extrapolation_by_hand() -> None:
    assert extrapolated(0.8, 0.8, 1) == 0.8  # one rate known: it stays
    # Three known, .8 .. .2: a factor (.25)^(1/2) = .5.
    assert extrapolated(0.8, 0.2, 3) == pytest.approx(0.1)
    assert extrapolated(0.8, 0.0, 3) == 0.0
    assert extrapolated(0.0, 0.0, 3) == 0.0
    assert extrapolated(0.2, 0.8, 3) == 0.8  # windows of unlike age may rise: never above the last


def test_sglang_windows_slide() -> None:
    policy = SGLangThroughput(gamma0=3, window=2, update_every=99)
    state = policy.new_state(1)
    for accepted in (3, 1, 0):
        assert tell(policy, state, accepted, view()) == 3
    # The first round has left the window of two: p = 1/2, 0, 0.
    assert state.hits.tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert state.seen.tolist() == [3, 3, 3, 0, 0, 0, 0]


def test_sglang_goes_up_by_extrapolation_and_down_by_measurement() -> None:
    policy = SGLangThroughput(gamma0=3, window=2, update_every=2, hysteresis=0.1)
    state = policy.new_state(1)
    # All accepted: p = 1, 1, 1, and on as 1. Seconds 6 + S: 2/7 = .286, 4/9 = .444, 6/11 = .545,
    # 8/13 = .615: 7 steps.
    assert [tell(policy, state, 9, view()) for _ in range(3)] == [3, 3, 7]
    # From here on nothing is accepted. Reconsidered every second round: after one such round every
    # window holds 1 and 0, p = 1/2 throughout: 1.5/7 = .214, 2.5/9 = .278, 3.5/11 = .318, 4.5/13 =
    # .346, 7 stays. Two rounds later p = 0: 1/7 against 1/13.
    assert [tell(policy, state, 0, view()) for _ in range(4)] == [7, 7, 7, 1]
    assert state.seen.tolist() == [7, 0, 0, 0, 0, 0, 0]  # what lay above is cleared


def test_sglang_needs_a_margin_and_full_windows() -> None:
    policy = SGLangThroughput(gamma0=5, window=4, update_every=1, hysteresis=0.1)
    state = policy.new_state(1)
    assert [tell(policy, state, 9, view()) for _ in range(4)] == [5] * 4
    # 6/11 = .545 for 5, 8/13 = .615 for 7: better by 12.8 %.
    assert policy.gamma(state, 0, view(), RNG) == 7
    wide = dataclasses.replace(policy, hysteresis=0.13)
    state = wide.new_state(1)
    assert [tell(wide, state, 9, view()) for _ in range(6)] == [5] * 6
    # Where the present candidate does not fit, nothing is reconsidered.
    state = policy.new_state(1)
    for _ in range(4):
        tell(policy, state, 0, view())
    assert policy.gamma(state, 0, view(room=4), RNG) == 5
    assert policy.gamma(state, 0, view(), RNG) == 1


# smartspec


def test_smartspec_by_hand() -> None:
    fields = field_values(SmartSpec())
    assert (fields["alpha0"], fields["memory"], fields["plain_gain"]) == (0.7, 0.85, 1.1)
    policy = SmartSpec(gamma_max=5, memory=0.5, alpha0=0.5, decide_every=2)
    state = policy.new_state(1)
    # Nothing before the first decision. Seconds 6 + k: 1.1/6 = .1833, 1.5/7 = .2143, 1.75/8 =
    # .2188, 1.875/9 = .2083: 2. One of two accepted: alpha = .5 .5 + .5 1/2 = .5 again.
    assert [tell(policy, state, 1, view()) for _ in range(2)] == [0, 2]
    assert float(state.alpha[0]) == 0.5
    # Held for two steps, then decided with .75: 1.75/7 = .25, 2.3125/8 = .289, 2.734/9 = .3038,
    # 3.0508/10 = .3051, 3.288/11 = .299.
    assert [tell(policy, state, 9, view()) for _ in range(2)] == [2, 4]
    # The published closed form gives the same tokens for 4: (1 - .75^5) / .25 = 3.0508.
    assert float(state.alpha[0]) == 0.875
    assert tell(policy, state, 1, view()) == 4
    # accepted / drafted: 1/4, not 1/2 of those that were judged.
    assert float(state.alpha[0]) == 0.5 * 0.875 + 0.5 * 0.25


def test_smartspec_decides_at_step_20_first() -> None:
    policy = SmartSpec()
    state = policy.new_state(1)
    # alpha .7: 1.7/7 = .243, 2.19/8 = .274, 2.533/9 = .2814, 2.773/10 = .277.
    assert [tell(policy, state, 2, view()) for _ in range(41)] == [0] * 19 + [3] * 22


def test_smartspec_favours_plain_decoding_and_stops_at_the_first_drop() -> None:
    policy = SmartSpec(alpha0=0.25, decide_every=1)
    # 1.25/7 = .1786 lies between 1/6 = .1667 and 1.1/6 = .1833.
    assert policy.gamma(policy.new_state(1), 0, view(), RNG) == 0
    even = dataclasses.replace(policy, plain_gain=1.0)
    assert even.gamma(even.new_state(1), 0, view(), RNG) == 1
    # A step of two tokens is slow, of three it is not: the scan does not get there.
    steep = View(100, 1, 0, 30, 0.1, np.array([0.0, 6.0, 20.0] + [6.0] * 30))
    sure = SmartSpec(alpha0=0.9, decide_every=1)
    assert sure.gamma(sure.new_state(1), 0, steep, RNG) == 0


def test_smartspec_never_comes_back_without_a_probe() -> None:
    policy = SmartSpec(memory=0.5, alpha0=0.1, decide_every=1)
    state = policy.new_state(1)
    assert [tell(policy, state, 9, view()) for _ in range(99)] == [0] * 99
    probing = dataclasses.replace(policy, probe_every=2)
    state = probing.new_state(1)
    # The probe's token is accepted: alpha .55, 1.55/7 > 1.1/6.
    assert [tell(probing, state, 9, view()) for _ in range(3)] == [0, 0, 1]
    assert probing.gamma(state, 0, view(), RNG) > 0


# alpha-goodput


def test_alpha_goodput_by_hand() -> None:
    policy = AlphaGoodput(gamma_max=5, memory=0.5, alpha0=0.5)
    state = policy.new_state(1)
    # Seconds 6 + k: 1/6 = .1667, 1.5/7 = .2143, 1.75/8 = .2188, 1.875/9 = .2083.
    assert tell(policy, state, 1, view()) == 2
    # One accepted, one rejected: alpha = .5 .5 + .5 1/2 = .5 again.
    assert float(state.alpha[0]) == 0.5
    assert tell(policy, state, 9, view()) == 2
    assert float(state.alpha[0]) == 0.75
    assert policy.gamma(state, 0, view(), RNG) == 4


def test_alpha_goodput_turns_off_and_probes() -> None:
    policy = AlphaGoodput(memory=0.5, alpha0=0.1, probe_every=2)
    state = policy.new_state(1)
    # 1.1/7 < 1/6. The probe's token is accepted: alpha .55, 1.55/7 > 1/6.
    assert [tell(policy, state, 9, view()) for _ in range(3)] == [0, 0, 1]
    assert float(state.alpha[0]) == pytest.approx(0.55)
    assert policy.gamma(state, 0, view(), RNG) > 0


# adaptive-k


def test_adaptive_k_by_hand() -> None:
    policy = AdaptiveK(
        gamma_max=4, eta=0.5, window=2, prior_rate=0.5, batch_penalty=0.0, cooldown_rounds=0
    )
    state = policy.new_state(1)
    # c = 1/10. 1.5/1.1 = 1.364, 1.75/1.2 = 1.458, 1.875/1.3 = 1.442: K = 2.
    cheap = view(draft_s=1.0, verify_s=10.0)
    assert [tell(policy, state, 9, cheap), tell(policy, state, 1, cheap)] == [2, 2]
    # First position 2 of 2, second 1 of 2: .5 .5 + .5 1 = .75 and .5 .5 + .5 .5 = .5.
    assert state.ema.tolist() == [0.75, 0.5, 0.5, 0.5]
    # 1.75/1.1 = 1.591, 2.125/1.2 = 1.771, 2.3125/1.3 = 1.779, 2.40625/1.4 = 1.719: 3 is best, but
    # a change by 1 is ignored.
    assert tell(policy, state, 0, cheap) == 2
    assert dataclasses.replace(policy, hysteresis_tokens=0).gamma(state, 0, cheap, RNG) == 3


def test_adaptive_k_is_off_below_one() -> None:
    policy = AdaptiveK(gamma_max=4, prior_rate=0.25, batch_penalty=0.0, probe_every=2)
    state = policy.new_state(1)
    # c = 1/2: 1.25/1.5, less still behind. The probe comes after two plain rounds.
    assert [tell(policy, state, 9, view(verify_s=2.0)) for _ in range(3)] == [0, 0, 1]
    # The batch pays a penalty: with c = 1/6 and rate .25, 1.25/1.167 > 1, but 1.25/1.267 < 1.
    assert policy.new_state(1).mode[0] == -1
    held = AdaptiveK(gamma_max=4, prior_rate=0.25, batch_penalty=0.0)
    assert held.gamma(held.new_state(1), 0, view(), RNG) == 1
    busy = AdaptiveK(gamma_max=4, prior_rate=0.25, batch_penalty=0.1)
    assert busy.gamma(busy.new_state(1), 0, view(), RNG) == 0


def test_adaptive_k_cools_down() -> None:
    policy = AdaptiveK(gamma_max=8, window=1, eta=1.0, prior_rate=0.9, cooldown_rounds=3)
    state = policy.new_state(1)
    first = policy.gamma(state, 0, view(), RNG)
    state.ema[:] = 0.0
    after = [policy.gamma(state, 0, view(), RNG) for _ in range(4)]
    assert first > 1 and after == [first, first, first, 0]


# cascade


def test_cascade_climbs_sets_and_tests_again() -> None:
    policy = Cascade(gamma0=2, gamma_max=8, trial_rounds=2, trials=3, set_rounds=3)
    state = policy.new_state(1)
    # Everything is accepted: utility (k + 1) / ((6 + k) / 6) is 3/(8/6) = 2.25, 4/(9/6) = 2.67,
    # 5/(10/6) = 3: three trials, 4 is set, and the next test starts from 4.
    assert [tell(policy, state, 9, view()) for _ in range(10)] == [2, 2, 3, 3, 4, 4, 4, 4, 4, 4]


def test_cascade_turns_round_and_keeps_the_best() -> None:
    policy = Cascade(gamma0=3, trial_rounds=1, trials=9, set_rounds=2)
    state = policy.new_state(1)
    # Two are accepted. 3: 3/(9/6) = 2. 4: 3/(10/6) = 1.8, turn. 2: 3/(8/6) = 2.25, better.
    # 1: 2/(7/6) = 1.71, stop. 2 is set for two rounds; the next test starts from it.
    assert [tell(policy, state, 2, view()) for _ in range(7)] == [3, 4, 2, 1, 2, 2, 2]


def test_cascade_backs_off() -> None:
    policy = Cascade(gamma0=3, trial_rounds=2, set_rounds=2, doublings=1)
    state = policy.new_state(2)
    # Nothing is accepted: utility 1/1.5. Off for 2 rounds, then for 4, and never more than 4.
    gammas = [tell(policy, state, 0, view(), slot=1) for _ in range(16)]
    assert gammas == [3, 3, 0, 0, 3, 3, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0]
    assert policy.gamma(state, 0, view(), RNG) == 3  # the other request is still in its first test
    policy.admit(state, 1)
    assert [tell(policy, state, 0, view(), slot=1) for _ in range(5)] == [3, 3, 0, 0, 3]


def test_cascade_at_the_edges() -> None:
    policy = Cascade(gamma0=9, gamma_max=2, trial_rounds=1, set_rounds=1)
    state = policy.new_state(1)
    # Starts at the largest, so it tries shorter; 2: 3/(8/6) = 2.25, 1: 2/(7/6) = 1.71.
    assert [tell(policy, state, 9, view()) for _ in range(4)] == [2, 1, 2, 2]
