"""BEG-MAB, the bucketed epsilon-greedy bandit of FastRL / TLT (arXiv 2511.16665)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from policies.base import FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import DRAFT, RING, SHARE, SOME, hyper
from policies.randomness import Rng, uniform

GROUPS = 48  # batches 1..31, 32..127 by 8, 128..256 and more by 32; primary


class BegMabState(NamedTuple):
    """Shared. G = 48 groups of batch sizes, K = gamma_max arms (arm k drafts k + 1), W = window.

    The last W rounds of an arm in a group: ring_reward, ring_tokens [G, K, W]; plays [G, K], rounds
    so far; ranked [G, K, W], the same rewards ascending. histogram [K, gamma_max + 2]: the lengths
    of an arm in the windows of all groups, by value. stable_tokens [K]: their median when it was
    last looked at, 0 before there was any.
    """

    ring_reward: FloatArray
    ring_tokens: IntArray
    plays: IntArray
    ranked: FloatArray
    histogram: IntArray
    stable_tokens: FloatArray


def group_of_batch(batch_size: int) -> int:
    """The last group that starts at or below this batch size."""
    if batch_size < 32:
        return max(batch_size, 1) - 1
    if batch_size < 128:
        return 31 + (batch_size - 32) // 8
    return 43 + min((batch_size - 128) // 32, 4)


def insert_ascending(ranked: FloatArray, count: int, value: float) -> None:
    """Insert a value into the first `count` ones."""
    k = count
    while k > 0 and float(ranked[k - 1]) > value:
        ranked[k] = ranked[k - 1]
        k -= 1
    ranked[k] = value


def remove_ascending(ranked: FloatArray, count: int, value: float) -> None:
    """Remove one value that is among the first `count` ones."""
    k = 0
    while float(ranked[k]) < value:
        k += 1
    while k < count - 1:
        ranked[k] = ranked[k + 1]
        k += 1


def median_of(ranked: FloatArray, count: int) -> float:
    """The median of the first `count` >= 1 ascending values."""
    return (float(ranked[(count - 1) // 2]) + float(ranked[count // 2])) / 2.0


def ranked_length(histogram: IntArray, rank: int) -> int:
    """The value at this rank, 0 first, among lengths counted by value."""
    value, below = 0, int(histogram[0])
    while below <= rank:
        value += 1
        below += int(histogram[value])
    return value


def count_of(histogram: IntArray) -> int:
    """How many lengths a histogram holds."""
    total = 0
    for value in range(histogram.shape[0]):
        total += int(histogram[value])
    return total


def remember(
    state: BegMabState, group: int, k: int, reward: float, tokens: int, window: int
) -> None:
    """Put a round into the last `window` ones of its arm and group, in place of the oldest one."""
    plays = int(state.plays[group, k])
    at, held = plays % window, min(plays, window)
    if plays >= window:
        oldest = float(state.ring_reward[group, k, at])
        remove_ascending(state.ranked[group, k], held, oldest)
        state.histogram[k, int(state.ring_tokens[group, k, at])] -= 1
        held -= 1
    state.ring_reward[group, k, at] = reward
    state.ring_tokens[group, k, at] = tokens
    insert_ascending(state.ranked[group, k], held, reward)
    state.histogram[k, tokens] += 1
    state.plays[group, k] = plays + 1


@dataclasses.dataclass(frozen=True)
class BegMab(Policy):
    """Epsilon-greedy on the median reward of an arm's sliding window, one bandit per batch group.

    As released (eagle_mab.py, MABGroupManager and BucketedEpsilonGreedyMAB; the reward in
    eagle_worker.py, record_mab_strategy_metrics): every one of 48 groups of batch sizes has a
    bandit of its own, and in it every arm a window of its last `window` rounds, so that an arm once
    played stays known. Reward of a round: median accepted length of the arm over all groups, the
    target's own token counted, * batch size / seconds of the step. The median is looked at before
    the round is counted, anew with chance `refresh`, and while it is 0: an arm's very first reward
    is 0. With chance 1 - epsilon the arm with the largest median reward in its group; one without
    any there counts as infinite, so it is played first.

    The source's arms are trees <steps>_<topk>_<verified tokens>, and of those a range of batch
    sizes (from 1, 2, 5 and 21) may play only the ones of one verify budget. A chain verifies steps
    + 1 tokens: nothing is left to split by, so here an arm is a number of steps and every group
    holds all of them. One row of the batch counts as one round (there the mean of the batch is
    one); its median length is a whole number, and of two arms with the same median the cheaper,
    that is the shorter one wins: expect it to settle too low. Off (gamma = 0) above `batch_max`
    running requests.
    """

    gamma_max: int = hyper(8, DRAFT, "primary (steps of the trainer's arms)")
    epsilon: float = hyper(0.1, SHARE, "primary")
    window: int = hyper(300, RING, "primary (server_args.py; 1000 in the class)")
    refresh: float = hyper(0.1, SHARE, "primary")
    batch_max: int = hyper(32, SOME, "primary")

    batch_wide = True
    name = "beg-mab"
    rule = "per batch group, epsilon-greedy on the median of (median length * batch / second)"
    source = "TLT, arXiv 2511.16665; github.com/mit-han-lab/fastrl (eagle_mab.py)"

    def conflict(self) -> str:
        cells = self.gamma_max * self.window
        return f"gamma_max * window is {cells:,}, above 100,000" if cells > 100_000 else ""

    def new_state(self, slots: int) -> State:
        arms, window = self.gamma_max, self.window
        return BegMabState(
            np.zeros((GROUPS, arms, window)),
            np.zeros((GROUPS, arms, window), dtype=np.int64),
            np.zeros((GROUPS, arms), dtype=np.int64),
            np.zeros((GROUPS, arms, window)),
            np.zeros((arms, arms + 2), dtype=np.int64),
            np.zeros(arms),
        )

    def gamma(self, state: BegMabState, slot: int, view: View, rng: Rng) -> int:
        arms = min(self.gamma_max, view.room)
        if view.batch_size > self.batch_max or arms <= 0:
            return 0
        group, best = group_of_batch(view.batch_size), 0
        if uniform(rng, 0) < self.epsilon:
            best = int(uniform(rng, 1) * arms)
        else:
            best_reward = -1.0
            for k in range(arms):
                held = min(int(state.plays[group, k]), self.window)
                if held == 0:
                    best = k
                    break
                reward = median_of(state.ranked[group, k], held)
                if reward > best_reward:
                    best, best_reward = k, reward
        lengths = count_of(state.histogram[best])
        stale = float(state.stable_tokens[best]) == 0.0 or uniform(rng, 2) < self.refresh
        if lengths > 0 and stale:
            low = ranked_length(state.histogram[best], (lengths - 1) // 2)
            high = ranked_length(state.histogram[best], lengths // 2)
            state.stable_tokens[best] = (low + high) / 2.0
        return best + 1

    def learn(self, state: BegMabState, slot: int, view: View, outcome: Outcome) -> None:
        k = outcome.gamma - 1
        if k < 0 or k >= self.gamma_max:
            return
        tokens = float(state.stable_tokens[k])
        reward = tokens * view.batch_size / outcome.elapsed_s if outcome.elapsed_s > 0.0 else 0.0
        group = group_of_batch(view.batch_size)
        remember(state, group, k, reward, outcome.emitted, self.window)
