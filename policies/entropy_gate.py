"""Draft or not, by an average entropy between two thresholds."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from policies.base import Draft, FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import FACTOR, GAMMA, SHARE, SOME, disorder, hyper
from policies.randomness import Rng


class GateState(NamedTuple):
    """Per request: entropy [slots], its average in bits, 0 before the first; shut [slots], 1 while
    the gate is shut; quiet [slots], rounds since it looked last.
    """

    entropy: FloatArray
    shut: IntArray
    quiet: IntArray


@dataclasses.dataclass(frozen=True)
class EntropyGate(Policy):
    """gamma tokens while the average entropy is low, none while it is high, with hysteresis.

    H <- weight entropy + (1 - weight) H, in bits, the first entropy being its start (and again
    where H is exactly 0, as there). Above `high` the gate shuts, below `low` it opens.

    There the entropy is the target's own, of the distribution that the next token is taken from,
    known before anything is drafted, so a shut gate drafts nothing. No hook is shown that; here it
    is the draft's entropy at the first token of the round, the same place in the text. To see it a
    token must be drafted: a shut gate stops after one (which is verified, and charged), every
    `look_every` rounds, and drafts none in the rounds between.
    """

    gamma_tokens: int = hyper(5, GAMMA, "primary (the issues)")
    low: float = hyper(0.55, FACTOR, "primary (the class; its benchmark of a real pair has 0.15)")
    high: float = hyper(0.82, FACTOR, "primary (the class; its benchmark of a real pair has 0.7)")
    weight: float = hyper(0.35, SHARE, "primary (the class and the issues; the benchmark has 0.65)")
    look_every: int = hyper(1, SOME, "ours: nothing is drafted to look there")

    name = "entropy-gate"
    rule = "gamma while the average entropy is low, else one token or none, with two thresholds"
    source = (
        "Creepybits/software-defined-stochastic-inference-engine, vllm_sdsie/kernels/"
        "entropy_clutch.py; sgl-project/sglang, issue 36715; vllm-project/vllm, issue 54082"
    )

    def conflict(self) -> str:
        return disorder(self, "low", "high")

    def new_state(self, slots: int) -> State:
        zeros = np.zeros(slots, dtype=np.int64)
        return GateState(np.zeros(slots), zeros, zeros.copy())

    def admit(self, state: GateState, slot: int) -> None:
        state.entropy[slot] = 0.0
        state.shut[slot] = 0
        state.quiet[slot] = 0

    def gamma(self, state: GateState, slot: int, view: View, rng: Rng) -> int:
        if int(state.shut[slot]) == 1 and int(state.quiet[slot]) + 1 < self.look_every:
            return 0
        return self.gamma_tokens

    def proceed(self, state: GateState, slot: int, draft: Draft) -> bool:
        if draft.drafted == 1:
            bits = draft.entropy / math.log(2.0)
            average = float(state.entropy[slot])
            if average != 0.0:
                bits = self.weight * bits + (1.0 - self.weight) * average
            state.entropy[slot] = bits
            if bits > self.high:
                state.shut[slot] = 1
            elif bits < self.low:
                state.shut[slot] = 0
        return int(state.shut[slot]) == 0

    def learn(self, state: GateState, slot: int, view: View, outcome: Outcome) -> None:
        state.quiet[slot] = 0 if outcome.drafted > 0 else int(state.quiet[slot]) + 1
