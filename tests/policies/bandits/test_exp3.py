"""EXP3 and EXP3Spec: draws and update rules by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from policies.bandits.exp3 import Exp3, Exp3Spec, draw_arm
from policies.base import Outcome
from policies.randomness import Rng, round_key, uniform
from tests.policies.bandits.outcomes import choose, feed, outcome


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
