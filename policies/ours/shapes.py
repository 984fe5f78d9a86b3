"""Choose the draft tree of a round, and how deep to go, by what it is expected to be worth."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from policies.base import FloatArray, IntArray, MenuView, Outcome, Policy, State, View
from policies.fields import DISCOUNT, SHARE, SOME, Domain, hyper
from policies.randomness import Rng

ENTRIES, LEVELS = 64, 32  # that are told apart; deeper levels are as the last one
AFTER = 3  # how the last draft of a request ended: nothing accepted, some, all


class ShapeState(NamedTuple):
    """Per request: entry [slots] that this round drafts; after [slots], see AFTER.
    Shared: reached, passed [AFTER, ENTRIES, LEVELS], discounted counts of drafted levels that were
    judged and that were accepted; clock [2], discounted tokens and seconds; turn [2], rounds, and
    the entry that is probed next.
    """

    entry: IntArray
    after: IntArray
    reached: FloatArray
    passed: FloatArray
    clock: FloatArray
    turn: IntArray


def chance(
    state: ShapeState, after: int, entry: int, level: int, hope: float, doubt: float
) -> float:
    """That a level is accepted if it is reached, `hope` until seen about `doubt` times."""
    at = level if level < LEVELS else LEVELS - 1
    reached = float(state.reached[after, entry, at])
    return (float(state.passed[after, entry, at]) + doubt * hope) / (reached + doubt)


@dataclasses.dataclass(frozen=True)
class ShapeWorth(Policy):
    """Draft that tree of the menu, that deep, whose expected tokens less the worth of its seconds
    are most; nothing, if that is below what plain decoding is worth.

    A level of a tree is accepted at a rate of its own, counted apart after rounds that accepted
    nothing, some and all; the tokens of d levels are 1 + the sum of the products of these rates. A
    second is worth the tokens it has brought so far (a renewal-reward argument, as in `marginal`).
    What was never drafted is hoped for, so every entry gets its rounds; every `probe_every` rounds
    the next entry is tried again. Without a menu it decides the depth of a chain.
    """

    hope: float = hyper(0.9, SHARE, "ours: above most recordings' first level")
    doubt: float = hyper(2.0, Domain(high=1_000_000, above=0), "ours")
    memory: float = hyper(0.998, DISCOUNT, "ours")
    probe_every: int = hyper(64, SOME, "ours")

    name = "shape-worth"
    rule = (
        "the tree and the depth whose expected tokens, less what their seconds are worth, are most"
    )
    source = "ours; Sequoia's objective (arXiv 2402.12374), learned while serving and by the round"

    def new_state(self, slots: int) -> State:
        counts = (AFTER, ENTRIES, LEVELS)
        return ShapeState(
            np.zeros(slots, dtype=np.int64), np.ones(slots, dtype=np.int64),
            np.zeros(counts), np.zeros(counts), np.zeros(2), np.zeros(2, dtype=np.int64),
        )  # fmt: skip

    def admit(self, state: ShapeState, slot: int) -> None:
        state.entry[slot], state.after[slot] = 0, 1

    def shape(self, state: ShapeState, slot: int, view: MenuView, rng: Rng) -> int:
        entries = min(ENTRIES, view.levels.shape[0])
        chosen, best = 0, -1.0e300
        if int(state.turn[0]) % self.probe_every == 0:
            chosen = int(state.turn[1]) % entries
            state.turn[1] = chosen + 1
        else:
            after, rate = int(state.after[slot]), rate_of(state, float(view.verify_s[0, 1]))
            for entry in range(entries):
                deepest = min(view.room, int(view.levels[entry]))
                tokens, stands = 1.0, 1.0
                for level in range(deepest):
                    stands *= chance(state, after, entry, level, self.hope, self.doubt)
                    tokens += stands
                    seconds = (level + 1) * view.draft_step_s
                    seconds += float(view.verify_s[entry, level + 2])
                    if tokens - rate * seconds > best:
                        chosen, best = entry, tokens - rate * seconds
        state.entry[slot] = chosen
        return chosen

    def gamma(self, state: ShapeState, slot: int, view: View, rng: Rng) -> int:
        entry, after = int(state.entry[slot]), int(state.after[slot])
        rate = rate_of(state, float(view.verify_s[1]))
        tokens, stands, deepest = 1.0, 1.0, 0
        best = 1.0 - rate * float(view.verify_s[1])
        for level in range(view.room):
            stands *= chance(state, after, entry, level, self.hope, self.doubt)
            tokens += stands
            seconds = (level + 1) * view.draft_step_s + float(view.verify_s[level + 2])
            if tokens - rate * seconds > best:
                deepest, best = level + 1, tokens - rate * seconds
        probing = int(state.turn[0]) % self.probe_every == 0
        return min(1, view.room) if probing and deepest == 0 else deepest

    def learn(self, state: ShapeState, slot: int, view: View, outcome: Outcome) -> None:
        entry, after = int(state.entry[slot]), int(state.after[slot])
        state.turn[0] = int(state.turn[0]) + 1
        state.clock[0] = self.memory * float(state.clock[0]) + outcome.emitted
        state.clock[1] = self.memory * float(state.clock[1]) + outcome.priced_s
        judged = outcome.accepted
        if outcome.accepted < outcome.drafted and not outcome.ended:
            judged += 1
        for level in range(judged):
            at = level if level < LEVELS else LEVELS - 1
            taken = 1.0 if level < outcome.accepted else 0.0
            reached = self.memory * float(state.reached[after, entry, at]) + 1.0
            state.reached[after, entry, at] = reached
            passed = self.memory * float(state.passed[after, entry, at]) + taken
            state.passed[after, entry, at] = passed
        if outcome.drafted > 0:
            state.after[slot] = 0
            if outcome.accepted > 0:
                state.after[slot] = 1 if outcome.accepted < outcome.drafted else 2


def rate_of(state: ShapeState, plain_s: float) -> float:
    """Tokens that a second has brought; of plain decoding before there was one."""
    if float(state.clock[1]) > 0.0:
        return float(state.clock[0]) / float(state.clock[1])
    return 1.0 / plain_s
