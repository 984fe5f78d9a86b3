"""BEG-MAB, the bucketed epsilon-greedy bandit of FastRL / TLT (arXiv 2511.16665)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from policies.base import FloatArray, IntArray, Outcome, Policy, State, View
from policies.randomness import Rng, uniform

BATCH_FROM = (1, 2, 5, 21)  # the smallest batch of each bucket; primary


class BegMabState(NamedTuple):
    """Shared. G = 4 buckets, K = gamma_max arms (arm k drafts k + 1), W = window.

    A bucket's last W rounds: ring_arm [G, W] (-1: empty), ring_reward [G, W], rounds [G].
    The same rewards by arm: ranked [G, K, W] ascending, held [G, K] how many.
    An arm's last W lengths: ring_tokens [K, W], plays [K], histogram [K, gamma_max + 2].
    stable_tokens [K]: the arm's median length when it was last looked at, 0 before.
    """

    ring_arm: IntArray
    ring_reward: FloatArray
    rounds: IntArray
    ranked: FloatArray
    held: IntArray
    ring_tokens: IntArray
    plays: IntArray
    histogram: IntArray
    stable_tokens: FloatArray


def bucket_of_batch(batch_size: int) -> int:
    """The last bucket that starts at or below this batch size."""
    bucket = 0
    for k in range(len(BATCH_FROM)):
        if batch_size >= BATCH_FROM[k]:
            bucket = k
    return bucket


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


def remember_length(state: BegMabState, k: int, tokens: int, window: int) -> None:
    """Put a round's length into the arm's last `window` ones."""
    plays = int(state.plays[k])
    at = plays % window
    if plays >= window:
        state.histogram[k, int(state.ring_tokens[k, at])] -= 1
    state.ring_tokens[k, at] = tokens
    state.histogram[k, tokens] += 1
    state.plays[k] = plays + 1


def remember_reward(state: BegMabState, bucket: int, k: int, reward: float, window: int) -> None:
    """Put a round's reward into the bucket's last `window` rounds, in place of the oldest one."""
    at = int(state.rounds[bucket]) % window
    oldest = int(state.ring_arm[bucket, at])
    if oldest >= 0:
        held = int(state.held[bucket, oldest])
        remove_ascending(state.ranked[bucket, oldest], held, float(state.ring_reward[bucket, at]))
        state.held[bucket, oldest] = held - 1
    state.ring_arm[bucket, at] = k
    state.ring_reward[bucket, at] = reward
    state.rounds[bucket] += 1
    held = int(state.held[bucket, k])
    insert_ascending(state.ranked[bucket, k], held, reward)
    state.held[bucket, k] = held + 1


@dataclasses.dataclass(frozen=True)
class BegMab(Policy):
    """Epsilon-greedy on the median reward of a sliding window, one bandit per range of batch sizes.

    Reward of a round: median accepted length of the arm over all buckets (looked at anew with
    chance `refresh`) * batch size / seconds of the step. With chance 1 - epsilon the arm with the
    largest median reward over the bucket's last `window` rounds; an arm without one there counts as
    infinite, so it is played first, and again when it has left the window.
    The source's arms are trees <steps>_<topk>_<verified tokens>, and each bucket holds those of one
    verify budget. A chain verifies steps + 1 tokens: nothing is left to group by, so here an arm is
    a number of steps and every bucket holds all of them. Accepted length counts the target's own
    token (whether the source's does was not read). One row of the batch counts as one round; its
    median length is a whole number, and of two arms with the same median the cheaper, that is the
    shorter one wins: expect it to settle too low. Off (gamma = 0) above `batch_max` running
    requests.
    """

    gamma_max: int = 8
    epsilon: float = 0.1
    window: int = 300
    refresh: float = 0.1
    batch_max: int = 32

    batch_wide = True
    name = "beg-mab"
    rule = "per batch-size bucket, epsilon-greedy on the median of (median length * batch / second)"
    source = "TLT, arXiv 2511.16665; github.com/mit-han-lab/fastrl (eagle_mab.py)"
    tags = {
        "gamma_max": "primary (steps of the trainer's arms)",
        "epsilon": "primary",
        "window": "primary",
        "refresh": "primary",
        "batch_max": "primary",
    }

    def new_state(self, slots: int) -> State:
        if self.window < 1:
            raise ValueError("the window holds at least one round")
        buckets, arms, window = len(BATCH_FROM), self.gamma_max, self.window
        return BegMabState(
            np.full((buckets, window), -1, dtype=np.int64),
            np.zeros((buckets, window)),
            np.zeros(buckets, dtype=np.int64),
            np.zeros((buckets, arms, window)),
            np.zeros((buckets, arms), dtype=np.int64),
            np.zeros((arms, window), dtype=np.int64),
            np.zeros(arms, dtype=np.int64),
            np.zeros((arms, arms + 2), dtype=np.int64),
            np.zeros(arms),
        )

    def gamma(self, state: BegMabState, slot: int, view: View, rng: Rng) -> int:
        arms = min(self.gamma_max, view.room)
        if view.batch_size > self.batch_max or arms <= 0:
            return 0
        bucket, best = bucket_of_batch(view.batch_size), 0
        if uniform(rng, 0) < self.epsilon:
            best = int(uniform(rng, 1) * arms)
        else:
            best_reward = -1.0
            for k in range(arms):
                held = int(state.held[bucket, k])
                if held == 0:
                    best = k
                    break
                reward = median_of(state.ranked[bucket, k], held)
                if reward > best_reward:
                    best, best_reward = k, reward
        plays = min(int(state.plays[best]), self.window)
        stale = float(state.stable_tokens[best]) == 0.0 or uniform(rng, 2) < self.refresh
        if plays > 0 and stale:
            low = ranked_length(state.histogram[best], (plays - 1) // 2)
            high = ranked_length(state.histogram[best], plays // 2)
            state.stable_tokens[best] = (low + high) / 2.0
        return best + 1

    def learn(self, state: BegMabState, slot: int, view: View, outcome: Outcome) -> None:
        k = outcome.gamma - 1
        if k < 0 or k >= self.gamma_max:
            return
        tokens = float(state.stable_tokens[k])
        if tokens == 0.0:  # the arm's first round
            tokens = float(outcome.emitted)
        reward = tokens * view.batch_size / outcome.elapsed_s if outcome.elapsed_s > 0.0 else 0.0
        remember_reward(state, bucket_of_batch(view.batch_size), k, reward, self.window)
        remember_length(state, k, outcome.emitted, self.window)
