"""The serving simulator against the real engine: batches of the embedded pair, decoded for real.

    gammalab studies batches --trace T --timing TIMING --batch 1,2,4,8

Every batch size decodes the same held-out replies for real and in the simulator: blocks of four
replies a slot, as many users as slots, the next reply as soon as one ends, which is what the engine
does. All policies and a placebo take a block in a random order before the next one starts. Set side
by side: tokens per second of the iterations, and the mean seconds of an iteration. The timing must
have been measured at these batch sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.common.cost_sources import read_costs
from experiments.common.results import write_text
from experiments.common.text_table import number, percent, table
from experiments.serving.policy_runs import costs_for
from experiments.studies import ServeCheckOptions
from policies.base import Policy
from policies.registry import parse_policies, parse_policy
from real_backend.command_line import Result
from real_backend.decoding.interleaving import Sitting, baseline_of
from real_backend.decoding.measured import PLACEBO
from real_backend.decoding.sitting import load_sitting
from real_backend.partial_file import finished, partial_path
from simulator.serving.options import Server
from simulator.serving.server import serve
from traces.costs.of_trace import tabulate_for
from traces.costs.pricing import StepCosts
from traces.costs.table import Table
from traces.roundlog import RoundLog, join_logs
from traces.store import read_trace, refuse_existing
from traces.timing import read_timing
from traces.workload.arrivals import demand
from traces.workload.workload import Workload


class Speed(NamedTuple):
    """Of one run: tokens per second of its iterations; mean seconds of one; iterations."""

    tokens_per_s: float
    step_s: float
    steps: int


def speed_of(log: RoundLog) -> Speed:
    """Rounds that began together are one iteration."""
    starts, first = np.unique(log.start_s, return_index=True)
    seconds = log.elapsed_s[first]
    tokens = float(log.emitted.sum())
    return Speed(tokens / float(seconds.sum()), float(seconds.mean()), len(starts))


def predicted(policy: Policy, sitting: Sitting, costs: StepCosts) -> Speed:
    """The simulator's, block by block with fresh state as they ran."""
    server = Server(slots=sitting.batch, longest=True)  # as wide as real_backend reads its caches
    logs = []
    for block in sitting.blocks():
        part = sitting.trace.select(list(block))
        asked = Workload(
            requests=part.requests, process="closed", users=sitting.batch, order="recorded"
        )
        served = serve(policy, part, demand(asked, part.category, 0), costs, server, log=True)
        assert served.round_log is not None
        logs.append(served.round_log)
    return speed_of(join_logs(logs))


def at_batch(sitting: Sitting, batch: int, kept: Path | None) -> Sitting:
    """The same requests in a batch, four replies a slot and turn."""
    return dataclasses.replace(
        sitting, batch=batch, block=4 * batch, carries=False, anchors=None, kept=kept
    )


def run(options: ServeCheckOptions) -> Result:
    """`gammalab studies batches`."""
    return Result(check(options))


def check(options: ServeCheckOptions) -> str:
    """Every batch size on the engine and in the simulator; the tables."""
    kept = {batch: begin_batch(options.out, batch, options.force) for batch in options.batch}
    if options.out is not None:
        refuse_existing(options.out, options.force)
    trace, policies = read_trace(options.trace), parse_policies(options.policies)
    timing = read_timing(options.timing)
    costs = tabulate_for(trace, Table(timing), range(1, max(options.batch) + 1))
    begun = kept[options.batch[0]]
    loaded = load_sitting(
        options.pair, trace, costs, timing, prompts=options.prompts, limit=options.limit, kept=begun
    )
    baseline = baseline_of(policies)
    rows = list[tuple[int, str, Speed, list[Speed]]]()
    for batch, path in kept.items():
        sitting, what = at_batch(loaded, batch, path), f"serve-check, batch {batch}"
        ran = sitting.run(policies, baseline, repeats=options.repeats, what=what).timed
        tables = costs_for(read_costs(str(options.timing)), sitting.trace, Server(slots=batch))
        for seat, logs in ran.items():
            policy = baseline if seat == PLACEBO else parse_policy(seat)
            told = predicted(policy, sitting, tables)
            rows.append((batch, seat, told, [speed_of(log) for log in logs]))
    text = text_of(rows, len(loaded.requests), options.repeats)
    if options.out is not None:
        write_text(text, options.out)
        for path in kept.values():
            finished(path)
    return text


def begin_batch(out: Path | None, batch: int, force: bool) -> Path | None:
    """Where the finished turns of one batch size are kept; force: those of before are not."""
    if out is None:
        return None
    kept = partial_path(out.with_name(f"{out.name}.batch-{batch}"))
    if force:
        finished(kept)
    return kept


def text_of(rows: Sequence[tuple[int, str, Speed, list[Speed]]], replies: int, repeats: int) -> str:
    """Tables and errors by batch size."""
    groups, errors = [], dict[int, list[float]]()
    for batch in dict.fromkeys(row[0] for row in rows):
        cells = []
        for _, name, told, runs in (row for row in rows if row[0] == batch):
            measured = float(np.median([run.tokens_per_s for run in runs]))
            step_s = float(np.median([run.step_s for run in runs]))
            error = told.tokens_per_s / measured - 1
            errors.setdefault(batch, []).append(error)
            cells.append([
                name, number(told.tokens_per_s, 0), number(measured, 0),
                f"{min(r.tokens_per_s for r in runs):.0f}..{max(r.tokens_per_s for r in runs):.0f}",
                f"{100 * error:+.1f}%", number(1e3 * told.step_s, 3), number(1e3 * step_s, 3),
                f"{100 * (told.step_s / step_s - 1):+.1f}%", str(told.steps), str(runs[0].steps),
            ])  # fmt: skip
        groups.append((f"batch {batch}", cells))
    header = (
        "policy", "tokens/s\npredicted", "\nmeasured", "\nrepeats", "\nerror", "step ms\npredicted",
        "\nmeasured", "\nerror", "steps\npredicted", "\nreal",
    )  # fmt: skip
    lines = [
        f"batch {batch}: absolute error median {percent(float(np.median(np.abs(part))), 1)}, "
        f"largest {percent(float(np.max(np.abs(part))), 1)}; machine {np.median(part) * 100:+.1f}%"
        for batch, part in errors.items()
    ]
    everything = np.abs(np.concatenate([np.asarray(part) for part in errors.values()]))
    lines.append(f"all: median {percent(float(np.median(everything)), 1)}")
    head = f"{replies} held-out replies, medians of {repeats} repeats; prefill left out"
    return "\n\n".join([head, table(header, groups), "\n".join(lines)])
