"""Policies on one workload and server, run by run over several seeds.

Every policy meets the same requests at the same times (common random numbers), so ratios between
policies are taken seed by seed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from experiments.common.cost_sources import Priced
from experiments.common.statistics import Interval, interval
from policies.base import Policy
from policies.registry import label
from simulator.serving.metrics import ANYTHING, Objective, ServingMetrics, serving_metrics
from simulator.serving.options import Server
from simulator.serving.result import ServingResult
from simulator.serving.server import serve
from traces.costs.of_trace import tabulate_for
from traces.costs.pricing import StepCosts
from traces.errors import InputError
from traces.schema import Trace
from traces.workload.arrivals import demand
from traces.workload.workload import Workload

BUCKET_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class PolicyResult:
    """One policy: its runs' sums by seed, tokens/s and goodput over the first policy's, and every
    number of its runs (`ttft.p99` and so on) over the seeds.
    """

    policy: str
    runs: tuple[ServingMetrics, ...]
    tokens_ratio: Interval
    goodput_ratio: Interval
    intervals: dict[str, Interval]


def costs_for(priced: Priced, trace: Trace, server: Server) -> StepCosts:
    """The tables that a server needs of a cost model."""
    sizes = range(1, server.slots + 1)
    return tabulate_for(trace, priced.model, sizes, bucket_tokens=BUCKET_TOKENS)


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
    keep: Callable[[Policy, int, ServingResult], object] = lambda policy, seed, served: None,
    step: Callable[[], object] = lambda: None,
) -> list[PolicyResult]:
    """Serve the workload under every policy and seed; ratios are to the first policy.

    keep: called with every run. Raises InputError as simulator.serving.server.serve.
    """
    runs: dict[str, list[ServingMetrics]] = {label(policy): [] for policy in policies}
    if len(runs) < len(policies):
        raise InputError("--policies names the same policy twice")
    for seed in seeds:
        asked = demand(workload, trace.category, seed)
        for policy in policies:
            served = serve(policy, trace, asked, costs, server, seed=seed)
            keep(policy, seed, served)
            runs[label(policy)].append(serving_metrics(served, objective, warmup=warmup))
            step()
    first = next(iter(runs.values()))
    return [
        PolicyResult(
            name,
            tuple(own),
            seed_ratio(own, first, lambda run: run.tokens_per_s),
            seed_ratio(own, first, lambda run: run.goodput_per_s),
            {key: interval([flat(run)[key] for run in own]) for key in flat(own[0])},
        )
        for name, own in runs.items()
    ]


def flat(run: ServingMetrics) -> dict[str, float]:
    """The numbers of a run by name, those of a latency as `ttft.p99`."""
    found: dict[str, float] = {}
    for name, value in dataclasses.asdict(run).items():
        parts = value if isinstance(value, dict) else {"": value}
        found |= {f"{name}.{key}" if key else name: part for key, part in parts.items()}
    return found


def seed_ratio(
    ours: Sequence[ServingMetrics],
    theirs: Sequence[ServingMetrics],
    read: Callable[[ServingMetrics], float],
) -> Interval:
    """One number of our runs over that of theirs, seed by seed."""
    pairs = zip(ours, theirs, strict=True)
    return interval([read(a) / read(b) if read(b) else math.nan for a, b in pairs])
