"""SmartSpec: goodput with one acceptance rate."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from policies.base import FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import COUNT, DRAFT, FACTOR, SHARE, SOME, hyper
from policies.goodput.rounds import round_s
from policies.randomness import Rng

STEPS, LENGTH, IDLE = 0, 1, 2  # AlphaState.clock


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
