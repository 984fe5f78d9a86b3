"""ONNX Runtime GenAI's adaptive K: try the neighbouring length, keep it if it was no slower."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from policies.base import FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import COUNT, DRAFT, FACTOR, SHARE, disorder, hyper
from policies.randomness import Rng

# ProbeState.plan: the length in force, the one a probe started from (0: no probe), rounds of the
# probe, rounds counted since the last one, rounds still to wait.
GAMMA, ORIGIN, PROBED, STABLE, WAIT = 0, 1, 2, 3, 4
# ProbeState.seen: average tokens of a round, its seconds, accepted over judged tokens.
TOKENS, SECONDS, RATE = 0, 1, 2
NEEDED = 2  # rounds before a length is judged, in a probe and outside. Primary.


class ProbeState(NamedTuple):
    """D = gamma_max. Per request: plan [slots, 5], seen [slots, D + 1, 3], columns named above;
    rounds [slots, D + 1], samples of each length.
    """

    plan: IntArray
    seen: FloatArray
    rounds: IntArray


def tokens_per_s(state: ProbeState, slot: int, gamma: int) -> float:
    """Average tokens over average seconds of a length; 0 if it was never played."""
    seconds = float(state.seen[slot, gamma, SECONDS])
    return float(state.seen[slot, gamma, TOKENS]) / seconds if seconds > 0.0 else 0.0


def start_probe(state: ProbeState, slot: int, gamma: int) -> None:
    """Play this neighbour of the length in force."""
    state.plan[slot, ORIGIN] = state.plan[slot, GAMMA]
    state.plan[slot, GAMMA] = gamma
    state.plan[slot, PROBED] = 0
    state.plan[slot, STABLE] = 0


def finish_probe(fields: OnnxAdaptiveK, state: ProbeState, slot: int, keep: bool) -> None:
    """Keep the length tried, or go back; then wait."""
    if not keep:
        state.plan[slot, GAMMA] = state.plan[slot, ORIGIN]
    state.plan[slot, ORIGIN] = 0
    state.plan[slot, PROBED] = 0
    state.plan[slot, STABLE] = 0
    state.plan[slot, WAIT] = fields.wait_kept if keep else fields.wait_rejected


@dataclasses.dataclass(frozen=True)
class OnnxAdaptiveK(Policy):
    """Lengths gamma_min..gamma_max are judged by averages (weight `weight`) of tokens, seconds and
    accepted / judged tokens of their rounds.

    From two rounds on: a rate below `low` starts a probe of one token less, one of at least `high`
    a probe of one more (this needs two rounds since the last probe). A probe ends at once if its
    tokens per second are below `abort` of those of the length it came from, else after two rounds:
    it is kept if they are at least `keep` of them and, going up, its rate is at least `high`. After
    a probe that was kept `wait_kept` rounds are passed over, after another `wait_rejected`.

    A round counts if it drafted the length in force: not where room was short, nor where the reply
    ended inside it (interrupted rounds do not train it there). Estimates start anew with the
    request, as they do there with a generator. There in float32 milliseconds, here in the seconds
    that elapsed, compared with each other only. Left out: the cooldown (off by default), one plain
    step after three rounds at gamma_min that accepted nothing.
    """

    gamma_min: int = hyper(
        2, DRAFT, "primary (docs/SpeculativeDecoding.md: try min_adaptive_k=2; unset: off)"
    )
    gamma_max: int = hyper(16, DRAFT, "primary")
    weight: float = hyper(0.25, SHARE, "primary")
    high: float = hyper(0.75, SHARE, "primary")
    low: float = hyper(0.5, SHARE, "primary")
    keep: float = hyper(0.97, FACTOR, "primary")
    abort: float = hyper(0.8, FACTOR, "primary")
    wait_kept: int = hyper(1, COUNT, "primary")
    wait_rejected: int = hyper(6, COUNT, "primary")

    name = "onnx-adaptive-k"
    rule = "try one more token at a high rate, one less at a low one; keep it if no slower"
    source = "microsoft/onnxruntime-genai, src/speculative_decoding_strategy.h, AdaptiveKController"

    def conflict(self) -> str:
        return disorder(self, "gamma_min", "gamma_max") or disorder(self, "low", "high")

    def new_state(self, slots: int) -> State:
        plan = np.zeros((slots, 5), dtype=np.int64)
        plan[:, GAMMA] = self.gamma_min
        lengths = self.gamma_max + 1
        rounds = np.zeros((slots, lengths), dtype=np.int64)
        return ProbeState(plan, np.zeros((slots, lengths, 3)), rounds)

    def admit(self, state: ProbeState, slot: int) -> None:
        for k in range(state.plan.shape[1]):
            state.plan[slot, k] = 0
        state.plan[slot, GAMMA] = self.gamma_min
        for k in range(state.rounds.shape[1]):
            state.rounds[slot, k] = 0
            for column in range(3):
                state.seen[slot, k, column] = 0.0

    def gamma(self, state: ProbeState, slot: int, view: View, rng: Rng) -> int:
        return int(state.plan[slot, GAMMA])

    def learn(self, state: ProbeState, slot: int, view: View, outcome: Outcome) -> None:
        gamma = int(state.plan[slot, GAMMA])
        if outcome.drafted != gamma or outcome.ended or outcome.elapsed_s <= 0.0:
            return
        rate = outcome.accepted / min(outcome.accepted + 1, gamma)
        share = self.weight if int(state.rounds[slot, gamma]) > 0 else 1.0
        seen = state.seen[slot, gamma]
        seen[TOKENS] += share * (outcome.emitted - float(seen[TOKENS]))
        seen[SECONDS] += share * (outcome.elapsed_s - float(seen[SECONDS]))
        seen[RATE] += share * (rate - float(seen[RATE]))
        state.rounds[slot, gamma] += 1
        if int(state.plan[slot, ORIGIN]) > 0:
            judge_probe(self, state, slot)
            return
        state.plan[slot, STABLE] += 1
        if int(state.plan[slot, WAIT]) > 0:
            state.plan[slot, WAIT] -= 1
            return
        if int(state.rounds[slot, gamma]) < NEEDED:
            return
        rate, stable = float(seen[RATE]), int(state.plan[slot, STABLE])
        if rate < self.low and gamma > self.gamma_min:
            start_probe(state, slot, gamma - 1)
        elif rate >= self.high and gamma < self.gamma_max and stable >= NEEDED:
            start_probe(state, slot, gamma + 1)


def judge_probe(fields: OnnxAdaptiveK, state: ProbeState, slot: int) -> None:
    """One more round of the length being tried is in."""
    gamma, origin = int(state.plan[slot, GAMMA]), int(state.plan[slot, ORIGIN])
    state.plan[slot, PROBED] += 1
    now, before = tokens_per_s(state, slot, gamma), tokens_per_s(state, slot, origin)
    if now < fields.abort * before:
        finish_probe(fields, state, slot, False)
    elif int(state.plan[slot, PROBED]) >= NEEDED:
        high = gamma < origin or float(state.seen[slot, gamma, RATE]) >= fields.high
        finish_probe(fields, state, slot, high and now >= fields.keep * before)
