"""Intervals for a censored trace at costs typed by hand: what would other lengths have given?

`python -m experiments.censoring.censored_run --trace T.parquet --round-ms 22.3 --draft-ms 1.92`;
with `--seeds 20` in place of them how often each verdict was given over seeds 0, 1, ... 19 of
imputations, draws of questions and the controllers' lots.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from experiments.censoring.censored_check import costs_for
from experiments.censoring.intervals import DRAWS, Censoring, Schedule, complete, left_open
from experiments.censoring.intervals_text import (
    open_table,
    open_task_table,
    rate_table,
    seed_table,
    survival_table,
)
from experiments.censoring.rubin import FEWEST_IMPUTATIONS
from experiments.common.results import dumps
from policies.registry import label, parse_policies
from real_backend.number_options import count, number, whole, workers
from real_backend.options import Parser, add_seed
from simulator.replay.replay import replay
from traces.errors import InputError
from traces.schema import Trace
from traces.store import read_trace

POLICIES = "gammatune,hf-heuristic:gamma0=5,goodput,ucb," + ",".join(
    f"fixed:gamma={gamma}" for gamma in range(9)
)


def schedules_of(trace: Trace, names: str, round_s: float, draft_s: float) -> dict[str, Schedule]:
    """The named policies at a constant per round and per drafted token, and never drafting."""
    costs = costs_for(trace, round_s, draft_s)
    return {
        label(policy): functools.partial(replay, policy, costs=costs)
        for policy in parse_policies(f"{names},never")
    }


def over_seeds(
    trace: Trace, schedules: dict[str, Schedule], reference: str, *, draws: int, seed: int
) -> Censoring:
    """What is left open, by the imputations of this seed."""
    completed = complete(trace, draws=draws, seed=seed)
    return left_open(completed, schedules, reference=reference)


def answer(args: argparse.Namespace) -> None:
    """Print the tables of one trace."""
    if args.draws < FEWEST_IMPUTATIONS:
        raise InputError(f"--draws is {args.draws}; at least {FEWEST_IMPUTATIONS}")
    trace = read_trace(args.trace)
    if trace.censored is None:
        raise InputError(f"{args.trace} is not censored: `gammalab compare` says all there is")
    names = f"{args.policies},{args.reference}"
    schedules = schedules_of(trace, names, args.round_ms / 1e3, args.draft_ms / 1e3)
    if args.seeds:
        one = functools.partial(over_seeds, trace, schedules, args.reference, draws=args.draws)
        with ProcessPoolExecutor(args.workers) as pool:
            jobs = [pool.submit(one, seed=seed) for seed in range(args.seeds)]
            print(seed_table([job.result() for job in jobs]))
        return
    completed = complete(trace, draws=args.draws, seed=args.seed)
    found = left_open(
        completed,
        schedules,
        reference=args.reference,
        plain_s_per_token=None if args.plain_ms is None else args.plain_ms / 1e3,
    )
    parts = [open_table(found), open_task_table(found)]
    parts += [rate_table(trace), survival_table(trace, completed)]
    print(dumps(found) if args.json else "\n\n".join(parts))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit code."""
    parser = Parser(prog="python -m experiments.censoring.censored_run", description=__doc__)
    parser.add_argument("--trace", type=Path, required=True, help="a censored trace")
    parser.add_argument(
        "--round-ms", type=number(0.0, above=False), required=True, help="a round without a draft"
    )
    parser.add_argument(
        "--draft-ms", type=number(0.0, above=False), required=True, help="every drafted token"
    )
    parser.add_argument(
        "--plain-ms", type=number(0.0, above=False), help="plain decoding, per token; else gamma 0"
    )
    parser.add_argument("--policies", default=POLICIES)
    parser.add_argument("--reference", default="fixed:gamma=3", help="whom vs fixed is over")
    parser.add_argument("--draws", type=count, default=DRAWS, help="imputations")
    add_seed(parser, "all draws")
    parser.add_argument(
        "--seeds", type=whole(0, 1000), default=0, help="count verdicts over that many seeds"
    )
    parser.add_argument("--workers", type=workers(), default=1)
    parser.add_argument("--json", action="store_true")
    try:
        answer(parser.parse_args(arguments))
    except InputError as error:
        print(f"censored_run: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
