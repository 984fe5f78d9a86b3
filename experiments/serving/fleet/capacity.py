"""The most requests per second at a goodput of 99 %."""

from __future__ import annotations

import dataclasses
import math

import pandas as pd

from experiments.common.frames import OVER_SEEDS, Column, fields_of, figure, frame_of
from experiments.common.frames import interval as interval_column
from experiments.common.statistics import interval
from experiments.common.text_table import percent
from experiments.serving.columns import POLICY
from experiments.serving.figures import bars_figure
from experiments.serving.fleet.question import Answer, FleetSetting, distinct, full_load
from policies.base import Policy
from policies.fixed import Fixed, Never
from policies.registry import label
from simulator.serving.metrics import Objective, serving_metrics
from simulator.serving.server import serve
from traces.costs.pricing import StepCosts
from traces.json_text import jsonable
from traces.workload.arrivals import demand
from traces.workload.workload import Workload

KEPT = 0.99


def slo_capacity(ask: FleetSetting) -> Answer:
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
    frame = frame_of(
        {"policy": name, "requests_per_s": interval(here), "ahead": interval(there),
         "over_plain": interval(
             [a / b if b else math.nan for a, b in zip(here, bare, strict=True)])}
        | {f"seed={seed}": rate for seed, rate in zip(ask.seeds, here, strict=True)}
        for name, (here, there) in rates.items()
    )  # fmt: skip
    about = (
        f"most requests/s (Poisson) of which {percent(KEPT)} keep TTFT <= {objective.ttft_s:.3g} s "
        f"and TPOT <= {1e3 * objective.tpot_s:.3g} ms; {ask.server.slots} slots; 2 % steps; last "
        "column:\nthe draft on a device of its own that drafts ahead, no network"
    )
    gains = {name: interval(here) for name, (here, _) in rates.items()}
    meaning = "requests/s at which 99 % keep the objective"
    picture = bars_figure("capacity", gains, meaning, "requests/s")
    return Answer(about, frame, more={"objective": jsonable(objective)}, pictures=(picture,))


def columns(frame: pd.DataFrame) -> tuple[Column, ...]:
    """The table's columns: one for every seed, and their means."""
    seeds = [(name, name.replace("=", " ")) for name in fields_of(frame, "seed=")]
    return (
        POLICY,
        *(figure(name, said, said, "") for name, said in seeds),
        *(
            interval_column(name, f"{said}\n95 %", f"{said} (95 %)", "", parts=OVER_SEEDS)
            for name, said in (
                ("requests_per_s", "mean"),
                ("over_plain", "over plain"),
                ("ahead", "drafting ahead"),
            )
        ),
    )


def highest_rate(
    ask: FleetSetting,
    policy: Policy,
    objective: Objective,
    costs: StepCosts,
    full: float,
    seed: int,
) -> float:
    """Bisection on the rate to 2 %, on the same unit gaps; 0 if even a hundredth of what plain
    decoding can do is too much.
    """

    def kept(rate: float) -> bool:
        workload = Workload(requests=ask.requests, process="poisson", rate_per_s=rate)
        asked = demand(workload, ask.trace.category, seed)
        served = serve(policy, ask.trace, asked, costs, ask.server, seed=seed)
        ask.step()
        return serving_metrics(served, objective, warmup=0.1).goodput_share >= KEPT

    low, high = 0.01 * full, 2.0 * full
    if not kept(low):
        return 0.0
    while kept(high) and high < 1e6 * full:
        low, high = high, 2.0 * high
    while high / low > 1.02:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if kept(middle) else (low, middle)
    return low
