"""Hide what a recorder would not have seen, and count how often the intervals hold the truth.

`gammalab studies coverage` censors an exact trace at the rounds of a recorder.
For resamples of its requests, drawn from changing mixes of tasks, every schedule is replayed on the
whole truth, and on the completions of what the recorder saw. The truth should lie inside the 95 %
interval 95 times in 100, and nearly always between the extremes if those were bounds. It is
counted of tokens/s and of the number that decides, the ratio to a fixed length.

With `--others` the requests are drawn with replacement from all, and the intervals that allow for
other questions are held against the ratio on the whole trace.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np

from experiments.censoring.intervals import DRAWS, FloatArray, by_question, complete, play, span
from experiments.censoring.rubin import LEAST, ratios
from experiments.common.text_table import number, percent, table
from experiments.studies import RECORDERS, REFERENCE, CensoredCheckOptions
from policies.registry import parse_policy
from real_backend.command_line import Result
from simulator.replay.replay import replay
from traces.censoring.known import censor
from traces.costs.affine import Affine
from traces.costs.of_trace import tabulate_for
from traces.costs.pricing import StepCosts
from traces.schema import Trace
from traces.split import named_generator
from traces.store import concatenate, read_trace

POLICIES = ("gammatune", *(f"fixed:gamma={g}" for g in range(1, 9)), "hf-heuristic", "goodput",
            "ucb")  # fmt: skip
SPEED, RATIO = "tokens/s", "ratio"
ROUND_S, DRAFT_S = 22.3e-3, 1.92e-3  # a 7B target and a 68M draft on an A100-class GPU

Fill = Callable[[Trace, int, int], Sequence[Trace]]


class CoverageCase(NamedTuple):
    """One policy on one resample, tokens/s or their ratio to the reference's.

    truth: of the trace as it was before data were hidden.
    low, point, high: the interval over imputations and its middle.
    stop, go_on: if all that is unknown were rejected, or accepted.
    number: which of the two it is, SPEED or RATIO.
    """

    policy: str
    truth: float
    low: float
    point: float
    high: float
    stop: float
    go_on: float
    number: str = SPEED


def costs_for(trace: Trace, round_s: float = ROUND_S, draft_s: float = DRAFT_S) -> StepCosts:
    """A constant per round and a constant per drafted token."""
    affine = Affine(draft_fixed=draft_s, target_fixed=round_s)
    return tabulate_for(trace, affine)


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
    reference: str = REFERENCE,
    fill: Fill = modelled,
) -> list[CoverageCase]:
    """Resample number `index`: record it with the recorder, complete it, replay every policy."""
    generator = named_generator(index, "coverage")
    exact = trace.select(resampled(trace, requests, generator))
    played = _played(exact, recorder, index, draws, (*policies, reference), fill)
    seconds = {name: one.sum(axis=1) for name, one in played.items()}
    found = []
    for name in policies:
        for of, values in (
            (SPEED, exact.positions / seconds[name]),
            (RATIO, seconds[reference] / seconds[name]),
        ):
            held = span(float(values[1]), float(values[2]), values[3:])
            inside = (held.low, held.value, held.high, held.stop, held.go_on)
            if of == SPEED or name != reference:
                found.append(CoverageCase(name, float(values[0]), *inside, of))
    return found


def _played(
    exact: Trace, recorder: str, index: int, draws: int, policies: Sequence[str], fill: Fill
) -> dict[str, FloatArray]:
    """[3 + M, R] seconds of every policy on the truth and on what a recorder leaves of it."""
    costs = costs_for(exact)
    seen = censor(exact, replay(parse_policy(recorder), exact, costs, seed=index))
    traces = [exact, *fill(seen, draws, index)]
    return {
        name: play(functools.partial(replay, parse_policy(name), costs=costs), traces).seconds
        for name in policies
    }


def with_replacement(trace: Trace, requests: int, generator: np.random.Generator) -> Trace:
    """Requests drawn from all of them, each a question of its own."""
    parts = [
        dataclasses.replace(trace.select([row]), request_id=(f"draw {place}",))
        for place, row in enumerate(generator.integers(trace.requests, size=requests).tolist())
    ]
    return concatenate(parts)


def cases_of_others(
    trace: Trace,
    recorder: str,
    index: int,
    *,
    requests: int,
    draws: int = DRAWS,
    policies: Sequence[str] = POLICIES,
    reference: str = REFERENCE,
) -> list[CoverageCase]:
    """Of resample number `index`, intervals for other questions and the ratio on all requests."""
    exact = with_replacement(trace, requests, named_generator(index, "others"))
    played = _played(exact, recorder, index, draws, (*policies, reference), modelled)
    names = [name for name in policies if name != reference]
    costs = costs_for(trace)

    def whole(name: str) -> float:
        return float(replay(parse_policy(name), trace, costs).elapsed_s.sum())

    seconds = np.stack([played[name][3:] for name in names], axis=1)
    questions = list(exact.request_id)
    held = ratios(
        by_question(played[reference][3:], questions),
        by_question(seconds, questions),
        seed=index,
        draws=LEAST,
    )
    found = []
    for name, one in zip(names, held, strict=True):
        stop, go_on = (played[reference].sum(axis=1) / played[name].sum(axis=1))[1:3].tolist()
        truth = whole(reference) / whole(name)
        found.append(CoverageCase(name, truth, one.low, one.value, one.high, stop, go_on, RATIO))
    return found


@dataclasses.dataclass(frozen=True)
class Coverage:
    """One policy over C cases, as shares of them.

    covered: truths in the interval.
    below, above: truths below and above it.
    within: truths between the extremes.
    bias: of the point, relative to the truth.
    half_width, half_extremes: of the interval and of the extremes, relative to the truth.
    """

    policy: str
    covered: float
    below: float
    above: float
    within: float
    bias: float
    half_width: float
    half_extremes: float


def coverage(cases: Sequence[CoverageCase]) -> list[Coverage]:
    """By policy, then over all those about which anything was open."""
    names = list(dict.fromkeys(case.policy for case in cases))
    groups = [(name, [case for case in cases if case.policy == name]) for name in names]
    unsure = [case for case in cases if case.high > case.low]
    return [_coverage(name, group) for name, group in [*groups, ("open", unsure)]]


def _coverage(name: str, group: Sequence[CoverageCase]) -> Coverage:
    columns = np.array([case[1:7] for case in group]).T
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
    trace: Trace,
    recorder: str,
    *,
    resamples: int,
    requests: int,
    workers: int = 1,
    reference: str = REFERENCE,
    others: bool = False,
) -> list[CoverageCase]:
    """Cases of resamples 0, 1, ... of one recorder."""
    one = functools.partial(
        cases_of_others if others else cases,
        trace,
        recorder,
        requests=requests,
        reference=reference,
    )
    with ProcessPoolExecutor(workers) as pool:
        return [case for part in pool.map(one, range(resamples)) for case in part]


def run(options: CensoredCheckOptions) -> Result:
    """`gammalab studies coverage`: a table for every recorder."""
    trace = read_trace(options.trace)
    parts, noise = list[str](), number(100 * float(np.sqrt(0.95 * 0.05 / options.resamples)), 1)
    for recorder in options.recorder or RECORDERS:
        found = check(
            trace,
            recorder,
            resamples=options.resamples,
            requests=options.requests,
            workers=options.workers,
            reference=options.reference,
            others=options.others,
        )
        parts.append(
            f"recorder {recorder}: {options.resamples} resamples of {options.requests} requests; "
            f"one policy's 95 % would come out as 95 +- {noise}"
        )
        for of, title in ((SPEED, SPEED), (RATIO, f"ratio to {options.reference}")):
            if group := [case for case in found if case.number == of]:
                parts.append(f"{title}\n{coverage_table(coverage(group))}")
    return Result("\n\n".join(parts))
