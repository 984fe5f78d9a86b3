"""The best static gamma per concurrency, as the tables that vLLM and TensorRT-LLM read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from experiments.common.frames import OVER_SEEDS, described, figure, frame_of, interval, text_of
from experiments.common.statistics import SMALLEST, Interval
from experiments.serving.figures import table_figure
from experiments.serving.fleet.question import Answer, Setting, spread_line
from policies.counts.tables import BatchTable
from policies.fixed import Fixed
from traces.workload.workload import Workload

CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


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
    frame = frame_of(
        {"users": size, "best": gamma, "gain": gain[gamma]}
        | {f"g={g}": v / line[0] for g, v in zip(gammas, line, strict=True)}
        for size, line, gamma, gain in zip(sizes, speeds, best, gains, strict=True)
    )
    columns = (
        figure("users", "users", None, "requests at once, as many slots", 0),
        *(figure(f"g={g}", f"g={g}", None, "tokens/s over plain decoding") for g in gammas),
        figure("best", "best", None, "the smallest gamma within half a percent of the fastest", 0),
        interval("gain", "gain", None, "of the best over plain decoding", parts=OVER_SEEDS),
    )
    text = "\n\n".join([
        "tokens/s of every fixed gamma over plain decoding, by users (= slots)\nbest: the smallest "
        "gamma within half a percent of the fastest",
        spread_line([one for line in gains for one in line]),
        text_of(columns, [("", frame)]),
        "vLLM:         --speculative-config field " + json.dumps(vllm),
        "TensorRT-LLM: speculative_config field " + json.dumps(trtllm),
    ])  # fmt: skip
    result = {
        "columns": described(columns),
        "users": sizes,
        "gammas": gammas,
        "tokens_per_s": speeds,
        "best": best,
    }
    result["gain"] = [gain[gamma] for gain, gamma in zip(gains, best, strict=True)]
    return Answer(text, result | {"vllm": vllm, "trtllm": trtllm}, (
        table_figure(sizes, gammas, speeds, best),
    ), columns, frame)  # fmt: skip


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
