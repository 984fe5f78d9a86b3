"""Intervals for a censored trace at costs typed by hand: what would other lengths have given?

`gammalab studies censored --trace T.parquet --round-ms 22.3 --draft-ms 1.92`;
with `--seeds 20` in place of them how often each verdict was given over seeds 0, 1, ... 19 of
imputations, draws of questions and the controllers' lots.
"""

from __future__ import annotations

import functools
from concurrent.futures import ProcessPoolExecutor

from experiments.censoring.censored_check import costs_for
from experiments.censoring.intervals import Censoring, PricedPolicy, complete, left_open
from experiments.censoring.intervals_text import (
    open_table,
    open_task_table,
    rate_table,
    seed_table,
    survival_table,
)
from experiments.censoring.rubin import FEWEST_IMPUTATIONS
from experiments.studies import CensoredRunOptions
from policies.registry import label, parse_policies
from real_backend.command_line import Result
from simulator.replay.replay import replay
from traces.errors import InputError
from traces.schema import Trace
from traces.store import read_trace


def schedules_of(
    trace: Trace, names: str, round_s: float, draft_s: float
) -> dict[str, PricedPolicy]:
    """The named policies at a constant per round and per drafted token, and never drafting."""
    costs = costs_for(trace, round_s, draft_s)
    return {
        label(policy): functools.partial(replay, policy, costs=costs)
        for policy in parse_policies(f"{names},never")
    }


def over_seeds(
    trace: Trace, schedules: dict[str, PricedPolicy], reference: str, *, draws: int, seed: int
) -> Censoring:
    """Intervals by the imputations of this seed."""
    completed = complete(trace, draws=draws, seed=seed)
    return left_open(completed, schedules, reference=reference)


def run(options: CensoredRunOptions) -> Result:
    """`gammalab studies censored`."""
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
            return Result(seed_table([job.result() for job in jobs]))
    completed = complete(trace, draws=options.draws, seed=options.seed)
    found = left_open(
        completed,
        schedules,
        reference=options.reference,
        plain_s_per_token=None if options.plain_ms is None else options.plain_ms / 1e3,
    )
    parts = [open_table(found), open_task_table(found)]
    parts += [rate_table(trace), survival_table(trace, completed)]
    return Result("\n\n".join(parts), found)
