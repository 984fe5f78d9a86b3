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
