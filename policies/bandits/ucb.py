"""Lengths as arms of a bandit: UCB, discounted, over a sliding window, and as in the textbook."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from policies.base import FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import DISCOUNT, DRAFT, FACTOR, GAMMA, Domain, disorder, hyper
from policies.randomness import Rng

FORGOTTEN = 1e-12  # an arm with fewer (discounted) plays is as good as never played


class ArmState(NamedTuple):
    """Shared by all requests, arm k = gamma_min + k: plays, tokens, seconds [arms]."""

    plays: FloatArray
    tokens: FloatArray
    seconds: FloatArray


def arms_in_room(gamma_min: int, gamma_max: int, room: int) -> int:
    """How many of the arms gamma_min..gamma_max may be played."""
    return max(0, min(gamma_max, room) - gamma_min + 1)


def highest_bound(
    plays: FloatArray, tokens: FloatArray, seconds: FloatArray, arms: int, exploration: float
) -> int:
    """The first arm never played, else the one with the highest bound on its tokens per second."""
    total, best_rate = 0.0, 0.0
    for k in range(arms):
        count = float(plays[k])
        if count < FORGOTTEN:
            return k
        total += count
        best_rate = max(best_rate, float(tokens[k]) / float(seconds[k]))
    log_total = math.log(max(total, 1.0))
    best, best_index = 0, -1.0
    for k in range(arms):
        rate = float(tokens[k]) / float(seconds[k]) / best_rate
        index = rate + exploration * math.sqrt(log_total / float(plays[k]))
        if index > best_index:
            best, best_index = k, index
    return best


@dataclasses.dataclass(frozen=True)
class UCB(Policy):
    """UCB1 over gamma_min..gamma_max with a bonus of its own for every arm.

    The value of an arm is its tokens per second as a ratio of sums (a mean of per-round ratios
    prefers erratic arms), divided by the best arm's. The bonus is exploration * sqrt(ln t / plays
    of the arm); Auer et al. use sqrt(2) for rewards spread over all of [0, 1]. Arms that do not fit
    into the room are not offered; a round is credited to the gamma in force.
    """

    gamma_min: int = hyper(1, GAMMA, "secondary")
    gamma_max: int = hyper(8, DRAFT, "ours")
    exploration: float = hyper(
        0.2, FACTOR, "ours: neighbouring lengths differ by a few percent; UCB1 has 1.414"
    )

    name = "ucb"
    rule = "gamma = argmax of tokens/s of the arm (best = 1) + exploration * sqrt(ln t / plays)"
    source = "Auer et al. 2002 (UCB1); BanditSpec, arXiv 2505.15141"

    def conflict(self) -> str:
        return disorder(self, "gamma_min", "gamma_max")

    def new_state(self, slots: int) -> State:
        arms = self.gamma_max - self.gamma_min + 1
        return ArmState(np.zeros(arms), np.zeros(arms), np.zeros(arms))

    def gamma(self, state: ArmState, slot: int, view: View, rng: Rng) -> int:
        arms = arms_in_room(self.gamma_min, self.gamma_max, view.room)
        if arms == 0:
            return 0
        return self.gamma_min + highest_bound(
            state.plays, state.tokens, state.seconds, arms, self.exploration
        )

    def learn(self, state: ArmState, slot: int, view: View, outcome: Outcome) -> None:
        k = outcome.gamma - self.gamma_min
        if k < 0 or k >= state.plays.shape[0]:
            return
        state.plays[k] += 1.0
        state.tokens[k] += outcome.emitted
        state.seconds[k] += outcome.elapsed_s


@dataclasses.dataclass(frozen=True)
class DiscountedUCB(UCB):
    """Discounted UCB: `ucb` that forgets, so that it can follow an arm that changes.

    Every credited round multiplies all plays, tokens and seconds by `discount`; t is the discounted
    number of plays. As in `ucb` the value is a ratio of sums with best = 1; the paper's is a mean
    of rewards in [0, B], its bonus 2 B sqrt(xi ln t / plays), xi > 1/2.
    """

    exploration: float = hyper(
        0.1, FACTOR, "ours: a bonus that never dies out; the paper's 2 sqrt(xi) is above 1.414"
    )
    discount: float = hyper(
        0.995, DISCOUNT, "ours: the paper derives it from the number of changes, which nobody knows"
    )

    name = "d-ucb"
    rule = "ucb whose plays, tokens and seconds are all discounted every round"
    source = "Garivier and Moulines, arXiv 0805.3415 (D-UCB)"

    def learn(self, state: ArmState, slot: int, view: View, outcome: Outcome) -> None:
        played = outcome.gamma - self.gamma_min
        if played < 0 or played >= state.plays.shape[0]:
            return
        for k in range(state.plays.shape[0]):
            state.plays[k] *= self.discount
            state.tokens[k] *= self.discount
            state.seconds[k] *= self.discount
        state.plays[played] += 1.0
        state.tokens[played] += outcome.emitted
        state.seconds[played] += outcome.elapsed_s


class WindowState(NamedTuple):
    """ArmState over the last W = window credited rounds, and those rounds themselves, a ring.

    Shared: plays, tokens, seconds [arms]; ring_arm [W] (-1: empty), ring_tokens, ring_seconds [W];
    rounds [1] credited so far.
    """

    plays: FloatArray
    tokens: FloatArray
    seconds: FloatArray
    ring_arm: IntArray
    ring_tokens: FloatArray
    ring_seconds: FloatArray
    rounds: IntArray


@dataclasses.dataclass(frozen=True)
class SlidingUCB(UCB):
    """Sliding-window UCB: `ucb` that only knows the last `window` rounds.

    t is the number of rounds in the window. An arm that has left the window is played at once. As
    in `ucb` the value is a ratio of sums with best = 1; the paper's is a mean of rewards in [0, B],
    its bonus B sqrt(xi ln t / plays), xi > 1/2.
    """

    exploration: float = hyper(
        0.1, FACTOR, "ours: a bonus that never dies out; the paper's sqrt(xi) is above 0.707"
    )
    window: int = hyper(
        400,
        Domain(1, 1_000_000),
        "ours: the paper derives it from the number of changes, which nobody knows",
    )

    name = "sw-ucb"
    rule = "ucb over the last `window` rounds"
    source = "Garivier and Moulines, arXiv 0805.3415 (SW-UCB)"

    def new_state(self, slots: int) -> State:
        arms = self.gamma_max - self.gamma_min + 1
        return WindowState(
            np.zeros(arms),
            np.zeros(arms),
            np.zeros(arms),
            np.full(self.window, -1, dtype=np.int64),
            np.zeros(self.window),
            np.zeros(self.window),
            np.zeros(1, dtype=np.int64),
        )

    def learn(self, state: State, slot: int, view: View, outcome: Outcome) -> None:
        played = outcome.gamma - self.gamma_min
        if played < 0 or played >= state.plays.shape[0]:
            return
        at = int(state.rounds[0]) % self.window
        oldest = int(state.ring_arm[at])
        if oldest >= 0:
            state.plays[oldest] -= 1.0
            state.tokens[oldest] -= float(state.ring_tokens[at])
            state.seconds[oldest] -= float(state.ring_seconds[at])
        state.ring_arm[at] = played
        state.ring_tokens[at] = outcome.emitted
        state.ring_seconds[at] = outcome.elapsed_s
        state.plays[played] += 1.0
        state.tokens[played] += outcome.emitted
        state.seconds[played] += outcome.elapsed_s
        state.rounds[0] += 1


class RateState(NamedTuple):
    """Shared: plays [arms]; rates [arms], summed tokens per second of the arm's rounds; top_rate
    [1], the highest of any round.
    """

    plays: FloatArray
    rates: FloatArray
    top_rate: FloatArray


def tokens_per_s(outcome: Outcome) -> float:
    """The rate of one round; 0 if the clock has not moved."""
    return outcome.emitted / outcome.elapsed_s if outcome.elapsed_s > 0.0 else 0.0


@dataclasses.dataclass(frozen=True)
class UCB1(Policy):
    """The textbook rule: mean of rewards in [0, 1] + sqrt(2 ln t / plays).

    Reward of a round: its tokens per second, divided by the highest seen so far. That mean of
    ratios is not the tokens per second of the arm: a short round counts as much as a long one, so
    that erratic arms look better than they are. `ucb` takes the ratio of sums instead.
    With gaps of a few percent between lengths and rewards in [0, 1], sqrt(2) explores nearly
    evenly for ten thousands of rounds: do not expect it to settle within a workload.
    """

    gamma_min: int = hyper(1, GAMMA, "ours")
    gamma_max: int = hyper(8, DRAFT, "ours")

    name = "ucb1"
    rule = "gamma = argmax of mean tokens/s of the arm's rounds (top = 1) + sqrt(2 ln t / plays)"
    source = "Auer, Cesa-Bianchi and Fischer, Machine Learning 47, 2002 (UCB1)"

    def conflict(self) -> str:
        return disorder(self, "gamma_min", "gamma_max")

    def new_state(self, slots: int) -> State:
        arms = self.gamma_max - self.gamma_min + 1
        return RateState(np.zeros(arms), np.zeros(arms), np.full(1, 1e-12))

    def gamma(self, state: RateState, slot: int, view: View, rng: Rng) -> int:
        arms = arms_in_room(self.gamma_min, self.gamma_max, view.room)
        if arms == 0:
            return 0
        total = 0.0
        for k in range(arms):
            plays = float(state.plays[k])
            if plays == 0.0:
                return self.gamma_min + k
            total += plays
        best, best_index = 0, -1.0
        for k in range(arms):
            plays = float(state.plays[k])
            mean = float(state.rates[k]) / plays / float(state.top_rate[0])
            index = mean + math.sqrt(2.0 * math.log(total) / plays)
            if index > best_index:
                best, best_index = k, index
        return self.gamma_min + best

    def learn(self, state: RateState, slot: int, view: View, outcome: Outcome) -> None:
        k = outcome.gamma - self.gamma_min
        if k < 0 or k >= state.plays.shape[0]:
            return
        rate = tokens_per_s(outcome)
        state.plays[k] += 1.0
        state.rates[k] += rate
        state.top_rate[0] = max(float(state.top_rate[0]), rate)
