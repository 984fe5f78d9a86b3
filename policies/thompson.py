"""Posterior sampling: draw a world from what is believed, play the best length in it."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from policies.bandits import arms_in_room
from policies.base import FloatArray, Outcome, Policy, State, View
from policies.fields import DISCOUNT, DRAFT, GAMMA, disorder, hyper
from policies.randomness import Rng, beta, normal


class DepthState(NamedTuple):
    """Shared, D = gamma_max: passed, failed [D], discounted counts of drafted tokens at depth k
    that were reached (everything before them was accepted).
    """

    passed: FloatArray
    failed: FloatArray


@dataclasses.dataclass(frozen=True)
class ThompsonBeta(Policy):
    """Thompson sampling on what a length is made of: a Beta posterior per depth.

    a_k, the chance that token k passes once reached, is Beta(1 + passed_k, 1 + failed_k). A round
    counts the depths it reached and no other: full acceptance is censored, it says nothing of the
    next depth. Then a_1, a_2, ... are drawn and gamma = argmax_k (1 + S_1 + ... + S_k) / (k
    draft_step_s + verify_s[k + 1]), S_k = a_1 ... a_k, ties to the smaller k. All lengths learn
    from every round, and seconds are known, not learned.
    Every round discounts all depths, reached or not (Raj and Kalyani, Taming Non-stationary
    Bandits: A Bayesian Approach, arXiv 1707.09727): what is not looked at becomes uncertain again
    and is drawn. That also ends a stretch of gamma = 0, without a probe rule.
    """

    gamma_max: int = hyper(8, DRAFT, "ours")
    discount: float = hyper(0.99, DISCOUNT, "ours")

    name = "thompson-beta"
    rule = "draw each depth's acceptance from its Beta posterior; gamma = argmax of tokens/s"
    source = "Thompson, Biometrika 25, 1933; Chapelle and Li, NIPS 2011; per depth: ours"

    def new_state(self, slots: int) -> State:
        return DepthState(np.zeros(self.gamma_max), np.zeros(self.gamma_max))

    def gamma(self, state: DepthState, slot: int, view: View, rng: Rng) -> int:
        best, best_rate = 0, 1.0 / float(view.verify_s[1])
        survival, expected = 1.0, 1.0
        for k in range(min(self.gamma_max, view.room)):
            passed, failed = float(state.passed[k]), float(state.failed[k])
            survival *= beta(rng, k, 1.0 + passed, 1.0 + failed)
            expected += survival
            rate = expected / ((k + 1) * view.draft_step_s + float(view.verify_s[k + 2]))
            if rate > best_rate:
                best, best_rate = k + 1, rate
        return best

    def learn(self, state: DepthState, slot: int, view: View, outcome: Outcome) -> None:
        rejected = outcome.accepted < outcome.drafted and not outcome.ended
        for k in range(self.gamma_max):
            state.passed[k] *= self.discount
            state.failed[k] *= self.discount
            if k < outcome.accepted:
                state.passed[k] += 1.0
            elif k == outcome.accepted and rejected:
                state.failed[k] += 1.0


class GaussState(NamedTuple):
    """Shared, arm k = gamma_min + k: plays, tokens, tokens_squared, seconds [arms], sums."""

    plays: FloatArray
    tokens: FloatArray
    tokens_squared: FloatArray
    seconds: FloatArray


@dataclasses.dataclass(frozen=True)
class ThompsonGauss(Policy):
    """Thompson sampling on the arms themselves: a Gaussian belief of each arm's tokens per second.

    What counts is the ratio of sums R = tokens / seconds of an arm, not the mean of its rounds'
    ratios. The seconds of a length hardly vary, so R carries the noise of its tokens alone: R ~
    N(tokens / seconds, s^2 / plays / (seconds / plays)^2), s^2 the variance of the arm's tokens per
    round, one pseudo-round whose deviation is the mean itself included, so that two equal rounds do
    not look certain. Every arm is played twice first. Nothing is forgotten.
    """

    gamma_min: int = hyper(1, GAMMA, "ours")
    gamma_max: int = hyper(8, DRAFT, "ours")

    name = "thompson-gauss"
    rule = "gamma = argmax of a Gaussian draw of each arm's tokens/s"
    source = "Honda and Takemura, AISTATS 2014 (Gaussian bandits); ratio of sums: ours"

    def conflict(self) -> str:
        return disorder(self, "gamma_min", "gamma_max")

    def new_state(self, slots: int) -> State:
        arms = self.gamma_max - self.gamma_min + 1
        return GaussState(np.zeros(arms), np.zeros(arms), np.zeros(arms), np.zeros(arms))

    def gamma(self, state: GaussState, slot: int, view: View, rng: Rng) -> int:
        arms = arms_in_room(self.gamma_min, self.gamma_max, view.room)
        if arms == 0:
            return 0
        best, best_rate = 0, 0.0
        for k in range(arms):
            plays = float(state.plays[k])
            if plays < 2.0:
                return self.gamma_min + k
            mean = float(state.tokens[k]) / plays
            deviations = float(state.tokens_squared[k]) - plays * mean * mean + mean * mean
            error = math.sqrt(max(deviations, 0.0) / (plays + 1.0) / plays)
            rate = (mean + error * normal(rng, k)) / (float(state.seconds[k]) / plays)
            if k == 0 or rate > best_rate:
                best, best_rate = k, rate
        return self.gamma_min + best

    def learn(self, state: GaussState, slot: int, view: View, outcome: Outcome) -> None:
        k = outcome.gamma - self.gamma_min
        if k < 0 or k >= state.plays.shape[0]:
            return
        state.plays[k] += 1.0
        state.tokens[k] += outcome.emitted
        state.tokens_squared[k] += outcome.emitted * outcome.emitted
        state.seconds[k] += outcome.elapsed_s
