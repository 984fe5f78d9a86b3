"""Choose the length with the most expected tokens per measured second."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from policies.base import FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import DISCOUNT, DRAFT, SHARE, SOME, Domain, hyper
from policies.goodput.rounds import judged_tokens, round_s
from policies.randomness import Rng


class SharedRateState(NamedTuple):
    """Shared: alpha [1], moving average of acceptance per reached token; quiet [1], rounds without
    a draft in a row.
    """

    alpha: FloatArray
    quiet: IntArray


@dataclasses.dataclass(frozen=True)
class AlphaGoodput(Policy):
    """Goodput with one acceptance rate for all positions, decided anew in every round.

    gamma = argmax over k of (1 + alpha + ... + alpha^k) / seconds(k), ties to the smallest. Ours, a
    kin of `smartspec` without what keeps that one from coming back: alpha is an average of accepted
    / reached tokens, so that tokens behind a rejection do not pull it down; plain decoding has no
    bonus; after `probe_every` rounds without a draft one token is drafted to look again.
    """

    gamma_max: int = hyper(8, DRAFT, "ours")
    memory: float = hyper(0.95, SHARE, "ours")
    alpha0: float = hyper(0.7, SHARE, "ours")
    probe_every: int = hyper(16, SOME, "ours")

    batch_wide = True
    name = "alpha-goodput"
    rule = "gamma = argmax of (1 - alpha^(gamma + 1)) / (1 - alpha) / seconds, alpha averaged"
    source = "ours; the objective is SmartSpec's, arXiv 2406.14066"

    def new_state(self, slots: int) -> State:
        return SharedRateState(np.full(1, float(self.alpha0)), np.zeros(1, dtype=np.int64))

    def gamma(self, state: SharedRateState, slot: int, view: View, rng: Rng) -> int:
        alpha = float(state.alpha[0])
        best, best_s, best_tokens = 0, round_s(view, 0), 1.0
        tokens, survival = 1.0, 1.0
        for k in range(1, min(self.gamma_max, view.room) + 1):
            survival *= alpha
            tokens += survival
            seconds = round_s(view, k)
            if tokens * best_s > best_tokens * seconds:
                best, best_s, best_tokens = k, seconds, tokens
        if best == 0 and int(state.quiet[0]) >= self.probe_every * view.batch_size:
            return 1
        return best

    def learn(self, state: SharedRateState, slot: int, view: View, outcome: Outcome) -> None:
        state.quiet[0] = 0 if outcome.drafted > 0 else int(state.quiet[0]) + 1
        judged = judged_tokens(outcome)
        if judged > 0:
            rate = outcome.accepted / judged
            state.alpha[0] = self.memory * float(state.alpha[0]) + (1.0 - self.memory) * rate


class SurvivalState(NamedTuple):
    """D = gamma_max. Discounted counts of drafted tokens at depth k that were reached (everything
    before them was accepted) and of those that passed.

    Per request: reached, passed [slots, D]; quiet [slots], rounds since the last draft.
    Shared: pool_reached, pool_passed [D].
    """

    reached: FloatArray
    passed: FloatArray
    quiet: IntArray
    pool_reached: FloatArray
    pool_passed: FloatArray


@dataclasses.dataclass(frozen=True)
class CensoredGoodput(Policy):
    """Goodput from a survival estimate that treats full acceptance as what it is: censored.

    A depth is counted only in rounds that reached it; depths behind a full acceptance say nothing.
    a_k, the chance that token k passes once reached, is the request's own discounted rate, shrunk
    with `own_strength` pseudo-rounds to the rate over all requests, itself shrunk with
    `pool_strength` to the rate one depth earlier (a geometric prior for depths not yet seen). Then
    gamma = argmax_k (1 + S_1 + ... + S_k) / (k draft_step_s + verify_s[k + 1]), S_k = a_1 ... a_k,
    ties to the smaller k. gamma = 0 is allowed; after `probe_every` rounds without a draft one
    token is drafted to look again.
    """

    gamma_max: int = hyper(12, DRAFT, "ours")
    discount: float = hyper(0.97, DISCOUNT, "ours")
    pool_discount: float = hyper(0.999, DISCOUNT, "ours")
    own_strength: float = hyper(6.0, Domain(high=1_000_000, above=0), "ours")
    pool_strength: float = hyper(4.0, Domain(high=1_000_000, above=0), "ours")
    prior_rate: float = hyper(0.7, SHARE, "ours")
    probe_every: int = hyper(16, SOME, "ours")

    name = "goodput"
    rule = "gamma = argmax of expected tokens per second under a censored survival estimate"
    source = "ours; goodput objective of SmartSpec, arXiv 2406.14066, and vLLM's dynamic rule"

    def new_state(self, slots: int) -> State:
        depth = self.gamma_max
        return SurvivalState(
            np.zeros((slots, depth)),
            np.zeros((slots, depth)),
            np.zeros(slots, dtype=np.int64),
            np.zeros(depth),
            np.zeros(depth),
        )

    def admit(self, state: SurvivalState, slot: int) -> None:
        for k in range(state.reached.shape[1]):
            state.reached[slot, k] = 0.0
            state.passed[slot, k] = 0.0
        state.quiet[slot] = 0

    def gamma(self, state: SurvivalState, slot: int, view: View, rng: Rng) -> int:
        best, best_rate = 0, 1.0 / float(view.verify_s[1])
        survival, expected, earlier = 1.0, 1.0, self.prior_rate
        for k in range(min(self.gamma_max, view.room)):
            pooled = float(state.pool_passed[k]) + self.pool_strength * earlier
            earlier = pooled / (float(state.pool_reached[k]) + self.pool_strength)
            own = float(state.passed[slot, k]) + self.own_strength * earlier
            survival *= own / (float(state.reached[slot, k]) + self.own_strength)
            expected += survival
            rate = expected / ((k + 1) * view.draft_step_s + float(view.verify_s[k + 2]))
            if rate > best_rate:
                best, best_rate = k + 1, rate
        if best == 0 and int(state.quiet[slot]) >= self.probe_every:
            return 1
        return best

    def learn(self, state: SurvivalState, slot: int, view: View, outcome: Outcome) -> None:
        if outcome.drafted == 0:
            state.quiet[slot] += 1
            return
        state.quiet[slot] = 0
        reached = outcome.accepted if outcome.ended else outcome.accepted + 1
        for k in range(min(reached, outcome.drafted, self.gamma_max)):
            passed = 1.0 if k < outcome.accepted else 0.0
            state.reached[slot, k] = self.discount * float(state.reached[slot, k]) + 1.0
            state.passed[slot, k] = self.discount * float(state.passed[slot, k]) + passed
            state.pool_reached[k] = self.pool_discount * float(state.pool_reached[k]) + 1.0
            state.pool_passed[k] = self.pool_discount * float(state.pool_passed[k]) + passed
