"""Bandits and online learning: every update rule by hand, and where each of them settles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from policies.bandits import contextual
from policies.bandits.begmab import (
    GROUPS,
    BegMab,
    group_of_batch,
    insert_ascending,
    median_of,
    ranked_length,
    remove_ascending,
)
from policies.bandits.contextual import LinThompson, LinUCB, Nightjar, cheapest_arm, take_root
from policies.bandits.exp3 import Exp3, Exp3Spec, draw_arm
from policies.bandits.tapout import CONFIDENCE, ENTROPY_HIGH, ENTROPY_LOW, LONG, SHORT, SVIP, TapOut
from policies.bandits.thompson import ThompsonBeta, ThompsonGauss
from policies.bandits.ucb import UCB, UCB1, DiscountedUCB, SlidingUCB
from policies.bandits.ucbspec import UCBSpec, UCBSpecReleased, confidence_radius
from policies.base import Draft, Outcome, Policy, View
from policies.conformance import check_policy
from policies.ours.hedge import Hedge
from policies.randomness import Rng, normal, round_key, uniform
from simulator.costs import Affine
from simulator.replay.hindsight import best_fixed
from simulator.replay.replay import replay, replay_interpreted
from traces import synthetic
from traces.costs import tabulate

POLICIES: list[Policy] = [
    UCB(),
    UCB1(),
    UCB1(gamma_min=0, gamma_max=3),
    UCBSpec(),
    UCBSpecReleased(),
    DiscountedUCB(),
    DiscountedUCB(gamma_min=0, gamma_max=3, discount=0.5),
    SlidingUCB(),
    SlidingUCB(gamma_max=5, window=3),
    Exp3(),
    Exp3(gamma_min=0, gamma_max=3, exploration=0.0),
    Exp3Spec(),
    ThompsonBeta(),
    ThompsonBeta(gamma_max=3, discount=1.0),
    ThompsonGauss(),
    ThompsonGauss(gamma_min=0, gamma_max=2),
    BegMab(),
    BegMab(gamma_max=3, window=4, epsilon=0.5, refresh=1.0),
    TapOut(),
    TapOut(gamma_max=3, confidence=0.4, entropy_low=0.3),
    LinUCB(),
    LinUCB(gamma_min=0, gamma_max=3, exploration=0.0, memory=1.0),
    LinThompson(),
    Nightjar(),
    Nightjar(gamma_max=3, batch_max=1, switch_steps=9.0),
    Hedge(),
    Hedge(gamma_max=3, rate=2.0, share=0.5, probe_every=2),
]

RNG = Rng(1)


def view(room: int = 30, draft_s: float = 1.0, verify_s: float = 6.0, batch: int = 1) -> View:
    return View(100, batch, 0, room, draft_s, np.array([0.0] + [verify_s] * 40))


def outcome(gamma: int, accepted: int, seconds: float = 1.0) -> Outcome:
    """A round that drafted all of gamma, and whose reply went on."""
    return Outcome(gamma, gamma, accepted, accepted + 1, False, seconds, seconds)


def feed(policy: Policy, state: Any, *rounds: Outcome, seen: View | None = None) -> None:
    for result in rounds:
        policy.learn(state, 0, seen or view(), result)


def choose(policy: Policy, state: Any, room: int = 30, rng: Rng = RNG) -> int:
    return policy.gamma(state, 0, view(room), rng)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_policies_conform(policy: Policy) -> None:
    check_policy(policy)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_plain_and_compiled_agree(policy: Policy) -> None:
    generator = np.random.default_rng(5)
    costs = tabulate(Affine(context_token=1e-6, signal=1e-4, control=2e-4, prefill_token=1e-4))
    size: dict[str, Any] = {"requests": 3, "reply_tokens": 150, "signals": True}
    for trace in (
        synthetic.constant(0.8, generator, **size),
        synthetic.bursty(0.95, 0.3, generator, **size),
    ):
        log = replay(policy, trace, costs, seed=3)
        assert log.same_rounds(replay_interpreted(policy, trace, costs, seed=3))
        assert int(log.emitted.sum()) == trace.positions


# The UCB family.


def test_ucb1_by_hand() -> None:
    policy = UCB1(gamma_max=2)
    state = policy.new_state(1)
    assert choose(policy, state) == 1
    feed(policy, state, outcome(1, 1, 2.0))  # 1 token/s
    assert choose(policy, state) == 2
    feed(policy, state, outcome(2, 2, 1.0))  # 3 tokens/s, the highest
    # Means 1/3 and 1, the same bonus.
    assert choose(policy, state) == 2
    feed(policy, state, *[outcome(2, 2, 2.0)] * 3)  # 1.5 tokens/s
    # Arm 2: (3 + 3 * 1.5) / 4 / 3 = 0.625, + sqrt(2 ln 5 / 4) = 0.897; arm 1: 1/3 + 1.794.
    assert choose(policy, state) == 1
    feed(policy, state, outcome(1, 0, 10.0), outcome(1, 0, 10.0))
    # Arm 1: 1.2 / 3 / 3 = 0.133 + sqrt(2 ln 7 / 3) = 1.139; arm 2: 0.625 + 0.986.
    assert choose(policy, state) == 2
    assert choose(policy, state, room=1) == 1 and choose(policy, state, room=0) == 0


def test_ucb1_takes_a_mean_of_ratios_and_ucb_a_ratio_of_sums() -> None:
    # Arm 1: 2 tokens/s always. Arm 2: one token in 10 s, then one in 0.2 s: 1/5.1 tokens/s in
    # truth, 2.55 as a mean of ratios.
    rounds = (outcome(1, 1, 1.0), outcome(2, 0, 10.0), outcome(1, 1, 1.0), outcome(2, 0, 0.2))
    for policy, chosen in ((UCB1(gamma_max=2), 2), (UCB(gamma_max=2, exploration=0.0), 1)):
        state = policy.new_state(1)
        feed(policy, state, *rounds)
        assert choose(policy, state) == chosen


def test_ucbspec_by_hand() -> None:
    # n = 3, t = 4, K = 2: half of sqrt(4/9 (1 + 2 ln(2 * 16 * sqrt(4) / 0.1))), ln 640 = 6.461.
    assert confidence_radius(3.0, 4, 2, 0.1) == pytest.approx(1.2437, abs=1e-4)
    assert confidence_radius(1.0, 4, 2, 0.1) == pytest.approx(2.5720, abs=1e-4)
    policy = UCBSpec(gamma_max=1)
    state = policy.new_state(1)
    assert choose(policy, state) == 0  # canonical decoding is an arm
    feed(policy, state, outcome(0, 0))  # 1 token/s
    assert choose(policy, state) == 1
    feed(policy, state, outcome(1, 1))  # 2 tokens/s, the widest so far
    assert choose(policy, state) == 1  # 2 > 1, the same radius
    feed(policy, state, outcome(1, 0), outcome(1, 0))
    # t = 4. Arm 1: 4/3 + 2 * 1.2437 = 3.821; arm 0: 1 + 2 * 2.572 = 6.144.
    assert choose(policy, state) == 0
    assert choose(policy, state, room=0) == 0
    policy.admit(state, 0)
    assert choose(policy, state) == 0 and float(state.top_rate[0]) == 0.0


def test_ucbspec_weighs_seconds_but_not_their_unit() -> None:
    policy = UCBSpec()
    chosen = []
    for unit in (1.0, 1e-3):
        state = policy.new_state(1)
        played = []
        for _ in range(400):
            gamma = choose(policy, state)
            played.append(gamma)
            feed(policy, state, outcome(gamma, min(gamma, 1), unit * (1.0 + gamma)))
        chosen.append(played)
    assert chosen[0] == chosen[1]
    # Tokens/s 1, 1, 2/3, 1/2, 2/5: the shorter, the more often.
    counts = np.bincount(chosen[0], minlength=5)
    assert counts[:2].min() > counts[2] > counts[3] >= counts[4]


def test_ucbspec_released_is_greedy_after_seven_rounds() -> None:
    policy = UCBSpecReleased()
    state = policy.new_state(1)
    played = []
    for accepted in (1, 2, 0, 1, 1, 0, 3):  # tokens/s 2, 3, 1, 2, 2, 1, 4
        gamma = choose(policy, state)
        played.append(gamma)
        feed(policy, state, outcome(gamma, accepted))
    assert played == [1, 2, 3, 4, 1, 2, 3]
    # Means 2, 2, 2.5, 2.
    assert choose(policy, state) == 3 and choose(policy, state, room=2) == 1
    feed(policy, state, outcome(3, 0))  # (2.5 * 2 + 1) / 3 = 2: a tie, the first arm wins
    for _ in range(50):  # no bonus ever brings another one back
        assert choose(policy, state) == 1
        feed(policy, state, outcome(1, 1))


def test_discounted_ucb_by_hand() -> None:
    policy = DiscountedUCB(gamma_max=2, exploration=0.5, discount=0.5)
    state = policy.new_state(1)
    feed(policy, state, outcome(1, 1, 2.0), outcome(2, 2, 2.0))
    assert state.plays.tolist() == [0.5, 1.0]
    assert state.tokens.tolist() == [1.0, 3.0] and state.seconds.tolist() == [1.0, 2.0]
    # 2/3 + 0.5 sqrt(ln 1.5 / 0.5) = 1.117 against 1 + 0.5 sqrt(ln 1.5) = 1.318.
    assert choose(policy, state) == 2
    feed(policy, state, outcome(2, 2, 2.0))
    # 2/3 + 0.5 sqrt(ln 1.75 / 0.25) = 1.415 against 1 + 0.5 sqrt(ln 1.75 / 1.5) = 1.305.
    assert choose(policy, state) == 1
    feed(policy, state, *[outcome(2, 2, 2.0)] * 2000)
    assert choose(policy, state) == 1  # forgotten as if never played


def test_sliding_ucb_by_hand() -> None:
    policy = SlidingUCB(gamma_max=2, exploration=0.0, window=3)
    state = policy.new_state(1)
    feed(policy, state, outcome(1, 1, 0.1), outcome(2, 2, 2.0), outcome(2, 1, 2.0))
    assert state.plays.tolist() == [1.0, 2.0] and state.tokens.tolist() == [2.0, 5.0]
    assert choose(policy, state) == 1
    feed(policy, state, outcome(2, 0, 2.0))  # arm 1 leaves the window
    assert state.plays.tolist() == [0.0, 3.0] and state.seconds.tolist() == [0.0, 6.0]
    assert choose(policy, state) == 1
    feed(policy, state, outcome(1, 0, 5.0))
    assert state.plays.tolist() == [1.0, 2.0] and state.tokens.tolist() == [1.0, 3.0]
    assert choose(policy, state) == 2  # 3 tokens in 4 s against 1 in 5


# EXP3.


def test_exp3_draw_by_hand() -> None:
    weights = np.array([0.0, math.log(3.0), 0.0])
    # 0.8 * 1/4 + 0.2 / 2 = 0.3 and 0.8 * 3/4 + 0.1 = 0.7; the third arm does not fit.
    for u, arm, probability in ((0.0, 0, 0.3), (0.29, 0, 0.3), (0.31, 1, 0.7), (0.999, 1, 0.7)):
        chosen, p = draw_arm(weights, 2, 1.0, 0.2, u)
        assert chosen == arm and p == pytest.approx(probability)
    assert draw_arm(weights, 2, 2.0, 0.0, 0.05) == (0, pytest.approx(0.1))  # 1 against 3^2
    assert draw_arm(weights, 1, 1.0, 0.2, 0.9) == (0, 1.0)


def test_exp3_by_hand() -> None:
    policy = Exp3(gamma_max=2, exploration=0.2)
    state = policy.new_state(1)
    state.log_weight[1] = math.log(3.0)
    rng = next(Rng(key) for key in range(100) if uniform(Rng(key), 0) > 0.3)
    assert choose(policy, state, rng=rng) == 2
    feed(policy, state, outcome(2, 2, 1.0))  # the highest rate so far: reward 1
    expected = math.log(3.0) + 0.1 / 0.7
    assert float(state.log_weight[1]) == pytest.approx(expected)
    feed(policy, state, outcome(2, 2, 2.0))  # half of it
    assert float(state.log_weight[1]) == pytest.approx(expected + 0.1 * 0.5 / 0.7)
    assert choose(policy, state, room=1, rng=rng) == 1  # what fits is drawn with certainty
    feed(policy, state, outcome(1, 1, 2.0))  # 1 token/s of 3
    assert float(state.log_weight[0]) == pytest.approx(0.1 / 3)


def test_exp3spec_by_hand() -> None:
    policy = Exp3Spec()
    state = policy.new_state(1)
    gamma = choose(policy, state)
    feed(policy, state, outcome(gamma, 1))
    # p = 1/4, Y = 2 tokens, L = 4: a loss of (5 - 2) / (4 / 4) = 3.
    assert float(state.gain[0, gamma - 1]) == pytest.approx(-3.0)
    # Round 2: eta = sqrt(ln 4 / 8) = 0.4163; e^(-3 eta) = 0.2869: p = 0.0873 there, 0.3042 else.
    found = {}
    for key in range(60):
        other = choose(policy, state, rng=Rng(round_key(0, 0, key)))
        found[other] = float(state.probability[0])
    assert found[gamma] == pytest.approx(0.0873, abs=1e-4)
    assert all(p == pytest.approx(0.3042, abs=1e-4) for k, p in found.items() if k != gamma)
    before = float(state.gain[0, 0])
    assert choose(policy, state, room=1) == 1 and float(state.probability[0]) == 1.0
    feed(policy, state, Outcome(1, 1, 1, 1, True, 1.0, 1.0))  # Y = 1: the reply ended at the draft
    assert float(state.gain[0, 0]) == pytest.approx(before - 1.0)
    policy.admit(state, 0)
    assert not state.gain.any() and int(state.rounds[0]) == 0


# Thompson sampling.


def test_thompson_beta_counts_what_was_reached() -> None:
    policy = ThompsonBeta(gamma_max=3, discount=0.5)
    state = policy.new_state(1)
    feed(policy, state, outcome(3, 1))
    assert state.passed.tolist() == [1.0, 0.0, 0.0] and state.failed.tolist() == [0.0, 1.0, 0.0]
    feed(policy, state, outcome(2, 2))  # censored: nothing of depth 3
    assert state.passed.tolist() == [1.5, 1.0, 0.0] and state.failed.tolist() == [0.0, 0.5, 0.0]
    feed(
        policy, state, Outcome(3, 3, 1, 1, True, 1.0, 1.0)
    )  # the reply ended: nothing was rejected
    assert state.passed.tolist() == [1.75, 0.5, 0.0] and state.failed.tolist() == [0.0, 0.25, 0.0]
    feed(policy, state, outcome(0, 0))
    assert state.passed.tolist() == [0.875, 0.25, 0.0]


def test_thompson_beta_decides_as_goodput_when_it_is_sure() -> None:
    policy = ThompsonBeta(gamma_max=3)
    state = policy.new_state(1)
    state.passed[:] = state.failed[:] = 1e9
    # S = 0.5, 0.25, 0.125: 1/6, 1.5/7, 1.75/8, 1.875/9 tokens/s.
    keys = [Rng(round_key(0, 0, k)) for k in range(20)]
    assert {choose(policy, state, rng=rng) for rng in keys} == {2}
    assert {choose(policy, state, room=1, rng=rng) for rng in keys} == {1}
    costly = view(draft_s=4.0)
    assert {policy.gamma(state, 0, costly, rng) for rng in keys} == {0}  # 1/6 > 1.5/10
    state.passed[:] = state.failed[:] = 0.0
    assert {choose(policy, state, rng=rng) for rng in keys} == {0, 1, 2, 3}


def test_thompson_gauss_by_hand() -> None:
    policy = ThompsonGauss(gamma_max=2)
    state = policy.new_state(1)
    for gamma, tokens in ((1, 2), (1, 2), (2, 1), (2, 3)):
        assert choose(policy, state) == gamma
        feed(policy, state, outcome(gamma, tokens - 1, 2.0))
    assert state.tokens_squared.tolist() == [8.0, 10.0]
    # Both 2 tokens in 2 s. s^2 = (0 + 2^2) / 3 and (2 + 2^2) / 3, over 2 plays.
    counts = [0, 0]
    for key in range(200):
        rng = Rng(round_key(0, 0, key))
        first = (2.0 + math.sqrt(2 / 3) * normal(rng, 0)) / 2.0
        second = (2.0 + 1.0 * normal(rng, 1)) / 2.0
        assert choose(policy, state, rng=rng) == (1 if first >= second else 2)
        counts[0 if first >= second else 1] += 1
    assert min(counts) > 60
    assert choose(policy, state, room=1) == 1 and choose(policy, state, room=0) == 0


# BEG-MAB.


def test_running_medians_against_sorting() -> None:
    generator = np.random.default_rng(0)
    ranked, kept = np.zeros(40), list[float]()
    for _ in range(400):
        if len(kept) == 40 or (kept and generator.random() < 0.45):
            value = kept.pop(int(generator.integers(len(kept))))
            remove_ascending(ranked, len(kept) + 1, value)
        else:
            value = float(generator.integers(10))
            insert_ascending(ranked, len(kept), value)
            kept.append(value)
        assert ranked[: len(kept)].tolist() == sorted(kept)
        if kept:
            assert median_of(ranked, len(kept)) == np.median(kept)
    histogram = np.array([0, 2, 0, 1], dtype=np.int64)
    assert [ranked_length(histogram, rank) for rank in range(3)] == [1, 1, 3]


def test_batch_groups() -> None:
    sizes = (1, 2, 31, 32, 39, 40, 127, 128, 159, 160, 256, 5000)
    assert [group_of_batch(size) for size in sizes] == [
        0, 1, 30, 31, 31, 32, 42, 43, 43, 44, 47, 47,
    ]  # fmt: skip
    assert len({group_of_batch(size) for size in range(1, 300)}) == GROUPS == 48


def test_beg_mab_by_hand() -> None:
    policy = BegMab(gamma_max=2, epsilon=0.0, window=3, refresh=1.0)
    state = policy.new_state(1)

    def play(accepted: int, seconds: float = 1.0, batch: int = 1) -> int:
        seen = view(batch=batch)
        gamma = policy.gamma(state, 0, seen, RNG)
        feed(policy, state, outcome(gamma, accepted, seconds), seen=seen)
        return gamma

    # Unseen arms first. Their medians are looked at before the round is counted: rewards 0.
    assert [play(1), play(2, 1.5)] == [1, 2]
    assert not state.ring_reward.any()
    # A tie: arm 1, whose median length so far is 2, though this round has 1 token.
    assert play(0) == 1
    assert state.ranked[0, 0, :2].tolist() == [0.0, 2.0]
    assert play(0) == 1  # lengths 2 and 1
    assert state.ranked[0, 0].tolist() == [0.0, 1.5, 2.0]
    assert play(0) == 1  # lengths 2, 1, 1; the oldest round, of reward 0, leaves
    assert state.ranked[0, 0].tolist() == [1.0, 1.5, 2.0]
    assert state.histogram[0].tolist() == [0, 3, 0, 0]
    # A window is the arm's own: arm 2 stays known, at 0, however often arm 1 is played.
    assert [play(0) for _ in range(20)] == [1] * 20
    assert int(state.plays[0, 1]) == 1
    # Another batch, another bandit; lengths are pooled over all: 1 token * 2 rows / 1 s, 3 * 2.
    assert [play(0, batch=2), play(2, batch=2)] == [1, 2]
    assert state.ring_reward[1, :, 0].tolist() == [2.0, 6.0]
    assert play(2, batch=2) == 2 and play(0) == 1


def test_beg_mab_explores_and_turns_off() -> None:
    policy = BegMab(gamma_max=4, epsilon=1.0)
    state = policy.new_state(1)
    for key in range(30):
        rng = Rng(round_key(0, 0, key))
        assert choose(policy, state, rng=rng) == int(4 * uniform(rng, 1)) + 1
    assert policy.gamma(state, 0, view(batch=32), RNG) > 0
    assert policy.gamma(state, 0, view(batch=33), RNG) == 0


# TapOut.


@pytest.mark.parametrize(
    ("rule", "goes_on", "stops"),
    [
        (ENTROPY_LOW, Draft(1, 0.1, 0.69), Draft(1, 0.9, 0.70)),  # 1 bit
        (ENTROPY_HIGH, Draft(1, 0.1, 1.38), Draft(1, 0.9, 1.39)),  # 2 bits
        (SVIP, Draft(1, 0.1, 0.59), Draft(1, 0.9, 0.61)),  # sqrt(0.15 * 0.6) = 0.3
        (CONFIDENCE, Draft(1, 0.8, 9.0), Draft(1, 0.79, 0.0)),
    ],
)
def test_tapout_rules(rule: int, goes_on: Draft, stops: Draft) -> None:
    policy = TapOut()
    state = policy.new_state(1)
    state.rule[0] = rule
    assert policy.proceed(state, 0, goes_on) and not policy.proceed(state, 0, stops)
    for other in (LONG, SHORT):
        state.rule[0] = other
        assert policy.proceed(state, 0, stops)


def test_tapout_by_hand() -> None:
    policy = TapOut()
    state = policy.new_state(1)
    asked = []
    for _ in range(6):
        asked.append(choose(policy, state))
        feed(policy, state, Outcome(asked[-1], 2, 1, 2, False, 1.0, 1.0))
    assert asked == [8, 2, 8, 8, 8, 8]
    # 0.5 * 1 / 8 + 0.5 * 1 / 2 each.
    assert state.rewards.tolist() == [0.3125] * 6
    state.rule[0] = SVIP
    feed(policy, state, Outcome(8, 5, 4, 5, False, 1.0, 1.0))  # 0.5 * 4 / 8 + 0.5 * 4 / 5 = 0.65
    assert float(state.rewards[SVIP]) == pytest.approx(0.9625)
    # SVIP: 0.481 + 2 sqrt(ln 8 / 2) = 2.521; the others: 0.3125 + 2 sqrt(ln 8) = 3.197.
    assert choose(policy, state) == 8 and int(state.rule[0]) == LONG
    feed(policy, state, outcome(0, 0), seen=view(room=0))
    assert state.plays.tolist() == [1, 1, 1, 1, 2, 1]
    feed(
        TapOut(blend=0.25), state, Outcome(8, 5, 4, 5, False, 1.0, 1.0)
    )  # 0.25 * 4 / 8 + 0.75 * 4 / 5
    assert float(state.rewards[LONG]) == pytest.approx(0.3125 + 0.725)


def test_tapout_explores_with_weight_two() -> None:
    policy = TapOut()
    state = policy.new_state(1)
    state.plays[:] = [20, 9, 18, 18, 18, 17]
    state.rewards[:2] = [20.0, 9 * 0.6]
    # t = 101. LONG: 1 + 2 * 0.480 = 1.961; SHORT: 0.6 + 2 * 0.716 = 2.032; with the weight sqrt(2)
    # 1.679 and 1.613.
    assert choose(policy, state) == 2
    assert choose(TapOut(exploration=math.sqrt(2.0)), state) == 8


# Contextual bandits.


def test_linucb_by_hand() -> None:
    policy = LinUCB(gamma_max=2, exploration=0.5, memory=0.5)
    state = policy.new_state(1)
    # rate 0.7: x_1 = (1, .5, .35, .85), x_2 = (1, 1, .7, 1.095); tokens 1.7 and 2.19 before any
    # round; widths sqrt(2.095) = 1.447 and sqrt(3.689) = 1.921. (1.7 + .724) / 7 = .346 against
    # (2.19 + .960) / 8 = .394; at 4 s a draft .242 against .225.
    assert choose(policy, state) == 2 and choose(policy, state, room=1) == 1
    assert policy.gamma(state, 0, view(draft_s=4.0), RNG) == 1
    feed(policy, state, outcome(1, 1))
    x = np.array([1.0, 0.5, 0.35, 0.85])
    assert np.allclose(state.inverse, np.eye(4) - np.outer(x, x) / 3.095, atol=1e-12)
    assert np.allclose(state.weighted, np.array([0, 0, 0, 2]) + 2 * x)
    assert [float(state.passed[0]), float(state.reached[0])] == [1.0, 1.0]
    feed(policy, state, outcome(2, 1))
    assert [float(state.passed[0]), float(state.reached[0])] == [1.5, 2.5]
    assert contextual.recent_rate(state, 0) == pytest.approx(4.3 / 6.5)
    before = state.weighted.copy()
    feed(
        policy, state, Outcome(2, 2, 1, 1, True, 1.0, 1.0)
    )  # the reply ended: no tokens learned, no failure
    assert [float(state.passed[0]), float(state.reached[0])] == [1.75, 2.25]
    assert state.weighted.tolist() == before.tolist()


def test_linucb_regresses() -> None:
    policy = LinUCB(gamma_max=4)
    state = policy.new_state(1)
    generator = np.random.default_rng(0)
    rows, tokens = [], []
    for _ in range(200):
        gamma = int(generator.integers(1, 5))
        contextual.fill_features(state.x, gamma, 4, contextual.recent_rate(state, 0))
        rows.append(state.x.copy())
        tokens.append(int(generator.integers(0, gamma + 1)) + 1)
        feed(policy, state, outcome(gamma, tokens[-1] - 1))
    x, prior = np.array(rows), np.array([0.0, 0.0, 0.0, 4.0])
    gram = np.eye(4) + x.T @ x
    assert np.allclose(state.inverse, np.linalg.inv(gram), atol=1e-9)
    ridge = prior + np.linalg.solve(gram, x.T @ (np.array(tokens) - x @ prior))
    assert np.allclose(state.inverse @ state.weighted, ridge, atol=1e-9)


def test_lin_thompson_draws_theta() -> None:
    policy, bound = LinThompson(exploration=0.7), LinUCB(exploration=0.0)
    state = policy.new_state(1)
    feed(policy, state, outcome(1, 1), outcome(4, 2), outcome(6, 6), outcome(3, 0))
    root = np.linalg.cholesky(state.inverse)
    rate, seen = contextual.recent_rate(state, 0), set()
    for key in range(100):
        rng = Rng(round_key(0, 0, key))
        z = np.array([normal(rng, j) for j in range(4)])
        theta = state.inverse @ state.weighted + 0.7 * root @ z
        scores = []
        for k in range(1, 9):
            contextual.fill_features(state.x, k, 8, rate)
            scores.append(float(theta @ state.x) / (k + 6.0))
        gamma = choose(policy, state, rng=rng)
        assert gamma == 1 + int(np.argmax(scores))
        seen.add(gamma)
    assert len(seen) > 2
    assert choose(LinThompson(exploration=0.0), state) == choose(bound, state)


def test_root_of_a_matrix_on_the_edge() -> None:
    root, flat = np.zeros((4, 4)), np.ones((4, 4))
    take_root(flat, root)
    assert np.allclose(root @ root.T, flat)


def test_nightjar_by_hand() -> None:
    policy = Nightjar(gamma_max=8)
    state = policy.new_state(1)
    feed(policy, state, outcome(0, 0, 6.0), Outcome(2, 2, 2, 6, False, 30.0, 30.0))
    # 6 s a token plain, 5 s with gamma 2; arms never played do not take part.
    assert cheapest_arm(state, 0, 0.0) == 2
    assert cheapest_arm(state, 0, 1.5) == 2  # 5 + 1.5 / 2 < 6
    assert cheapest_arm(state, 0, 4.0) == 0  # 5 + 4 / 2 > 6
    assert cheapest_arm(state, 1, 0.0) == 0  # another batch size: nothing seen
    assert int(state.idle[0]) == 0
    feed(policy, state, outcome(0, 0, 6.0))
    assert int(state.idle[0]) == 1


def test_nightjar_blocks_and_bins() -> None:
    policy = Nightjar(gamma_max=8)
    state = policy.new_state(1)
    feed(policy, state, Outcome(3, 3, 3, 4, False, 1.0, 1.0))
    explored = []
    for at in range(63):  # blocks of 1, 2, 4, 8, 16, 32 rounds
        rng = Rng(round_key(0, 0, at))
        before = int(state.arm[0])
        gamma = choose(policy, state, rng=rng)
        block = 2 ** int(math.log2(at + 1))
        width = int(math.sqrt(block))
        within = at + 1 - block
        if within % width:
            assert gamma == before  # locked
        elif uniform(rng, 0) < 1.0 / (within // width + 1):
            explored.append(at)
            assert gamma == int(9 * uniform(rng, 1))
        else:
            assert gamma == 3
    assert {0, 1, 3, 7, 15, 31} <= set(explored)  # the first bin of each block
    assert len(explored) < 25


# Hedge.


def weights_after(policy: Hedge, result: Outcome, seen: View) -> tuple[Any, list[float]]:
    state = policy.new_state(1)
    policy.learn(state, 0, seen, result)
    return state, state.weight[0].tolist()


def test_hedge_charges_every_length_after_a_rejection() -> None:
    policy = Hedge(gamma_max=3, rate=1.0, share=0.0)
    _, weights = weights_after(policy, outcome(2, 1, 8.0), view())
    # 2 tokens in 8 s: 4 s a token. Tokens 1, 2, 2, 2, drafts 0, 1, 2, 3 s: gains over length 0
    # are 1 - 1/4, 1 - 2/4, 1 - 3/4; length 3 was not drafted, and is known all the same.
    raw = [1.0, math.exp(0.75), math.exp(0.5), math.exp(0.25)]
    assert weights == pytest.approx([w / sum(raw) for w in raw])


def test_hedge_charges_hidden_lengths_what_they_are_expected_to_bring() -> None:
    policy = Hedge(gamma_max=3, rate=1.0, share=0.0)
    state, weights = weights_after(policy, outcome(1, 1, 7.0), view())
    # 3.5 s a token. Depth 1: 1 of 1 passed, with 4 rounds at 0.7: 3.8 / 5 = 0.76; depths 2 and 3
    # unseen: 0.76 too. Tokens 1, 2, 2.76, 2.76 + 0.5776.
    gains = [0.0, 1.0 - 1 / 3.5, 1.76 - 2 / 3.5, 2.3376 - 3 / 3.5]
    raw = [math.exp(gain) for gain in gains]
    assert weights == pytest.approx([w / sum(raw) for w in raw])
    assert state.passed.tolist() == [1.0, 0.0, 0.0] == state.reached.tolist()
    # A reply that ends among its accepted tokens hides the rest just so.
    _, ended = weights_after(policy, Outcome(3, 3, 1, 1, True, 3.5, 3.5), view())
    assert ended == pytest.approx(weights)


def test_hedge_counts_fade() -> None:
    policy = Hedge(gamma_max=3, discount=0.5)
    state = policy.new_state(1)
    feed(policy, state, outcome(3, 1, 8.0))
    assert state.passed.tolist() == [1.0, 0.0, 0.0] and state.reached.tolist() == [1.0, 1.0, 0.0]
    feed(policy, state, outcome(1, 1, 7.0))
    assert state.passed.tolist() == [1.5, 0.0, 0.0] and state.reached.tolist() == [1.5, 0.5, 0.0]
    assert state.totals.tolist() == [3.0, 11.0]
    feed(policy, state, outcome(0, 0, 6.0))
    assert state.reached.tolist() == [0.75, 0.25, 0.0]


def test_hedge_lets_lengths_beyond_the_room_sleep() -> None:
    policy = Hedge(gamma_max=3, rate=1.0, share=0.0)
    _, weights = weights_after(policy, outcome(1, 0, 7.0), view(room=1))
    # 7 s a token; length 1 gains -1/7. Lengths 2 and 3 keep a quarter each.
    factor = math.exp(-1 / 7)
    assert weights[2:] == [0.25, 0.25]
    assert weights[:2] == pytest.approx([0.5 / (1 + factor), 0.5 * factor / (1 + factor)])


def test_hedge_without_a_share_begins_evenly_where_all_have_sunk_to_nothing() -> None:
    policy = Hedge(gamma_max=3, share=0.0)
    state = policy.new_state(1)
    state.weight[0] = [0.0, 0.0, 0.0, 1.0]  # only length 3, and no room for it
    policy.learn(state, 0, view(room=1), outcome(1, 0, 7.0))
    assert state.weight[0].tolist() == [0.25, 0.25, 0.0, 1.0]


def test_hedge_shares_with_all_and_with_the_past() -> None:
    policy = Hedge(gamma_max=1, rate=0.0, share=0.2, pool_rate=0.5)
    state = policy.new_state(1)
    state.weight[0], state.pool[:] = [1.0, 0.0], [0.2, 0.8]
    feed(policy, state, outcome(1, 0, 7.0))
    # 0.8 * (1, 0) + 0.1 * (1/2, 1/2) + 0.1 * (0.2, 0.8); the pool goes half way there.
    assert state.weight[0].tolist() == pytest.approx([0.87, 0.13])
    assert state.pool.tolist() == pytest.approx([0.535, 0.465])
    policy.admit(state, 0)
    assert state.weight[0].tolist() == state.pool.tolist()


def test_hedge_plays_the_median_and_probes() -> None:
    policy = Hedge(gamma_max=3, probe_every=4)
    state = policy.new_state(1)
    state.weight[0] = [0.2, 0.2, 0.2, 0.4]
    assert choose(policy, state) == 2  # 0.2, 0.4, 0.6
    assert choose(policy, state, room=1) == (1 if uniform(RNG, 0) < 0.25 else 0)
    state.weight[0] = [0.9, 0.1, 0.0, 0.0]
    chosen = [choose(policy, state, rng=Rng(round_key(0, 0, k))) for k in range(400)]
    assert set(chosen) == {0, 1} and 70 < sum(chosen) < 130


# Where they settle.


def costs_with(ratio: float) -> Any:
    """A target pass costs `ratio` draft steps of 1 ms, and 2 % more per further token."""
    target_s = ratio * 1e-3
    return tabulate(Affine(target_fixed=target_s, target_token=0.02 * target_s))


@pytest.mark.parametrize(
    "policy",
    [
        UCB(),
        DiscountedUCB(),
        SlidingUCB(),
        ThompsonBeta(),
        ThompsonGauss(),
        LinUCB(),
        LinThompson(),
        Nightjar(),
        Hedge(),
    ],
    ids=lambda policy: policy.name,
)
def test_late_rounds_play_the_best_length_or_its_neighbour(policy: Policy) -> None:
    generator, costs = np.random.default_rng(0), costs_with(10.0)
    trace = synthetic.constant(0.6, generator, requests=40, reply_tokens=512)
    best, reference = best_fixed(trace, costs)
    log = replay(policy, trace, costs)
    late = log.gamma[len(log) // 2 :]
    assert best == 3 and (np.abs(late - best) <= 1).mean() > 0.85
    assert log.elapsed_s.sum() < 1.04 * reference.elapsed_s.sum()


@pytest.mark.parametrize("policy", [UCB1(), Exp3()], ids=lambda policy: policy.name)
def test_slow_bandits_lean_to_the_best_length(policy: Policy) -> None:
    generator, costs = np.random.default_rng(0), costs_with(10.0)
    trace = synthetic.constant(0.6, generator, requests=40, reply_tokens=512)
    late = replay(policy, trace, costs).gamma[-4000:]
    near = np.abs(late - 3) <= 1
    assert 0.85 > near.mean() > 0.5  # 3 of 8 arms; neither settles within this many rounds


def test_rules_that_count_rounds_miss_the_best_length() -> None:
    generator, costs = np.random.default_rng(0), costs_with(4.0)
    trace = synthetic.constant(0.6, generator, requests=40, reply_tokens=512)
    assert best_fixed(trace, costs)[0] == 2
    late = replay(Exp3Spec(), trace, costs).gamma[-4000:]
    assert (late >= 3).mean() > 0.5
    late = replay(BegMab(), trace, costs).gamma[-4000:]
    assert np.bincount(late).argmax() < 2  # equal medians: the cheaper arm


@pytest.mark.parametrize(("alpha", "ratio"), [(0.6, 10.0), (0.8, 10.0), (0.7, 30.0), (0.2, 3.0)])
def test_hedge_converges_to_the_best_fixed_length(alpha: float, ratio: float) -> None:
    generator, costs = np.random.default_rng(0), costs_with(ratio)
    trace = synthetic.constant(alpha, generator, requests=20, reply_tokens=512)
    best, reference = best_fixed(trace, costs)
    log = replay(Hedge(), trace, costs)
    late = log.gamma[len(log) // 2 :]
    assert np.bincount(late).argmax() == best
    assert log.elapsed_s.sum() < 1.02 * reference.elapsed_s.sum()


def test_hedge_follows_switches_that_a_bandit_misses() -> None:
    costs = costs_with(10.0)
    for seed in range(4):
        generator = np.random.default_rng(seed)
        trace = synthetic.bursty(0.95, 0.3, generator, switch=0.005, requests=40, reply_tokens=512)
        hedge, bandit = replay(Hedge(), trace, costs), replay(UCB(), trace, costs)
        assert hedge.elapsed_s.sum() < 0.92 * bandit.elapsed_s.sum()
        assert hedge.elapsed_s.sum() < 0.96 * best_fixed(trace, costs)[1].elapsed_s.sum()


def test_hedge_wakes_up_from_not_drafting() -> None:
    policy = Hedge()
    state = policy.new_state(1)
    costly = view(draft_s=4.0)  # worth it only above a rate of 2/3

    def play(accept: int, rounds: int) -> list[int]:
        shown: list[int] = []
        for _ in range(rounds):
            rng = Rng(round_key(0, 0, len(history) + len(shown)))
            gamma = policy.gamma(state, 0, costly, rng)
            policy.learn(state, 0, costly, outcome(gamma, min(gamma, accept), 6.0 + 4.0 * gamma))
            shown.append(gamma)
        history.extend(shown)
        return shown

    history: list[int] = []
    assert np.mean(np.array(play(0, 300)[100:]) == 0) > 0.9
    assert np.mean(play(99, 900)[-100:]) > 6
