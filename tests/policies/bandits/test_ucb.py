"""UCB over lengths, and UCBSpec: every update rule by hand."""

from __future__ import annotations

import numpy as np
import pytest

from policies.bandits.ucb import UCB, UCB1, DiscountedUCB, SlidingUCB
from policies.bandits.ucbspec import UCBSpec, UCBSpecReleased, confidence_radius
from tests.policies.bandits.outcomes import choose, feed, outcome


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
