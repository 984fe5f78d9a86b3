"""Cascade (arXiv 2506.20675): test whether speculation is worth its price, then keep to the answer.

Only the paper's abstract could be read: every length of a phase is "unconfirmed".
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from policies.base import FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import DRAFT, SOME, Domain, hyper
from policies.randomness import Rng

# CascadeState.plan: the length played, rounds left to play it, trials done in this test (-1 in a
# set phase), where the search goes (+1 or -1), the best length so far, tests failed in a row.
GAMMA, LEFT, TRIALS, STEP, BEST, FAILED = 0, 1, 2, 3, 4, 5
# CascadeState.gain: tokens of the trial at hand, its rounds' seconds in plain rounds, the best
# utility of this test.
TOKENS, PRICE, UTILITY = 0, 1, 2


class CascadeState(NamedTuple):
    """Per request: plan [slots, 6], gain [slots, 3]; the columns are named above."""

    plan: IntArray
    gain: FloatArray


def start_trial(fields: Cascade, state: CascadeState, slot: int, gamma: int) -> None:
    """Play `gamma` for trial_rounds rounds."""
    state.plan[slot, GAMMA] = gamma
    state.plan[slot, LEFT] = fields.trial_rounds
    state.gain[slot, TOKENS] = 0.0
    state.gain[slot, PRICE] = 0.0


def start_test(fields: Cascade, state: CascadeState, slot: int, gamma: int) -> None:
    """A test phase whose first trial is `gamma`."""
    gamma = min(gamma, fields.gamma_max)
    state.plan[slot, TRIALS] = 0
    state.plan[slot, STEP] = 1
    state.plan[slot, BEST] = gamma
    state.gain[slot, UTILITY] = 0.0
    start_trial(fields, state, slot, gamma)


def start_set(state: CascadeState, slot: int, gamma: int, rounds: int) -> None:
    """A set phase: play `gamma` for so many rounds."""
    state.plan[slot, GAMMA] = gamma
    state.plan[slot, LEFT] = rounds
    state.plan[slot, TRIALS] = -1


def close_trial(fields: Cascade, state: CascadeState, slot: int, utility: float) -> None:
    """The trial at hand had this utility: turn off, try another length, or set the best."""
    trials = int(state.plan[slot, TRIALS]) + 1
    state.plan[slot, TRIALS] = trials
    if trials == 1 and utility < 1.0:
        failed = int(state.plan[slot, FAILED])
        state.plan[slot, FAILED] = min(failed + 1, fields.doublings)
        start_set(state, slot, 0, fields.set_rounds << failed)
        return
    state.plan[slot, FAILED] = 0
    step, going = int(state.plan[slot, STEP]), trials < fields.trials
    if utility > float(state.gain[slot, UTILITY]):
        state.gain[slot, UTILITY] = utility
        state.plan[slot, BEST] = int(state.plan[slot, GAMMA])
    elif trials == 2 and step == 1:
        step = -1  # longer was no better: try shorter
    else:
        going = False
    best = int(state.plan[slot, BEST])
    if trials == 1 and best >= fields.gamma_max:
        step = -1
    state.plan[slot, STEP] = step
    following = best + step
    if going and 1 <= following <= fields.gamma_max:
        start_trial(fields, state, slot, following)
    else:
        start_set(state, slot, best, fields.set_rounds)


@dataclasses.dataclass(frozen=True)
class Cascade(Policy):
    """Short test phases choose the length of a long set phase, by speculation utility.

    utility = tokens per round / (seconds per round / seconds of a plain round): speculation pays
    where it exceeds 1. A test plays one length for trial_rounds rounds. Utility below 1: no drafts
    for a set phase of set_rounds rounds, twice as many after every further failure in a row
    (`doublings` at most), then a test of gamma0. Else other lengths are tried, one up, or one down
    if that was no better, on while it gets better and at most `trials` in all; the best is set for
    set_rounds rounds, and the next test starts from it.

    As published (abstract): the utility, test and set phases, per request, off below 1, several
    lengths otherwise. Unconfirmed: the back-off by doubling, the search one step at a time, all
    numbers. Ours: the plain round is not played but priced by the view.
    """

    gamma0: int = hyper(3, DRAFT, "ours")
    gamma_max: int = hyper(8, DRAFT, "ours")
    trial_rounds: int = hyper(4, SOME, "unconfirmed")
    trials: int = hyper(4, SOME, "unconfirmed")
    set_rounds: int = hyper(16, SOME, "unconfirmed")
    doublings: int = hyper(4, Domain(0, 30), "unconfirmed: there is a back-off, of unknown form")

    name = "cascade"
    rule = "test lengths by tokens gained over seconds spent; set the best, or none if below 1"
    source = "Cascade, arXiv 2506.20675 (abstract); phase lengths unconfirmed"

    def new_state(self, slots: int) -> State:
        state = CascadeState(np.zeros((slots, 6), dtype=np.int64), np.zeros((slots, 3)))
        for slot in range(slots):
            start_test(self, state, slot, self.gamma0)
        return state

    def admit(self, state: CascadeState, slot: int) -> None:
        state.plan[slot, FAILED] = 0
        start_test(self, state, slot, self.gamma0)

    def gamma(self, state: CascadeState, slot: int, view: View, rng: Rng) -> int:
        return int(state.plan[slot, GAMMA])

    def learn(self, state: CascadeState, slot: int, view: View, outcome: Outcome) -> None:
        state.plan[slot, LEFT] -= 1
        testing = int(state.plan[slot, TRIALS]) >= 0
        if testing:
            plain_s = float(view.verify_s[1])
            state.gain[slot, TOKENS] += outcome.emitted
            state.gain[slot, PRICE] += outcome.priced_s / plain_s if plain_s > 0.0 else 1.0
        if int(state.plan[slot, LEFT]) > 0:
            return
        if testing:
            price = max(float(state.gain[slot, PRICE]), 1e-9)
            close_trial(self, state, slot, float(state.gain[slot, TOKENS]) / price)
        elif int(state.plan[slot, GAMMA]) == 0:
            start_test(self, state, slot, self.gamma0)
        else:
            start_test(self, state, slot, int(state.plan[slot, BEST]))
