"""A run as Chrome trace events, which ui.perfetto.dev and chrome://tracing open.

One process per replica with a thread per slot (rounds, coloured by what they brought), and one
process of requests with their waits; counters of running and waiting requests.
Format: the Trace Event Format of the Chromium project (JSON object form).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from simulator.serving.result import ServingResult
from traces.schema import Trace
from traces.store import write_atomically

Event = dict[str, Any]
WAITS = 1000  # process number of the requests' waits


def write_timeline(served: ServingResult, trace: Trace, path: Path) -> None:
    """Write a run that kept its rounds; microseconds, as the format asks."""
    text = json.dumps(
        {"traceEvents": events(served, trace), "displayTimeUnit": "ms", "otherData": served.meta}
    )
    write_atomically(path, lambda to: to.write_text(text, "utf-8"), overwrite=True)


def events(served: ServingResult, trace: Trace) -> list[Event]:
    """All events, in no particular order."""
    slots = served.server.slots
    found: list[Event] = [_name(WAITS, "requests that wait")]
    for replica in range(served.server.replicas):
        found.append(_name(replica, f"replica {replica}"))
        found += [
            {"ph": "M", "pid": replica, "tid": slot, "name": "thread_name",
             "args": {"name": f"slot {slot}"}}
            for slot in range(slots)
        ]  # fmt: skip
    found += _rounds(served, trace)
    for request in range(len(served.row)):
        found += _wait(served, trace, request)
    return found


def _name(process: int, name: str) -> Event:
    return {"ph": "M", "pid": process, "tid": 0, "name": "process_name", "args": {"name": name}}


def _rounds(served: ServingResult, trace: Trace) -> list[Event]:
    log, slots = served.round_log, served.server.slots
    if log is None:
        return []
    found: list[Event] = []
    columns = (log.request, log.slot, log.start_s, log.elapsed_s, log.context_tokens)
    counts = (log.batch_size, log.gamma, log.drafted, log.accepted, log.emitted)
    for row in zip(*(c.tolist() for c in (*columns, *counts)), strict=True):
        request, slot, start_s, elapsed_s, context, batch, gamma, drafted, accepted, emitted = row
        found.append({
            "ph": "X", "pid": slot // slots, "tid": slot % slots, "ts": 1e6 * start_s,
            "dur": 1e6 * elapsed_s, "name": f"{accepted}/{drafted}" if drafted else "plain",
            "cname": _colour(drafted, accepted),
            "args": {"request": trace.request_id[int(served.row[request])], "context": context,
                     "batch": batch, "gamma": gamma, "emitted": emitted},
        })  # fmt: skip
        found.append({
            "ph": "C", "pid": slot // slots, "ts": 1e6 * start_s, "name": "running",
            "args": {"requests": batch},
        })  # fmt: skip
    return found


def _colour(drafted: int, accepted: int) -> str:
    if drafted == 0:
        return "grey"
    if accepted == drafted:
        return "good"
    return "bad" if accepted == 0 else "yellow"


def _wait(served: ServingResult, trace: Trace, request: int) -> list[Event]:
    """From arrival to slot, as an asynchronous event: several may overlap."""
    begin, end = float(served.arrival_s[request]), float(served.admitted_s[request])
    if not (math.isfinite(begin) and math.isfinite(end)) or end <= begin:
        return []
    name = trace.request_id[int(served.row[request])]
    common = {"pid": WAITS, "tid": 0, "cat": "wait", "id": request, "name": name}
    return [
        common | {"ph": "b", "ts": 1e6 * begin},
        common | {"ph": "e", "ts": 1e6 * end},
    ]
