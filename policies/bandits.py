"""Lengths as arms of a bandit: the UCB family."""

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


class SpecState(NamedTuple):
    """Per request, of ucbspec-released arm k = gamma k + 1: plays [slots, arms]; reward [slots,
    arms], mean so far; rounds [slots].
    """

    plays: FloatArray
    reward: FloatArray
    rounds: IntArray


def fresh_arms(slots: int, arms: int) -> SpecState:
    """Arms nobody has played."""
    plays, reward = np.zeros((slots, arms)), np.zeros((slots, arms))
    return SpecState(plays, reward, np.zeros(slots, dtype=np.int64))


def forget_arms(state: SpecState | UcbSpecState, slot: int) -> None:
    """A new request starts with fresh arms."""
    for k in range(state.plays.shape[1]):
        state.plays[slot, k] = 0.0
        state.reward[slot, k] = 0.0
    state.rounds[slot] = 0


def credit_arm(state: SpecState | UcbSpecState, slot: int, k: int, reward: float) -> None:
    """Count the round, and fold its reward into the mean of arm k, the one in force."""
    state.rounds[slot] += 1
    if k < 0 or k >= state.plays.shape[1]:
        return
    plays = float(state.plays[slot, k])
    state.reward[slot, k] = (float(state.reward[slot, k]) * plays + reward) / (plays + 1.0)
    state.plays[slot, k] = plays + 1.0


class UcbSpecState(NamedTuple):
    """SpecState, arm k = gamma k; top_rate [slots], the highest reward of any round, tokens/s."""

    plays: FloatArray
    reward: FloatArray
    rounds: IntArray
    top_rate: FloatArray


def confidence_radius(plays: float, rounds: int, arms: int, delta: float) -> float:
    """BanditSpec, equation (6), without the factor L: half of sqrt((1 + n) / n^2 (1 + 2 log(K t^2
    sqrt(1 + n) / delta))), n plays of the arm in t rounds over K arms.
    """
    chances = math.log(arms * rounds * rounds * math.sqrt(1.0 + plays) / delta)
    return 0.5 * math.sqrt((1.0 + plays) / (plays * plays) * (1.0 + 2.0 * chances))


@dataclasses.dataclass(frozen=True)
class UCBSpec(Policy):
    """UCBSpec as published, over lengths: Algorithm 4 of BanditSpec with the reward of section 6.2.

    Every arm once, in order; then the highest mean + L/2 sqrt((1 + n) / n^2 (1 + 2 log(K t^2
    sqrt(1 + n) / delta))). In 6.2 the arms are gamma 0..4 and the reward is the round's tokens per
    second. The bandit lives as long as the request: what is minimised is the time to its end.

    Ours where the paper is silent: delta, and what stands for L, the width of the reward's range
    (rewards in tokens lie in [1, L + 1]; how wide one in tokens per second is, is not said). Here
    it is the highest tokens per second of the request so far, so that the unit of time decides
    nothing. So wide a radius explores nearly evenly for hundreds of rounds: do not expect it to
    settle within a reply. The released code is another rule, `ucbspec-released`.
    """

    gamma_max: int = hyper(4, DRAFT, "primary (section 6.2)")
    delta: float = hyper(0.1, Domain(high=1, above=0), "ours: the paper leaves it open")

    name = "ucbspec"
    rule = "gamma = argmax over 0..gamma_max of mean tokens/s of the arm + its confidence radius"
    source = "BanditSpec, arXiv 2505.15141, Algorithm 4, equation (6), and section 6.2"

    def new_state(self, slots: int) -> State:
        plays, reward, rounds = fresh_arms(slots, self.gamma_max + 1)
        return UcbSpecState(plays, reward, rounds, np.zeros(slots))

    def admit(self, state: UcbSpecState, slot: int) -> None:
        forget_arms(state, slot)
        state.top_rate[slot] = 0.0

    def gamma(self, state: UcbSpecState, slot: int, view: View, rng: Rng) -> int:
        rounds, arms = int(state.rounds[slot]), self.gamma_max + 1
        width = float(state.top_rate[slot])
        best, best_index = 0, -1.0
        for k in range(arms_in_room(0, self.gamma_max, view.room)):
            plays = float(state.plays[slot, k])
            if plays == 0.0:
                return k
            radius = confidence_radius(plays, rounds, arms, self.delta)
            index = float(state.reward[slot, k]) + width * radius
            if index > best_index:
                best, best_index = k, index
        return best

    def learn(self, state: UcbSpecState, slot: int, view: View, outcome: Outcome) -> None:
        rate = tokens_per_s(outcome)
        state.top_rate[slot] = max(float(state.top_rate[slot]), rate)
        credit_arm(state, slot, outcome.gamma, rate)


@dataclasses.dataclass(frozen=True)
class UCBSpecReleased(Policy):
    """UCBSpec as released: the bonus is divided by the total number of pulls.

    sqrt(6 ln t / all pulls) is the same number for every arm, so it is left out here: the rule is
    greedy on the mean of the rounds' tokens per second, after a warm-up that plays the arms in turn
    for 2 gamma_max - 1 rounds. An arm that was unlucky in its one or two warm-up rounds is hardly
    tried again in this reply. The source has one gamma for its whole batch.
    """

    gamma_max: int = hyper(4, DRAFT, "primary")

    name = "ucbspec-released"
    rule = "arms 1..gamma_max in turn for 2 gamma_max - 1 rounds, then the best mean tokens/s"
    source = "github.com/sail-sg/BanditSpec, generate_utils.py (ucb_length_spec_generate)"

    def new_state(self, slots: int) -> State:
        return fresh_arms(slots, self.gamma_max)

    def admit(self, state: SpecState, slot: int) -> None:
        forget_arms(state, slot)

    def gamma(self, state: SpecState, slot: int, view: View, rng: Rng) -> int:
        rounds = int(state.rounds[slot])
        if rounds < 2 * self.gamma_max - 1:
            return rounds % self.gamma_max + 1
        best, best_reward = 0, -1.0
        for k in range(min(self.gamma_max, view.room)):
            if float(state.reward[slot, k]) > best_reward:
                best, best_reward = k + 1, float(state.reward[slot, k])
        return best

    def learn(self, state: SpecState, slot: int, view: View, outcome: Outcome) -> None:
        credit_arm(state, slot, outcome.gamma - 1, tokens_per_s(outcome))
