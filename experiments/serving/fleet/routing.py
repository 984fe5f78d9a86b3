"""Replicas behind each router."""

from __future__ import annotations

import dataclasses

import pandas as pd

from experiments.common.frames import OVER_SEEDS, Column, frame_of, interval
from experiments.common.statistics import Interval
from experiments.serving.columns import POLICY
from experiments.serving.fleet.question import Answer, FleetSetting, distinct, full_load
from policies.fixed import Fixed, Never
from policies.registry import label
from traces.workload.workload import Workload

REPLICAS, LOAD = 2, 0.85
ROUTERS = ("round-robin", "least-outstanding", "shortest-queue")


def routing(ask: FleetSetting) -> Answer:
    """The slowest first tokens of two replicas at 0.85 of plain decoding's capacity, by router."""
    costs = ask.costs()
    rate_per_s = REPLICAS * LOAD * full_load(ask, costs).requests_per_s
    workload = Workload(requests=REPLICAS * ask.requests, process="poisson", rate_per_s=rate_per_s)
    policies = distinct([Never(), Fixed(3), *ask.policies])
    found: dict[str, dict[str, Interval]] = {label(policy): {} for policy in policies}
    for router in ROUTERS:
        server = dataclasses.replace(ask.server, replicas=REPLICAS, router=router)
        for row in ask.run(policies, workload, server, costs):
            found[row.policy][router] = row.intervals["ttft.p99"]
    return Answer(
        f"{REPLICAS} replicas at {LOAD:g} of plain decoding's capacity ({rate_per_s:.2f} "
        "requests/s): TTFT p99, seconds, 95 % over seeds",
        frame_of({"policy": policy} | line for policy, line in found.items()),
        more={"requests_per_s": rate_per_s},
    )


def columns(_: pd.DataFrame) -> tuple[Column, ...]:
    """The table's columns: one for every router."""
    return (POLICY, *(interval(r, r, r, "", 3, unit="s", parts=OVER_SEEDS) for r in ROUTERS))
