"""Lengths as arms of a bandit that is paid in tokens and charged in seconds."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from policies.base import FloatArray, Outcome, Policy, State, View
from policies.randomness import Rng


class ArmState(NamedTuple):
    """Shared by all requests, arm k = gamma_min + k: plays, tokens, seconds [arms]."""

    plays: FloatArray
    tokens: FloatArray
    seconds: FloatArray


@dataclasses.dataclass(frozen=True)
class UCB(Policy):
    """UCB1 over gamma_min..gamma_max with a bonus of its own for every arm.

    The value of an arm is its tokens per second as a ratio of sums (a mean of per-round ratios
    prefers erratic arms), divided by the best arm's. The bonus is exploration * sqrt(ln t / plays
    of the arm); Auer et al. use sqrt(2) for rewards spread over all of [0, 1]. Arms that do not fit
    into the room are not offered; a round is credited to the gamma in force.
    """

    gamma_min: int = 1
    gamma_max: int = 8
    exploration: float = 0.2

    name = "ucb"
    rule = "gamma = argmax of tokens/s of the arm (best = 1) + exploration * sqrt(ln t / plays)"
    source = "Auer et al. 2002 (UCB1); BanditSpec, arXiv 2505.15141"
    tags = {
        "gamma_min": "secondary",
        "gamma_max": "ours",
        "exploration": "ours: neighbouring lengths differ by a few percent; UCB1 has 1.414",
    }

    def new_state(self, slots: int) -> State:
        arms = self.gamma_max - self.gamma_min + 1
        return ArmState(np.zeros(arms), np.zeros(arms), np.zeros(arms))

    def gamma(self, state: ArmState, slot: int, view: View, rng: Rng) -> int:
        arms = min(self.gamma_max, view.room) - self.gamma_min + 1
        if arms <= 0:
            return 0
        if arms == 1:
            return self.gamma_min
        total, best_rate = 0.0, 0.0
        for k in range(arms):
            plays = float(state.plays[k])
            if plays == 0.0:
                return self.gamma_min + k
            total += plays
            best_rate = max(best_rate, float(state.tokens[k]) / float(state.seconds[k]))
        log_total = math.log(total)
        best, best_index = 0, -1.0
        for k in range(arms):
            rate = float(state.tokens[k]) / float(state.seconds[k]) / best_rate
            index = rate + self.exploration * math.sqrt(log_total / float(state.plays[k]))
            if index > best_index:
                best, best_index = k, index
        return self.gamma_min + best

    def learn(self, state: ArmState, slot: int, view: View, outcome: Outcome) -> None:
        k = outcome.gamma - self.gamma_min
        if k < 0 or k >= state.plays.shape[0]:
            return
        state.plays[k] += 1.0
        state.tokens[k] += outcome.emitted
        state.seconds[k] += outcome.elapsed_s
