"""llama.cpp's proposed rules for the depth of multi-token-prediction drafts, beyond streaks."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from policies.base import IntArray, Outcome, Policy, State, View
from policies.fields import COUNT, DRAFT, GAMMA, RING, SOME, disorder, hyper
from policies.randomness import Rng


class BucketState(NamedTuple):
    """Per request: gamma [slots], the depth; bucket [slots], tokens of credit."""

    gamma: IntArray
    bucket: IntArray


@dataclasses.dataclass(frozen=True)
class CreditBucket(Policy):
    """A bucket of credit moves the depth: full acceptances fill it, missing tokens drain it.

    A round that accepts at least gamma tokens adds max(1, accepted - 1), any other takes gamma -
    accepted, also where the draft was shorter than gamma. Let D = max(drop, drop_depth gamma).
    At D + climb tokens gamma rises by one, at 0 it falls by one. After a rise the bucket holds the
    new D, plus what was above the limit (the old gamma at most); after a fall the new D + climb,
    less the old D and what was below 0. At gamma_max it stays at D + climb, at gamma_min at 0.

    The pull request is open and its numbers moved: this is its author's code of the commit named.
    Other states we read have tables of climbing costs (2, 5, 9 or 10, ... by depth) and forget the
    surplus. There the accepted tokens of another draft (n-grams) count too. Rounds that drafted
    nothing are passed over; a reply's last round counts whatever cut it short.
    """

    gamma_min: int = hyper(3, GAMMA, "secondary (a change log of the pull request: n_min_adaptive)")
    gamma_max: int = hyper(
        12, DRAFT, "secondary (use recommended with it; llama.cpp's own default is 3)"
    )
    climb: int = hyper(20, SOME, "primary")
    drop: int = hyper(20, COUNT, "primary")
    drop_depth: int = hyper(4, GAMMA, "primary")

    name = "credit-bucket"
    rule = "full acceptances fill a bucket, missing tokens drain it; full: gamma + 1, empty: - 1"
    source = (
        "ggml-org/llama.cpp, pull request 27210 (draft-mtp-adaptive); stew675/llama.cpp, commit "
        "1207c1c, common/speculative-adaptive.h"
    )

    def conflict(self) -> str:
        return disorder(self, "gamma_min", "gamma_max")

    def new_state(self, slots: int) -> State:
        gamma = min(self.gamma_min, self.gamma_max)
        full = max(self.drop, self.drop_depth * gamma)
        return BucketState(
            np.full(slots, gamma, dtype=np.int64), np.full(slots, full, dtype=np.int64)
        )

    def admit(self, state: BucketState, slot: int) -> None:
        gamma = min(self.gamma_min, self.gamma_max)
        state.gamma[slot] = gamma
        state.bucket[slot] = drop_pressure(self, gamma)

    def gamma(self, state: BucketState, slot: int, view: View, rng: Rng) -> int:
        return int(state.gamma[slot])

    def learn(self, state: BucketState, slot: int, view: View, outcome: Outcome) -> None:
        if outcome.drafted == 0:
            return
        gamma, accepted = int(state.gamma[slot]), outcome.accepted
        full = drop_pressure(self, gamma) + self.climb
        bucket = int(state.bucket[slot])
        bucket += max(1, accepted - 1) if accepted >= gamma else accepted - gamma
        if bucket >= full:
            if gamma < self.gamma_max:
                surplus = min(bucket - full, gamma)
                gamma += 1
                bucket = drop_pressure(self, gamma) + surplus
            else:
                bucket = full
        elif bucket <= 0:
            if gamma > self.gamma_min:
                bucket -= drop_pressure(self, gamma)
                gamma -= 1
                bucket += drop_pressure(self, gamma) + self.climb
            else:
                bucket = 0
        state.gamma[slot] = gamma
        state.bucket[slot] = bucket


def drop_pressure(fields: CreditBucket, gamma: int) -> int:
    """Missing tokens that take a depth's bucket from its start to 0."""
    return max(fields.drop, fields.drop_depth * gamma)


# ZoneState.counts: the length, rounds in the window, successes among them, rounds in a row in the
# positive and in the negative zone, tokens of the present length so far (-1: it may change).
LENGTH, HELD, SUCCESSES, UP, DOWN, TOKENS = 0, 1, 2, 3, 4, 5


class ZoneState(NamedTuple):
    """W = window. Per request: ring [slots, W], 1 for a success, the oldest overwritten; counts
    [slots, 6], columns named above; at [slots], where the ring is written next.
    """

    ring: IntArray
    counts: IntArray
    at: IntArray


def clear_window(state: ZoneState, slot: int) -> None:
    """Forget everything but the length."""
    for k in range(1, state.counts.shape[1]):
        state.counts[slot, k] = 0
    state.at[slot] = 0


@dataclasses.dataclass(frozen=True)
class Zones(Policy):
    """The streak rule over a window: one token more after `rounds` rounds in the positive zone.

    A round is a success if accepted >= length - bias. The window holds the last `window` rounds;
    with at least `positive` successes it is in the positive zone, else with at least `negative`
    failures in the negative one. After `rounds` rounds in a row in a zone the length moves by one,
    and the window starts anew, unless it is at its limit. A length is held for `hold_tokens` tokens
    of draft at least. rounds = 0 is off: the length is gamma_min.

    Rounds that drafted nothing are passed over; with gamma_min = 0, the default there, nothing
    would ever be drafted, so it must be set.
    """

    gamma_min: int = hyper(1, GAMMA, "ours: the user's there (n_min, 0 by default)")
    gamma_max: int = hyper(8, DRAFT, "ours: the user's there (n_max, 3 by default)")
    rounds: int = hyper(3, COUNT, "primary (the example in the header; 0, off, by default)")
    bias: int = hyper(0, GAMMA, "primary")
    window: int = hyper(30, RING, "primary")
    positive: int = hyper(24, SOME, "primary")
    negative: int = hyper(20, SOME, "primary")
    hold_tokens: int = hyper(0, COUNT, "primary")

    name = "zones"
    rule = "gamma + 1 after `rounds` rounds with many successes in a window, - 1 with many failures"
    source = (
        "Us5rName/llama.cpp, common/speculative-adaptive-length.h, common/common.h; named in "
        "ggml-org/llama.cpp, pull request 25726"
    )

    def conflict(self) -> str:
        return disorder(self, "gamma_min", "gamma_max")

    def new_state(self, slots: int) -> State:
        count = np.zeros((slots, 6), dtype=np.int64)
        count[:, LENGTH] = self.gamma_min
        ring = np.zeros((slots, self.window), dtype=np.int64)
        return ZoneState(ring, count, np.zeros(slots, dtype=np.int64))

    def admit(self, state: ZoneState, slot: int) -> None:
        clear_window(state, slot)
        state.counts[slot, LENGTH] = self.gamma_min
        for k in range(self.window):
            state.ring[slot, k] = 0

    def gamma(self, state: ZoneState, slot: int, view: View, rng: Rng) -> int:
        return int(state.counts[slot, LENGTH])

    def learn(self, state: ZoneState, slot: int, view: View, outcome: Outcome) -> None:
        if self.rounds == 0 or outcome.drafted == 0:
            return
        length, tokens = int(state.counts[slot, LENGTH]), int(state.counts[slot, TOKENS])
        if tokens >= 0:
            tokens += length
            state.counts[slot, TOKENS] = -1 if tokens >= self.hold_tokens else tokens
        push(state, slot, 1 if outcome.accepted >= length - self.bias else 0)
        successes = int(state.counts[slot, SUCCESSES])
        failures = int(state.counts[slot, HELD]) - successes
        up, down = int(state.counts[slot, UP]), int(state.counts[slot, DOWN])
        if successes >= self.positive:
            up, down = min(up + 1, self.rounds), 0
        elif failures >= self.negative:
            up, down = 0, min(down + 1, self.rounds)
        else:
            up, down = 0, 0
        state.counts[slot, UP] = up
        state.counts[slot, DOWN] = down
        if int(state.counts[slot, TOKENS]) >= 0:
            return
        if up == self.rounds and length < self.gamma_max:
            clear_window(state, slot)
            state.counts[slot, LENGTH] = length + 1
        elif down == self.rounds and length > self.gamma_min:
            clear_window(state, slot)
            state.counts[slot, LENGTH] = length - 1


def push(state: ZoneState, slot: int, success: int) -> None:
    """One more round into the window, the oldest out of it if it is full."""
    at, size = int(state.at[slot]), state.ring.shape[1]
    if int(state.counts[slot, HELD]) == size:
        state.counts[slot, SUCCESSES] -= int(state.ring[slot, at])
    else:
        state.counts[slot, HELD] += 1
    state.ring[slot, at] = success
    state.counts[slot, SUCCESSES] += success
    state.at[slot] = (at + 1) % size
