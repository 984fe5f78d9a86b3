"""Follow a moving average of what was accepted: of the rate, or of the length."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from policies.base import FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import COUNT, DRAFT, GAMMA, RING, SHARE, Domain, disorder, hyper
from policies.randomness import Rng


class RateEmaState(NamedTuple):
    """Per request: rate [slots], average of accepted / drafted; gamma [slots], the next cap."""

    rate: FloatArray
    gamma: IntArray


@dataclasses.dataclass(frozen=True)
class RateEma(Policy):
    """llama.cpp's proposed adaptive bounds of n-gram drafts: the acceptance rate moves them.

    rate <- decay rate + (1 - decay) accepted / drafted; above `high` the upper bound n_max grows,
    below `low` it shrinks, inside floor..2 base. There n_min moves the other way: it is the number
    of tokens that an n-gram must find for its draft to be used. A draft model always finds as many
    as it is asked for, so n_min has nothing to decide here, and the length drafted is n_max. The
    bounds start anew with the n-gram cache; here with the request.
    """

    base: int = hyper(16, DRAFT, "primary (llama.cpp's older draft-max)")
    decay: float = hyper(0.9, SHARE, "primary")
    high: float = hyper(0.7, SHARE, "primary")
    low: float = hyper(0.4, SHARE, "primary")
    floor: int = hyper(4, GAMMA, "primary")
    step: int = hyper(1, GAMMA, "ours: by how much a bound moves is not stated")
    rate0: float = hyper(
        0.5, SHARE, "ours: between `low` and `high`, so that nothing moves at first"
    )

    name = "rate-ema"
    rule = "gamma up while the average acceptance rate is above `high`, down while below `low`"
    source = "ggml-org/llama.cpp, pull request 19744 (--spec-ngram-adaptive)"

    def conflict(self) -> str:
        if self.floor > 2 * self.base:
            return f"floor {self.floor} is above twice base {self.base}"
        return disorder(self, "low", "high")

    def new_state(self, slots: int) -> State:
        return RateEmaState(np.full(slots, self.rate0), np.full(slots, self.base, dtype=np.int64))

    def admit(self, state: RateEmaState, slot: int) -> None:
        state.rate[slot] = self.rate0
        state.gamma[slot] = self.base

    def gamma(self, state: RateEmaState, slot: int, view: View, rng: Rng) -> int:
        return int(state.gamma[slot])

    def learn(self, state: RateEmaState, slot: int, view: View, outcome: Outcome) -> None:
        if outcome.drafted == 0:
            return
        seen = outcome.accepted / outcome.drafted
        rate = self.decay * float(state.rate[slot]) + (1.0 - self.decay) * seen
        state.rate[slot] = rate
        gamma = int(state.gamma[slot])
        if rate > self.high:
            gamma += self.step
        elif rate < self.low:
            gamma -= self.step
        state.gamma[slot] = max(self.floor, min(gamma, 2 * self.base))


class LengthState(NamedTuple):
    """Per request: ema [slots], average accepted length in tokens."""

    ema: FloatArray


@dataclasses.dataclass(frozen=True)
class CensoredEma(Policy):
    """Average the accepted length where it is known; where it is only a lower bound, probe upward.

    accepted < drafted: ema <- (1 - weight) ema + weight accepted.
    accepted = drafted: ema <- ema + probe.
    gamma = clip(round(ema), gamma_min, gamma_max). The average itself is not bounded (no bound is
    stated): after many full acceptances it takes several rejections to come back under gamma_max.
    A round that ended the reply before any rejection changes nothing.
    """

    ema0: float = hyper(2.0, Domain(0, 1_000), "primary")
    weight: float = hyper(0.25, SHARE, "primary")
    probe: float = hyper(1.0, Domain(0, 1_000), "primary")
    gamma_min: int = hyper(1, GAMMA, "ours: the user's there")
    gamma_max: int = hyper(16, DRAFT, "ours: the user's there")

    name = "censored-ema"
    rule = "gamma = round(EMA of accepted length), EMA + 1 after full acceptance"
    source = "LaurentZuijdwijk's llama.cpp; Nathanw1014/llama.cpp, pull request 8"

    def conflict(self) -> str:
        return disorder(self, "gamma_min", "gamma_max")

    def new_state(self, slots: int) -> State:
        return LengthState(np.full(slots, self.ema0))

    def admit(self, state: LengthState, slot: int) -> None:
        state.ema[slot] = self.ema0

    def gamma(self, state: LengthState, slot: int, view: View, rng: Rng) -> int:
        rounded = math.floor(float(state.ema[slot]) + 0.5)
        return max(self.gamma_min, min(rounded, self.gamma_max))

    def learn(self, state: LengthState, slot: int, view: View, outcome: Outcome) -> None:
        if outcome.drafted == 0:
            return
        ema = float(state.ema[slot])
        if outcome.accepted == outcome.drafted:
            state.ema[slot] = ema + self.probe
        elif not outcome.ended:
            state.ema[slot] = (1.0 - self.weight) * ema + self.weight * outcome.accepted


class PooledRateState(NamedTuple):
    """Shared: rate [1], average of accepted / drafted."""

    rate: FloatArray


@dataclasses.dataclass(frozen=True)
class RateBuckets(Policy):
    """Elastic Speculation: four levels of the acceptance rate, a captured draft length for each.

    Its lengths are those of captured graphs, one per step of the whole batch, so the rate is
    shared; here every row's round counts as one observation of it. A round whose reply ended inside
    the accepted tokens is not judged. The confidence-based early exit of the same source saves
    cache writes, not draft steps, and is left out.
    """

    length_high: int = hyper(15, GAMMA, "primary")
    length_mid: int = hyper(10, GAMMA, "primary")
    length_low: int = hyper(5, GAMMA, "primary")
    length_very_low: int = hyper(
        1, DRAFT, "ours: not stated; the source captures three lengths for four levels"
    )
    above_high: float = hyper(0.7, SHARE, "primary")
    above_mid: float = hyper(0.5, SHARE, "primary")
    above_low: float = hyper(0.3, SHARE, "primary")
    weight: float = hyper(0.1, SHARE, "ours: not stated")
    rate0: float = hyper(0.6, SHARE, "ours: starts at the middle length")

    name = "rate-buckets"
    rule = "the length of the level (over 70, 50, 30 percent, or less) of the mean acceptance rate"
    source = "vllm-project/vllm, pull request 28693 (Elastic Speculation)"

    def conflict(self) -> str:
        return disorder(self, "above_low", "above_mid", "above_high")

    def new_state(self, slots: int) -> State:
        return PooledRateState(np.full(1, self.rate0))

    def gamma(self, state: PooledRateState, slot: int, view: View, rng: Rng) -> int:
        rate = float(state.rate[0])
        if rate > self.above_high:
            return self.length_high
        if rate > self.above_mid:
            return self.length_mid
        if rate > self.above_low:
            return self.length_low
        return self.length_very_low

    def learn(self, state: PooledRateState, slot: int, view: View, outcome: Outcome) -> None:
        if outcome.drafted == 0 or outcome.ended:
            return
        seen = outcome.accepted / outcome.drafted
        state.rate[0] = (1.0 - self.weight) * float(state.rate[0]) + self.weight * seen


class ServoState(NamedTuple):
    """Per request: rates [slots, window], a ring of accepted / drafted; seen [slots], rounds that
    drafted; gamma [slots], the next cap.
    """

    rates: FloatArray
    seen: IntArray
    gamma: IntArray


def start_in(gamma0: int, gamma_min: int, gamma_max: int) -> int:
    """gamma0 inside gamma_min..gamma_max."""
    return max(gamma_min, min(gamma0, gamma_max))


@dataclasses.dataclass(frozen=True)
class RateServo(Policy):
    """vLLM's proposed eagle_dynamic: hold each request's acceptance rate near a threshold.

    With at least `fewest` rounds seen: one token more if the mean of accepted / drafted over the
    last `window` rounds is at or above threshold + margin, one less if it is at or below threshold
    - margin, inside gamma_min..gamma_max. A request starts at the configured length (gamma0),
    clipped to that. Read in the class DynamicProposer of the pull request, as forks of vLLM keep
    it (vllm/v1/spec_decode/dynamic_proposer.py): 2 and 10 are its constants; in a later state the
    least is 1 and the most what the user configures. The threshold is the user's; 0.7 is what the
    port SNDR_MTP_DYNAMIC_K_001 of Genesis calls the default. There the whole batch drafts as much
    as its most hopeful row and the surplus is cut off; here each row drafts its own length.
    """

    gamma0: int = hyper(8, GAMMA, "ours: the user's num_speculative_tokens there")
    threshold: float = hyper(0.7, SHARE, "secondary (the port of Genesis)")
    margin: float = hyper(0.05, SHARE, "primary")
    window: int = hyper(10, RING, "primary")
    fewest: int = hyper(3, COUNT, "primary")
    gamma_min: int = hyper(2, GAMMA, "primary (1 in a later state)")
    gamma_max: int = hyper(
        10, DRAFT, "primary (the user's num_speculative_tokens in a later state)"
    )

    name = "rate-servo"
    rule = "gamma + 1 while the mean acceptance rate is over a threshold, - 1 while it is under it"
    source = (
        "vllm-project/vllm, pull request 26504 (eagle_dynamic), "
        "vllm/v1/spec_decode/dynamic_proposer.py"
    )

    def conflict(self) -> str:
        return disorder(self, "gamma_min", "gamma_max")

    def new_state(self, slots: int) -> State:
        return ServoState(
            np.zeros((slots, self.window)),
            np.zeros(slots, dtype=np.int64),
            np.full(slots, start_in(self.gamma0, self.gamma_min, self.gamma_max), dtype=np.int64),
        )

    def admit(self, state: ServoState, slot: int) -> None:
        for k in range(self.window):
            state.rates[slot, k] = 0.0
        state.seen[slot] = 0
        state.gamma[slot] = start_in(self.gamma0, self.gamma_min, self.gamma_max)

    def gamma(self, state: ServoState, slot: int, view: View, rng: Rng) -> int:
        return int(state.gamma[slot])

    def learn(self, state: ServoState, slot: int, view: View, outcome: Outcome) -> None:
        if outcome.drafted == 0:
            return
        seen = int(state.seen[slot])
        state.rates[slot, seen % self.window] = outcome.accepted / outcome.drafted
        state.seen[slot] = seen + 1
        if seen + 1 < self.fewest:
            return
        held = min(seen + 1, self.window)
        total = 0.0
        for k in range(held):
            total += float(state.rates[slot, k])
        gamma = int(state.gamma[slot])
        if total / held >= self.threshold + self.margin:
            gamma += 1
        elif total / held <= self.threshold - self.margin:
            gamma -= 1
        state.gamma[slot] = max(self.gamma_min, min(gamma, self.gamma_max))
