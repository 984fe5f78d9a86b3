"""Tables as operators write them: a length per batch size, and a switch-off."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from policies.base import FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import COUNT, GAMMA, SHARE, Domain, hyper
from policies.randomness import Rng


@dataclasses.dataclass(frozen=True)
class BatchTable(Policy):
    """A length per range of batch sizes, as two engines have it.

    gamma1 up to a batch of bound1, gamma2 up to bound2, and so on. A row with bound 0 is not there.
    Above the largest bound TensorRT-LLM drafts nothing (draft_len_schedule, from whose pull request
    the rows are; in later versions some of its drafters keep a length of at least 1); vLLM goes on
    with the last row (num_speculative_tokens_per_batch_size, rows [low, high, length];
    vllm/v1/spec_decode/dynamic/utils.py, build_dynamic_sd_schedule_lookup). gamma_above says which:
    a length, or -1 for the last row's. mlc-llm has such a table too. With one slot it is a fixed
    length.
    """

    bound1: int = hyper(4, COUNT, "primary (the example of the pull request)")
    gamma1: int = hyper(4, GAMMA, "primary (the example of the pull request)")
    bound2: int = hyper(8, COUNT, "primary (the example of the pull request)")
    gamma2: int = hyper(2, GAMMA, "primary (the example of the pull request)")
    bound3: int = hyper(32, COUNT, "primary (the example of the pull request)")
    gamma3: int = hyper(1, GAMMA, "primary (the example of the pull request)")
    bound4: int = hyper(0, COUNT, "ours: a fourth row, not there by default")
    gamma4: int = hyper(0, GAMMA, "ours: a fourth row, not there by default")
    gamma_above: int = hyper(0, Domain(-1, 1_000), "primary (0: TensorRT-LLM; -1: vLLM)")

    batch_wide = True
    name = "batch-table"
    rule = "the length of the first row whose bound the batch does not exceed; above them 0 or last"
    source = "NVIDIA/TensorRT-LLM, pull request 10860 (draft_len_schedule); vLLM; mlc-llm"

    def conflict(self) -> str:
        bounds = [bound for bound in (self.bound1, self.bound2, self.bound3, self.bound4) if bound]
        return "" if sorted(set(bounds)) == bounds else "bound1 to bound4 must ascend (0: no row)"

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        if view.batch_size <= self.bound1:
            return self.gamma1
        if view.batch_size <= self.bound2:
            return self.gamma2
        if view.batch_size <= self.bound3:
            return self.gamma3
        if view.batch_size <= self.bound4:
            return self.gamma4
        if self.gamma_above >= 0:
            return self.gamma_above
        if self.bound4 > 0:
            return self.gamma4
        if self.bound3 > 0:
            return self.gamma3
        return self.gamma2 if self.bound2 > 0 else self.gamma1


class GateState(NamedTuple):
    """Shared. ring [window], the last acceptance rates; total [1], their sum; rounds [1] that
    drafted; off [1], 1 once drafting has been given up.
    """

    ring: FloatArray
    total: FloatArray
    rounds: IntArray
    off: IntArray


@dataclasses.dataclass(frozen=True)
class DisableGate(Policy):
    """TensorRT-LLM's speculation gate: a fixed length until it has not paid, then never again.

    Once `window` rounds have drafted, and the mean of accepted / drafted over the last `window`
    ones is below the threshold, drafting is off for good. One gate per engine, so one for all
    requests, also those to come; there a sample is a decoding iteration of the whole batch (in
    older versions the mean accepted length of a finished request), here one row's round. A round
    whose reply ended inside the accepted tokens is no sample.
    """

    gamma_tokens: int = hyper(4, GAMMA, "ours: the operator's there")
    window: int = hyper(64, Domain(1, 1_000_000), "ours: the operator's there, off by default")
    threshold: float = hyper(0.3, SHARE, "ours: the operator's there, off by default")

    batch_wide = True
    name = "disable-gate"
    rule = "gamma until the mean acceptance rate of `window` rounds is below the threshold, then 0"
    source = "NVIDIA/TensorRT-LLM, _torch/speculative/speculation_gate.py"

    def new_state(self, slots: int) -> State:
        return GateState(
            np.zeros(self.window),
            np.zeros(1),
            np.zeros(1, dtype=np.int64),
            np.zeros(1, dtype=np.int64),
        )

    def gamma(self, state: GateState, slot: int, view: View, rng: Rng) -> int:
        return 0 if int(state.off[0]) == 1 else self.gamma_tokens

    def learn(self, state: GateState, slot: int, view: View, outcome: Outcome) -> None:
        if outcome.drafted == 0 or outcome.ended:
            return
        rounds = int(state.rounds[0])
        at = rounds % self.window
        rate = outcome.accepted / outcome.drafted
        total = float(state.total[0]) + rate - float(state.ring[at])
        state.ring[at] = rate
        state.total[0] = total
        state.rounds[0] = rounds + 1
        if rounds + 1 >= self.window and total / self.window < self.threshold:
            state.off[0] = 1
