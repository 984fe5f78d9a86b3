"""The state of a running server: records, laid out as C would, and its rules.

What changes lies in arrays of records (numpy.recarray), which compiled code reads and writes as C
does a struct. Letters: Q requests, S slots, G depth of a trace's signals, B time bins.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from policies.round import Limits
from simulator.replay.rounds import Tape
from traces.costs.pricing import StepCosts
from traces.roundlog import ROUND
from traces.workload.arrivals import Demand

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Records = Any  # numpy.recarray, whose fields no type checker knows
Record = Any

GAPS = 512  # bins of World.gaps


class Rules(NamedTuple):
    """How the server works; simulator.serving.options.Server says what each means.

    first: requests that come at the times noted (all of an open loop, the users of a closed one,
        none if somebody else puts them into the queue).
    closed: a reply that ends lets the next request be sent.
    """

    slots: int
    order: int
    block_tokens: int
    blocks: int
    chunk_tokens: int
    padded: bool
    longest: bool
    allotment: int
    budget_tokens: int
    hop_s: float
    jitter_s: float
    token_hop_s: float
    reentry_s: float
    bin_s: float
    first: int
    closed: bool


def record(**fields: type) -> np.dtype[Any]:
    """A record type, laid out as C would."""
    return np.dtype(list(fields.items()), align=True)


REQUEST = record(
    row=np.int32, priority=np.int32, arrival_s=np.float64, think_s=np.float64,
    admitted_s=np.float64, first_s=np.float64, last_s=np.float64, finish_s=np.float64,
    prefill_s=np.float64, longest_s=np.float64, done=np.int32, rounds=np.int32, drafted=np.int32,
    accepted=np.int32, preempted=np.int32,
)  # fmt: skip
"""A request. row: of the trace; arrival_s: inf while unknown; think_s: pause before it (closed
loop). admitted_s: when it first got a slot; first_s, last_s, finish_s: ends of the iterations that
gave its first, its newest and its last token; NaN before. prefill_s: seconds of the machine for its
prompt, 0 where prompts are read in chunks. longest_s: longest gap between two emissions. done:
tokens emitted so far; rounds, drafted, accepted, preempted: counts."""

SLOT = record(
    request=np.int64, at=np.int64, begin=np.int64, end=np.int64, prompt=np.int64, lag=np.int64,
    rounds=np.int64, cap=np.int64, drafted=np.int64, verified=np.int64, room=np.int64,
    bucket=np.int64, steps=np.int64, going=np.int64, held=np.int64, unread=np.int64,
    ready=np.int64, dropped=np.int64,
)  # fmt: skip
"""A row of the batch. query: request number, -1 once its reply has ended; at: its position in the
trace; begin, end: first and last + 1 position of its reply; prompt: tokens; lag: as in
traces.costs.pricing; rounds: it has had. Of the round at hand: cap, drafted, verified, room,
context bucket, draft steps it takes, going: 1 while it drafts, dropped: 1 if the policy did not
keep the last of its tokens. held: blocks; unread: prompt tokens still to be read; ready: tokens
drafted an iteration ago, to be verified in this one (pipelined)."""

PLACE = record(running=np.int64, free=np.int64, decoding=np.int64)
"""Lists of slots: running, in the order of their admission; a ring of free ones; those that decode
in this iteration."""

ENTRY = record(key=np.float64, number=np.int64)
"""Of a heap: simulator.serving.queue."""

COUNTERS = record(
    now_s=np.float64, busy_s=np.float64, prompt_s=np.float64, running=np.int64, waiting=np.int64,
    fed=np.int64, later=np.int64, sent=np.int64, finished=np.int64, first_free=np.int64,
    free_blocks=np.int64, peak_blocks=np.int64, written=np.int64, iterations=np.int64,
    preemptions=np.int64, drafted=np.int64, verified=np.int64, accepted=np.int64,
    emitted=np.int64, steps=np.int64, ahead=np.int64, asked=np.int64, asked_waiting=np.int64,
    quiet=np.int64, due=np.int64,
)  # fmt: skip
"""One record of what runs along. now_s; seconds of iterations, and of prompts read before anybody
decodes. running, waiting, later: lengths of these lists; fed: requests that have come at the times
noted; sent: of a closed loop; first_free: in the ring. written: rounds in the log. steps: tokens
drafted before the target verified, ahead: while it did (pipelined); asked, asked_waiting: batch
size and queue that policies were shown; quiet: 1 after an iteration without a draft; due: 1
where one has been announced (simulator.serving.scheduler.DUE). The others are totals.
"""

BIN = record(
    busy_s=np.float64, running_s=np.float64, waiting_s=np.float64, block_s=np.float64,
    emitted=np.int64, drafted=np.int64,
)  # fmt: skip
"""A stretch of time, by the end of the iterations: their seconds, row-, waiting- and block-seconds,
tokens."""


class World(NamedTuple):
    """Everything that `advance` touches: records as named above.

    tape: the trace's arrays.
    costs, limits, rules: of steps, of drafts, of the server.
    counters, requests, slots, places, bins, log: records.
    queue, later: heaps, of those who wait and of those of a closed loop who were sent but have not
        come.
    survival [S, G]: chances that a row's draft is accepted so far, for the draft budget.
    gaps [GAPS] int64: gaps between two emissions of a row by length, 16 bins to a doubling.

    Several replicas are one World too: all arrays from counters on but the requests, which they
    share, have an axis of replicas in front.
    """

    tape: Tape
    costs: StepCosts
    limits: Limits
    rules: Rules
    counters: Records
    requests: Records
    queue: Records
    later: Records
    slots: Records
    places: Records
    survival: FloatArray
    gaps: IntArray
    bins: Records
    log: Records


def records(dtype: np.dtype[Any], *shape: int) -> Records:
    """So many records, all zero."""
    return np.zeros(shape, dtype=dtype).view(np.recarray)


def new_requests(demand: Demand) -> Records:
    """[Q] the requests of a workload before anything happened."""
    found = records(REQUEST, len(demand.row))
    for name in ("row", "arrival_s", "think_s", "priority"):
        found[name] = getattr(demand, name)
    for name in ("admitted_s", "first_s", "last_s", "finish_s"):
        found[name] = np.nan
    return found


def new_worlds(
    rules: Rules,
    tape: Tape,
    costs: StepCosts,
    limits: Limits,
    requests: Records,
    *,
    replicas: int,
    users: int,
    bins: int,
    depth: int,
    log_rows: int,
) -> World:
    """Idle replicas. users: of a closed loop; depth: G, 0 where nobody looks at signals."""
    counters, places = records(COUNTERS, replicas, 1), records(PLACE, replicas, rules.slots)
    counters.free_blocks, counters.sent = rules.blocks, rules.first
    places.free = np.arange(rules.slots)
    return World(
        tape=tape,
        costs=costs,
        limits=limits,
        rules=rules,
        counters=counters,
        requests=requests,
        queue=records(ENTRY, replicas, len(requests)),
        later=records(ENTRY, replicas, max(users, 1)),
        slots=records(SLOT, replicas, rules.slots),
        places=places,
        survival=np.zeros((replicas, rules.slots, depth)),
        gaps=np.zeros((replicas, GAPS), dtype=np.int64),
        bins=records(BIN, replicas, bins),
        log=records(ROUND, replicas, log_rows),
    )


def world_of(worlds: World, replica: int) -> World:
    """One of several replicas: the same memory."""
    return World(
        worlds.tape,
        worlds.costs,
        worlds.limits,
        worlds.rules,
        worlds.counters[replica],
        worlds.requests,
        worlds.queue[replica],
        worlds.later[replica],
        worlds.slots[replica],
        worlds.places[replica],
        worlds.survival[replica],
        worlds.gaps[replica],
        worlds.bins[replica],
        worlds.log[replica],
    )


def drain(world: World, parts: list[Records]) -> None:
    """Take the rounds out of a replica's log."""
    counters = world.counters[0]
    if counters.written:
        parts.append(world.log[: int(counters.written)].copy())
        counters.written = 0
