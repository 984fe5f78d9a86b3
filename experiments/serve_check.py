"""The serving simulator against the real engine: batches of the embedded pair, decoded for real.

    python -m experiments.serve_check --trace T --timing TIMING --batch 1,2,4,8

Every batch size decodes the same held-out replies for real and in the simulator: blocks of four
replies a slot, as many users as slots, the next reply as soon as one ends, which is what the engine
does. All policies and a placebo take a block in a random order before the next one starts. Set side
by side: tokens per second of the iterations, and the mean seconds of an iteration. The timing must
have been measured at these batch sizes.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.commands import progress
from experiments.rooflines import read_costs
from experiments.serving import costs_for
from experiments.tables import number, percent, table
from policies.base import Policy
from policies.shelf import parse_policies, parse_policy
from real_backend.sitting import PLACEBO, Sitting, baseline_of, sitting_from_args
from simulator.batch_costs import BatchCosts
from simulator.server import serve
from simulator.server_options import Server
from traces.errors import InputError
from traces.roundlog import RoundLog, join_logs
from traces.store import read_trace
from traces.workload import Workload, demand

POLICIES = "never,fixed:gamma=3,gammatune,hf-confidence,goodput"


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


def predicted(policy: Policy, sitting: Sitting, costs: BatchCosts) -> Speed:
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


def at_batch(sitting: Sitting, batch: int) -> Sitting:
    """The same requests in a batch, four replies a slot and turn."""
    return dataclasses.replace(sitting, batch=batch, block=4 * batch, carries=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check and print its tables."""
    from real_backend.options import Parser, add_pair_arguments, integers, repeats, whole
    from traces.costs import Table, tabulate
    from traces.timing import read_timing

    parser = Parser(
        prog="python -m experiments.serve_check",
        description="the serving simulator against the real engine",
    )
    add_pair_arguments(parser)
    parser.add_argument("--prompts", type=Path, help="the trace's prompt file")
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--timing", type=Path, required=True)
    parser.add_argument("--batch", type=integers, default=[1, 2, 4, 8])
    parser.add_argument("--policies", default=POLICIES)
    parser.add_argument("--limit", type=whole(0), default=64, help="replies, all tasks alike")
    parser.add_argument("--repeats", type=repeats, default=3)
    args = parser.parse_args(argv)
    args.acceptance, args.seed = "own", 0
    try:
        trace, policies = read_trace(args.trace), parse_policies(args.policies)
        longest = int((trace.prompt_tokens + trace.reply_tokens).max()) + 32
        timing, width = Table(read_timing(args.timing)), trace.meta.depth + 2
        costs = [
            tabulate(timing, rows, max_context=longest, width=width)
            for rows in range(1, max(args.batch) + 1)
        ]
        loaded = sitting_from_args(args, trace, costs, limit=args.limit)
        rows = list[tuple[int, str, Speed, list[Speed]]]()
        asked = len(policies), args.repeats
        turns = sum(at_batch(loaded, batch).turns(*asked) for batch in args.batch)
        with progress(turns, "serve-check") as step:
            for batch in args.batch:
                sitting = at_batch(loaded, batch)
                baseline = baseline_of(policies)
                ran = sitting.run(policies, baseline, repeats=args.repeats, step=step).timed
                tables = costs_for(read_costs(str(args.timing)), sitting.trace, Server(slots=batch))
                for seat, logs in ran.items():
                    policy = baseline if seat == PLACEBO else parse_policy(seat)
                    told = predicted(policy, sitting, tables)
                    rows.append((batch, seat, told, [speed_of(log) for log in logs]))
    except InputError as error:
        print(f"serve_check: {error}", file=sys.stderr)
        return 2
    print(text_of(rows, len(loaded.requests), args.repeats))
    return 0


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


if __name__ == "__main__":
    raise SystemExit(main())
