"""Hide what a recorder would not have seen, and count how often the intervals hold the truth.

`python -m experiments.censored_check` censors an exact trace at the rounds of a recorder. For
resamples of its requests, drawn from changing mixes of tasks, every schedule is replayed on the
whole truth, and on the completions of what the recorder saw. The truth should lie inside the 95 %
interval 95 times in 100, and nearly always between the extremes if those were bounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.censored import DRAWS, complete, play, span
from experiments.tables import number, percent, table
from policies.shelf import parse_policy
from simulator.costs import Affine
from simulator.replay import replay
from traces.censoring import censor
from traces.costs import tabulate
from traces.schema import Trace
from traces.split import named_generator
from traces.store import read_trace
from traces.timing import StepCosts

EXACT = Path(__file__).parents[1] / "traces" / "data" / "embedded-greedy.parquet"
RECORDERS = ("hf-heuristic", "fixed:gamma=3", "gammatune")
POLICIES = ("gammatune", *(f"fixed:gamma={g}" for g in range(1, 9)), "hf-heuristic", "goodput",
            "ucb")  # fmt: skip
ROUND_S, DRAFT_S = 22.3e-3, 1.92e-3  # a 7B target and a 68M draft on an A100-class GPU

Fill = Callable[[Trace, int, int], Sequence[Trace]]


class Case(NamedTuple):
    """One policy on one resample, tokens/s."""

    policy: str
    truth: float
    low: float
    point: float
    high: float
    stop: float
    go_on: float


def costs_for(trace: Trace, round_s: float = ROUND_S, draft_s: float = DRAFT_S) -> StepCosts:
    """A constant per round and a constant per drafted token."""
    longest = int((trace.prompt_tokens + trace.reply_tokens).max())
    affine = Affine(draft_fixed=draft_s, target_fixed=round_s)
    return tabulate(affine, 1, max_context=longest + 32, width=trace.meta.depth + 2)


def resampled(trace: Trace, requests: int, generator: np.random.Generator) -> list[int]:
    """Different requests from a random mix of tasks: shares of a flat Dirichlet law."""
    category = np.asarray(trace.category)
    tasks = sorted(set(trace.category))
    shares = generator.dirichlet(np.ones(len(tasks)))
    weight = np.zeros(trace.requests)
    for task, share in zip(tasks, shares, strict=True):
        weight[category == task] = (0.2 / len(tasks) + 0.8 * share) / (category == task).sum()
    chosen = generator.choice(trace.requests, requests, replace=False, p=weight / weight.sum())
    return sorted(int(row) for row in chosen)


def modelled(trace: Trace, draws: int, seed: int) -> Sequence[Trace]:
    """The completions that are on trial: all stop, all go on, draws."""
    return complete(trace, draws=draws, seed=seed).traces


def cases(
    trace: Trace,
    recorder: str,
    index: int,
    *,
    requests: int,
    draws: int = DRAWS,
    policies: Sequence[str] = POLICIES,
    fill: Fill = modelled,
) -> list[Case]:
    """Resample number `index`: record it with the recorder, complete it, replay every policy."""
    generator = named_generator(index, "coverage")
    exact = trace.select(resampled(trace, requests, generator))
    costs = costs_for(exact)
    seen = censor(exact, replay(parse_policy(recorder), exact, costs, seed=index))
    traces = [exact, *fill(seen, draws, index)]
    found = []
    for name in policies:
        played = play(functools.partial(replay, parse_policy(name), costs=costs), traces)
        speeds = exact.positions / played.seconds.sum(axis=1)
        held = span(float(speeds[1]), float(speeds[2]), speeds[3:])
        truth = float(speeds[0])
        found.append(Case(name, truth, held.low, held.value, held.high, held.stop, held.go_on))
    return found


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Of one policy over C cases, as shares: covered by the interval and between the extremes; bias
    of the point, half-widths of both, relative to the truth; low, high: truths below and above.
    """

    policy: str
    covered: float
    below: float
    above: float
    within: float
    bias: float
    half_width: float
    half_extremes: float


def coverage(cases: Sequence[Case]) -> list[Coverage]:
    """By policy, then over all those about which anything was open."""
    names = list(dict.fromkeys(case.policy for case in cases))
    groups = [(name, [case for case in cases if case.policy == name]) for name in names]
    unsure = [case for case in cases if case.high > case.low]
    return [_coverage(name, group) for name, group in [*groups, ("open", unsure)]]


def _coverage(name: str, group: Sequence[Case]) -> Coverage:
    columns = np.array([case[1:] for case in group]).T
    truth, low, point, high, stop, go_on = columns
    least, most = np.minimum(stop, go_on), np.maximum(stop, go_on)
    return Coverage(
        policy=name,
        covered=float(((low <= truth) & (truth <= high)).mean()),
        below=float((truth < low).mean()),
        above=float((truth > high).mean()),
        within=float(((least <= truth) & (truth <= most)).mean()),
        bias=float((point / truth - 1).mean()),
        half_width=float(((high - low) / 2 / truth).mean()),
        half_extremes=float(((most - least) / 2 / truth).mean()),
    )


def coverage_table(rows: Sequence[Coverage]) -> str:
    """One line per policy."""
    header = ("policy", "inside\n95 %", "truth\nbelow", "truth\nabove", "between\nextremes",
              "bias of\npoint", "half-width\ninterval", "half-width\nextremes")  # fmt: skip
    cells = [
        [
            row.policy,
            percent(row.covered, 1),
            percent(row.below, 1),
            percent(row.above, 1),
            percent(row.within, 1),
            f"{100 * row.bias:+.2f}%",
            percent(row.half_width, 2),
            percent(row.half_extremes, 2),
        ]
        for row in rows
    ]
    return table(header, [("", cells)])


def check(
    trace: Trace, recorder: str, *, resamples: int, requests: int, workers: int = 1
) -> list[Coverage]:
    """Coverage over resamples 0, 1, ... of one recorder."""
    one = functools.partial(cases, trace, recorder, requests=requests)
    with ProcessPoolExecutor(workers) as pool:
        found = [case for part in pool.map(one, range(resamples)) for case in part]
    return coverage(found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a coverage table for every recorder."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.censored_check", description=__doc__
    )
    parser.add_argument("--trace", type=Path, default=EXACT, help="an exact trace")
    parser.add_argument("--recorder", action="append", help="policy that records; repeatable")
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args(arguments)
    trace = read_trace(args.trace)
    for recorder in args.recorder or RECORDERS:
        rows = check(
            trace,
            recorder,
            resamples=args.resamples,
            requests=args.requests,
            workers=args.workers,
        )
        noise = number(100 * float(np.sqrt(0.95 * 0.05 / args.resamples)), 1)
        print(
            f"recorder {recorder}: {args.resamples} resamples of {args.requests} requests; one "
            f"policy's 95 % would come out as 95 +- {noise}\n\n{coverage_table(rows)}\n",
            flush=True,
        )


if __name__ == "__main__":
    main()
