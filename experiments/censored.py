"""Counterfactuals on a censored trace, as intervals: what the recording leaves open.

A schedule is replayed on the trace with every censored position stopping, with every one going on,
and on many imputations (traces.censoring). Two ranges come of it, and they are not the same:

- *extremes*: from the one extreme replay to the other. They need no model, but they prove nothing:
  accepted lengths lie between the two at every position, a controller's speed need not.
- *interval*: 95 % of where the replay on the unknown truth of these same requests lies, by the
  imputations and the uncertainty of their model. Its point is the median over the imputations.

Neither is about other requests; numbers named `others` resample the questions as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from experiments.statistics import (
    CONFIDENCE,
    RESAMPLES,
    Estimate,
    bootstrap_weights,
    divide,
    estimate,
    verdict,
)
from simulator.metrics import per_request
from traces.censoring import Spread, bounds, flags_of, imputations, learn
from traces.importers.flags import UNKNOWN
from traces.roundlog import RoundLog
from traces.schema import Trace
from traces.split import question_of

FloatArray = npt.NDArray[np.float64]
Schedule = Callable[[Trace], RoundLog]

DRAWS = 20


class Span(NamedTuple):
    """What censoring leaves of one number: the interval [low, high] around the median `value`, and
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

    speedup: tokens/s over never drafting; tasks: the same task by task. vs_fixed: tokens/s over the
    reference schedule, paired within every completed trace. `..._others`: with the interval that
    it has if the questions could have been others as well; verdict: of vs_fixed_others.
    """

    name: str
    tokens_per_s: Span
    tokens_per_round: Span
    speedup: Span
    speedup_others: Estimate
    vs_fixed: Span
    vs_fixed_others: Estimate
    verdict: str
    tasks: dict[str, Span]


@dataclasses.dataclass(frozen=True)
class Censoring:
    """What a censored trace leaves open, schedule by schedule.

    unknown, positions: of the replayed requests. spread: see traces.censoring.Spread.
    """

    rows: tuple[Open, ...]
    reference: str
    draws: int
    unknown: int
    positions: int
    spread: Spread

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
    spread: Spread
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


def play(schedule: Schedule, traces: Sequence[Trace]) -> Sums:
    """Replay one schedule on every completed trace."""
    sums = [per_request(schedule(trace)) for trace in traces]
    return Sums(
        np.stack([one.decode_s for one in sums]),
        np.stack([one.rounds.astype(np.float64) for one in sums]),
    )


def left_open(
    completed: Completed,
    schedules: Mapping[str, Schedule],
    *,
    reference: str,
    plain_s_per_token: float | None = None,
    resamples: int = RESAMPLES,
) -> Censoring:
    """What censoring leaves open about these schedules, on the requests of `completed`.

    reference: the schedule of vs_fixed, one of them. Speed-ups are over the schedule "never", or
    over plain decoding at plain_s_per_token if its engine is another one.
    """
    chosen = completed.traces[0]
    played = {name: play(schedule, completed.traces) for name, schedule in schedules.items()}
    if plain_s_per_token is None:
        base = played["never"].seconds
    else:
        plain = plain_s_per_token * chosen.reply_tokens
        base = np.broadcast_to(plain, played[reference].seconds.shape)
    draws = len(completed.traces) - 2
    weights = bootstrap_weights(
        [question_of(request_id) for request_id in chosen.request_id],
        seed=completed.seed,
        resamples=max(1, resamples // draws),
    )
    rated = _Rated(chosen.reply_tokens, base, played[reference].seconds, weights)
    category = np.asarray(chosen.category)
    tasks = {task: category == task for task in dict.fromkeys(chosen.category)}
    return Censoring(
        rows=tuple(_open(name, sums, rated, tasks) for name, sums in played.items()),
        reference=reference,
        draws=draws,
        unknown=completed.unknown,
        positions=chosen.positions,
        spread=completed.spread,
    )


class _Rated(NamedTuple):
    """Tokens [R], the seconds [2 + M, R] of baseline and reference, bootstrap weights [B, R]."""

    tokens: npt.NDArray[np.int64]
    base: FloatArray
    reference: FloatArray
    weights: FloatArray


def _open(name: str, sums: Sums, rated: _Rated, tasks: dict[str, npt.NDArray[np.bool_]]) -> Open:
    seconds = sums.seconds
    vs_fixed = spans(divide(rated.reference.sum(axis=1), seconds.sum(axis=1)))
    speedup = spans(divide(rated.base.sum(axis=1), seconds.sum(axis=1)))
    vs_others = _others(rated.reference, seconds, rated.weights, vs_fixed.value)
    return Open(
        name=name,
        tokens_per_s=spans(divide(rated.tokens.sum(), seconds.sum(axis=1))),
        tokens_per_round=spans(divide(rated.tokens.sum(), sums.rounds.sum(axis=1))),
        speedup=speedup,
        speedup_others=_others(rated.base, seconds, rated.weights, speedup.value),
        vs_fixed=vs_fixed,
        vs_fixed_others=vs_others,
        verdict=verdict(vs_others),
        tasks={
            task: spans(divide(rated.base[:, of].sum(axis=1), seconds[:, of].sum(axis=1)))
            for task, of in tasks.items()
        },
    )


def _others(above: FloatArray, below: FloatArray, weights: FloatArray, value: float) -> Estimate:
    """Ratio of sums over resamples of the questions and imputations alike."""
    ratios = divide(weights @ above[2:].T, weights @ below[2:].T)
    return estimate(value, ratios.ravel())
