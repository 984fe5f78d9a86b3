"""`gammalab serve`: one workload on one server under several policies, over several seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.common.cost_sources import Priced, read_costs
from experiments.common.frames import csv_of, described, frame_of, meanings, text_of
from experiments.common.plots import captions, write_pictures
from experiments.common.results import (
    command_line,
    describe_inputs,
    fits,
    versions,
    write_result,
    write_text,
)
from experiments.options import FleetOptions, ServeOptions
from experiments.serving.columns import COLUMNS
from experiments.serving.figures import series_figure
from experiments.serving.policy_runs import costs_for, run_policies
from experiments.serving.timeline import write_timeline
from policies.base import Policy
from policies.registry import file_name, label, parse_policies
from real_backend.command_line import Result
from real_backend.progress import progress
from simulator.serving.metrics import Objective
from simulator.serving.options import Server
from simulator.serving.result import ServingResult
from simulator.serving.server import serve
from traces.costs.pricing import StepCosts
from traces.errors import InputError, warn
from traces.json_text import dumps, jsonable
from traces.notation import parse_fields
from traces.roundlog import write_roundlog
from traces.schema import Trace
from traces.store import read_trace, refuse_existing, write_atomically
from traces.workload.arrivals import demand
from traces.workload.files import parse_workload
from traces.workload.workload import Workload
from traces.workload.workload import title as load_title

DEFAULT_POLICIES = (
    "never,fixed:gamma=1,fixed:gamma=3,fixed:gamma=5,vllm-dynamic,sglang-tiers,"
    "sglang-throughput,alpha-goodput,nightjar,goodput,tail-pruning,payback"
)
TIMELINE_REQUESTS = 300


def basis(
    trace: Trace, priced: Priced, workload: Workload, server: Server, objective: Objective
) -> str:
    """The basis of a table."""
    shown = {
        field.name: getattr(server, field.name)
        for field in dataclasses.fields(server)
        if getattr(server, field.name) != field.default or field.name == "slots"
    }
    lines = [
        f"{workload.requests} requests, {load_title(workload)}, drawn from {trace.requests} "
        f"replies of {trace.meta.pair} ({trace.meta.exactness})",
        f"costs: {priced.about['timing']} ({priced.about.get('device_name', 'unknown device')})",
        "server: " + ", ".join(f"{name} {value}" for name, value in shown.items()),
    ]
    limits = {name: value for name, value in vars(objective).items() if value < math.inf}
    if limits:
        lines.append("objective: " + ", ".join(f"{k[:-2]} {v} s" for k, v in limits.items()))
    return "\n".join(lines)


def run(options: ServeOptions) -> Result:
    """`gammalab serve`."""
    out: Path | None = options.out
    if out is not None:
        refuse_existing(out / "serve.json", options.force)
    trace, priced = read_trace(options.trace, shaped=True), read_costs(options.timing)
    server = settings(Server(), options.server, "--server")
    objective = settings(Objective(), options.slo, "--slo")
    workload = parse_workload(options.workload, options.requests)
    policies = parse_policies(options.policies or DEFAULT_POLICIES)
    if not options.policies:
        policies = [p for p in policies if fits(p, trace)]
    if options.timeline and options.out is None:
        raise InputError("--timeline needs --out, the folder it is written to")
    say_what_is_stretched(trace, priced, server, options)
    costs = costs_for(priced, trace, server)
    seeds = range(options.seed, options.seed + options.seeds)

    series, written = dict[str, Any](), list[str]()

    def keep(policy: Policy, seed: int, served: ServingResult) -> None:
        if seed == seeds[0]:
            series[label(policy)] = served.bins
        if out is not None:
            name = f"{file_name(label(policy))}-s{seed}.parquet"
            write_requests(served, trace, out / "requests" / name)
            write_series(served, out / "series" / name)
            written.append(name)

    with progress(len(policies) * len(seeds), "serve") as step:
        rows = run_policies(
            policies, trace, workload, costs, server, objective=objective, seeds=seeds,
            warmup=options.warmup, keep=keep, step=step,
        )  # fmt: skip
    said, frame = basis(trace, priced, workload, server, objective), frame_of(rows)
    text = "\n\n".join([said, text_of(COLUMNS, [("", frame)]), meanings(COLUMNS)])
    pictures = [series_figure(series, server.bin_s)]
    result = {
        "basis": said,
        "command": command_line(),
        "versions": versions(),
        "workload": jsonable(workload),
        "server": jsonable(server),
        "objective": jsonable(objective),
        "costs": priced.about,
        "columns": described(COLUMNS),
        "rows": jsonable(rows),
        "pictures": captions(pictures),
        "logs": sorted(written),
    } | describe_inputs(trace, options.trace.name, priced.about)
    if out is not None:
        if options.timeline:
            look(policies, trace, workload, costs, server, options.seed, out)
        write_pictures(pictures, out / "figures")
        write_result("serve", result, out / "serve.json", overwrite=True)
        write_text(text, out / "serve.txt")
    return Result(text, result, csv_of(COLUMNS, frame))


def say_what_is_stretched(
    trace: Trace, priced: Priced, server: Server, options: ServeOptions | FleetOptions
) -> None:
    """Warn of costs beyond what was measured, and of acceptance that is only bounded."""
    if priced.slots and server.slots > priced.slots:
        warn(
            f"{options.timing} was measured up to batch {priced.slots}; larger batches are priced "
            "on the slope of its last two"
        )
    if trace.censored is not None:
        warn(f"{options.trace} is censored: accepted lengths are lower bounds here")


def settings(default: Any, text: str, option: str) -> Any:
    """A dataclass with the fields that `name=value,name=value` names; raises InputError."""
    named = {"int": int, "int | None": int, "float": float, "bool": bool, "str": str}
    kinds = {field.name: named[str(field.type)] for field in dataclasses.fields(default)}
    try:
        return dataclasses.replace(default, **parse_fields(text, kinds))
    except InputError as error:
        raise InputError(f"{option}: {error}") from None


REQUEST_COLUMNS = (
    "arrival_s", "admitted_s", "first_s", "finish_s", "prefill_s", "longest_s", "prompt_tokens",
    "tokens", "rounds", "drafted", "accepted", "preempted", "replica", "row",
)  # fmt: skip


def write_requests(served: ServingResult, trace: Trace, path: Path) -> None:
    """The request log: a row per request, with its identity in the trace."""
    columns = {name: getattr(served, name) for name in REQUEST_COLUMNS}
    columns["request_id"] = [trace.request_id[row] for row in served.row]
    columns["category"] = [trace.category[row] for row in served.row]
    header = {b"gammalab": dumps({"kind": "requests", "version": 1, "meta": served.meta}).encode()}
    made = pa.table(columns).replace_schema_metadata(header)
    write_atomically(path, lambda to: pq.write_table(made, to, compression="zstd"), overwrite=True)


def write_series(served: ServingResult, path: Path) -> None:
    """The time series: a row per replica and bin that saw work, see simulator.serving.state.BIN."""
    replica, at = np.nonzero(served.bins["busy_s"])
    columns = {"replica": replica, "start_s": at * served.server.bin_s}
    columns |= {name: served.bins[name][replica, at] for name in served.bins.dtype.names}
    header = {b"gammalab": dumps({"kind": "series", "version": 1, "meta": served.meta}).encode()}
    made = pa.table(columns).replace_schema_metadata(header)
    write_atomically(path, lambda to: pq.write_table(made, to, compression="zstd"), overwrite=True)


def look(
    policies: Sequence[Policy],
    trace: Trace,
    workload: Workload,
    costs: StepCosts,
    server: Server,
    seed: int,
    out: Path,
) -> None:
    """Rounds and a timeline of the first requests, for every policy."""
    asked = demand(workload, trace.category, seed)
    few = asked._replace(**{
        name: getattr(asked, name)[:TIMELINE_REQUESTS]
        for name in ("row", "arrival_s", "think_s", "priority")
    })  # fmt: skip
    for policy in policies:
        served = serve(policy, trace, few, costs, server, seed=seed, log=True)
        assert served.round_log is not None
        name = file_name(label(policy))
        write_roundlog(served.round_log, out / "rounds" / f"{name}.parquet", overwrite=True)
        write_timeline(served, trace, out / "timelines" / f"{name}.json")
