"""Intervals for a censored trace at costs typed by hand: what would other lengths have given?

`python -m experiments.censoring.censored_run --trace T.parquet --round-ms 22.3 --draft-ms 1.92`;
with `--seeds 20` in place of them how often each verdict was given over seeds 0, 1, ... 19 of
imputations, draws of questions and the controllers' lots.
"""

from __future__ import annotations

import dataclasses
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
from real_backend.command_line import flag, option, run_module
from real_backend.number_options import count, number, whole, workers
from real_backend.options import seed_of
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
    """Intervals by the imputations of this seed."""
    completed = complete(trace, draws=draws, seed=seed)
    return left_open(completed, schedules, reference=reference)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CensoredRunOptions:
    """Costs typed by hand, and how surely."""

    trace: Path = option("a censored trace", Path)
    round_ms: float = option("a round without a draft", number(0.0, above=False))
    draft_ms: float = option("every drafted token", number(0.0, above=False))
    plain_ms: float | None = option(
        "plain decoding, per token; else gamma 0", number(0.0, above=False), None
    )
    policies: str = option("beside the reference", default=POLICIES)
    reference: str = option("what vs fixed is over", default="fixed:gamma=3")
    draws: int = option("imputations", count, DRAWS)
    seed: int = seed_of("all draws")
    seeds: int = option("count verdicts over that many seeds", whole(0, 1000), 0)
    workers: int = option("local processes", workers(), 1)
    json: bool = flag("results as JSON on stdout")


def answer(options: CensoredRunOptions) -> None:
    """Print the tables of one trace."""
    if options.draws < FEWEST_IMPUTATIONS:
        raise InputError(f"--draws is {options.draws}; at least {FEWEST_IMPUTATIONS}")
    trace = read_trace(options.trace)
    if trace.censored is None:
        raise InputError(f"{options.trace} is not censored: `gammalab compare` says all there is")
    names = f"{options.policies},{options.reference}"
    schedules = schedules_of(trace, names, options.round_ms / 1e3, options.draft_ms / 1e3)
    if options.seeds:
        one = functools.partial(
            over_seeds, trace, schedules, options.reference, draws=options.draws
        )
        with ProcessPoolExecutor(options.workers) as pool:
            jobs = [pool.submit(one, seed=seed) for seed in range(options.seeds)]
            print(seed_table([job.result() for job in jobs]))
        return
    completed = complete(trace, draws=options.draws, seed=options.seed)
    found = left_open(
        completed,
        schedules,
        reference=options.reference,
        plain_s_per_token=None if options.plain_ms is None else options.plain_ms / 1e3,
    )
    parts = [open_table(found), open_task_table(found)]
    parts += [rate_table(trace), survival_table(trace, completed)]
    print(dumps(found) if options.json else "\n\n".join(parts))


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit code."""
    return run_module(
        "experiments.censoring.censored_run", __doc__, CensoredRunOptions, answer, argv
    )


if __name__ == "__main__":
    sys.exit(main())
