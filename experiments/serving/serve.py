"""`gammalab serve`: one workload on one server under several policies, over several seeds.

Every policy meets the same requests at the same times (common random numbers), so ratios between
policies are taken seed by seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.common.cost_sources import Priced, read_costs
from experiments.common.plots import write_pictures
from experiments.common.results import (
    command_line,
    describe_inputs,
    dumps,
    jsonable,
    versions,
    write_result,
    write_text,
)
from experiments.common.statistics import Interval, interval
from experiments.common.text_table import number, percent, table
from experiments.serving.figures import series_figure
from experiments.serving.timeline import write_timeline
from policies.base import Policy, uses_signals
from policies.registry import file_name, label, parse_policies, title
from real_backend.progress import progress
from simulator.serving.metrics import ANYTHING, Objective, Service, service
from simulator.serving.options import Server
from simulator.serving.result import Served
from simulator.serving.server import serve
from traces.costs.pricing import StepCosts, tabulate
from traces.errors import InputError, warn
from traces.roundlog import write_roundlog
from traces.schema import Trace
from traces.store import read_trace, refuse_existing, write_atomically
from traces.workload.arrivals import demand
from traces.workload.files import parse_workload
from traces.workload.workload import Workload
from traces.workload.workload import title as described

DEFAULT_POLICIES = (
    "never,fixed:gamma=1,fixed:gamma=3,fixed:gamma=5,vllm-dynamic,sglang-tiers,"
    "sglang-throughput,alpha-goodput,nightjar,goodput,tail-pruning,payback"
)
TIMELINE_REQUESTS = 300
BUCKET_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Row:
    """One policy: its runs' sums by seed, tokens/s and goodput over the first policy's, and every
    number of its runs (`ttft.p99` and so on) over the seeds.
    """

    policy: str
    runs: tuple[Service, ...]
    tokens_ratio: Interval
    goodput_ratio: Interval
    intervals: dict[str, Interval]


def costs_for(priced: Priced, trace: Trace, server: Server) -> StepCosts:
    """The tables that a server needs of a cost model."""
    longest = int((trace.prompt_tokens + trace.reply_tokens).max())
    return tabulate(
        priced.model,
        range(1, server.slots + 1),
        max_context=longest + BUCKET_TOKENS,
        width=trace.meta.depth + 2,
        bucket_tokens=BUCKET_TOKENS,
    )


def run_policies(
    policies: Sequence[Policy],
    trace: Trace,
    workload: Workload,
    costs: StepCosts,
    server: Server,
    *,
    objective: Objective = ANYTHING,
    seeds: Sequence[int] = (0,),
    warmup: float = 0.0,
    keep: Callable[[Policy, int, Served], object] = lambda policy, seed, served: None,
    step: Callable[[], object] = lambda: None,
) -> list[Row]:
    """Serve the workload under every policy and seed; ratios are to the first policy.

    keep: called with every run. Raises InputError as simulator.serving.server.serve.
    """
    runs: dict[str, list[Service]] = {label(policy): [] for policy in policies}
    if len(runs) < len(policies):
        raise InputError("--policies names the same policy twice")
    for seed in seeds:
        asked = demand(workload, trace.category, seed)
        for policy in policies:
            served = serve(policy, trace, asked, costs, server, seed=seed)
            keep(policy, seed, served)
            runs[label(policy)].append(service(served, objective, warmup=warmup))
            step()
    first = next(iter(runs.values()))
    return [
        Row(
            name,
            tuple(own),
            seed_ratio(own, first, lambda run: run.tokens_per_s),
            seed_ratio(own, first, lambda run: run.goodput_per_s),
            {key: interval([flat(run)[key] for run in own]) for key in flat(own[0])},
        )
        for name, own in runs.items()
    ]


def flat(run: Service) -> dict[str, float]:
    """The numbers of a run by name, those of a latency as `ttft.p99`."""
    found: dict[str, float] = {}
    for name, value in dataclasses.asdict(run).items():
        parts = value if isinstance(value, dict) else {"": value}
        found |= {f"{name}.{key}" if key else name: part for key, part in parts.items()}
    return found


def seed_ratio(
    ours: Sequence[Service], theirs: Sequence[Service], read: Callable[[Service], float]
) -> Interval:
    """One number of our runs over that of theirs, seed by seed."""
    pairs = zip(ours, theirs, strict=True)
    return interval([read(a) / read(b) if read(b) else math.nan for a, b in pairs])


HEADER = (
    "policy", "tokens\n/s", "over first\n95 %", "good-\nput/s", "kept", "TTFT s\np50/p99",
    "TPOT ms\np50/p99", "gap ms\np99", "batch/\nqueue", "in\nvain",
)  # fmt: skip

NOTES = """\
tokens/s; goodput: requests/s within the objective, kept: their share; both of finished requests
over first: tokens/s over the first policy's, seed by seed{interval}
TTFT, TPOT, gap: time to first token, per token behind it, between two emissions of a request
batch/queue: mean requests that decode, and wait, while the machine works (idle time left out)
in vain: tokens drafted in vain per token"""


def service_table(rows: Sequence[Row]) -> str:
    """One line per policy, means over seeds."""
    several = len(rows[0].runs) > 1
    cells = [_cells(row) for row in rows]
    text = ", with its 95 % interval" if several else ""
    return table(HEADER, [("", cells)]) + "\n\n" + NOTES.format(interval=text)


def _cells(row: Row) -> list[str]:
    def mean(name: str, digits: int, factor: float = 1.0) -> str:
        return number(factor * row.intervals[name].mean, digits)

    ratio = row.tokens_ratio
    text = number(ratio.mean, 3)
    if math.isfinite(ratio.low):
        text += f" {number(ratio.low)}-{number(ratio.high)}"
    ttft = mean("ttft.p50", 2) + "/" + mean("ttft.p99", 2)
    tpot = mean("tpot.p50", 1, 1e3) + "/" + mean("tpot.p99", 1, 1e3)
    load = mean("mean_running", 1) + "/" + mean("mean_waiting", 1)
    return [
        title(row.policy),
        mean("tokens_per_s", 0),
        text,
        mean("goodput_per_s", 2),
        percent(row.intervals["goodput_share"].mean),
        ttft,
        tpot,
        mean("gap_p99_s", 1, 1e3),
        load,
        mean("wasted_drafts", 2),
    ]


def basis(
    trace: Trace, priced: Priced, workload: Workload, server: Server, objective: Objective
) -> str:
    """What a table rests on."""
    shown = {
        field.name: getattr(server, field.name)
        for field in dataclasses.fields(server)
        if getattr(server, field.name) != field.default or field.name == "slots"
    }
    lines = [
        f"{workload.requests} requests, {described(workload)}, drawn from {trace.requests} "
        f"replies of {trace.meta.pair} ({trace.meta.exactness})",
        f"costs: {priced.about['timing']} ({priced.about.get('device_name', 'unknown device')})",
        "server: " + ", ".join(f"{name} {value}" for name, value in shown.items()),
    ]
    limits = {name: value for name, value in vars(objective).items() if value < math.inf}
    if limits:
        lines.append("objective: " + ", ".join(f"{k[:-2]} {v} s" for k, v in limits.items()))
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """The command."""
    out: Path | None = args.out
    if out is not None:
        refuse_existing(out / "serve.json", args.force)
    trace, priced = read_trace(args.trace), read_costs(args.timing)
    server = settings(Server(), args.server, "--server")
    objective = settings(Objective(), args.slo, "--slo")
    workload = parse_workload(args.workload, args.requests)
    policies = parse_policies(args.policies or DEFAULT_POLICIES)
    if not args.policies:
        policies = [p for p in policies if trace.has_signals or not uses_signals(p)]
    check_inputs(trace, priced, server, args)
    costs = costs_for(priced, trace, server)
    seeds = range(args.seed, args.seed + args.seeds)

    series, written = dict[str, Any](), list[str]()

    def keep(policy: Policy, seed: int, served: Served) -> None:
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
            warmup=args.warmup, keep=keep, step=step,
        )  # fmt: skip
    text = "\n\n".join([basis(trace, priced, workload, server, objective), service_table(rows)])
    result = {
        "command": command_line(),
        "versions": versions(),
        "workload": jsonable(workload),
        "server": jsonable(server),
        "objective": jsonable(objective),
        "costs": priced.about,
        "rows": jsonable(rows),
        "logs": sorted(written),
    } | describe_inputs(trace, args.trace.name, priced.about)
    if out is not None:
        if args.timeline:
            look(policies, trace, workload, costs, server, args.seed, out)
        write_pictures([series_figure(series, server.bin_s)], out / "figures")
        write_result("serve", result, out / "serve.json", overwrite=True)
        write_text(text, out / "serve.txt")
    print(dumps(result) if args.json else text)
    return 0


def check_inputs(trace: Trace, priced: Priced, server: Server, args: argparse.Namespace) -> None:
    """Refuse what cannot be meant, and say what was stretched."""
    if not 0.0 <= args.warmup < 1.0:
        raise InputError(f"--warmup is {args.warmup}; give a share of the requests, 0 to below 1")
    if args.timeline and args.out is None:
        raise InputError("--timeline needs --out, the folder it is written to")
    if priced.slots and server.slots > priced.slots:
        warn(
            f"{args.timing} was measured up to batch {priced.slots}; larger batches are priced on "
            "the slope of its last two"
        )
    if trace.censored is not None:
        warn(f"{args.trace} is censored: accepted lengths are lower bounds here")


def settings(default: Any, text: str, option: str) -> Any:
    """A dataclass with the fields that `name=value,name=value` names; raises InputError."""
    fields = {field.name: field for field in dataclasses.fields(default)}
    changes: dict[str, Any] = {}
    for piece in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (part.strip() for part in piece.partition("="))
        if name not in fields or not equals:
            raise InputError(f"{option}: {piece!r} is not name=value; names: {', '.join(fields)}")
        if name in changes:
            raise InputError(f"{option}: {name} is given twice")
        changes[name] = _typed(fields[name], value, f"{option}: {name}")
    return dataclasses.replace(default, **changes)


def _typed(field: dataclasses.Field[Any], value: str, where: str) -> Any:
    kind = str(field.type)
    if kind == "bool":
        if value.lower() not in ("true", "false"):
            raise InputError(f"{where} is {value!r}; give true or false")
        return value.lower() == "true"
    if kind == "str":
        return value
    try:
        return int(value) if kind.startswith("int") else float(value)
    except ValueError:
        wanted = "a whole number" if kind.startswith("int") else "a number"
        raise InputError(f"{where} is {value!r}; give {wanted}") from None


REQUEST_COLUMNS = (
    "arrival_s", "admitted_s", "first_s", "finish_s", "prefill_s", "longest_s", "prompt_tokens",
    "tokens", "rounds", "drafted", "accepted", "preempted", "replica", "row",
)  # fmt: skip


def write_requests(served: Served, trace: Trace, path: Path) -> None:
    """The request log: a row per request, with its identity in the trace."""
    columns = {name: getattr(served, name) for name in REQUEST_COLUMNS}
    columns["request_id"] = [trace.request_id[row] for row in served.row]
    columns["category"] = [trace.category[row] for row in served.row]
    header = {b"gammalab": dumps({"kind": "requests", "version": 1, "meta": served.meta}).encode()}
    made = pa.table(columns).replace_schema_metadata(header)
    write_atomically(path, lambda to: pq.write_table(made, to, compression="zstd"), overwrite=True)


def write_series(served: Served, path: Path) -> None:
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
