"""How far a draft that is away from its target drafts: longer, the longer the way (arXiv
2606.20591).

Read by us: the authors' code, and the paper's abstract; the paper itself could not be had.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from policies.base import FloatArray, Outcome, Policy, State, View
from policies.fields import DISCOUNT, DRAFT, FACTOR, SHARE, Domain, hyper
from policies.randomness import Rng


class RateState(NamedTuple):
    """Shared: judged [1], discounted count of drafted tokens that were reached; passed [1], of
    those that were accepted.
    """

    judged: FloatArray
    passed: FloatArray


@dataclasses.dataclass(frozen=True)
class SpecStop(Policy):
    """gamma = argmin over 1..gamma_max of round_s(gamma) / (1 + a + ... + a^gamma), ties to the
    smallest.

    round_s is gamma draft steps, the target step that verifies gamma + 1 tokens, and twice the
    delay of one way; a the chance that a token is accepted, the same at all depths. The longer the
    way, the longer the draft: below a critical delay one token is best, beyond it the length grows
    with the delay's logarithm. There a token costs as much to verify wherever it stands, a is
    calibrated before, and gamma = 0 is no choice; here steps have the view's prices, and a is the
    discounted share of reached tokens that were accepted, over all requests, of `strength` prior
    ones at first. A timing taken over the way already holds it: then the delay is 0.
    """

    gamma_max: int = hyper(
        10, DRAFT, "primary (the experiments on hardware; 20 in the simulations)"
    )
    delay_ms: float = hyper(
        0.0, FACTOR, "ours: that of the way, one direction; 0 where the timing holds it"
    )
    prior_rate: float = hyper(0.7, SHARE, "primary (alpha of the simulations)")
    strength: float = hyper(
        20.0, Domain(high=1_000_000, above=0), "ours: there the rate is calibrated, not learned"
    )
    discount: float = hyper(0.999, DISCOUNT, "ours: there the rate is calibrated, not learned")

    name = "specstop"
    rule = "gamma = argmin of a round's seconds, the way included, over its expected tokens"
    source = "szpsunkk/UCB-SpecStop, src/core.py (C, compute_kstar); arXiv 2606.20591 (abstract)"

    def new_state(self, slots: int) -> State:
        return RateState(np.zeros(1), np.zeros(1))

    def gamma(self, state: RateState, slot: int, view: View, rng: Rng) -> int:
        passed = float(state.passed[0]) + self.strength * self.prior_rate
        rate = passed / (float(state.judged[0]) + self.strength)
        way_s = 2.0 * self.delay_ms / 1000.0
        best, best_s = 0, 0.0
        expected, survival = 1.0, 1.0
        for k in range(min(self.gamma_max, view.room)):
            survival *= rate
            expected += survival
            seconds = (k + 1) * view.draft_step_s + float(view.verify_s[k + 2]) + way_s
            per_token = seconds / expected
            if best == 0 or per_token < best_s:
                best, best_s = k + 1, per_token
        return best

    def learn(self, state: RateState, slot: int, view: View, outcome: Outcome) -> None:
        judged = outcome.accepted if outcome.ended else outcome.accepted + 1
        judged = min(judged, outcome.drafted)
        if judged == 0:
            return
        state.judged[0] = self.discount * float(state.judged[0]) + judged
        state.passed[0] = self.discount * float(state.passed[0]) + outcome.accepted


class StopState(NamedTuple):
    """D = gamma_max. Shared, of all rounds played with gamma = k + 1: rounds, milliseconds, tokens
    [D].
    """

    rounds: FloatArray
    elapsed_ms: FloatArray
    tokens: FloatArray


@dataclasses.dataclass(frozen=True)
class UCBSpecStop(Policy):
    """The same where neither the way nor the acceptance is known: a bandit on milliseconds per
    token.

    Every length once, then gamma = argmin of (N - beta sqrt(T ln t)) / A: N milliseconds and A
    tokens of a length's rounds in all, T those rounds, t the round at hand. A ratio of sums; the
    mean of each round's ratio would be biased. Lengths that there is no room for are not offered.
    One for all requests. It weighs the milliseconds that elapsed with each other only.
    """

    gamma_max: int = hyper(
        10, DRAFT, "primary (the experiments on hardware; 20 in the simulations)"
    )
    beta_ms: float = hyper(1.0, FACTOR, "primary (1, with delays in milliseconds)")

    name = "ucb-specstop"
    rule = "gamma = argmin of milliseconds per token less a bonus for lengths seldom played"
    source = "szpsunkk/UCB-SpecStop, src/baselines.py (UCBSpecStop); arXiv 2606.20591 (abstract)"

    def new_state(self, slots: int) -> State:
        arms = self.gamma_max
        return StopState(np.zeros(arms), np.zeros(arms), np.zeros(arms))

    def gamma(self, state: StopState, slot: int, view: View, rng: Rng) -> int:
        arms, played = min(self.gamma_max, view.room), 1.0
        for k in range(arms):
            if float(state.tokens[k]) <= 0.0:
                return k + 1
        for k in range(self.gamma_max):
            played += float(state.rounds[k])
        best, best_index = 0, 0.0
        for k in range(arms):
            bonus = self.beta_ms * math.sqrt(float(state.rounds[k]) * math.log(played))
            index = (float(state.elapsed_ms[k]) - bonus) / float(state.tokens[k])
            if best == 0 or index < best_index:
                best, best_index = k + 1, index
        return best

    def learn(self, state: StopState, slot: int, view: View, outcome: Outcome) -> None:
        k = outcome.gamma - 1
        if k < 0 or k >= self.gamma_max:
            return
        state.rounds[k] += 1.0
        state.elapsed_ms[k] += 1000.0 * outcome.elapsed_s
        state.tokens[k] += outcome.emitted
