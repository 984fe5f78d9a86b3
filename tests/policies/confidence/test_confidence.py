"""Stops by confidence, entropy, machine profile and trained weights, each rule by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from policies.base import Draft, Outcome, Policy, View
from policies.confidence.classifiers import Disco, SpecDecPlusPlus, chance, features, log_odds
from policies.confidence.draft_verify import DraftVerify
from policies.confidence.entropy import SVIP, AdaEDL, acceptance_gap
from policies.confidence.profile_guided import ProfileGuided
from policies.confidence.speckv import SpecKV
from policies.confidence.thresholds import BatchConfidence, HFConfidence
from policies.conformance import check_policy
from policies.fixed import Fixed
from policies.randomness import Rng
from simulator.replay.replay import replay, replay_interpreted
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.log_prices import surplus_draft_s
from traces.costs.pricing import tabulate
from traces.costs.table import Table
from traces.schema import Trace
from traces.shipped import GREEDY, TIMING
from traces.store import read_trace
from traces.timing import read_timing

RNG = Rng(1)
CLASSES = (
    BatchConfidence,
    DraftVerify,
    SVIP,
    AdaEDL,
    ProfileGuided,
    Disco,
    SpecDecPlusPlus,
    SpecKV,
)


def view(room: int = 30, verify: list[float] | None = None) -> View:
    return View(100, 1, 0, room, 1.0, np.asarray(verify or [0.0] + [6.0] * 40))


def going(policy: Policy, state: Any, top1: list[float], slot: int = 0) -> list[bool]:
    """What proceed answers to each token of one round, asked also after it has said stop."""
    return [policy.proceed(state, slot, Draft(k + 1, p, 1.0)) for k, p in enumerate(top1)]


def settle(policy: Policy, state: Any, gamma: int, accepted: int, *, ended: bool = False) -> None:
    """One round of gamma drafts is over."""
    emitted = accepted if ended else accepted + 1
    policy.learn(
        state, 0, view(), Outcome(gamma, gamma, accepted, emitted, emitted <= accepted, 1.0, 1.0)
    )


@pytest.mark.parametrize("cls", CLASSES)
def test_conforms(cls: type[Policy]) -> None:
    check_policy(cls())


@pytest.mark.parametrize("cls", CLASSES)
def test_runtimes_agree(cls: type[Policy]) -> None:
    costs = tabulate(Affine(context_token=1e-6, target_token=3e-4, signal=1e-4, control=2e-4))
    for draw in (synthetic.constant, synthetic.bursty):
        rates = (0.8,) if draw is synthetic.constant else (0.95, 0.3)
        generator = np.random.default_rng(5)
        trace: Trace = draw(*rates, generator, requests=3, reply_tokens=90, signals=True)
        log = replay(cls(), trace, costs)
        assert log.same_rounds(replay_interpreted(cls(), trace, costs))
        assert len(set(log.drafted.tolist())) > 1


def test_batch_mean_over_the_rows_that_drafted_this_token() -> None:
    policy = BatchConfidence(threshold=0.5)
    state = policy.new_state(3)
    for slot in range(3):
        assert going(policy, state, [0.01], slot=slot) == [True]  # the first one is never tested
    assert policy.proceed(state, 2, Draft(2, 0.6, 1.0)) is True  # alone so far
    assert policy.proceed(state, 0, Draft(2, 0.2, 1.0)) is False  # (0.6 + 0.2) / 2 = 0.4
    assert policy.proceed(state, 1, Draft(2, 0.9, 1.0)) is True  # (0.6 + 0.2 + 0.9) / 3 = 0.57
    # Third token: row 0 has stopped and its second token is no row of this depth.
    assert policy.proceed(state, 1, Draft(3, 0.45, 1.0)) is False
    assert policy.proceed(state, 2, Draft(3, 0.56, 1.0)) is True  # (0.45 + 0.56) / 2 = 0.505
    for slot in range(3):
        policy.learn(state, slot, view(), Outcome(4, 2, 1, 2, False, 1.0, 1.0))
    assert going(policy, state, [0.1, 0.51], slot=1) == [True, True]  # a new round: alone again


def test_batch_of_one_is_the_constant_threshold_from_the_second_token_on() -> None:
    generator = np.random.default_rng(2)
    trace = synthetic.constant(0.7, generator, requests=2, reply_tokens=60, signals=True)
    assert trace.top1_prob is not None
    sure = trace.top1_prob.copy()
    sure[:, 0] = 1.0
    costs = tabulate(Affine())
    batch, constant = BatchConfidence(threshold=0.6), HFConfidence(threshold=0.6)
    assert not replay(batch, trace, costs).same_rounds(replay(constant, trace, costs))
    trace = dataclasses.replace(trace, top1_prob=sure)
    assert replay(batch, trace, costs).same_rounds(replay(constant, trace, costs))


def test_surplus_drafts_by_hand() -> None:
    generator = np.random.default_rng(2)
    trace = synthetic.constant(0.7, generator, requests=2, reply_tokens=60, signals=True)
    costs = tabulate(Affine(draft_fixed=2e-3, signal=5e-4))
    log = replay(BatchConfidence(gamma_max=5, threshold=0.6), trace, costs)
    assert (log.drafted < log.gamma).any()
    expected = (log.gamma - log.drafted) * 2.5e-3
    assert surplus_draft_s(log, costs) == pytest.approx(expected)


def test_drafts_behind_the_cut_cost_more_than_the_cut_gains() -> None:
    trace = read_trace(GREEDY)
    costs = tabulate(Table(read_timing(TIMING)), width=trace.meta.depth + 2)
    cut, fixed = (replay(p, trace, costs) for p in (BatchConfidence(), Fixed(3)))
    spent_s, fixed_s = float(cut.elapsed_s.sum()), float(fixed.elapsed_s.sum())
    surplus_s = float(surplus_draft_s(cut, costs).sum())
    assert spent_s < fixed_s < spent_s + surplus_s


def test_draft_verify_by_hand() -> None:
    policy = DraftVerify(gamma_max=4)
    state = policy.new_state(2)
    assert going(policy, state, [0.8, 0.79]) == [True, False]
    # matchness 0.5 * 0 + 0.5 * 1 = 0.5, below 0.9: 0.9 * 0.8 + 0.1 * 0.81 = 0.801
    settle(policy, state, 2, 2)
    assert float(state.matchness[0]) == 0.5
    assert float(state.threshold[0]) == pytest.approx(0.801)
    # 0.25 + 0.5 * 2 / 4 = 0.5: up again.
    settle(policy, state, 4, 2)
    assert float(state.matchness[0]) == 0.5
    assert float(state.threshold[0]) == pytest.approx(0.802)
    # 0.75, 0.875: up twice; then 0.9375 with 3 of at most 4 tokens: down.
    for expected in (0.803, 0.804, 0.803):
        settle(policy, state, 3, 3)
        assert float(state.threshold[0]) == pytest.approx(expected)
    assert float(state.matchness[0]) == 0.9375
    settle(policy, state, 4, 4)  # matched, and as long as it may be: stays
    assert float(state.threshold[0]) == pytest.approx(0.803)


def test_draft_verify_judges_no_empty_and_no_ended_round() -> None:
    policy = DraftVerify()
    state = policy.new_state(1)
    settle(policy, state, 0, 0)
    settle(policy, state, 5, 2, ended=True)
    assert float(state.matchness[0]) == 0.0 and float(state.threshold[0]) == 0.8


def test_draft_verify_hands_the_threshold_on_but_not_the_matchness() -> None:
    policy = DraftVerify()
    state = policy.new_state(2)
    settle(policy, state, 2, 2)
    policy.admit(state, 0)
    assert float(state.matchness[0]) == 0.0
    assert float(state.threshold[0]) == pytest.approx(0.801)
    assert policy.proceed(state, 1, Draft(1, 0.8005, 1.0)) is False  # of the other request too


def test_svip_by_hand() -> None:
    policy = SVIP()
    assert acceptance_gap(0.15, 0.6) == pytest.approx(0.3)
    assert acceptance_gap(0.15, -1e-5) == 0.0
    assert policy.proceed(None, 0, Draft(1, 0.5, 0.59))
    assert not policy.proceed(None, 0, Draft(2, 0.5, 0.61))
    assert policy.gamma(None, 0, view(), RNG) == 40


def test_adaedl_by_hand() -> None:
    policy = AdaEDL()
    state = policy.new_state(1)
    # 1 - sqrt(0.2 H) >= 0.4 until 0.2 H = 0.36: H = 1.8 nats.
    assert policy.proceed(state, 0, Draft(1, 0.5, 1.79))
    assert not policy.proceed(state, 0, Draft(2, 0.5, 1.81))
    settle(policy, state, 5, 0)  # nothing accepted: lambda 0.9 * 0.4 + 0.1 * 0.41
    assert float(state.threshold[0]) == pytest.approx(0.401)
    assert not policy.proceed(state, 0, Draft(1, 0.5, 1.797))  # 1 - sqrt(0.3594) = 0.4005


def test_profile_guided_by_hand() -> None:
    policy = ProfileGuided()
    state = policy.new_state(1)
    # Per token, relative to one alone: 12 / 20 = 0.6, 15 / 30 = 0.5, 20 / 40 = 0.5, 30 / 50 = 0.6.
    curve = view(room=4, verify=[0.0, 10.0, 12.0, 15.0, 20.0, 30.0, 60.0])
    assert policy.gamma(state, 0, curve, RNG) == 4
    assert state.cost[0, :4].tolist() == [0.6, 0.5, 0.5, 0.6]
    # 0.9 >= 0.6, 0.9 * 0.7 = 0.63 >= 0.5, 0.63 * 0.7 = 0.441 < 0.5
    assert going(policy, state, [0.9, 0.7, 0.7]) == [True, True, False]
    assert going(policy, state, [0.59]) == [False]  # a new round starts from 1
    # Where verifying is free, per token 1 / (k + 1), doubt is cheap.
    assert policy.gamma(state, 0, view(room=3), RNG) == 3
    assert going(policy, state, [0.6, 0.6, 0.6]) == [True, True, False]  # 0.36, then 0.216 < 0.25
    assert policy.gamma(state, 0, view(room=0, verify=[0.0, 1.0, 2.0]), RNG) == 0


def test_features_by_hand() -> None:
    # log(0.8 / 0.2) = log 4
    expected = (math.log(4.0), 0.25, 0.5, math.log(3.0))
    assert features(Draft(3, 0.8, 0.25)) == pytest.approx(expected)
    assert features(Draft(1, 1.0, -1e-5)) == pytest.approx((math.log(9999.0), 0.0, 0.0, 0.0))
    assert log_odds(0.0) == pytest.approx(-math.log(9999.0))
    assert chance(0.0) == 0.5 and chance(-1e9) < 1e-300 and chance(1e9) == 1.0


PLAIN = {"bias": 0.0, "w_logit": 1.0, "w_entropy": 0.0, "w_root_entropy": 0.0, "w_log_drafted": 0.0}
"""Weights with which the chance of acceptance is the top-1 probability itself."""


def test_disco_by_hand() -> None:
    policy = Disco(**{**PLAIN, "tau": 0.6})
    assert going(policy, None, [0.61, 0.59]) == [True, False]
    # Log odds 0.5 + log 4 - 0.5 * 1 - 2 * 1 + log 2 = 0.0794: a chance of 0.5198.
    weights = {"bias": 0.5, "w_entropy": -0.5, "w_root_entropy": -2.0, "w_log_drafted": 1.0}
    for tau, answer in ((0.519, True), (0.521, False)):
        assert (
            Disco(**{**PLAIN, **weights, "tau": tau}).proceed(None, 0, Draft(2, 0.8, 1.0)) is answer
        )


def test_specdec_by_hand() -> None:
    policy = SpecDecPlusPlus(**PLAIN)
    state = policy.new_state(1)
    # The product lags by a token: 1, 0.9, 0.9 * 0.8 = 0.72, 0.72 * 0.9 = 0.648; h = 0.3. The next
    # round starts from 1 again.
    for _ in range(2):
        assert going(policy, state, [0.9, 0.8, 0.9, 0.9]) == [True, True, True, False]
    assert float(state.survival[0]) == pytest.approx(0.5832)
    # A hopeless first token: at step 1 nothing is judged, and two are drafted at least.
    assert going(policy, state, [0.1, 0.9]) == [True, False]
    patient = SpecDecPlusPlus(**{**PLAIN, "gamma_min": 3})
    assert going(patient, state, [0.1, 0.9, 0.9]) == [True, True, False]


def test_speckv_by_hand() -> None:
    # r = 1 / (1 + exp(-2 + 0.5 gamma)): 0.7311, 0.5, 0.2689, 0.1192.
    # Tokens 1 + r gamma: 2.462, 3, 2.614, 1.954.
    weights = dict.fromkeys(("w_mean_entropy", "w_max_entropy", "w_mean_top1", "w_min_top1"), 0.0)
    policy = SpecKV(**{**weights, "bias": 2.0, "w_gamma": -0.5, "gamma0": 3})
    state = policy.new_state(2)
    assert policy.gamma(state, 0, view(), RNG) == 3
    going(policy, state, [0.9])
    assert policy.gamma(state, 0, view(), RNG) == 4
    assert policy.gamma(state, 1, view(), RNG) == 3  # the other slot has seen nothing
    policy.admit(state, 0)
    assert policy.gamma(state, 0, view(), RNG) == 3


def test_speckv_reads_the_last_round() -> None:
    policy = SpecKV()
    state = policy.new_state(1)
    going(policy, state, [0.1, 0.2, 0.3])
    for drafted, top1, entropy in ((1, 0.9, 0.2), (2, 0.5, 0.6), (3, 0.7, 0.1)):
        assert policy.proceed(state, 0, Draft(drafted, top1, entropy)) is True
    assert int(state.drafted[0]) == 3
    assert state.sums[0].tolist() == pytest.approx([0.9, 0.6, 2.1, 0.5])
    # Log odds without gamma: each weight 1 and bias -2.9 give 0.3 + 0.6 + 0.7 + 0.5 - 2.9 = -0.8.
    # With w_gamma 0.1: r = 0.354, 0.401, 0.450, 0.5 and the longest has the most tokens, always so
    # while r does not fall; with -0.3: r = 0.1978, 0.1192, 0.0691, 0.0392: 2 gives 0.396, 4 0.477,
    # 6 0.415, 8 0.313.
    weights = dict.fromkeys(("w_mean_entropy", "w_max_entropy", "w_mean_top1", "w_min_top1"), 1.0)
    for w_gamma, chosen in ((0.1, 8), (-0.3, 4)):
        told = SpecKV(**{**weights, "bias": -2.9, "w_gamma": w_gamma})
        assert told.gamma(state, 0, view(), RNG) == chosen
    # Means, not sums: the same log odds with more weight on a mean and as much less of the bias.
    for field, mean in (("w_mean_entropy", 0.3), ("w_mean_top1", 0.7)):
        moved = {**weights, "bias": -3.9, "w_gamma": -0.3, field: 1.0 + 1.0 / mean}
        assert SpecKV(**moved).gamma(state, 0, view(), RNG) == 4
