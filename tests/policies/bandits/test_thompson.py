"""Thompson sampling: counts and draws by hand."""

from __future__ import annotations

import math

from policies.bandits.thompson import ThompsonBeta, ThompsonGauss
from policies.base import Outcome
from policies.randomness import Rng, normal, round_key
from tests.policies.bandits.outcomes import choose, feed, outcome, view


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
