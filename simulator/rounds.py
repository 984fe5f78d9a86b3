"""One speculative round, and the loop that plays a trace: the only place where the rule is written.

A round at position i of a reply of L tokens drafts d tokens, accepts n = min(d, accept_len[i]),
emits min(n + 1, L - i) and costs what `traces.costs.round_seconds` says. Every function here is
plain Python of plain arithmetic: the interpreted replay runs it as it is, `simulator.kernels`
compiles the same code, so that there is no second copy and one order of floating-point operations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from policies.base import Draft, Hook, Outcome, Policy, State, View, clamp_gamma
from policies.randomness import Rng, round_key
from traces.costs import Prices, bucket_of, lag_after, round_seconds

FloatArray = npt.NDArray[np.float64]


class Tape(NamedTuple):
    """The arrays of a trace that a replay reads; letters as in traces.schema.

    offsets [R+1] int64; prompt_tokens [R] int32; accept_len [N] int16; top1_prob, entropy [N, G]
    float32, or [0, 0] where nobody asks for them.
    """

    offsets: npt.NDArray[np.int64]
    prompt_tokens: npt.NDArray[np.int32]
    accept_len: npt.NDArray[np.int16]
    top1_prob: npt.NDArray[np.float32]
    entropy: npt.NDArray[np.float32]


class Limits(NamedTuple):
    """What bounds a draft, tokens. max_context 0: no limit known."""

    max_gamma: int
    max_new_tokens: int
    max_context: int


def room_at(limits: Limits, prompt_tokens: int, position: int) -> int:
    """The most tokens that may be drafted at output position `position`, >= 0.

    Only limits that a server knows: the reply's own length would tell the policy its future.
    """
    room = min(limits.max_gamma, limits.max_new_tokens - position - 1)
    if limits.max_context > 0:
        room = min(room, limits.max_context - (prompt_tokens + position) - 1)
    return max(0, room)


# The hooks of the policy in play: replaced by its own (see `bind_hooks`), compiled or not.
admit: Hook = Policy.admit
gamma: Hook = Policy.gamma
proceed: Hook = Policy.proceed
learn: Hook = Policy.learn
SIGNALS = False  # True if the policy overrides proceed: then signals are read, and charged


def play(
    self: Any,
    state: State,
    tape: Tape,
    prices: Prices,
    limits: Limits,
    seed: int,
    counts: npt.NDArray[np.int32],
    seconds: FloatArray,
) -> int:
    """Play all requests one after another in slot 0; returns the number of rounds K.

    self: the policy, or a tuple of its fields. Writes row k of counts [N, 6] (request, context,
    gamma, drafted, accepted, emitted) and of seconds [N, 2] (start, elapsed); K <= N.
    """
    row, clock = 0, 0.0
    for request in range(tape.prompt_tokens.shape[0]):
        admit(self, state, 0)
        prompt = int(tape.prompt_tokens[request])
        begin, end = int(tape.offsets[request]), int(tape.offsets[request + 1])
        clock += float(prices.prefill_s[bucket_of(prices, prompt)])
        at, index, lag = begin, 0, 1
        while at < end:
            context = prompt + (at - begin)
            bucket, room = bucket_of(prices, context), room_at(limits, prompt, at - begin)
            step_s = float(prices.draft_s[bucket, 1]) + prices.signal_s
            view = View(context, 1, 0, room, step_s, prices.verify_s[bucket])
            rng = Rng(round_key(seed, request, index))
            cap = clamp_gamma(gamma(self, state, 0, view, rng), room)
            drafted = cap
            if SIGNALS:
                drafted, going = 0, True
                while going and drafted < cap:
                    top1 = float(tape.top1_prob[at, drafted])
                    entropy = float(tape.entropy[at, drafted])
                    drafted += 1
                    going = proceed(self, state, 0, Draft(drafted, top1, entropy))
            accepted = min(drafted, int(tape.accept_len[at]))
            emitted = min(accepted + 1, end - at)
            elapsed = round_seconds(prices, bucket, drafted, lag)
            learn(self, state, 0, view, Outcome(cap, drafted, accepted, emitted, elapsed))
            counts[row, 0], counts[row, 1], counts[row, 2] = request, context, cap
            counts[row, 3], counts[row, 4], counts[row, 5] = drafted, accepted, emitted
            seconds[row, 0], seconds[row, 1] = clock, elapsed
            lag = lag_after(lag, drafted, accepted)
            clock, row, index, at = clock + elapsed, row + 1, index + 1, at + emitted
    return row
