"""Lengths as arms of an adversarial bandit: exponential weights that see only the arm played."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from policies.bandits import arms_in_room, tokens_per_s
from policies.base import FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import DRAFT, GAMMA, SHARE, disorder, hyper
from policies.randomness import Rng, uniform


class Exp3State(NamedTuple):
    """Shared, arm k = gamma_min + k: log_weight [arms]; top_rate [1], most tokens per second of any
    round. Per request: probability [slots] with which the arm in force was drawn.
    """

    log_weight: FloatArray
    probability: FloatArray
    top_rate: FloatArray


def draw_arm(
    log_weight: FloatArray, arms: int, rate: float, exploration: float, u: float
) -> tuple[int, float]:
    """One of the first `arms` arms, and the probability with which u in [0, 1) selects it:
    (1 - exploration) w_k / W + exploration / arms, w_k = exp(rate * log_weight[k]).
    """
    top = rate * float(log_weight[0])
    for k in range(1, arms):
        top = max(top, rate * float(log_weight[k]))
    total = 0.0
    for k in range(arms):
        total += math.exp(rate * float(log_weight[k]) - top)
    chosen, probability = 0, 1.0
    for k in range(arms):
        share = math.exp(rate * float(log_weight[k]) - top) / total
        chosen, probability = k, (1.0 - exploration) * share + exploration / arms
        if u < probability:
            break
        u -= probability
    return chosen, max(probability, 1e-9)  # rounding may hand u to an arm of weight 0


@dataclasses.dataclass(frozen=True)
class Exp3(Policy):
    """EXP3: draw by weight, and credit the arm with its reward divided by its probability.

    p_k = (1 - g) w_k / W + g / K;  w_k <- w_k exp(g / K * reward / p_k) for the arm played, g =
    exploration. Reward: the round's tokens per second over the highest so far, in [0, 1] as EXP3
    needs it; a mean of ratios then, see `ucb1`. Where the room excludes arms the draw is among
    those that fit, with their probabilities: the arm drawn is always the arm in force.
    """

    gamma_min: int = hyper(1, GAMMA, "ours")
    gamma_max: int = hyper(8, DRAFT, "ours")
    exploration: float = hyper(
        0.05, SHARE, "ours: their optimum for 8 arms and a total reward of 3,900"
    )

    name = "exp3"
    rule = "draw gamma by exponential weights of importance-weighted tokens/s (top = 1)"
    source = "Auer, Cesa-Bianchi, Freund and Schapire, SIAM J. Computing 32, 2002 (Exp3)"

    def conflict(self) -> str:
        return disorder(self, "gamma_min", "gamma_max")

    def new_state(self, slots: int) -> State:
        arms = self.gamma_max - self.gamma_min + 1
        return Exp3State(np.zeros(arms), np.ones(slots), np.full(1, 1e-12))

    def admit(self, state: Exp3State, slot: int) -> None:
        state.probability[slot] = 1.0

    def gamma(self, state: Exp3State, slot: int, view: View, rng: Rng) -> int:
        arms = arms_in_room(self.gamma_min, self.gamma_max, view.room)
        if arms == 0:
            return 0
        k, probability = draw_arm(state.log_weight, arms, 1.0, self.exploration, uniform(rng, 0))
        state.probability[slot] = probability
        return self.gamma_min + k

    def learn(self, state: Exp3State, slot: int, view: View, outcome: Outcome) -> None:
        k, arms = outcome.gamma - self.gamma_min, state.log_weight.shape[0]
        if k < 0 or k >= arms:
            return
        rate = tokens_per_s(outcome)
        state.top_rate[0] = max(float(state.top_rate[0]), rate)
        estimate = rate / float(state.top_rate[0]) / float(state.probability[slot])
        state.log_weight[k] += self.exploration / arms * estimate


class Exp3SpecState(NamedTuple):
    """Per request, arm k = gamma k + 1: gain [slots, arms], minus the estimated losses so far;
    probability [slots] with which the arm in force was drawn; rounds [slots].
    """

    gain: FloatArray
    probability: FloatArray
    rounds: IntArray


@dataclasses.dataclass(frozen=True)
class Exp3Spec(Policy):
    """EXP3Spec as published: anytime EXP3 on losses, per request.

    Round t draws arm i with probability p_i proportional to exp(-eta_t * its losses so far), eta_t
    = sqrt(log K / (t K)), nothing mixed in; the arm drawn is charged (L + 1 - Y) / (L p_i), Y the
    tokens of the round, the target's own included, L = gamma_max.

    The paper plays it over draft models; over lengths it plays only UCBSpec. A loss in tokens
    knows no seconds, so that with lengths as arms it leans to gamma_max whatever that costs; and
    within one reply it hardly leaves the uniform draw. Where the room excludes arms the draw is
    among those that fit, K included.
    """

    gamma_max: int = hyper(4, DRAFT, "primary (the L of section 6.2, which plays UCBSpec)")

    name = "exp3spec"
    rule = "draw gamma by exponential weights of importance-weighted losses in tokens, per request"
    source = "BanditSpec, arXiv 2505.15141, Algorithm 5, equations (13) and (14)"

    def new_state(self, slots: int) -> State:
        gain, rounds = np.zeros((slots, self.gamma_max)), np.zeros(slots, dtype=np.int64)
        return Exp3SpecState(gain, np.ones(slots), rounds)

    def admit(self, state: Exp3SpecState, slot: int) -> None:
        state.probability[slot] = 1.0
        state.rounds[slot] = 0
        for k in range(state.gain.shape[1]):
            state.gain[slot, k] = 0.0

    def gamma(self, state: Exp3SpecState, slot: int, view: View, rng: Rng) -> int:
        arms = min(self.gamma_max, view.room)
        if arms <= 0:
            return 0
        eta = math.sqrt(math.log(arms) / ((int(state.rounds[slot]) + 1) * arms))
        k, probability = draw_arm(state.gain[slot], arms, eta, 0.0, uniform(rng, 0))
        state.probability[slot] = probability
        return k + 1

    def learn(self, state: Exp3SpecState, slot: int, view: View, outcome: Outcome) -> None:
        k = outcome.gamma - 1
        if k < 0 or k >= self.gamma_max:
            return
        state.rounds[slot] += 1
        loss = (self.gamma_max + 1 - outcome.emitted) / self.gamma_max
        state.gain[slot, k] -= loss / float(state.probability[slot])
