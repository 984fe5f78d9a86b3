"""DSDE (arXiv 2509.01083): the divergence of target and draft says how stable the text is.

The paper itself could not be read by us; the rule is its authors' code's.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from policies.base import Draft, FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import DRAFT, FACTOR, GAMMA, RING, SHARE, Domain, disorder, hyper
from policies.randomness import Rng

# DsdeState.counts: the next length, divergences held, where the ring is written next, the bounds of
# the length (high = 0: not set yet), most tokens accepted in a round of the warm-up, its samples.
LENGTH, HELD, AT, LOW, HIGH, MOST, SAMPLES = 0, 1, 2, 3, 4, 5, 6
# DsdeState.warm: sum and largest of the warm-up's divergences.
SUM, LARGEST = 0, 1

SMALLEST = 1e-8  # a probability is at least this. Primary.
FLAT, FLAT_RATIO = 1e-6, 20.0  # below this long variance the ratio of variances is 20. Primary.


class DsdeState(NamedTuple):
    """W = window, D = gamma_max. Per request: prob [slots, D], the draft's largest probability at
    each token of this round; ring [slots, W], the last divergences in nats; counts [slots, 7], warm
    [slots, 2], columns named above.
    """

    prob: FloatArray
    ring: FloatArray
    counts: IntArray
    warm: FloatArray


def divergence(prob: float, accepted: bool) -> float:
    """Nats by which the draft is surprised: exact if the target's token is the draft's first
    choice, else the least it can be.
    """
    return -math.log(max(prob if accepted else 1.0 - prob, SMALLEST))


def weighted_variance(state: DsdeState, slot: int, newest: int, memory: float) -> float:
    """Variance of the newest divergences; a weight is `memory` times that of the next newer one."""
    size, at = state.ring.shape[1], int(state.counts[slot, AT])
    weights, total, weight = 0.0, 0.0, 1.0
    for age in range(newest):
        weights += weight
        total += weight * float(state.ring[slot, (at - 1 - age) % size])
        weight *= memory
    mean, spread, weight = total / weights, 0.0, 1.0
    for age in range(newest):
        apart = float(state.ring[slot, (at - 1 - age) % size]) - mean
        spread += weight * apart * apart
        weight *= memory
    return spread / weights


def variance_ratio(state: DsdeState, slot: int, memory: float) -> float:
    """Variance of the newest third of the divergences held over that of all of them."""
    held = int(state.counts[slot, HELD])
    if held < 2:
        return 0.0
    long = weighted_variance(state, slot, held, memory)
    if long < FLAT:
        return FLAT_RATIO
    return weighted_variance(state, slot, max(1, held // 3), memory) / long


def set_bounds(fields: Dsde, state: DsdeState, slot: int) -> None:
    """From the warm-up: between which lengths the request stays from now on."""
    low, high = fields.gamma_min, fields.gamma_max
    samples, largest = int(state.counts[slot, SAMPLES]), float(state.warm[slot, LARGEST])
    if samples > 0:
        share = float(state.warm[slot, SUM]) / samples / (largest if largest > 0.0 else 1.0)
        wished = int(state.counts[slot, MOST]) * (1.0 + fields.stretch * share)
        rounded = math.floor(wished)
        if wished - rounded > 0.5 or (wished - rounded == 0.5 and rounded % 2 == 1):
            rounded += 1
        high = min(fields.gamma_max, max(fields.gamma_min, rounded))
        low = min(high, max(fields.gamma_min, math.ceil(0.1 * high)))
    state.counts[slot, LOW] = low
    state.counts[slot, HIGH] = high


@dataclasses.dataclass(frozen=True)
class Dsde(Policy):
    """gamma = low + ceil((1 - SF WVIR) (high - low)), low where SF WVIR > 1.

    SF = exp(2 mean divergence of the last round) - 1. WVIR: weighted variance of the newest third
    of the last `window` divergences over that of all, weights falling by `memory` (20 if the latter
    is below 1e-6). Until `window` divergences are in, a round that accepts all of gamma0 doubles
    it; then high = round((1 + stretch mean / largest divergence) most accepted tokens), inside
    gamma_min..gamma_max, low = a tenth of it, at least gamma_min, and both stay.

    Missing: the divergence itself. There it is KL(target | draft) over the vocabulary, at every
    drafted position, also behind the first rejection; a verify-time quantity that no recording
    holds and no hook is shown. Its stand-in is what the verdict says about it where the target is
    taken to be certain of its token (greedy): at an accepted position -log q, q the draft's largest
    probability: exactly KL(one-hot | draft); at the first rejected one -log(1 - q), the least that
    it can be, since the target's token was not the draft's first; positions behind are left out,
    and means are over what is left. Under sampling it is a stand-in only. Reading q is charged.

    Left out: the division of the divergence by the temperature, and the limit for a batch, the mean
    of its rows' lengths (a hook sees one row). The paper's own numbers, second-hand: weights 0.85,
    windows 10 and 30, a stretch of 1, low = 2.
    """

    gamma0: int = hyper(5, GAMMA, "primary (the code, where num_speculative_tokens is not set)")
    gamma_min: int = hyper(2, DRAFT, "secondary (the paper's; the code has 6 where it is not set)")
    gamma_max: int = hyper(20, DRAFT, "primary (the code, where it is not set)")
    window: int = hyper(30, RING, "primary")
    memory: float = hyper(0.9, SHARE, "primary (the code; the paper's 0.85 is secondary)")
    scale: float = hyper(2.0, Domain(0, 30), "primary")
    stretch: float = hyper(0.5, FACTOR, "primary (the code; the paper's 1 is secondary)")

    name = "dsde"
    rule = "longer while the draft's surprise is small and its variance not rising"
    source = (
        "samsungsds-research-paper/DSDE, commit 4d571a2, vllm/spec_decode/dynamic_scheduler.py "
        "(KLScheduler), spec_decode_worker.py; arXiv 2509.01083 (not read by us: secondary)"
    )

    def conflict(self) -> str:
        return disorder(self, "gamma_min", "gamma_max")

    def new_state(self, slots: int) -> State:
        count = np.zeros((slots, 7), dtype=np.int64)
        count[:, LENGTH] = self.gamma0
        return DsdeState(
            np.zeros((slots, self.gamma_max)),
            np.zeros((slots, self.window)),
            count,
            np.zeros((slots, 2)),
        )

    def admit(self, state: DsdeState, slot: int) -> None:
        for k in range(state.prob.shape[1]):
            state.prob[slot, k] = 0.0
        for k in range(state.ring.shape[1]):
            state.ring[slot, k] = 0.0
        for k in range(state.counts.shape[1]):
            state.counts[slot, k] = 0
        state.counts[slot, LENGTH] = self.gamma0
        state.warm[slot, SUM] = 0.0
        state.warm[slot, LARGEST] = 0.0

    def gamma(self, state: DsdeState, slot: int, view: View, rng: Rng) -> int:
        return max(self.gamma_min, min(int(state.counts[slot, LENGTH]), self.gamma_max))

    def proceed(self, state: DsdeState, slot: int, draft: Draft) -> bool:
        if draft.drafted <= state.prob.shape[1]:
            state.prob[slot, draft.drafted - 1] = draft.top1_prob
        return True

    def learn(self, state: DsdeState, slot: int, view: View, outcome: Outcome) -> None:
        judged = outcome.accepted if outcome.ended else outcome.accepted + 1
        judged = min(judged, outcome.drafted, self.gamma_max)
        if judged == 0:
            return
        total, largest = 0.0, 0.0
        for k in range(judged):
            apart = divergence(float(state.prob[slot, k]), k < outcome.accepted)
            at = int(state.counts[slot, AT])
            state.ring[slot, at] = apart
            state.counts[slot, AT] = (at + 1) % self.window
            total += apart
            largest = max(largest, apart)
        state.counts[slot, HELD] = min(int(state.counts[slot, HELD]) + judged, self.window)
        if int(state.counts[slot, HIGH]) == 0 and int(state.counts[slot, HELD]) < self.window:
            warm_up(self, state, slot, outcome.accepted)
            state.counts[slot, SAMPLES] += judged
            state.warm[slot, SUM] += total
            state.warm[slot, LARGEST] = max(float(state.warm[slot, LARGEST]), largest)
            return
        if int(state.counts[slot, HIGH]) == 0:
            set_bounds(self, state, slot)
        low, high = int(state.counts[slot, LOW]), int(state.counts[slot, HIGH])
        factor = math.exp(self.scale * total / judged) - 1.0
        unstable = factor * variance_ratio(state, slot, self.memory)
        length = low
        if unstable <= 1.0:
            length = max(low, math.ceil((high - low) * (1.0 - unstable) + low))
        state.counts[slot, LENGTH] = length


def warm_up(fields: Dsde, state: DsdeState, slot: int, accepted: int) -> None:
    """A round before the bounds are known: twice the length after one that accepted all of it."""
    length = int(state.counts[slot, LENGTH])
    state.counts[slot, MOST] = max(int(state.counts[slot, MOST]), accepted)
    if accepted >= length:
        state.counts[slot, LENGTH] = min(2 * length if length > 0 else 1, fields.gamma_max)
    else:
        state.counts[slot, LENGTH] = max(length, fields.gamma_min)
