"""The best static gamma per concurrency, as the tables that vLLM and TensorRT-LLM read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import pandas as pd

from experiments.common.frames import OVER_SEEDS, Column, fields_of, figure, frame_of, interval
from experiments.common.statistics import SMALLEST, Interval
from experiments.serving.figures import table_figure
from experiments.serving.fleet.question import Answer, FleetSetting, spread_line
from policies.counts.tables import BatchTable
from policies.fixed import Fixed
from traces.workload.workload import Workload

CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def best_table(ask: FleetSetting) -> Answer:
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
    frame = frame_of(
        {"users": size, "plain_tokens_per_s": line[0], "best": gamma, "gain": gain[gamma]}
        | {f"g={g}": speed / line[0] for g, speed in zip(gammas, line, strict=True)}
        for size, line, gamma, gain in zip(sizes, speeds, best, gains, strict=True)
    )
    return Answer(
        "tokens/s of every fixed gamma over plain decoding, by users (= slots)",
        frame,
        (
            spread_line([one for line in gains for one in line]),
            "vLLM:         --speculative-config field " + json.dumps(vllm),
            "TensorRT-LLM: speculative_config field " + json.dumps(trtllm),
        ),
        {"vllm": vllm, "trtllm": trtllm},
        (table_figure(sizes, gammas, speeds, best),),
    )


def columns(frame: pd.DataFrame) -> tuple[Column, ...]:
    """The table's columns: one for every gamma that was served."""
    return (
        figure("users", "users", "users", "requests at once, as many slots", 0),
        figure("plain_tokens_per_s", "plain\ntok/s", "plain tokens/s", "", 0, unit="1/s"),
        *(figure(name, name, name, "") for name in fields_of(frame, "g=")),
        figure(
            "best", "best", "best", "the smallest gamma within half a percent of the fastest", 0
        ),
        interval(
            "gain", "gain\n95 %", "gain (95 %)", "of the best over plain decoding", parts=OVER_SEEDS
        ),
    )


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
