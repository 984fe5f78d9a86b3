"""One speculative round, and the loop that plays a trace: the only place where the rule is written.

A round at position i of a reply of L tokens drafts d tokens, accepts n = min(d, accept_len[i]),
emits min(n + 1, L - i) and costs what `traces.costs.round_seconds` says; where n >= L - i the reply
ended at a drafted token. What is kept of a round is up to a *recorder*, record(sink, place,
outcome): it writes to the arrays of its sink. Every function here is plain Python of plain
arithmetic: the interpreted replay runs it as it is, `simulator.replay.kernels` compiles the same
code, so that there is no second copy and one order of floating-point operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from policies.base import HOOKS, Draft, FloatArray, Hook, Outcome, Policy, State, View, clamp_gamma
from policies.randomness import Rng, round_key
from traces.costs import Prices, bucket_end, bucket_of, lag_after, round_seconds

Recorder = Callable[..., None]


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


class Place(NamedTuple):
    """Where a round stands.

    row: rounds before it, over all requests. start_s: seconds since the run began. context_tokens:
    prompt and output fixed so far; bucket: their row of the price tables. lag: as in
    traces.costs.round_seconds.
    """

    row: int
    request: int
    start_s: float
    context_tokens: int
    bucket: int
    lag: int


class Rows(NamedTuple):
    """The sink of a log, with room for one round per position: counts [N, 7] int32 (request,
    context, gamma, drafted, accepted, emitted, ended), seconds [N, 2] (start, elapsed).
    """

    counts: npt.NDArray[np.int32]
    seconds: FloatArray


def write_row(sink: Rows, place: Place, outcome: Outcome) -> None:
    """Recorder of a log: one row per round."""
    counts, seconds, row = sink.counts, sink.seconds, place.row
    counts[row, 0], counts[row, 1] = place.request, place.context_tokens
    counts[row, 2], counts[row, 3] = outcome.gamma, outcome.drafted
    counts[row, 4], counts[row, 5] = outcome.accepted, outcome.emitted
    counts[row, 6] = outcome.ended
    seconds[row, 0], seconds[row, 1] = place.start_s, outcome.elapsed_s


# What `play` calls by these names is replaced, compiled or not, by what `bindings` says.
admit: Hook = Policy.admit
gamma: Hook = Policy.gamma
proceed: Hook = Policy.proceed
learn: Hook = Policy.learn
record: Recorder = write_row
SIGNALS = False  # True if the policy overrides proceed: then signals are read, and charged
APART = True  # False if what is believed is what the clock says: then nothing is priced twice


def bindings(cls: type[Policy], recorder: Recorder, apart: bool = True) -> dict[str, Any]:
    """The globals of `play` for a policy class and a recorder; apart: see APART."""
    hooks = {name: getattr(cls, name) for name in HOOKS}
    signals = cls.proceed is not Policy.proceed
    return hooks | {"record": recorder, "SIGNALS": signals, "APART": apart}


def play(
    self: Any,
    state: State,
    tape: Tape,
    prices: Prices,
    believed: Prices,
    limits: Limits,
    seed: int,
    sink: Any,
) -> int:
    """Play all requests one after another in slot 0; returns the number of rounds K.

    self: the policy, or a tuple of its fields. prices: what the clock says; believed: what the
    policy is shown and told, laid out alike. sink: what the recorder writes to.
    """
    row, clock = 0, 0.0
    for request in range(tape.prompt_tokens.shape[0]):
        admit(self, state, 0)
        prompt = int(tape.prompt_tokens[request])
        begin, end = int(tape.offsets[request]), int(tape.offsets[request + 1])
        clock += float(prices.prefill_s[bucket_of(prices, prompt)])
        at, index, lag, bucket, edge = begin, 0, 1, 0, 0
        while 0 <= at < end:  # at is never negative: said for the compiler, which then need not ask
            context = prompt + (at - begin)
            if context >= edge:  # the next bucket, or the first
                bucket = bucket_of(prices, context)
                edge = bucket_end(prices, bucket)
            room = room_at(limits, prompt, at - begin)
            shown = believed if APART else prices
            step_s = float(shown.draft_s[bucket, 1]) + shown.signal_s
            view = View(context, 1, 0, room, step_s, shown.verify_s[bucket])
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
            priced = round_seconds(believed, bucket, drafted, lag) if APART else elapsed
            ended = end - at <= accepted
            outcome = Outcome(cap, drafted, accepted, emitted, ended, elapsed, priced)
            learn(self, state, 0, view, outcome)
            record(sink, Place(row, request, clock, context, bucket, lag), outcome)
            lag = lag_after(lag, drafted, accepted)
            clock, row, index, at = clock + elapsed, row + 1, index + 1, at + emitted
    return row
