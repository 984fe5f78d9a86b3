"""Lengths as experts, not arms: a round tells what nearly every other length would have done."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from policies.base import FloatArray, Outcome, Policy, State, View
from policies.fields import DISCOUNT, DRAFT, FACTOR, SHARE, SOME, hyper
from policies.randomness import Rng, uniform

PRIOR_RATE = 0.7  # acceptance of a token before any was seen
PRIOR_ROUNDS = 4.0  # what the rate one depth earlier weighs, in rounds that reached a depth
SMALLEST = 1e-300  # sum of weights that can be scaled
STEEPEST = 30.0  # no round multiplies a weight by more than exp(30)


class HedgeState(NamedTuple):
    """K = gamma_max + 1 lengths 0..gamma_max, D = gamma_max depths.

    Per request: weight [slots, K], sums to 1. Shared: pool [K], average of past weights; passed,
    reached [D], discounted counts of drafted tokens; totals [2], discounted tokens and seconds.
    """

    weight: FloatArray
    pool: FloatArray
    passed: FloatArray
    reached: FloatArray
    totals: FloatArray


def is_censored(outcome: Outcome) -> bool:
    """True if no draft was rejected: the acceptable run was at least `accepted` long."""
    return outcome.accepted == outcome.drafted or outcome.ended


def count_depths(state: HedgeState, outcome: Outcome, discount: float) -> None:
    """Count the depths this round reached; all others fade towards the rate one depth earlier."""
    rejected_at = -1 if is_censored(outcome) else outcome.accepted
    for k in range(state.reached.shape[0]):
        state.passed[k] *= discount
        state.reached[k] *= discount
        if k < outcome.accepted:
            state.passed[k] += 1.0
            state.reached[k] += 1.0
        elif k == rejected_at:
            state.reached[k] += 1.0


def charge(
    state: HedgeState, slot: int, view: View, outcome: Outcome, lengths: int, rate: float
) -> None:
    """Multiply the weight of every length k < lengths by exp(-rate * loss), keeping their sum.

    loss_k = seconds_k / seconds per token - tokens_k, in tokens, less that of length 0.
    """
    price_s = float(state.totals[1]) / float(state.totals[0])
    censored = is_censored(outcome)
    tokens, survival, passes = 1.0, 1.0, PRIOR_RATE
    before, after = 0.0, 0.0
    for k in range(lengths):
        if k > 0:
            reached = float(state.reached[k - 1]) + PRIOR_ROUNDS
            passes = (float(state.passed[k - 1]) + PRIOR_ROUNDS * passes) / reached
            if k <= outcome.accepted:
                tokens += 1.0
            elif censored:
                survival *= passes
                tokens += survival
        seconds = k * view.draft_step_s + float(view.verify_s[k + 1]) - float(view.verify_s[1])
        gain = rate * (tokens - 1.0 - seconds / price_s)
        weight = float(state.weight[slot, k])
        before += weight
        weight *= math.exp(max(-STEEPEST, min(gain, STEEPEST)))
        after += weight
        state.weight[slot, k] = weight
    for k in range(lengths):
        if after > SMALLEST:
            state.weight[slot, k] *= before / after
        else:  # without a share dealt out anew they may all have sunk to nothing: even again
            state.weight[slot, k] = 1.0 / state.pool.shape[0]


@dataclasses.dataclass(frozen=True)
class Hedge(Policy):
    """Hedge over the lengths 0..gamma_max with counterfactual losses.

    A round is a race of all lengths, not a pull of one arm. If a draft was rejected behind n
    accepted ones, length k would have brought min(k, n) + 1 tokens: known for every k, also the
    longer ones. Only full acceptance hides something, the yield of lengths beyond what was drafted;
    these are charged what they are expected to bring, each next token passing with its depth's rate
    among the rounds that reached it. The seconds of every length are in the view. So each round
    multiplies weight_k by exp(-rate (seconds_k / price - tokens_k)), price being the seconds that a
    token has cost of late: the length that beats the running speed gains. To follow change, a
    `share` of the weight is dealt out anew, half evenly (fixed share), half as the average of past
    weights, from which a request also starts: what was good before comes back fast. Played is the
    median of the weights: the loss falls and rises again along k, so a middle length is never far
    off, where a draw (as Hedge's theory has it) would pay for its tails.

    Depths out of reach fade, so that a stale rate cannot hide a longer length for good; where the
    median is 0, one round in `probe_every` drafts a token. Lengths beyond the room sleep: they
    are not charged and keep their part of the weight.
    """

    gamma_max: int = hyper(12, DRAFT, "ours")
    rate: float = hyper(0.3, FACTOR, "ours: per token of loss")
    share: float = hyper(0.05, SHARE, "ours")
    pool_rate: float = hyper(0.01, SHARE, "ours")
    discount: float = hyper(0.99, DISCOUNT, "ours")
    probe_every: int = hyper(32, SOME, "ours")

    name = "hedge"
    rule = (
        "exponential weights over lengths from what each would have cost; gamma = weighted median"
    )
    source = (
        "Hedge: Freund and Schapire 1997; share: Herbster and Warmuth 1998, Bousquet and Warmuth "
        "2002; full information: Not-a-Bandit, arXiv 2510.20064; over lengths: ours"
    )

    def new_state(self, slots: int) -> State:
        lengths = self.gamma_max + 1
        return HedgeState(
            np.full((slots, lengths), 1.0 / lengths),
            np.full(lengths, 1.0 / lengths),
            np.zeros(self.gamma_max),
            np.zeros(self.gamma_max),
            np.zeros(2),
        )

    def admit(self, state: HedgeState, slot: int) -> None:
        for k in range(state.pool.shape[0]):
            state.weight[slot, k] = state.pool[k]

    def gamma(self, state: HedgeState, slot: int, view: View, rng: Rng) -> int:
        lengths = min(self.gamma_max, view.room) + 1
        total = 0.0
        for k in range(lengths):
            total += float(state.weight[slot, k])
        median, below = 0, float(state.weight[slot, 0])
        while median < lengths - 1 and below < 0.5 * total:
            median += 1
            below += float(state.weight[slot, median])
        if median == 0 and uniform(rng, 0) * self.probe_every < 1.0:
            return 1
        return median

    def learn(self, state: HedgeState, slot: int, view: View, outcome: Outcome) -> None:
        if outcome.priced_s <= 0.0:
            return
        state.totals[0] = self.discount * float(state.totals[0]) + outcome.emitted
        state.totals[1] = self.discount * float(state.totals[1]) + outcome.priced_s
        count_depths(state, outcome, self.discount)
        lengths = min(self.gamma_max, view.room) + 1
        charge(state, slot, view, outcome, lengths, self.rate)
        even = 1.0 / (self.gamma_max + 1)
        for k in range(self.gamma_max + 1):
            past = float(state.pool[k])
            weight = (1.0 - self.share) * float(state.weight[slot, k])
            weight += 0.5 * self.share * (even + past)
            state.weight[slot, k] = weight
            state.pool[k] = past + self.pool_rate * (weight - past)
