"""The draft on the target's device, on one of its own, and drafting ahead there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pandas as pd

from experiments.common.frames import Column, fields_of, figure, frame_of
from experiments.common.statistics import Interval
from experiments.serving.columns import POLICY
from experiments.serving.fleet.question import Answer, FleetSetting, distinct, spread_line
from experiments.serving.policy_runs import seed_ratio
from policies.fixed import Fixed, Never
from policies.registry import label
from simulator.serving.metrics import ServingMetrics
from traces.workload.workload import Workload


def placement(ask: FleetSetting) -> Answer:
    """Fixed and adaptive gammas with the draft here, there, and drafting ahead there."""
    costs = ask.costs()
    users = ask.server.slots
    workload = Workload(requests=max(ask.requests, 8 * users), process="closed", users=users)
    step_s = float(costs.draft_s[0, 0, 1])
    far = f"{1e3 * step_s:.2g} ms each way"
    apart = dataclasses.replace(ask.server, apart=True)
    ahead = dataclasses.replace(apart, pipelined=True)
    places = {
        "one device": ask.server,
        "apart, no network": apart,
        f"apart, {far}": dataclasses.replace(apart, hop_s=step_s),
        "apart, drafting ahead": ahead,
        f"ahead, {far}": dataclasses.replace(ahead, hop_s=step_s),
    }
    policies = distinct([Never(), Fixed(1), Fixed(3), Fixed(5), Fixed(8), *ask.policies])
    speeds: dict[str, dict[str, float]] = {label(policy): {} for policy in policies}
    spreads: list[Interval] = []
    plain_runs: Sequence[ServingMetrics] = ()
    for name, server in places.items():
        rows = ask.run(policies, workload, server, costs)
        plain_runs = plain_runs or rows[0].runs
        for row in rows:
            speeds[row.policy][name] = row.intervals["tokens_per_s"].mean
            spreads.append(seed_ratio(row.runs, plain_runs, lambda run: run.tokens_per_s))
    plain = speeds["never"]["one device"]
    frame = frame_of(
        {"policy": policy} | {name: speed / plain for name, speed in line.items()}
        for policy, line in speeds.items()
    )
    return Answer(
        f"tokens/s over plain decoding, {users} users without a pause. One device more is used "
        "where the draft is apart; what it costs is not in the table",
        frame,
        (spread_line(spreads),),
        {"plain_tokens_per_s": plain},
    )


def columns(frame: pd.DataFrame) -> tuple[Column, ...]:
    """The table's columns: one for every place."""
    _, *places = fields_of(frame)
    return (POLICY, *(figure(p, p.replace(", ", ",\n", 1), p, "", 3) for p in places))
