"""UCBSpec, a bandit over lengths that lives as long as a request: as published, and as released."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from policies.bandits.ucb import arms_in_room, tokens_per_s
from policies.base import FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import DRAFT, Domain, hyper
from policies.randomness import Rng


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
