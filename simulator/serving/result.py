"""The result of serving: a row per request, totals, time series, rounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.serving.options import Server
from simulator.serving.state import Records, World, records
from traces.roundlog import ROUND, RoundLog, log_of
from traces.schema import Trace

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]

COLUMNS = (
    "row", "arrival_s", "admitted_s", "first_s", "finish_s", "prefill_s", "longest_s", "rounds",
    "drafted", "accepted", "preempted",
)  # fmt: skip
TOTALS = (
    "iterations",
    "preemptions",
    "drafted",
    "verified",
    "accepted",
    "emitted",
    "steps",
    "ahead",
)


@dataclasses.dataclass(frozen=True, eq=False)
class ServingResult:
    """The result of a run. Letters: Q requests, B bins.

    policy: its label.
    server: as it was asked for.
    arrival_s, admitted_s, first_s, finish_s [Q]: seconds since the run began; finish_s NaN if the
        run was cut off before.
    prefill_s, longest_s [Q]: seconds of its prompt, and of the longest gap between two emissions.
    prompt_tokens, tokens [Q]: of the prompt, and of the reply so far.
    rounds, drafted, accepted [Q]: sums over its rounds.
    preempted [Q]: how often it gave its memory back.
    replica, row [Q]: where it was served; its row of the trace.
    gaps [GAPS]: see simulator.serving.state.World.
    bins [replicas, B]: records of simulator.serving.state.BIN.
    busy_s [replicas]: seconds of iterations and prompts.
    end_s: seconds from the begin of the run to its end.
    totals: counts of all replicas by name.
    round_log: None unless asked for.
    meta: what was served, for the files.
    """

    policy: str
    server: Server
    arrival_s: FloatArray
    admitted_s: FloatArray
    first_s: FloatArray
    finish_s: FloatArray
    prefill_s: FloatArray
    longest_s: FloatArray
    prompt_tokens: Int32Array
    tokens: Int32Array
    rounds: Int32Array
    drafted: Int32Array
    accepted: Int32Array
    preempted: Int32Array
    replica: Int32Array
    row: Int32Array
    gaps: IntArray
    bins: Any
    busy_s: FloatArray
    end_s: float
    totals: dict[str, int]
    round_log: RoundLog | None
    meta: dict[str, Any]


def collect(
    worlds: Sequence[World],
    logs: Sequence[Sequence[Records]],
    replica: Int32Array,
    trace: Trace,
    server: Server,
    meta: dict[str, Any],
) -> ServingResult:
    """The result of a run. logs: the rounds of each replica, in parts; replica [Q]: who served.
    meta names the policy.
    """
    requests = worlds[0].requests
    desks = np.concatenate([world.counters for world in worlds])
    totals = {name: int(desks[name].sum()) for name in TOTALS}
    totals["peak_blocks"] = int(desks["peak_blocks"].max())
    kept = worlds[0].log.shape[0] > 0
    return ServingResult(
        policy=meta["policy"],
        server=server,
        **{name: np.ascontiguousarray(requests[name]) for name in COLUMNS},
        prompt_tokens=trace.prompt_tokens[requests["row"]],
        tokens=np.ascontiguousarray(requests["done"]),
        replica=replica,
        gaps=np.sum([world.gaps for world in worlds], axis=0),
        bins=np.stack([world.bins for world in worlds]).view(np.recarray),
        busy_s=desks["busy_s"] + desks["prompt_s"],
        end_s=float(desks["now_s"].max()),
        totals=totals,
        round_log=_round_log(logs, requests, server.slots, meta) if kept else None,
        meta=meta,
    )


def _round_log(
    logs: Sequence[Sequence[Records]], requests: Records, slots: int, meta: dict[str, Any]
) -> RoundLog:
    """Rounds of all replicas by the time they began; slots numbered on from replica to replica."""
    parts = [records(ROUND, 0)]
    for number, own in enumerate(logs):
        for part in own:
            part.slot += number * slots
            parts.append(part)
    rows = np.concatenate(parts)
    if len(logs) > 1:
        rows = rows[np.argsort(rows["start_s"], kind="stable")]
    return log_of(rows, np.ascontiguousarray(requests["prefill_s"]), meta)
