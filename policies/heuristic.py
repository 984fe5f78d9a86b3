"""Rules of thumb on accepted counts, one of them beside a stop by confidence."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from policies.base import Draft, IntArray, Outcome, Policy, State, View
from policies.fields import COUNT, DRAFT, GAMMA, SHARE, SWITCH, disorder, hyper
from policies.randomness import Rng


class HeuristicState(NamedTuple):
    """Per request: gamma [slots], the next cap."""

    gamma: IntArray


def next_heuristic(gamma: int, outcome: Outcome) -> int:
    """The cap after a round, as transformers moves num_assistant_tokens.

    An end token among the drafts counts as not fully matched: there the reply is cut behind it, and
    the matches are counted anew as its tokens less one (generation/utils.py, _assisted_decoding).
    """
    if outcome.accepted == outcome.drafted and not outcome.ended:
        return gamma + 2
    return max(1, gamma - 1)


@dataclasses.dataclass(frozen=True)
class HeuristicSchedule(Policy):
    """All but the start and the stop of `hf-heuristic` and `hf-heuristic+`.

    `transient` starts every request afresh (heuristic_transient); otherwise gamma persists in the
    slot across requests, as it does across generate calls there.
    """

    gamma0: int = hyper(5, DRAFT, "primary (the default while `heuristic` was)")
    transient: bool = hyper(True, SWITCH, "ours: transformers offers both")

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
        state.gamma[slot] = next_heuristic(int(state.gamma[slot]), outcome)


@dataclasses.dataclass(frozen=True)
class HFHeuristic(HeuristicSchedule):
    """The `heuristic` schedule of transformers' assisted generation, from when it was the default.

    There the start was 5 and nothing stopped a draft early (generation/configuration_utils.py:
    num_assistant_tokens 5 beside the schedule "heuristic"; 20 came with "constant"). The update is
    read in 5.23 (AssistedCandidateGenerator.update_candidate_strategy): matches are compared with
    what was drafted. Older releases compare with the schedule's own length, which differs only
    where a limit cuts the round. There is no upper limit but room.
    """

    name = "hf-heuristic"
    rule = "all drafted accepted: gamma += 2; else gamma = max(1, gamma - 1)"
    source = "huggingface/transformers, generation/candidate_generator.py"


@dataclasses.dataclass(frozen=True)
class HFHeuristicStop(HeuristicSchedule):
    """The `heuristic` schedule in transformers 5.x, where the confidence stop stays on beside it.

    Whoever sets only the schedule starts at 20 and stops behind a token below 0.4
    (generation/configuration_utils.py, defaults of GenerationConfig; stopping_criteria.py,
    ConfidenceCriteria). A round stopped early whose drafts were all accepted counts as fully
    matched. With scikit-learn installed the threshold moves too, as in `hf-roc`; here it stays. Not
    a kind of HFHeuristic: what exports that one writes a schedule without the stop.
    """

    gamma0: int = hyper(20, DRAFT, "primary")
    threshold: float = hyper(0.4, SHARE, "primary")

    name = "hf-heuristic+"
    rule = "hf-heuristic, and stop drafting after a token whose probability is below the threshold"
    source = (
        "huggingface/transformers 5.23, generation/candidate_generator.py and stopping_criteria.py"
    )

    def proceed(self, state: HeuristicState, slot: int, draft: Draft) -> bool:
        return draft.top1_prob >= self.threshold


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

    gamma0: int = hyper(
        3, GAMMA, "ours: llama.cpp's draft-max for MTP heads; the start is not stated"
    )
    streak: int = hyper(
        11, COUNT, "primary (the author's choice; the pull request's default is 0, off)"
    )
    bias: int = hyper(0, GAMMA, "primary (0 or 1)")
    gamma_min: int = hyper(1, GAMMA, "ours")
    gamma_max: int = hyper(16, DRAFT, "primary (llama.cpp's older draft-max)")

    name = "streak"
    rule = (
        "gamma + 1 after `streak` rounds with accepted >= drafted - bias, - 1 after as many without"
    )
    source = "ggml-org/llama.cpp, pull request 25726"

    def conflict(self) -> str:
        return disorder(self, "gamma_min", "gamma_max")

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
