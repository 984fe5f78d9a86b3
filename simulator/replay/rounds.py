"""The loop that plays a trace, round by round (policies.round), one request after another.

What is kept of a round is up to a *recorder*, record(sink, place, outcome): it writes to the arrays
of its sink. Every function here is plain Python of plain arithmetic: the interpreted replay runs it
as it is, `simulator.replay.kernels` compiles the same code, so that there is no second copy and one
order of floating-point operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from policies.base import (
    HOOKS,
    Draft,
    Hook,
    Outcome,
    Policy,
    State,
    clamp_gamma,
    decides_by_token,
    drops_tokens,
)
from policies.randomness import Rng, round_key
from policies.round import (
    Limits,
    clamp_entry,
    menu_view_at,
    note_round,
    room_at,
    settle,
    view_at,
)
from traces.costs.pricing import (
    StepCosts,
    bucket_end,
    bucket_of,
    kept_seconds,
    lag_after,
    round_seconds,
)

Recorder = Callable[..., None]


class Tape(NamedTuple):
    """The arrays of a trace that a replay reads; letters as in traces.schema.

    offsets [R+1] int64; prompt_tokens [R] int32; accept_len, draft_len [N] int16; top1_prob,
    entropy [N, G] float32, or [0, 0] where nobody asks for them. Under a menu of A entries these
    four have A N rows, those of an entry behind those of the one before; levels [A] int64: how deep
    each goes.
    """

    offsets: npt.NDArray[np.int64]
    prompt_tokens: npt.NDArray[np.int32]
    accept_len: npt.NDArray[np.int16]
    draft_len: npt.NDArray[np.int16]
    top1_prob: npt.NDArray[np.float32]
    entropy: npt.NDArray[np.float32]
    levels: npt.NDArray[np.int64]


class Place(NamedTuple):
    """Where a round stands.

    row: rounds before it, over all requests. start_s: seconds since the run began. context_tokens:
    prompt and output fixed so far; bucket: of the cost tables, by context. lag: as in
    traces.costs.pricing.round_seconds. drafted: tokens, one that was not kept included. entry: of
    the menu, 0 where there is none.
    """

    row: int
    request: int
    start_s: float
    context_tokens: int
    bucket: int
    lag: int
    drafted: int
    entry: int


def write_row(sink: Any, place: Place, outcome: Outcome) -> None:
    """Recorder of a log. sink: [N] traces.roundlog.ROUND, with room for one round per position."""
    row = sink[place.row]
    note_round(
        row, place.request, 0, 1, place.context_tokens, place.start_s, place.drafted, outcome
    )


class MenuSink(NamedTuple):
    """rows: as write_row's sink. entries [N] int64: what the rounds drafted, of the menu."""

    rows: npt.NDArray[np.void]
    entries: npt.NDArray[np.int64]


def write_entry(sink: MenuSink, place: Place, outcome: Outcome) -> None:
    """Recorder of a log under a menu: for it alone `play` asks for shapes."""
    write_row(sink.rows, place, outcome)
    sink.entries[place.row] = place.entry


def undropped_seconds(
    costs: StepCosts, row: int, bucket: int, drafted: int, verified: int, lag: int
) -> float:
    """round_seconds where all that is drafted is verified."""
    return round_seconds(costs, row, bucket, drafted, lag)


# What `play` calls by these names is replaced, compiled or not, by what `bindings` says.
admit: Hook = Policy.admit
shape: Hook = Policy.shape
gamma: Hook = Policy.gamma
retain: Hook = Policy.retain
proceed: Hook = Policy.proceed
learn: Hook = Policy.learn
record: Recorder = write_row
seconds: Callable[..., float] = undropped_seconds
SIGNALS = False  # True if the policy decides by token: then signals are read, and charged
DROPS = False  # True if it overrides retain
MENU = False  # True if rounds draft what `shape` chooses: rows of the costs are entries of a menu
APART = True  # False if what is believed is what the clock says: then nothing is priced twice


def bindings(cls: type[Policy], recorder: Recorder, apart: bool = True) -> dict[str, Any]:
    """The globals of `play` for a policy class and a recorder; apart: see APART."""
    hooks = {name: getattr(cls, name) for name in HOOKS}
    switches = {"SIGNALS": decides_by_token(cls), "DROPS": drops_tokens(cls), "APART": apart}
    switches["MENU"] = recorder is write_entry
    priced = kept_seconds if switches["DROPS"] else undropped_seconds
    return hooks | {"record": recorder, "seconds": priced} | switches


def play(
    self: Any,
    state: State,
    tape: Tape,
    costs: StepCosts,
    believed: StepCosts,
    limits: Limits,
    seed: int,
    sink: Any,
) -> int:
    """Play all requests one after another in slot 0; returns the number of rounds K.

    self: the policy, or a tuple of its fields. costs: what the clock says; believed: what the
    policy is shown and told, laid out alike. sink: what the recorder writes to.
    """
    row, clock, entry, positions = 0, 0.0, 0, int(tape.offsets[-1])
    for request in range(tape.prompt_tokens.shape[0]):
        admit(self, state, 0)
        prompt = int(tape.prompt_tokens[request])
        begin, end = int(tape.offsets[request]), int(tape.offsets[request + 1])
        clock += float(costs.prefill_s[bucket_of(costs, prompt)])
        at, index, lag, bucket, edge = begin, 0, 1, 0, 0
        while 0 <= at < end:  # at is never negative: said for the compiler, which then need not ask
            context = prompt + (at - begin)
            if context >= edge:  # the next bucket, or the first
                bucket = bucket_of(costs, context)
                edge = bucket_end(costs, bucket)
            rng = Rng(round_key(seed, request, index))
            if MENU:
                most = room_at(limits, prompt, at - begin, limits.max_gamma)
                shown = believed if APART else costs
                offer = menu_view_at(shown, bucket, context, most, tape.levels)
                entry = clamp_entry(shape(self, state, 0, offer, rng), tape.levels.shape[0])
            here = entry * positions + at
            room = room_at(limits, prompt, at - begin, int(tape.draft_len[here]))
            view = view_at(believed if APART else costs, entry, bucket, context, 1, 0, room)
            cap = clamp_gamma(gamma(self, state, 0, view, rng), room)
            drafted = verified = cap
            if SIGNALS:
                drafted, verified, going = 0, 0, True
                while going and drafted < cap:
                    top1 = float(tape.top1_prob[here, drafted])
                    entropy = float(tape.entropy[here, drafted])
                    drafted += 1
                    draft = Draft(drafted, top1, entropy)
                    going = not DROPS or retain(self, state, 0, draft)
                    if going:
                        verified = drafted
                        going = proceed(self, state, 0, draft)
            accepted, emitted, ended = settle(verified, int(tape.accept_len[here]), end - at)
            elapsed = priced = seconds(costs, entry, bucket, drafted, verified, lag)
            if APART:
                priced = seconds(believed, entry, bucket, drafted, verified, lag)
            outcome = Outcome(cap, verified, accepted, emitted, ended, elapsed, priced)
            learn(self, state, 0, view, outcome)
            record(sink, Place(row, request, clock, context, bucket, lag, drafted, entry), outcome)
            lag = lag_after(lag, drafted, accepted, costs.reads_states)
            clock, row, index, at = clock + elapsed, row + 1, index + 1, at + emitted
    return row
