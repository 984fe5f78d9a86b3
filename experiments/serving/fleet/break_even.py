"""The load at which speculation stops paying."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from experiments.common.frames import Column, fields_of, figure, frame_of, words
from experiments.common.statistics import Interval
from experiments.common.text_table import number
from experiments.serving.columns import POLICY
from experiments.serving.figures import loads_figure
from experiments.serving.fleet.question import (
    Answer,
    FleetSetting,
    distinct,
    full_load,
    reply_s,
    spread_line,
)
from experiments.serving.policy_runs import seed_ratio
from policies.fixed import Fixed, Never
from policies.registry import label
from traces.workload.workload import Workload

LOADS = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)


def break_even(ask: FleetSetting) -> Answer:
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
    frame = frame_of(
        {"policy": name, "pays_up_to": crossing(LOADS, line)}
        | {f"load={load:g}": value for load, value in zip(LOADS, line, strict=True)}
        for name, line in found.items()
    )
    return Answer(
        "mean seconds of a reply under plain decoding over those under a policy (above 1: "
        f"faster), by load;\nload 1: {full:.2f} requests/s, what plain decoding finishes with all "
        f"{ask.server.slots} slots busy",
        frame,
        (
            "requests that decode under plain decoding while it is busy, by load: "
            + ", ".join(number(value, 1) for value in running),
            spread_line(spreads),
        ),
        {"capacity_per_s": full, "running": running},
        (loads_figure(LOADS, found),),
    )


def columns(frame: pd.DataFrame) -> tuple[Column, ...]:
    """The table's columns: one for every load."""
    loads = fields_of(frame, "load=")
    return (
        POLICY,
        *(figure(name, name.removeprefix("load="), name.replace("=", " "), "") for name in loads),
        words("pays_up_to", "pays up\nto load", "pays up to load", ""),
    )


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
