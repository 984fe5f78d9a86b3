"""SGLang's throughput-aware steps: few lengths, scored by windowed tokens per second."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from policies.base import IntArray, Outcome, Policy, State, View
from policies.fields import DRAFT, FACTOR, GAMMA, RING, SOME, disorder, hyper
from policies.goodput.rounds import round_s
from policies.randomness import Rng

CURRENT, SINCE = 0, 1  # StepsState.mode


class StepsState(NamedTuple):
    """D = gamma_max, W = window. Shared: hit [D, W], ring of 1 (accepted) and 0; seen [D], entries
    ever written since the ring was cleared; hits [D], sum of the ring; mode [2], steps in force and
    rounds since they were last reconsidered.
    """

    hit: IntArray
    seen: IntArray
    hits: IntArray
    mode: IntArray


def extrapolated(first: float, last: float, known: int) -> float:
    """The rate behind `known` rates from first to last, if they fell geometrically; never above the
    last, and 0 where nothing passed the first.
    """
    if known == 1:
        return last
    if first <= 0.0 or last <= 0.0:
        return 0.0
    return min(last, last * math.exp(math.log(last / first) / (known - 1)))


def score_of_steps(state: StepsState, window: int, view: View, steps: int) -> float:
    """Expected tokens per second of drafting `steps` tokens; -1.0 if unknown."""
    tokens, first, last = 1.0, 0.0, 0.0
    for k in range(steps):
        seen = min(int(state.seen[k]), window)
        if seen > 0:
            last = int(state.hits[k]) / seen
        elif k == 0:
            return -1.0
        else:
            last = extrapolated(first, last, k)
        if k == 0:
            first = last
        tokens += last
    seconds = round_s(view, steps)
    return tokens / seconds if seconds > 0.0 else -1.0


@dataclasses.dataclass(frozen=True)
class SGLangThroughput(Policy):
    """SGLang's throughput-aware steps: a coarse grid, scored from sliding windows.

    p_k is the mean of the last `window` rounds that drafted position k (share accepted up to and
    including k). Every `update_every` rounds, if every position in force has a full window, the
    candidates gamma_min, gamma_min + gamma_step, ..., gamma_max are scored by (1 + p_1 + ... + p_S)
    / seconds(S); the best replaces the present one if it is better by more than `hysteresis`.
    Positions not seen go on geometrically: the next is last * (last / first) ** (1 / (n - 1)), but
    no more than last. Going down clears the windows above the new S. Read in
    python/sglang/srt/speculative/throughput_aware_spec_params.py and in the policy beside it.

    There a round is one batch and an entry the share of its requests; here every round of every
    slot is a batch of one. There larger batches may have fewer candidates ([1, 3, 5] from 8 on,
    [1, 3] from 32, [1] from 128 in its example; the default has one list for all): here one list.
    There seconds are profiled at start-up; here they are the view's. A candidate that there is no
    room for is not scored, and nothing is reconsidered while the present one does not fit.
    """

    gamma_min: int = hyper(1, GAMMA, "primary")
    gamma_step: int = hyper(2, DRAFT, "primary")
    gamma_max: int = hyper(7, DRAFT, "primary")
    gamma0: int = hyper(
        5, DRAFT, "primary: the middle candidate, taken where the server's setting is none of them"
    )
    window: int = hyper(20, RING, "primary")
    update_every: int = hyper(
        5, SOME, "primary (update_interval; 10 in an earlier state of the pull request)"
    )
    hysteresis: float = hyper(
        0.1, FACTOR, "primary (switch_hysteresis; none in an earlier state of the pull request)"
    )

    batch_wide = True
    name = "sglang-throughput"
    rule = "every few rounds, steps = argmax over 1, 3, 5, 7 of windowed expected tokens per second"
    source = "sgl-project/sglang, pull request 28045 (throughput_aware)"

    def conflict(self) -> str:
        return disorder(self, "gamma_min", "gamma_max")

    def new_state(self, slots: int) -> State:
        return StepsState(
            np.zeros((self.gamma_max, self.window), dtype=np.int64),
            np.zeros(self.gamma_max, dtype=np.int64),
            np.zeros(self.gamma_max, dtype=np.int64),
            np.array([min(self.gamma0, self.gamma_max), 0], dtype=np.int64),
        )

    def gamma(self, state: StepsState, slot: int, view: View, rng: Rng) -> int:
        current = int(state.mode[CURRENT])
        if int(state.mode[SINCE]) < self.update_every or current > view.room:
            return current
        state.mode[SINCE] = 0
        for k in range(current):
            if int(state.seen[k]) < self.window:
                return current
        present = score_of_steps(state, self.window, view, current)
        best, best_score = current, present
        for steps in range(self.gamma_min, min(self.gamma_max, view.room) + 1, self.gamma_step):
            score = score_of_steps(state, self.window, view, steps)
            if score > best_score:
                best, best_score = steps, score
        if best_score <= present * (1.0 + self.hysteresis):
            return current
        for k in range(best, self.gamma_max):  # nothing is known there if best > current
            state.seen[k] = 0
            state.hits[k] = 0
        state.mode[CURRENT] = best
        return best

    def learn(self, state: StepsState, slot: int, view: View, outcome: Outcome) -> None:
        state.mode[SINCE] += 1
        for k in range(min(outcome.drafted, self.gamma_max)):
            at = int(state.seen[k]) % self.window
            if int(state.seen[k]) >= self.window:
                state.hits[k] -= int(state.hit[k, at])
            accepted = 1 if k < outcome.accepted else 0
            state.hit[k, at] = accepted
            state.hits[k] += accepted
            state.seen[k] += 1
