"""vLLM's proposed adaptive K: goodput in plain rounds, held for a while."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from policies.base import FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import COUNT, DRAFT, FACTOR, GAMMA, SHARE, SOME, hyper
from policies.goodput.rounds import judged_tokens
from policies.randomness import Rng

HELD, COOLDOWN, COUNTED, PLAIN = 0, 1, 2, 3  # AdaptiveState.mode


class AdaptiveState(NamedTuple):
    """D = gamma_max. Shared: ema [D], acceptance of a token that was reached; reached, passed [D],
    counts of the window at hand; mode [4], length held (-1 before the first round), rounds it is
    still held for, rounds in the window, and rounds without a draft in a row.
    """

    ema: FloatArray
    reached: IntArray
    passed: IntArray
    mode: IntArray


@dataclasses.dataclass(frozen=True)
class AdaptiveK(Policy):
    """vLLM's proposed adaptive K: conditional acceptance per position, and a linear cost.

    gamma = argmax over K >= 1 of (1 + a_1 + a_1 a_2 + ... + a_1 ... a_K) / (1 + K c + batch_penalty
    * batch size), and 0 if the best is below 1. a_i is an exponential average of passed / reached
    over windows of `window` rounds. A new K is held for `cooldown_rounds`; a change of at most
    `hysteresis_tokens` is ignored, from 1 to 0 included. The cost takes a target step to be equally
    long whatever it verifies, as published; K is not capped by a table of batch sizes.

    c, which the user has to measure, is the view's draft_step_s / verify_s[1]. Windows count rounds
    that drafted, of any slot. Ours where the text is silent: an average starts at prior_rate, and
    after `probe_every` rounds without a draft one token is drafted (the predecessor, pull request
    44336, drafted at random in one round out of ten).
    """

    gamma_max: int = hyper(10, DRAFT, "primary (num_speculative_tokens of its example)")
    eta: float = hyper(0.3, SHARE, "primary")
    window: int = hyper(10, SOME, "primary")
    prior_rate: float = hyper(0.85, SHARE, "primary")
    batch_penalty: float = hyper(0.002, FACTOR, "primary")
    cooldown_rounds: int = hyper(2, COUNT, "primary (4 in an earlier state)")
    hysteresis_tokens: int = hyper(1, GAMMA, "primary (pull request 44336, its predecessor)")
    probe_every: int = hyper(16, SOME, "ours: the pull request has no probe")

    batch_wide = True
    name = "adaptive-k"
    rule = "gamma = argmax of expected tokens / (1 + gamma c + overhead), with cooldown, hysteresis"
    source = "vllm-project/vllm, pull request 47111 (adaptive K) and its documentation page"

    def new_state(self, slots: int) -> State:
        return AdaptiveState(
            np.full(self.gamma_max, float(self.prior_rate)),
            np.zeros(self.gamma_max, dtype=np.int64),
            np.zeros(self.gamma_max, dtype=np.int64),
            np.array([-1, 0, 0, 0], dtype=np.int64),
        )

    def gamma(self, state: AdaptiveState, slot: int, view: View, rng: Rng) -> int:
        held = int(state.mode[HELD])
        if int(state.mode[COOLDOWN]) > 0:
            state.mode[COOLDOWN] -= 1
        else:
            plain_s = float(view.verify_s[1])
            share = view.draft_step_s / plain_s if plain_s > 0.0 else 0.0
            best = best_length(self, state, share, view.batch_size)
            if held < 0 or abs(best - held) > self.hysteresis_tokens:
                held = best
                state.mode[HELD] = held
                state.mode[COOLDOWN] = self.cooldown_rounds
        if held == 0 and int(state.mode[PLAIN]) >= self.probe_every * view.batch_size:
            return 1
        return held

    def learn(self, state: AdaptiveState, slot: int, view: View, outcome: Outcome) -> None:
        if outcome.drafted == 0:
            state.mode[PLAIN] += 1
            return
        state.mode[PLAIN] = 0
        for k in range(min(judged_tokens(outcome), self.gamma_max)):
            state.reached[k] += 1
            if k < outcome.accepted:
                state.passed[k] += 1
        state.mode[COUNTED] += 1
        if int(state.mode[COUNTED]) >= self.window:
            close_window(state, self.eta)


def best_length(fields: AdaptiveK, state: AdaptiveState, share: float, batch_size: int) -> int:
    """The K with the most goodput, 0 if that is below 1; share: draft step over target step."""
    best, best_goodput = 0, 1.0
    tokens, survival = 1.0, 1.0
    overhead = 1.0 + fields.batch_penalty * batch_size
    for k in range(fields.gamma_max):
        survival *= float(state.ema[k])
        tokens += survival
        goodput = tokens / (overhead + (k + 1) * share)
        if goodput > best_goodput:
            best, best_goodput = k + 1, goodput
    return best


def close_window(state: AdaptiveState, eta: float) -> None:
    """Fold the window's counts into the averages and start a new one."""
    for k in range(state.ema.shape[0]):
        reached = int(state.reached[k])
        if reached > 0:
            rate = int(state.passed[k]) / reached
            state.ema[k] = (1.0 - eta) * float(state.ema[k]) + eta * rate
        state.reached[k] = 0
        state.passed[k] = 0
    state.mode[COUNTED] = 0
