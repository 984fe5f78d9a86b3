"""BEG-MAB: running medians, groups of batch sizes, and its rule by hand."""

from __future__ import annotations

import numpy as np

from policies.bandits.begmab import (
    GROUPS,
    BegMab,
    group_of_batch,
    insert_ascending,
    median_of,
    ranked_length,
    remove_ascending,
)
from policies.randomness import Rng, round_key, uniform
from tests.policies.bandits.outcomes import RNG, choose, feed, outcome, view


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
