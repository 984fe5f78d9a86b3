"""Adaptive against static gammas when load comes in bursts."""

from __future__ import annotations

import dataclasses
import math

import pandas as pd

from experiments.common.frames import Column, frame_of
from experiments.serving.columns import COLUMNS
from experiments.serving.figures import bars_figure
from experiments.serving.fleet.gamma_table import best_table, merged, table_policy
from experiments.serving.fleet.question import Answer, FleetSetting, distinct, full_load, reply_s
from experiments.serving.policy_runs import seed_ratio
from policies.fixed import Fixed, Never
from simulator.serving.metrics import Objective
from traces.workload.workload import Workload


def bursts(ask: FleetSetting) -> Answer:
    """Policies under on-off load: 1.5 times the capacity of plain decoding, then a fifth of it."""
    costs = ask.costs()
    plain = full_load(ask, costs)
    full = plain.requests_per_s
    found = best_table(ask).frame
    rows = merged(list(found["users"]), list(found["best"]))
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
    about = (
        f"bursts: {1.5 * full:.2f} requests/s for {stay_s:.0f} s, {0.2 * full:.2f} for "
        f"{2 * stay_s:.0f} s (means); objective: {_ttft(objective)}TPOT up to "
        f"{1e3 * objective.tpot_s:.4g} ms"
    )
    gains = {row.policy: seed_ratio(served[0].runs, row.runs, reply_s) for row in served}
    meaning = "mean seconds of a reply in bursts, plain decoding over the policy"
    picture = bars_figure("bursts", gains, meaning, "times as fast as plain decoding")
    return Answer(about, frame_of(served), pictures=(picture,))


def _ttft(objective: Objective) -> str:
    return f"TTFT up to {objective.ttft_s:.3g} s, " if objective.ttft_s < math.inf else ""


def columns(_: pd.DataFrame) -> tuple[Column, ...]:
    """Those of any serving run."""
    return COLUMNS
