"""Hedge: every update rule by hand, and where it settles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from policies.bandits.ucb import UCB
from policies.base import Outcome, View
from policies.ours.hedge import Hedge
from policies.randomness import Rng, round_key, uniform
from simulator.replay.hindsight import best_fixed
from simulator.replay.replay import replay
from tests.policies.bandits.outcomes import RNG, choose, costs_with, feed, outcome, view
from traces import synthetic


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
