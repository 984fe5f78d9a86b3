"""Servers' published rules: the length with the most expected tokens per second, from counts."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from policies.base import FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import COUNT, DRAFT, FACTOR, GAMMA, RING, SHARE, SOME, disorder, hyper
from policies.randomness import Rng

ROUNDS, QUIET = 0, 1  # VllmState.clock
CURRENT, SINCE = 0, 1  # StepsState.mode
STEPS, LENGTH, IDLE = 0, 1, 2  # AlphaState.clock
HELD, COOLDOWN, COUNTED, PLAIN = 0, 1, 2, 3  # AdaptiveState.mode


def round_s(view: View, gamma: int) -> float:
    """Seconds of a round that drafts gamma <= view.room tokens at the measured prices."""
    return gamma * view.draft_step_s + float(view.verify_s[gamma + 1])


def judged_tokens(outcome: Outcome) -> int:
    """Drafted tokens that were reached: those accepted and the first rejected one."""
    if outcome.ended:  # nothing was rejected
        return outcome.accepted
    return min(outcome.accepted + 1, outcome.drafted)


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


class AlphaState(NamedTuple):
    """Shared: alpha [1], moving average of accepted / drafted; clock [3], steps decided so far,
    the length in force, and rounds without a draft in a row.
    """

    alpha: FloatArray
    clock: IntArray


def rising_goodput(alpha: float, longest: int, plain_gain: float, view: View) -> int:
    """The length at which (1 + alpha + ... + alpha^k) / seconds(k) stops rising, k = 0 first and
    times `plain_gain`.
    """
    best, best_s, best_tokens = 0, round_s(view, 0), plain_gain
    tokens, survival = 1.0, 1.0
    for k in range(1, longest + 1):
        survival *= alpha
        tokens += survival
        seconds = round_s(view, k)
        if tokens * best_s <= best_tokens * seconds:
            break
        best, best_s, best_tokens = k, seconds, tokens
    return best


@dataclasses.dataclass(frozen=True)
class SmartSpec(Policy):
    """SmartSpec in its authors' code: goodput with one acceptance rate, decided every 20 steps.

    Goodput of k is (1 + alpha + ... + alpha^k) / seconds(k), the sum being (1 - alpha^(k + 1)) / (1
    - alpha); that of k = 0 counts `plain_gain` times, and the scan from 0 up ends at the first k
    that is no better. Until the first decision, step 20, nothing is drafted. alpha <- memory alpha
    + (1 - memory) accepted / drafted, after every step that drafted. All read in
    github.com/LiuXiaoxuanPKU/vllm, vllm/spec_decode/dsd.py (get_draft_propose_len,
    set_token_acceptance_rate).

    There a step is a batch and its rate that of all its tokens (whether of this step or of all so
    far hangs on a counter not read by us); here every row's round is an observation. Seconds there
    come from a fitted profile, here from the view, and a length that there is no room for when it
    is decided is left out. A round in which the reply ended is not judged.
    There 0 is left only when the seconds change, for alpha stands still; `probe_every` > 0 drafts
    one token after so many rounds without a draft, and is ours.
    """

    gamma_max: int = hyper(8, DRAFT, "ours: the user's num_lookahead_slots")
    memory: float = hyper(0.85, SHARE, "primary")
    alpha0: float = hyper(0.7, SHARE, "primary")
    decide_every: int = hyper(20, SOME, "primary")
    plain_gain: float = hyper(1.1, FACTOR, "primary")
    probe_every: int = hyper(0, COUNT, "ours: off; the authors' code has no probe")

    batch_wide = True
    name = "smartspec"
    rule = "every 20 steps, gamma where (1 - alpha^(gamma + 1)) / (1 - alpha) / seconds peaks"
    source = "SmartSpec, arXiv 2406.14066; LiuXiaoxuanPKU/vllm, vllm/spec_decode/dsd.py"

    def new_state(self, slots: int) -> State:
        return AlphaState(np.full(1, float(self.alpha0)), np.zeros(3, dtype=np.int64))

    def gamma(self, state: AlphaState, slot: int, view: View, rng: Rng) -> int:
        state.clock[STEPS] += 1
        if int(state.clock[STEPS]) % self.decide_every == 0:
            longest = min(self.gamma_max, view.room)
            alpha = float(state.alpha[0])
            state.clock[LENGTH] = rising_goodput(alpha, longest, self.plain_gain, view)
        length, idle = int(state.clock[LENGTH]), int(state.clock[IDLE])
        if length == 0 and self.probe_every > 0 and idle >= self.probe_every * view.batch_size:
            return 1
        return length

    def learn(self, state: AlphaState, slot: int, view: View, outcome: Outcome) -> None:
        state.clock[IDLE] = 0 if outcome.drafted > 0 else int(state.clock[IDLE]) + 1
        if outcome.drafted > 0 and not outcome.ended:
            rate = outcome.accepted / outcome.drafted
            state.alpha[0] = self.memory * float(state.alpha[0]) + (1.0 - self.memory) * rate


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
