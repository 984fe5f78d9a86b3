"""`gammalab fleet QUESTION`: what an operator asks of a server, answered by serving.

table: the best static gamma per concurrency, as the tables that vLLM and TensorRT-LLM read.
break-even: the load at which speculation stops paying. bursts: adaptive against static when load
comes in bursts. capacity: the most requests per second at a goodput of 99 %. placement: the draft
on the target's device, on one of its own, drafting ahead there, and replicas behind a router.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.cost_sources import Priced, read_costs
from experiments.common.plots import Picture, write_pictures
from experiments.common.results import (
    command_line,
    dumps,
    jsonable,
    versions,
    write_result,
    write_text,
)
from experiments.common.statistics import SMALLEST, Interval, interval
from experiments.common.text_table import number, percent, table, with_interval
from experiments.serving.figures import bars_figure, loads_figure, table_figure
from experiments.serving.serve import (
    Row,
    check_inputs,
    costs_for,
    run_policies,
    seed_ratio,
    service_table,
    settings,
)
from policies.base import Policy, uses_signals
from policies.counts.tables import BatchTable
from policies.fixed import Fixed, Never
from policies.registry import label, parse_policies, title
from real_backend.progress import progress
from simulator.serving.metrics import Objective, Service, service
from simulator.serving.options import Server
from simulator.serving.server import serve
from traces.costs.pricing import StepCosts
from traces.errors import InputError
from traces.schema import Trace
from traces.store import read_trace, refuse_existing
from traces.workload.arrivals import demand
from traces.workload.workload import Workload

CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LOADS = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)
ADAPTIVE = "vllm-dynamic,sglang-tiers,sglang-throughput,alpha-goodput,nightjar,goodput,tail-pruning"
ADAPTIVE += ",payback"
KEPT = 0.99


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all questions are asked of. step: called after every run of a policy."""

    trace: Trace
    priced: Priced
    server: Server
    objective: Objective
    requests: int
    seeds: range
    policies: tuple[Policy, ...]
    step: Callable[[], object] = lambda: None

    def costs(self) -> StepCosts:
        """Tables for the server."""
        return costs_for(self.priced, self.trace, self.server)

    def run(
        self, policies: Sequence[Policy], workload: Workload, server: Server, costs: StepCosts
    ) -> list[Row]:
        """experiments.serving.serve.run_policies here, the first tenth of the requests left out."""
        return run_policies(
            policies, self.trace, workload, costs, server, objective=self.objective,
            seeds=self.seeds, warmup=0.1, step=self.step,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Answer:
    """text: for a terminal; result: JSON-ready; pictures: figures."""

    text: str
    result: dict[str, Any]
    pictures: tuple[Picture, ...] = ()


# -- table


def best_table(ask: Setting) -> Answer:
    """Best fixed gamma at every concurrency: as many users as slots, no pause."""
    sizes = [*(n for n in CONCURRENCIES if n < ask.server.slots), ask.server.slots]
    gammas = list(range(min(8, ask.trace.meta.depth) + 1))
    costs = ask.costs()
    speeds: list[list[float]] = []
    gains: list[list[Interval]] = []
    for size in sizes:
        server = dataclasses.replace(ask.server, slots=size)
        workload = Workload(requests=max(ask.requests, 8 * size), process="closed", users=size)
        fixed = [Fixed(gamma) for gamma in gammas]
        rows = ask.run(fixed, workload, server, costs)
        speeds.append([row.intervals["tokens_per_s"].mean for row in rows])
        gains.append([row.tokens_ratio for row in rows])
    best = [choose(line) for line in speeds]
    ranges = merged(sizes, best)
    vllm = {"num_speculative_tokens_per_batch_size": [list(row) for row in ranges]}
    trtllm = {"draft_len_schedule": {high: gamma for _, high, gamma in ranges}}
    cells = [
        [str(size), *(number(v / line[0], 2) for v in line), str(gamma),
         shown(gain[gamma])]
        for size, line, gamma, gain in zip(sizes, speeds, best, gains, strict=True)
    ]  # fmt: skip
    header = ("users", *(f"g={gamma}" for gamma in gammas), "best", "gain")
    text = "\n\n".join([
        "tokens/s of every fixed gamma over plain decoding, by users (= slots)\nbest: the smallest "
        "gamma within half a percent of the fastest",
        spread_line([one for line in gains for one in line]),
        table(header, [("", cells)]),
        "vLLM:         --speculative-config field " + json.dumps(vllm),
        "TensorRT-LLM: speculative_config field " + json.dumps(trtllm),
    ])  # fmt: skip
    result = {"users": sizes, "gammas": gammas, "tokens_per_s": speeds, "best": best}
    result["gain"] = [gain[gamma] for gain, gamma in zip(gains, best, strict=True)]
    return Answer(text, result | {"vllm": vllm, "trtllm": trtllm}, (
        table_figure(sizes, gammas, speeds, best),
    ))  # fmt: skip


def shown(found: Interval, digits: int = 2) -> str:
    """Mean and interval over seeds."""
    return with_interval((found.mean, found.low, found.high), digits)


def spread_line(found: Sequence[Interval]) -> str:
    """How far other seeds would move the numbers of a table."""
    halves = [one.half for one in found if math.isfinite(one.half)]
    if not halves:
        return "one seed: how far other arrivals would move these numbers is not known"
    return (
        f"95 % intervals over seeds: half of the numbers +- {np.median(halves):.3f} or less, none "
        f"more than +- {max(halves):.3f}"
    )


def reply_s(run: Service) -> float:
    """Mean seconds of a reply."""
    return run.end_to_end.mean


def choose(line: Sequence[float]) -> int:
    """The smallest gamma within half a percent of the fastest."""
    return next(k for k, speed in enumerate(line) if speed >= (1 - SMALLEST) * max(line))


def merged(sizes: Sequence[int], best: Sequence[int]) -> list[tuple[int, int, int]]:
    """(lowest batch, highest batch, gamma) rows; a size stands for all above the size before."""
    rows: list[tuple[int, int, int]] = []
    for k, (size, gamma) in enumerate(zip(sizes, best, strict=True)):
        low = 1 if k == 0 else sizes[k - 1] + 1
        if rows and rows[-1][2] == gamma:
            rows[-1] = (rows[-1][0], size, gamma)
        else:
            rows.append((low, size, gamma))
    return rows


def table_policy(rows: Sequence[tuple[int, int, int]]) -> BatchTable:
    """The rows as a policy, whose table has four: what comes behind is drafted nothing."""
    fields: dict[str, int] = {}
    given = list(rows)
    while given and given[-1][2] == 0:
        given.pop()
    for k in range(4):
        _, high, gamma = given[k] if k < len(given) else (0, 0, 0)
        fields |= {f"bound{k + 1}": high, f"gamma{k + 1}": gamma}
    return BatchTable(**fields)


def distinct(policies: Sequence[Policy]) -> list[Policy]:
    """Each once: a question's own policies may be among those asked for."""
    return list({label(policy): policy for policy in policies}.values())


# -- break-even


@dataclasses.dataclass(frozen=True)
class FullLoad:
    """Plain decoding with all slots busy: requests it finishes a second, and its mean TPOT."""

    requests_per_s: float
    tpot_s: float


def full_load(ask: Setting, costs: StepCosts) -> FullLoad:
    """As many users as slots, no pause."""
    users = ask.server.slots
    workload = Workload(requests=max(ask.requests, 8 * users), process="closed", users=users)
    (row,) = ask.run([Never()], workload, ask.server, costs)
    return FullLoad(row.intervals["requests_per_s"].mean, row.intervals["tpot.mean"].mean)


def break_even(ask: Setting) -> Answer:
    """Mean end-to-end seconds of fixed gammas and the policies over plain decoding, by load."""
    costs = ask.costs()
    full = full_load(ask, costs).requests_per_s
    policies = distinct([Never(), Fixed(1), Fixed(3), Fixed(5), *ask.policies])
    found: dict[str, list[float]] = {label(policy): [] for policy in policies}
    running, spreads = list[float](), list[Interval]()
    for load in LOADS:
        workload = Workload(requests=ask.requests, process="poisson", rate_per_s=load * full)
        rows = ask.run(policies, workload, ask.server, costs)
        seconds = [row.intervals["end_to_end.mean"].mean for row in rows]
        for row, value in zip(rows, seconds, strict=True):
            found[row.policy].append(seconds[0] / value)
            spreads.append(seed_ratio(rows[0].runs, row.runs, reply_s))
        running.append(rows[0].intervals["mean_running"].mean)
    cells = [
        [title(name), *(number(v, 2) for v in line), crossing(LOADS, line)]
        for name, line in found.items()
    ]
    header = ("policy", *(f"{load:g}" for load in LOADS), "pays up\nto load")
    text = "\n\n".join([
        "mean seconds of a reply under plain decoding over those under a policy (above 1: "
        f"faster), by load;\nload 1: {full:.2f} requests/s, what plain decoding finishes with all "
        f"{ask.server.slots} slots busy",
        table(header, [("", cells), ("", [
            ["(running while busy)", *(number(v, 1) for v in running), ""]])]),
        spread_line(spreads),
    ])  # fmt: skip
    result = {"loads": LOADS, "capacity_per_s": full, "faster": found, "running": running}
    return Answer(text, result, (loads_figure(LOADS, found),))


def crossing(loads: Sequence[float], line: Sequence[float]) -> str:
    """Where a falling line goes below 1, between two loads by straight line; "-" if it is 1."""
    if all(value == 1.0 or math.isnan(value) for value in line):
        return "-"
    for k, value in enumerate(line):
        if value < 1.0:
            if k == 0:
                return f"< {loads[0]:g}"
            part = (line[k - 1] - 1.0) / (line[k - 1] - value)
            return f"{loads[k - 1] + part * (loads[k] - loads[k - 1]):.2f}"
    return f"> {loads[-1]:g}"


# -- bursts


def bursts(ask: Setting) -> Answer:
    """Policies under on-off load: 1.5 times the capacity of plain decoding, then a fifth of it."""
    costs = ask.costs()
    plain = full_load(ask, costs)
    full = plain.requests_per_s
    found = best_table(ask).result
    rows = merged(found["users"], found["best"])
    stay_s = 20 * ask.server.slots / full
    workload = Workload(
        requests=4 * ask.requests, process="bursts", on_rate_per_s=1.5 * full,
        off_rate_per_s=0.2 * full, on_s=stay_s, off_s=2 * stay_s,
    )  # fmt: skip
    objective = ask.objective
    if objective == Objective():  # a quarter above plain decoding with all slots busy
        objective = Objective(tpot_s=1.25 * plain.tpot_s)
    asked = dataclasses.replace(ask, objective=objective)
    static = [Never(), Fixed(1), Fixed(2), Fixed(3), Fixed(5), table_policy(rows)]
    policies = distinct([*static, *ask.policies])
    served = asked.run(policies, workload, ask.server, costs)
    text = "\n\n".join([
        f"bursts: {1.5 * full:.2f} requests/s for {stay_s:.0f} s, {0.2 * full:.2f} for "
        f"{2 * stay_s:.0f} s (means); objective: TTFT up to {objective.ttft_s:.3g} s, TPOT up to "
        f"{1e3 * objective.tpot_s:.4g} ms",
        service_table(served),
    ])  # fmt: skip
    gains = {row.policy: seed_ratio(served[0].runs, row.runs, reply_s) for row in served}
    meaning = "mean seconds of a reply in bursts, plain decoding over the policy"
    picture = bars_figure("bursts", gains, meaning, "times as fast as plain decoding")
    return Answer(text, {"rows": jsonable(served)}, (picture,))


# -- capacity


def slo_capacity(ask: Setting) -> Answer:
    """The highest Poisson rate at which 99 % of the requests keep the objective, by bisection: with
    the draft on the target's device, and with one of its own that drafts ahead.
    """
    costs = ask.costs()
    plain = full_load(ask, costs)
    full, objective = plain.requests_per_s, ask.objective
    if objective == Objective():
        objective = Objective(ttft_s=20 * plain.tpot_s, tpot_s=0.75 * plain.tpot_s)
    ahead = dataclasses.replace(
        ask, server=dataclasses.replace(ask.server, apart=True, pipelined=True)
    )
    policies = distinct([Never(), Fixed(1), Fixed(2), Fixed(3), Fixed(5), *ask.policies])
    rates = {
        label(policy): [
            [highest_rate(at, policy, objective, costs, full, seed) for seed in ask.seeds]
            for at in (ask, ahead)
        ]
        for policy in policies
    }
    bare = rates["never"][0]
    cells = [
        [title(name), *(number(rate, 2) for rate in here), shown(interval(here)),
         shown(interval([a / b if b else math.nan for a, b in zip(here, bare, strict=True)])),
         shown(interval(there))]
        for name, (here, there) in rates.items()
    ]  # fmt: skip
    seeds = (f"seed {seed}" for seed in ask.seeds)
    header = ("policy", *seeds, "mean\n95 %", "over plain\n95 %", "drafting ahead\n95 %")
    text = "\n\n".join([
        f"most requests/s (Poisson) of which {percent(KEPT)} keep TTFT <= {objective.ttft_s:.3g} s "
        f"and TPOT <= {1e3 * objective.tpot_s:.3g} ms; {ask.server.slots} slots; 2 % steps; last "
        "column:\nthe draft on a device of its own that drafts ahead, no network",
        table(header, [("", cells)]),
    ])  # fmt: skip
    gains = {name: interval(here) for name, (here, _) in rates.items()}
    meaning = "requests/s at which 99 % keep the objective"
    result = {"objective": jsonable(objective), "requests_per_s": rates}
    return Answer(text, result, (bars_figure("capacity", gains, meaning, "requests/s"),))


def highest_rate(
    ask: Setting, policy: Policy, objective: Objective, costs: StepCosts, full: float, seed: int
) -> float:
    """Bisection on the rate to 2 %, on the same unit gaps; 0 if even a hundredth of what plain
    decoding can do is too much.
    """

    def kept(rate: float) -> bool:
        workload = Workload(requests=ask.requests, process="poisson", rate_per_s=rate)
        asked = demand(workload, ask.trace.category, seed)
        served = serve(policy, ask.trace, asked, costs, ask.server, seed=seed)
        ask.step()
        return service(served, objective, warmup=0.1).goodput_share >= KEPT

    low, high = 0.01 * full, 2.0 * full
    if not kept(low):
        return 0.0
    while kept(high) and high < 1e6 * full:
        low, high = high, 2.0 * high
    while high / low > 1.02:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if kept(middle) else (low, middle)
    return low


# -- placement


def placement(ask: Setting) -> Answer:
    """Fixed and adaptive gammas with the draft here, there, and drafting ahead there; then the same
    load on replicas behind each router.
    """
    costs = ask.costs()
    users = ask.server.slots
    workload = Workload(requests=max(ask.requests, 8 * users), process="closed", users=users)
    step_s = float(costs.draft_s[0, 0, 1])
    places = {
        "one device": ask.server,
        "apart, no network": dataclasses.replace(ask.server, apart=True),
        f"apart, {1e3 * step_s:.2g} ms each way": dataclasses.replace(
            ask.server, apart=True, hop_s=step_s
        ),
        "apart, drafting ahead": dataclasses.replace(ask.server, apart=True, pipelined=True),
        f"ahead, {1e3 * step_s:.2g} ms each way": dataclasses.replace(
            ask.server, apart=True, pipelined=True, hop_s=step_s
        ),
    }
    policies = distinct([Never(), Fixed(1), Fixed(3), Fixed(5), Fixed(8), *ask.policies])
    speeds: dict[str, dict[str, float]] = {}
    spreads: list[Interval] = []
    plain_runs: Sequence[Service] = ()
    for name, server in places.items():
        rows = ask.run(policies, workload, server, costs)
        speeds[name] = {r.policy: r.intervals["tokens_per_s"].mean for r in rows}
        plain_runs = plain_runs or rows[0].runs
        spreads += [seed_ratio(r.runs, plain_runs, lambda run: run.tokens_per_s) for r in rows]
    plain = speeds["one device"]["never"]
    cells = [
        [title(label(p)), *(number(line[label(p)] / plain, 3) for line in speeds.values())]
        for p in policies
    ]
    full = full_load(ask, costs).requests_per_s
    poisson = Workload(requests=2 * ask.requests, process="poisson", rate_per_s=2 * 0.85 * full)
    routed = {}
    for router in ("round-robin", "least-outstanding", "shortest-queue"):
        server = dataclasses.replace(ask.server, replicas=2, router=router)
        rows = ask.run([Never(), Fixed(3)], poisson, server, costs)
        routed[router] = [row.intervals["ttft.p99"] for row in rows]
    lines = [[name, *(shown(v, 3) for v in values)] for name, values in routed.items()]
    text = "\n\n".join([
        f"tokens/s over plain decoding, {users} users without a pause. One device more is used "
        "where the draft is apart; what it costs is not in the table",
        table(("policy", *(name.replace(", ", ",\n", 1) for name in places)), [("", cells)]),
        spread_line(spreads),
        "two replicas at 0.85 of plain decoding's capacity: TTFT p99, seconds, 95 % over seeds",
        table(("router", "never", "fixed:gamma=3"), [("", lines)]),
    ])  # fmt: skip
    return Answer(text, {"tokens_per_s": speeds, "ttft_p99_s": jsonable(routed)})


QUESTIONS: dict[str, Callable[[Setting], Answer]] = {
    "table": best_table,
    "break-even": break_even,
    "bursts": bursts,
    "capacity": slo_capacity,
    "placement": placement,
}


def run(args: argparse.Namespace) -> int:
    """The command."""
    if args.question not in QUESTIONS:
        raise InputError(f"unknown question {args.question!r}; known: {', '.join(QUESTIONS)}")
    out: Path | None = args.out
    if out is not None:
        refuse_existing(out / "fleet.json", args.force)
    ask = setting(args)
    with progress(None, args.question) as step:
        answer = QUESTIONS[args.question](dataclasses.replace(ask, step=step))
    about = {
        "command": command_line(), "versions": versions(), "question": args.question,
        "costs": ask.priced.about, "server": jsonable(ask.server), "trace": args.trace.name,
    }  # fmt: skip
    result = about | {"answer": jsonable(answer.result)}
    text = f"{basis_of(ask, args)}\n\n{answer.text}"
    if out is not None:
        write_pictures(list(answer.pictures), out / "figures")
        write_result("fleet", result, out / "fleet.json", overwrite=True)
        write_text(text, out / "fleet.txt")
    print(dumps(result) if args.json else text)
    return 0


def setting(args: argparse.Namespace) -> Setting:
    """The setting that the options describe."""
    trace, priced = read_trace(args.trace), read_costs(args.timing)
    server = settings(Server(slots=priced.slots or 64), args.server, "--server")
    args.warmup, args.timeline = 0.1, False
    check_inputs(trace, priced, server, args)
    policies = parse_policies(args.policies or ADAPTIVE)
    if args.policies and args.question == "table":
        raise InputError("--policies is not for `fleet table`, which is about fixed lengths alone")
    if not args.policies:
        policies = [p for p in policies if trace.has_signals or not uses_signals(p)]
    seeds = range(args.seed, args.seed + args.seeds)
    objective = settings(Objective(), args.slo, "--slo")
    return Setting(trace, priced, server, objective, args.requests, seeds, tuple(policies))


def basis_of(ask: Setting, args: argparse.Namespace) -> str:
    """What the answer rests on."""
    return (
        f"acceptance of {ask.trace.meta.pair} ({args.trace.name}), costs {args.timing}, "
        f"{ask.server.slots} slots, {args.requests} requests or more, {len(ask.seeds)} seeds"
    )
