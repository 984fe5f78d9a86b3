"""SGLang's adaptive speculation: a few captured lengths per batch size, moved by an average."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from policies.base import FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import COUNT, DRAFT, GAMMA, SHARE, SOME, WEIGHT, hyper
from policies.randomness import Rng

# From these batch sizes on another set of lengths; the first set is the fields' own. Primary.
BATCH_FROM = (1, 8, 32, 64)
LARGER_BATCHES = ((0, 1, 3), (0, 1), (0,))


class TierState(NamedTuple):
    """Shared. Four sets, one per range of batch sizes, of up to four lengths.

    steps [4, 4], the lengths, ascending, -1 where there is none: not written after the start.
    at [4], index of the length in force; ema [4], mean accepted tokens; batches [4] seen so far;
    batch [3], the batch that is under way: its rounds, those of them that count, their accepted.
    """

    steps: IntArray
    at: IntArray
    ema: FloatArray
    batches: IntArray
    batch: IntArray


def set_of_batch(batch_size: int) -> int:
    """The last set that starts at or below this batch size."""
    found = 0
    for k in range(len(BATCH_FROM)):
        if batch_size >= BATCH_FROM[k]:
            found = k
    return found


def next_tier(state: TierState, tier: int, down: float, up: float) -> int:
    """Index of the length to use from now on in set `tier`."""
    at, ema = int(state.at[tier]), float(state.ema[tier])
    last: int = state.steps.shape[1] - 1
    while int(state.steps[tier, last]) < 0:
        last -= 1
    if int(state.steps[tier, at]) == 0:
        return min(at + 1, last)
    before = at
    falling = True
    while at > 0 and falling:
        lower = int(state.steps[tier, at - 1])
        falling = ema <= (0.5 if lower == 0 else lower - 0.5) + down
        if falling:
            at -= 1
    if at == before:
        while at < last and ema > int(state.steps[tier, at]) - 0.5 + up:
            at += 1
    return at


@dataclasses.dataclass(frozen=True)
class SGLangTiers(Policy):
    """Per range of batch sizes an average of the accepted length picks one of a few lengths.

    After each batch ema <- (1 - weight) ema + weight mean(accepted), unless nothing was drafted.
    After `warmup` batches, and then every `interval` ones: while ema <= p - 0.5 + down, p the next
    shorter length (0.5 + down if p = 0), go to p; if that never happened, while ema > current - 0.5
    + up, go one length up. From length 0 always try the next one. The lengths: step1..step4 below a
    batch of 8, then 0 1 3, from 32 on 0 1, from 64 on 0, these without hysteresis.

    Each set starts at `start` if it has it, else in its middle, its average one below that length.

    A hook sees one row at a time: a batch is complete when as many rounds have come in as rows are
    running; a round whose reply ended inside the accepted tokens is not averaged. There batch sizes
    are first rounded up to a captured graph's. The optional ceiling on the length (off by default
    there) is left out.
    """

    step1: int = hyper(1, DRAFT, "primary")
    step2: int = hyper(3, DRAFT, "primary")
    step3: int = hyper(5, DRAFT, "primary")
    step4: int = hyper(7, DRAFT, "primary")
    start: int = hyper(3, GAMMA, "ours: the user's num_steps there")
    weight: float = hyper(0.2, SHARE, "primary")
    down: float = hyper(-0.25, WEIGHT, "primary")
    up: float = hyper(0.0, WEIGHT, "primary")
    warmup: int = hyper(10, COUNT, "primary")
    interval: int = hyper(5, SOME, "primary")

    batch_wide = True
    name = "sglang-tiers"
    rule = "the captured length nearest above the mean accepted length, with hysteresis, by batch"
    source = "sgl-project/sglang, speculative/adaptive_spec_params.py"

    def conflict(self) -> str:
        steps = (self.step1, self.step2, self.step3, self.step4)
        return "" if sorted(set(steps)) == list(steps) else "step1 to step4 must ascend"

    def new_state(self, slots: int) -> State:
        own = (self.step1, self.step2, self.step3, self.step4)
        sets = (own, *LARGER_BATCHES)
        steps = np.full((len(sets), len(own)), -1, dtype=np.int64)
        at = np.zeros(len(sets), dtype=np.int64)
        ema = np.zeros(len(sets))
        for k, lengths in enumerate(sets):
            steps[k, : len(lengths)] = lengths
            at[k] = lengths.index(self.start) if self.start in lengths else len(lengths) // 2
            ema[k] = max(0, steps[k, at[k]] - 1)  # set anew there when a set leaves 0
        batches = np.zeros(len(sets), dtype=np.int64)
        return TierState(steps, at, ema, batches, np.zeros(3, dtype=np.int64))

    def gamma(self, state: TierState, slot: int, view: View, rng: Rng) -> int:
        tier = set_of_batch(view.batch_size)
        return int(state.steps[tier, int(state.at[tier])])

    def learn(self, state: TierState, slot: int, view: View, outcome: Outcome) -> None:
        state.batch[0] += 1
        if outcome.drafted > 0 and not outcome.ended:
            state.batch[1] += 1
            state.batch[2] += outcome.accepted
        if int(state.batch[0]) < view.batch_size:
            return
        tier = set_of_batch(view.batch_size)
        if int(state.batch[1]) > 0:
            mean = int(state.batch[2]) / int(state.batch[1])
            state.ema[tier] = (1.0 - self.weight) * float(state.ema[tier]) + self.weight * mean
        for k in range(3):
            state.batch[k] = 0
        state.batches[tier] += 1
        late = int(state.batches[tier]) - self.warmup
        if late > 0 and late % self.interval == 0:
            if tier == 0:
                state.at[tier] = next_tier(state, tier, self.down, self.up)
            else:
                state.at[tier] = next_tier(state, tier, 0.0, 0.0)
