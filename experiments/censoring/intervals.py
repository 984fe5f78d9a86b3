"""Counterfactuals on a censored trace, as intervals: what the recording leaves open.

A schedule is replayed on the trace with every censored position stopping, with every one going on,
and on many imputations (traces.censoring.imputation). Two ranges come of it, not the same:

- *extremes*: from the one extreme replay to the other. They need no model, but they prove nothing:
  accepted lengths lie between the two at every position, a controller's speed need not.
- *interval*: 95 % of where the replay on the unknown truth of these same requests lies, by the
  imputations and the uncertainty of their model. Its point is the median over the imputations.

Neither is about other requests; numbers named `others` draw the questions anew as well, and so does
the verdict: experiments.censoring.rubin. A controller that draws lots has other luck in every
imputation, so that its luck is part of every interval.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from experiments.censoring.rubin import LEAST, judge_imputed, ratios
from experiments.common.statistics import CONFIDENCE, RESAMPLES, Estimate, divide
from simulator.replay.metrics import per_request
from traces.censoring.imputation import BonusSpread, imputations, learn
from traces.censoring.known import bounds, flags_of
from traces.importers.flags import UNKNOWN
from traces.roundlog import RoundLog
from traces.schema import Trace
from traces.split import named_generator, question_of

FloatArray = npt.NDArray[np.float64]

DRAWS = 30


class PricedPolicy(Protocol):
    """A policy at its costs: the rounds that it plays on a trace, `seed` of its own lots."""

    def __call__(self, trace: Trace, /, *, seed: int) -> RoundLog: ...


class Span(NamedTuple):
    """One number of a censored trace: the interval [low, high] around the median `value`, and
    its replays with every censored position stopping and going on.
    """

    value: float
    low: float
    high: float
    stop: float
    go_on: float

    @property
    def half_width(self) -> float:
        """Of the interval, relative to its point."""
        return (self.high - self.low) / 2 / self.value


@dataclasses.dataclass(frozen=True)
class Open:
    """One schedule on a censored trace.

    speedup: tokens/s over never drafting.
    tasks: the same task by task.
    vs_fixed: tokens/s over the reference schedule, paired within every completed trace.
        `..._others`: with the interval that it has if the questions could have been others as well,
        of this row alone.
    verdict, adjusted_p: of the same ratio, see experiments.censoring.rubin.Judgement.
    """

    name: str
    tokens_per_s: Span
    tokens_per_round: Span
    speedup: Span
    speedup_others: Estimate
    vs_fixed: Span
    vs_fixed_others: Estimate
    adjusted_p: float
    verdict: str
    tasks: dict[str, Span]


@dataclasses.dataclass(frozen=True)
class Censoring:
    """Intervals of a censored trace, schedule by schedule.

    draws: imputations.
    resamples: draws of questions in each.
    controllers: rows that are judged together, level: the p of its own that makes one of them
        significant.
    unknown, positions: of the replayed requests.
    spread: see traces.censoring.imputation.BonusSpread.
    """

    rows: tuple[Open, ...]
    reference: str
    draws: int
    resamples: int
    controllers: int
    level: float
    unknown: int
    positions: int
    spread: BonusSpread

    def row(self, name: str) -> Open:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)


def span(stop: float, go_on: float, drawn: FloatArray) -> Span:
    """The span of a number from its two extreme replays and its imputations [M].

    The interval is that of one more draw: mean +- t (M - 1) times the draws' deviation.
    """
    from scipy.stats import t as student

    count = len(drawn)
    reach = student.ppf(0.5 + CONFIDENCE / 2, count - 1) * np.sqrt(1 + 1 / count)
    middle, far = float(drawn.mean()), float(reach * drawn.std(ddof=1))
    return Span(float(np.median(drawn)), middle - far, middle + far, stop, go_on)


def spans(values: FloatArray) -> Span:
    """Of [2 + M] values: all stop, all go on, imputations."""
    return span(float(values[0]), float(values[1]), values[2:])


@dataclasses.dataclass(frozen=True, eq=False)
class Completed:
    """A censored trace with its gaps filled in 2 + M ways: all stop, all go on, then M draws.

    unknown: flags that were filled in. spread: how far tasks miss the model, log-odds.
    """

    traces: tuple[Trace, ...]
    unknown: int
    spread: BonusSpread
    seed: int

    @property
    def first_draw(self) -> Trace:
        """The imputation that stands for the trace where one is asked for."""
        return self.traces[2]


def complete(
    trace: Trace, *, rows: Sequence[int] | None = None, draws: int = DRAWS, seed: int = 0
) -> Completed:
    """All completions of a censored trace, of the requests `rows`; the model is fitted to all."""
    model = learn(trace, seed)
    whole = (*bounds(trace), *imputations(trace, draws, seed, model=model))
    keep = list(range(trace.requests) if rows is None else rows)
    unknown = int((flags_of(trace.select(keep)) == UNKNOWN).sum())
    return Completed(tuple(one.select(keep) for one in whole), unknown, model.spread, seed)


def select(completed: Completed, rows: Sequence[int], trace: Trace) -> Completed:
    """The same completions of fewer requests; trace: the censored one."""
    unknown = int((flags_of(trace.select(list(rows))) == UNKNOWN).sum())
    traces = tuple(one.select(list(rows)) for one in completed.traces)
    return dataclasses.replace(completed, traces=traces, unknown=unknown)


class Sums(NamedTuple):
    """[2 + M, R] decode seconds and rounds of one schedule by completed trace and request."""

    seconds: FloatArray
    rounds: FloatArray


def play(schedule: PricedPolicy, traces: Sequence[Trace], seed: int = 0) -> Sums:
    """Replay one schedule on every completed trace, each with lots of its own."""
    lots = named_generator(seed, "lots").integers(2**31, size=len(traces)).tolist()
    logs = (schedule(trace, seed=lot) for trace, lot in zip(traces, lots, strict=True))
    sums = [per_request(log) for log in logs]
    return Sums(
        np.stack([one.decode_s for one in sums]),
        np.stack([one.rounds.astype(np.float64) for one in sums]),
    )


def left_open(
    completed: Completed,
    schedules: Mapping[str, PricedPolicy],
    *,
    reference: str,
    controllers: Collection[str] | None = None,
    plain_s_per_token: float | None = None,
    resamples: int = RESAMPLES,
) -> Censoring:
    """Intervals of these schedules, on the requests of `completed`.

    reference: the schedule of vs_fixed, one of them. controllers: those judged together (default:
    all but the reference and "never"). Speed-ups are over the schedule "never", or over plain
    decoding at plain_s_per_token if its engine is another one. resamples: of the questions, over
    all imputations; at least LEAST in each.
    """
    chosen = completed.traces[0]
    played = {name: play(one, completed.traces, completed.seed) for name, one in schedules.items()}
    if plain_s_per_token is None:
        base = played["never"].seconds
    else:
        plain = plain_s_per_token * chosen.reply_tokens
        base = np.broadcast_to(plain, played[reference].seconds.shape)
    together = set(played) - {reference, "never"} if controllers is None else set(controllers)
    draws = len(completed.traces) - 2
    each = max(LEAST, resamples // draws)
    questions = [question_of(request_id) for request_id in chosen.request_id]
    seconds = by_question(np.stack([one.seconds[2:] for one in played.values()], 1), questions)
    fixed_s, how = played[reference].seconds, {"seed": completed.seed, "draws": each}
    found = judge_imputed(
        by_question(fixed_s[2:], questions), seconds, [name in together for name in played], **how
    )
    faster = ratios(by_question(base[2:], questions), seconds, **how)
    category = np.asarray(chosen.category)
    of_task = {task: category == task for task in dict.fromkeys(chosen.category)}
    rated = _Rated(chosen.reply_tokens, base, fixed_s, of_task)
    return Censoring(
        rows=tuple(
            _open(name, sums, rated, _Others(*others))
            for (name, sums), *others in zip(
                played.items(),
                faster,
                found.estimates,
                found.adjusted_p.tolist(),
                found.verdicts,
                strict=True,
            )
        ),
        reference=reference,
        draws=draws,
        resamples=each,
        controllers=len(together & set(played)),
        level=found.level,
        unknown=completed.unknown,
        positions=chosen.positions,
        spread=completed.spread,
    )


def by_question(seconds: FloatArray, questions: Sequence[str]) -> FloatArray:
    """[..., R] -> [..., Q], a question's turns added up."""
    names, index = np.unique(np.asarray(questions), return_inverse=True)
    sums = np.zeros((len(names), *seconds.shape[:-1]))
    np.add.at(sums, index, np.moveaxis(seconds, -1, 0))
    return np.moveaxis(sums, 0, -1)


class _Rated(NamedTuple):
    """Tokens [R], the seconds [2 + M, R] of baseline and reference, the requests [R] of tasks."""

    tokens: npt.NDArray[np.int64]
    base: FloatArray
    reference: FloatArray
    tasks: dict[str, npt.NDArray[np.bool_]]


class _Others(NamedTuple):
    """Of one schedule, if the questions were others as well."""

    speedup: Estimate
    vs_fixed: Estimate
    adjusted_p: float
    verdict: str


def _open(name: str, sums: Sums, rated: _Rated, others: _Others) -> Open:
    seconds = sums.seconds
    return Open(
        name=name,
        tokens_per_s=spans(divide(rated.tokens.sum(), seconds.sum(axis=1))),
        tokens_per_round=spans(divide(rated.tokens.sum(), sums.rounds.sum(axis=1))),
        speedup=spans(divide(rated.base.sum(axis=1), seconds.sum(axis=1))),
        speedup_others=others.speedup,
        vs_fixed=spans(divide(rated.reference.sum(axis=1), seconds.sum(axis=1))),
        vs_fixed_others=others.vs_fixed,
        adjusted_p=others.adjusted_p,
        verdict=others.verdict,
        tasks={
            task: spans(divide(rated.base[:, of].sum(axis=1), seconds[:, of].sum(axis=1)))
            for task, of in rated.tasks.items()
        },
    )
