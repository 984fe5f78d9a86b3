"""vLLM's dynamic speculative decoding: the length with the most expected tokens per second."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from policies.base import IntArray, Outcome, Policy, State, View
from policies.fields import COUNT, DRAFT, SHARE, SOME, hyper
from policies.goodput.rounds import round_s
from policies.randomness import Rng

ROUNDS, QUIET = 0, 1  # VllmState.clock


class VllmState(NamedTuple):
    """D = gamma_max. Shared: drafted, accepted [D], tokens ever drafted at a position, and accepted
    there; clock [2], rounds, and rounds without a draft in a row.
    """

    drafted: IntArray
    accepted: IntArray
    clock: IntArray


@dataclasses.dataclass(frozen=True)
class VLLMDynamic(Policy):
    """vLLM's dynamic speculative decoding: goodput from per-position acceptance counts.

    gamma = argmax over 0..gamma_max of (1 + acc_1 + ... + acc_gamma) / seconds(gamma), ties to the
    smallest. acc_i is the share of all tokens ever drafted at position i that were accepted (not
    given that position i - 1 was): counts never fade, and a position never drafted counts as 0, so
    a length that was not tried during the warm-up is not found later. There the rates of the first
    `warmup_rounds` steps come from a profile; here they are prior_rate ** i.

    There seconds come from a profiled table, interpolated over batch sizes and lengths; here from
    the view's prices, and only lengths that there is room for compete. There a step counts the
    whole batch; here every round of every slot is a step. vLLM never drafts again once it has
    chosen 0: the probe, one token after `probe_every` rounds without a draft, is ours.
    """

    gamma_max: int = hyper(8, DRAFT, "ours: the user's num_speculative_tokens")
    warmup_rounds: int = hyper(10, COUNT, "primary")
    prior_rate: float = hyper(0.8, SHARE, "ours: vLLM reads profiled rates")
    probe_every: int = hyper(16, SOME, "ours: vLLM has no probe")

    batch_wide = True
    name = "vllm-dynamic"
    rule = (
        "gamma = argmax of (1 + sum of per-position acceptance) / seconds, from all counts so far"
    )
    source = "vllm-project/vllm, v1/spec_decode/dynamic/manager.py; SmartSpec, arXiv 2406.14066"

    def new_state(self, slots: int) -> State:
        return VllmState(
            np.zeros(self.gamma_max, dtype=np.int64),
            np.zeros(self.gamma_max, dtype=np.int64),
            np.zeros(2, dtype=np.int64),
        )

    def gamma(self, state: VllmState, slot: int, view: View, rng: Rng) -> int:
        warm = int(state.clock[ROUNDS]) >= self.warmup_rounds
        best, best_s, best_tokens = 0, round_s(view, 0), 1.0
        tokens, prior = 1.0, 1.0
        for k in range(min(self.gamma_max, view.room)):
            prior *= self.prior_rate
            if not warm:
                tokens += prior
            elif int(state.drafted[k]) > 0:
                tokens += int(state.accepted[k]) / int(state.drafted[k])
            seconds = round_s(view, k + 1)
            if tokens * best_s > best_tokens * seconds:
                best, best_s, best_tokens = k + 1, seconds, tokens
        if best == 0 and int(state.clock[QUIET]) >= self.probe_every * view.batch_size:
            return 1
        return best

    def learn(self, state: VllmState, slot: int, view: View, outcome: Outcome) -> None:
        state.clock[ROUNDS] += 1
        state.clock[QUIET] = 0 if outcome.drafted > 0 else int(state.clock[QUIET]) + 1
        for k in range(min(outcome.drafted, self.gamma_max)):
            state.drafted[k] += 1
            if k < outcome.accepted:
                state.accepted[k] += 1
