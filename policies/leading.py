"""vLLM's acceptance-adaptive K: draft only the leading positions that are accepted often enough."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from policies.base import FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import COUNT, DRAFT, GAMMA, SHARE, SOME, disorder, hyper
from policies.randomness import Rng

DRAFTS, STEPS, ROWS = 0, 1, 2  # LeadingState.clock


class LeadingState(NamedTuple):
    """D = gamma_max. Shared: rate [D], average share of drafts accepted at a position; seen [D],
    drafts that had it; enabled [D], 1 or 0; clock [3], drafts judged, steps of the batch, rows of
    the step that is under way.
    """

    rate: FloatArray
    seen: IntArray
    enabled: IntArray
    clock: IntArray


@dataclasses.dataclass(frozen=True)
class LeadingPositions(Policy):
    """gamma = how many leading positions have an acceptance rate of at least `threshold`.

    A position's rate is unconditional: of all drafts that had it, those accepted at least so far. A
    plain mean of the first `window` drafts, then an average with weight 1 / window. A position
    whose rate falls below the threshold is off until its rate reaches threshold + hysteresis;
    positions behind the first that is off are not looked at. gamma_max until `window` drafts were
    judged, and again every `probe_every` steps (0: never).

    One controller per engine, so one for all requests. There a step is one of the scheduler's, here
    as many rounds as rows are running; a step is counted before its gamma is chosen. Ours: where a
    reply ended inside the draft, only the accepted positions are counted. We know it as a proposal,
    not as a part of vLLM's main branch; there a schedule by batch size may cap it further.
    """

    gamma_max: int = hyper(
        5, DRAFT, "primary (the proposal's tests; the user's num_speculative_tokens)"
    )
    gamma_min: int = hyper(0, GAMMA, "primary")
    threshold: float = hyper(0.4, SHARE, "primary")
    window: int = hyper(256, SOME, "primary")
    probe_every: int = hyper(64, COUNT, "primary")
    hysteresis: float = hyper(0.05, SHARE, "primary")

    batch_wide = True
    name = "leading-positions"
    rule = "gamma = the leading positions whose acceptance rate reaches the threshold"
    source = "vllm-project/vllm, commit 9f1044b, v1/spec_decode/dynamic/adaptive.py"

    def conflict(self) -> str:
        return disorder(self, "gamma_min", "gamma_max")

    def new_state(self, slots: int) -> State:
        return LeadingState(
            np.zeros(self.gamma_max),
            np.zeros(self.gamma_max, dtype=np.int64),
            np.ones(self.gamma_max, dtype=np.int64),
            np.zeros(3, dtype=np.int64),
        )

    def gamma(self, state: LeadingState, slot: int, view: View, rng: Rng) -> int:
        if int(state.clock[DRAFTS]) < self.window:
            return self.gamma_max
        step = int(state.clock[STEPS]) + 1
        if self.probe_every > 0 and step % self.probe_every == 0:
            return self.gamma_max
        leading = 0
        while leading < self.gamma_max and int(state.enabled[leading]) == 1:
            leading += 1
        return max(self.gamma_min, leading)

    def learn(self, state: LeadingState, slot: int, view: View, outcome: Outcome) -> None:
        judged = outcome.accepted if outcome.ended else outcome.drafted
        drafted = min(judged, self.gamma_max)
        for k in range(drafted):
            passed = 1.0 if k < outcome.accepted else 0.0
            count = int(state.seen[k])
            share = 1.0 / (count + 1) if count < self.window else 1.0 / self.window
            state.rate[k] += share * (passed - float(state.rate[k]))
            state.seen[k] = count + 1
        if drafted > 0:
            state.clock[DRAFTS] += 1
        state.clock[ROWS] += 1
        if int(state.clock[ROWS]) < view.batch_size:
            return
        state.clock[ROWS] = 0
        state.clock[STEPS] += 1
        due = int(state.clock[STEPS]) + 1
        probing = self.probe_every > 0 and due % self.probe_every == 0
        if int(state.clock[DRAFTS]) >= self.window and not probing:
            switch_positions(self, state)


def switch_positions(fields: LeadingPositions, state: LeadingState) -> None:
    """Positions on and off by their rates, from the first to the first that is off."""
    for k in range(state.rate.shape[0]):
        if int(state.seen[k]) > 0:
            rate = float(state.rate[k])
            if int(state.enabled[k]) == 1 and rate < fields.threshold:
                state.enabled[k] = 0
            elif int(state.enabled[k]) == 0 and rate >= fields.threshold + fields.hysteresis:
                state.enabled[k] = 1
        if int(state.enabled[k]) == 0:
            return
