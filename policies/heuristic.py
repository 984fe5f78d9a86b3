"""Rules of thumb on accepted counts."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from policies.base import IntArray, Outcome, Policy, State, View
from policies.randomness import Rng


class HeuristicState(NamedTuple):
    """Per request: gamma [slots], the next cap."""

    gamma: IntArray


@dataclasses.dataclass(frozen=True)
class HFHeuristic(Policy):
    """The `heuristic` schedule of transformers' assisted generation.

    `transient` starts every request afresh (heuristic_transient); otherwise gamma persists in the
    slot across requests, as it does across generate calls there. There is no upper limit but room.
    """

    gamma0: int = 20
    transient: bool = True

    name = "hf-heuristic"
    rule = "all drafted accepted: gamma += 2; else gamma = max(1, gamma - 1)"
    source = "huggingface/transformers, generation/candidate_generator.py"
    tags = {"gamma0": "primary", "transient": "ours: transformers offers both"}

    def forgets(self) -> bool:
        return self.transient

    def new_state(self, slots: int) -> State:
        return HeuristicState(np.full(slots, self.gamma0, dtype=np.int64))

    def admit(self, state: HeuristicState, slot: int) -> None:
        if self.transient:
            state.gamma[slot] = self.gamma0

    def gamma(self, state: HeuristicState, slot: int, view: View, rng: Rng) -> int:
        return int(state.gamma[slot])

    def learn(self, state: HeuristicState, slot: int, view: View, outcome: Outcome) -> None:
        gamma = int(state.gamma[slot])
        if outcome.accepted == outcome.drafted:
            state.gamma[slot] = gamma + 2
        else:
            state.gamma[slot] = max(1, gamma - 1)


class StreakState(NamedTuple):
    """Per request: gamma [slots], the next cap; run [slots], successes in a row, or minus the
    failures in a row.
    """

    gamma: IntArray
    run: IntArray


@dataclasses.dataclass(frozen=True)
class Streak(Policy):
    """llama.cpp's proposed streak rule: one token more after a row of successes, one less after a
    row of failures.

    A round is a success if accepted >= drafted - bias. A row of `streak` rounds of one kind moves
    gamma by one and starts anew; a round of the other kind breaks it. streak = 0 is off. Rounds
    that drafted nothing are passed over. Where a request starts is not stated: here at gamma0.
    """

    gamma0: int = 3
    streak: int = 11
    bias: int = 0
    gamma_min: int = 1
    gamma_max: int = 16

    name = "streak"
    rule = (
        "gamma + 1 after `streak` rounds with accepted >= drafted - bias, - 1 after as many without"
    )
    source = "ggml-org/llama.cpp, pull request 25726"
    tags = {
        "gamma0": "ours: llama.cpp's draft-max for MTP heads; the start is not stated",
        "streak": "primary (the author's choice; the pull request's default is 0, off)",
        "bias": "primary (0 or 1)",
        "gamma_min": "ours",
        "gamma_max": "primary (llama.cpp's older draft-max)",
    }

    def new_state(self, slots: int) -> State:
        return StreakState(
            np.full(slots, self.gamma0, dtype=np.int64), np.zeros(slots, dtype=np.int64)
        )

    def admit(self, state: StreakState, slot: int) -> None:
        state.gamma[slot] = self.gamma0
        state.run[slot] = 0

    def gamma(self, state: StreakState, slot: int, view: View, rng: Rng) -> int:
        return int(state.gamma[slot])

    def learn(self, state: StreakState, slot: int, view: View, outcome: Outcome) -> None:
        if self.streak == 0 or outcome.drafted == 0:
            return
        gamma, run = int(state.gamma[slot]), int(state.run[slot])
        if outcome.accepted >= outcome.drafted - self.bias:
            run = max(run, 0) + 1
        else:
            run = min(run, 0) - 1
        if abs(run) >= self.streak:
            gamma += 1 if run > 0 else -1
            run = 0
        state.gamma[slot] = max(self.gamma_min, min(gamma, self.gamma_max))
        state.run[slot] = run
