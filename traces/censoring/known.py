"""Censored traces: what a recording says, its two extremes, and how a complete trace is censored.

A fully accepted round says only "at least that many": nobody proposed a token for its bonus
position, so its flag is unknown.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from traces.errors import InputError
from traces.importers.flags import ACCEPTED, REJECTED, UNKNOWN, Flags, accept_lengths
from traces.roundlog import RoundLog
from traces.schema import Trace, TraceError

ALL_STOP, ALL_GO_ON = "all censored positions stop", "all censored positions go on"


def refuse_other_drafters(trace: Trace, what: str) -> None:
    """Raise InputError unless the drafter is a model: only its acceptance is one flag a position,
    the same whatever round reaches it; a look-up or a head goes on otherwise from every start.
    """
    if trace.meta.drafter != "model":
        raise InputError(
            f"{what} needs the trace of a draft model; this one is of kind {trace.meta.drafter!r}, "
            "whose draft from every position is another one"
        )


def flags_of(trace: Trace) -> Flags:
    """[N] 1 where a draft would be accepted, 0 where rejected, -1 where nobody knows.

    Raises InputError if the drafter is no model.
    """
    refuse_other_drafters(trace, "a flag a position")
    stops = np.zeros(trace.positions, np.bool_) if trace.censored is None else trace.censored
    flags = np.where(trace.accept_len > 0, ACCEPTED, np.where(stops, UNKNOWN, REJECTED))
    return flags.astype(np.int8)


def completed(trace: Trace, flags: Flags, how: dict[str, Any]) -> Trace:
    """The trace with these flags, none unknown, in place of its own; `how` goes into its source."""
    accept_len, censored = accept_lengths(flags, trace.offsets)
    if censored.any():
        raise TraceError("a completed trace cannot hold unknown flags")
    meta = dataclasses.replace(
        trace.meta, exactness="imputed", source=trace.meta.source | {"completed": how}
    )
    return dataclasses.replace(trace, meta=meta, accept_len=accept_len, censored=None)


def bounds(trace: Trace) -> tuple[Trace, Trace]:
    """Every censored position stops; every one goes on, to the next rejection or the reply's end.

    accept_len of the truth lies between the two at every position. A replay of a controller does
    not have to: another length here shifts where its later rounds start.
    """
    flags = flags_of(trace)
    unknown = flags == UNKNOWN
    stop = np.where(unknown, np.int8(REJECTED), flags)
    go_on = np.where(unknown, np.int8(ACCEPTED), flags)
    return (
        completed(trace, stop, {"rule": ALL_STOP}),
        completed(trace, go_on, {"rule": ALL_GO_ON}),
    )


def censor(trace: Trace, log: RoundLog) -> Trace:
    """The part of a complete trace that a recorder of these rounds would have seen: no signals, and
    unknown flags where nothing was drafted.

    Raises TraceError if the rounds are not of this trace.
    """
    start = trace.offsets[log.request] + log.context_tokens - trace.prompt_tokens[log.request]
    end = trace.offsets[log.request.astype(np.int64) + 1]
    accepted = np.minimum(log.verified, trace.accept_len[np.minimum(start, trace.positions - 1)])
    if (start < 0).any() or (start >= end).any() or (accepted != log.accepted).any():
        raise TraceError("these rounds were not played on this trace")
    seen = np.minimum(np.minimum(log.verified, accepted + 1), end - start)
    edges = np.zeros(trace.positions + 1, dtype=np.int64)
    np.add.at(edges, start, 1)
    np.add.at(edges, start + seen, -1)
    known = edges.cumsum()[:-1] > 0
    flags = np.where(known, flags_of(trace), np.int8(UNKNOWN))
    accept_len, censored = accept_lengths(flags, trace.offsets)
    source = trace.meta.source | {"recorder": str(log.meta.get("policy", ""))}
    return dataclasses.replace(
        trace,
        meta=dataclasses.replace(trace.meta, exactness="censored", source=source),
        accept_len=accept_len,
        censored=censored,
        top1_prob=None,
        entropy=None,
        accept_prob=None,
    )
