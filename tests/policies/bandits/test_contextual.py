"""LinUCB, linear Thompson sampling and Nightjar: every update rule by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from policies.bandits import contextual
from policies.bandits.contextual import LinThompson, LinUCB, Nightjar, cheapest_arm, take_root
from policies.base import Outcome
from policies.randomness import Rng, normal, round_key, uniform
from tests.policies.bandits.outcomes import RNG, choose, feed, outcome, view


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
