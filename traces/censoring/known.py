"""Censored traces: what is known, what may be behind the rest, and completed traces.

A fully accepted round says only "at least that many": nobody proposed a token for its bonus
position. Whether a position is unknown follows from the flags that the recorder saw before it, by
the recorder's own rule. It is therefore ignorable for a model of each flag given *all* flags before
it (missing at random, Rubin 1976), and not for averages that forget them: unknown positions sit
behind runs of accepted tokens, in easy text. What no model can know is a position that the recorder
never looks at; see docs/censoring.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from traces.censoring import imputation
from traces.censoring.imputation import FloatArray, Regimes, Replies
from traces.importers.flags import ACCEPTED, REJECTED, UNKNOWN, Flags, accept_lengths
from traces.roundlog import RoundLog
from traces.schema import Trace, TraceError
from traces.split import named_generator, question_of

IntArray = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

ALL_STOP, ALL_GO_ON = "all censored positions stop", "all censored positions go on"
REHEARSED = ((1, False), (2, False), (3, False), (5, False), (5, True))  # recorders: gamma, follow
_CELLS = 20_000_000  # numbers held at once


def flags_of(trace: Trace) -> Flags:
    """[N] 1 where a draft would be accepted, 0 where rejected, -1 where nobody knows."""
    stops = np.zeros(trace.positions, np.bool_) if trace.censored is None else trace.censored
    flags = np.where(trace.accept_len > 0, ACCEPTED, np.where(stops, UNKNOWN, REJECTED))
    return flags.astype(np.int8)


def completed(trace: Trace, flags: Flags, how: dict[str, Any]) -> Trace:
    """The trace with these flags, none unknown, in place of its own; `how` goes into its source."""
    accept_len, censored = accept_lengths(flags, trace.offsets)
    if censored.any():
        raise TraceError("a completed trace cannot hold unknown flags")
    meta = dataclasses.replace(
        trace.meta, exactness="imputed", source=trace.meta.source | {"completed": how}
    )
    return dataclasses.replace(trace, meta=meta, accept_len=accept_len, censored=None)


def bounds(trace: Trace) -> tuple[Trace, Trace]:
    """Every censored position stops; every one goes on, to the next rejection or the reply's end.

    accept_len of the truth lies between the two at every position. A replay of a controller does
    not have to: another length here shifts where its later rounds start.
    """
    flags = flags_of(trace)
    unknown = flags == UNKNOWN
    stop = np.where(unknown, np.int8(REJECTED), flags)
    go_on = np.where(unknown, np.int8(ACCEPTED), flags)
    return (
        completed(trace, stop, {"rule": ALL_STOP}),
        completed(trace, go_on, {"rule": ALL_GO_ON}),
    )


def censor(trace: Trace, log: RoundLog) -> Trace:
    """What a recorder of these rounds would have seen of a complete trace: no signals, and unknown
    flags where nothing was drafted.

    Raises TraceError if the rounds are not of this trace.
    """
    start = trace.offsets[log.request] + log.context_tokens - trace.prompt_tokens[log.request]
    end = trace.offsets[log.request.astype(np.int64) + 1]
    accepted = np.minimum(log.drafted, trace.accept_len[np.minimum(start, trace.positions - 1)])
    if (start < 0).any() or (start >= end).any() or (accepted != log.accepted).any():
        raise TraceError("these rounds were not played on this trace")
    seen = np.minimum(np.minimum(log.drafted, accepted + 1), end - start)
    edges = np.zeros(trace.positions + 1, dtype=np.int64)
    np.add.at(edges, start, 1)
    np.add.at(edges, start + seen, -1)
    known = edges.cumsum()[:-1] > 0
    flags = np.where(known, flags_of(trace), np.int8(UNKNOWN))
    accept_len, censored = accept_lengths(flags, trace.offsets)
    source = trace.meta.source | {"recorder": str(log.meta.get("policy", ""))}
    return dataclasses.replace(
        trace,
        meta=dataclasses.replace(trace.meta, exactness="censored", source=source),
        accept_len=accept_len,
        censored=censored,
        top1_prob=None,
        entropy=None,
        accept_prob=None,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Survival:
    """Kaplan-Meier estimate of P(A >= d), D depths.

    at_risk, stopped [D]: starts whose flag d tokens on was reached and is known, and those rejected
    there. survival, error [D+1]: P(A >= d) and its standard error by Greenwood's formula; NaN
    behind the last depth that anybody reached.
    """

    at_risk: IntArray
    stopped: IntArray
    survival: FloatArray
    error: FloatArray


def survival(trace: Trace, starts: IntArray | None = None, depth: int | None = None) -> Survival:
    """Kaplan & Meier (1958) over rounds that start at `starts` (default: at every position).

    A censored run and one that meets the end of its reply leave the risk set where they end. Right
    only if those runs would have gone on like the others of their length, which an adaptive
    recorder breaks: compare `by_run`. Greenwood's error takes starts as independent: for starts of
    recorded rounds (they do not overlap) that is nearly so, for every position it is far too small.
    """
    rows = np.arange(trace.positions) if starts is None else np.asarray(starts, dtype=np.int64)
    run = trace.accept_len[rows].astype(np.int64)
    end = np.repeat(trace.offsets[1:], trace.reply_tokens)[rows]
    ends = run >= end - rows
    cut = ends if trace.censored is None else ends | trace.censored[rows]
    depths = trace.meta.depth if depth is None else depth
    ladder = np.arange(depths)[:, None]
    stopped = ((run == ladder) & ~cut).sum(axis=1)
    at_risk = (run > ladder).sum(axis=1) + stopped
    with np.errstate(divide="ignore", invalid="ignore"):
        passing = np.where(at_risk > 0, 1.0 - stopped / at_risk, np.nan)
        terms = np.where(
            at_risk > stopped, stopped / (at_risk * (at_risk - stopped).astype(float)), 0.0
        )
    alive = np.concatenate([[1.0], np.cumprod(passing)])
    error = alive * np.sqrt(np.concatenate([[0.0], np.cumsum(terms)]))
    return Survival(at_risk.astype(np.int64), stopped.astype(np.int64), alive, error)


@dataclasses.dataclass(frozen=True, eq=False)
class ByRun:
    """Acceptance by the accepted flags known right before a position, 0, 1, ... C ("C or more").

    accepted, rejected, unknown [C+1]: positions. rate, error [C+1]: accepted of the known, with
    its binomial standard error; NaN where none is known. `uncovered`: unknown positions behind runs
    for which not one flag is known: for those every estimate is an extrapolation.
    """

    accepted: IntArray
    rejected: IntArray
    unknown: IntArray
    rate: FloatArray
    error: FloatArray

    @property
    def uncovered(self) -> int:
        """Unknown positions whose run length has no known position."""
        return int(self.unknown[self.accepted + self.rejected == 0].sum())


def by_run(trace: Trace, longest: int = 8, task: str | None = None) -> ByRun:
    """The conditioning that makes most of the censoring ignorable, as a table; of one task or all.

    An unknown position sits behind a run of accepted tokens; other positions behind equally long
    runs are known, because another round's draft went deeper. A fixed recorder of length C has none
    such behind runs of C: then see `ByRun.uncovered`.
    """
    flags = flags_of(trace)
    begin = np.repeat(trace.offsets[:-1], trace.reply_tokens)
    places = np.arange(trace.positions)
    breaks = np.where(flags == ACCEPTED, -1, places)
    last = np.concatenate([[-1], np.maximum.accumulate(breaks)[:-1]])
    run = np.minimum(places - np.maximum(last + 1, begin), longest)
    of_task = np.repeat([task is None or c == task for c in trace.category], trace.reply_tokens)
    accepted, rejected, unknown = (
        np.bincount(run[of_task & (flags == flag)], minlength=longest + 1).astype(np.int64)
        for flag in (ACCEPTED, REJECTED, UNKNOWN)
    )
    known = accepted + rejected
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.where(known > 0, accepted / known, np.nan)
        error = np.sqrt(rate * (1 - rate) / known)
    return ByRun(accepted, rejected, unknown, rate, error)


class Spread(NamedTuple):
    """Standard deviations by which bonus positions miss the model, in log-odds of acceptance: of
    each task on its own, and of all tasks together.
    """

    task: float
    common: float


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """What fills in a trace: `fitted` regimes, and how far to trust them (see `rehearse`)."""

    fitted: Regimes
    spread: Spread
    replies: Replies


def learn(trace: Trace, seed: int = 0) -> Model:
    """Fit the regimes to the known flags of a trace, and test them by hiding some of those."""
    flags = flags_of(trace)
    replies = imputation.lay_out(flags[None], trace.offsets, trace.category)
    ones = np.ones((1, trace.requests))
    fitted = imputation.fit(replies, ones, imputation.first_guess(len(replies.tasks)), 40)
    return Model(fitted, rehearse(trace, replies, fitted, seed), replies)


def rehearse(trace: Trace, replies: Replies, fitted: Regimes, seed: int) -> Spread:
    """How far off the model is at bonus positions, beyond chance.

    The known flags where recorders of fixed length 1, 2, 3 and 5 and one that follows the text
    would have had their bonus tokens are hidden as well, the model is fitted again without them,
    and its chances are held against what was hidden.
    """
    flags = flags_of(trace)
    untilted = np.zeros((1, trace.requests))
    drawn = imputation.draw(replies, fitted, untilted, named_generator(seed, "rehearse"))
    filled = np.where(flags == UNKNOWN, replies.flat(drawn)[0], flags)
    hidden = np.stack([bonus_positions(filled, trace.offsets, *rule) for rule in REHEARSED])
    hidden &= flags != UNKNOWN
    fewer = imputation.lay_out(
        np.where(hidden, np.int8(UNKNOWN), flags), trace.offsets, trace.category
    )
    again = imputation.fit(fewer, np.ones((len(hidden), trace.requests)), fitted, 15)
    chance = fewer.flat(imputation.chances(fewer, again))
    task = np.repeat([replies.tasks.index(c) for c in trace.category], trace.reply_tokens)
    missed, noise = np.zeros((2, len(hidden), len(replies.tasks)))
    for row, mask in enumerate(hidden):
        p = chance[row, mask]
        missed[row] = np.bincount(task[mask], flags[mask] - p, len(replies.tasks))
        noise[row] = np.bincount(task[mask], p * (1 - p), len(replies.tasks))
    return spread_of(missed, noise)


def spread_of(missed: FloatArray, noise: FloatArray) -> Spread:
    """Moment estimates from [recorders, T] sums of (flag - chance) and of chance (1 - chance).

    A shift x of log-odds moves a sum by x times its noise, so (missed / noise)^2 is x^2 + 1 / noise
    on average. What the tasks' own shifts leave in a recorder's sum over all tasks is taken off.
    """
    task = max(0.0, _over(missed**2 - noise, noise**2))
    left = missed.sum(axis=1) ** 2 - noise.sum(axis=1) - task * (noise**2).sum(axis=1)
    common = max(0.0, _over(left, noise.sum(axis=1) ** 2))
    return Spread(float(np.sqrt(task)), float(np.sqrt(common)))


def _over(above: FloatArray, below: FloatArray) -> float:
    """Mean of above / below, each weighed by the root of below; 0 where nothing was hidden."""
    seen = below > 0
    weight = np.sqrt(below[seen])
    return float((above[seen] / weight).sum() / weight.sum()) if seen.any() else 0.0


def bonus_positions(flags: Flags, offsets: IntArray, gamma: int, follow: bool = False) -> Mask:
    """[N] true where a recorder has its bonus tokens; flags all known.

    It drafts gamma tokens; if it follows, then next (gamma + accepted + 1) / 2, rounded up.
    """
    accept_len, _ = accept_lengths(flags, offsets)
    runs = accept_len.tolist()
    bonus = np.zeros(len(flags), dtype=np.bool_)
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        at, drafted = begin, gamma
        while at < end:
            accepted = min(drafted, runs[at])
            if accepted == drafted and at + drafted < end:
                bonus[at + drafted] = True
            at += accepted + 1
            drafted = (drafted + accepted + 2) // 2 if follow else gamma
    return bonus


def imputations(
    trace: Trace, draws: int, seed: int = 0, *, model: Model | None = None
) -> list[Trace]:
    """`draws` completed traces: every unknown flag drawn, no known flag touched.

    Each draw has regimes of its own, fitted to a resample of the questions, and shifts of its own
    of the unknown flags, by task and in common, with the model's spread. So the draws differ by
    what the model does not know as well as by chance (proper multiple imputation, Rubin 1987).
    Equal seeds give equal bytes. A trace without unknown flags is its own completion.
    """
    model = learn(trace, seed) if model is None else model
    flags, replies = flags_of(trace), model.replies
    unknown = flags == UNKNOWN
    cells = replies.flags.size * model.fitted.start.shape[-1]
    weights = _resampled(trace, draws, seed)
    made = []
    for first in range(0, draws, max(1, _CELLS // cells)):
        batch = weights[first : first + max(1, _CELLS // cells)]
        generator = named_generator(seed, f"impute {first}")
        fitted = imputation.fit(replies, batch, model.fitted, 15)
        shift = generator.normal(0.0, model.spread.task, (len(batch), len(replies.tasks)))
        shift += generator.normal(0.0, model.spread.common, (len(batch), 1))
        drawn = replies.flat(imputation.draw(replies, fitted, shift[:, replies.task], generator))
        for row, values in enumerate(drawn):
            how = {"rule": "hidden regimes", "seed": seed, "draw": first + row, "of": draws}
            how |= {"unknown": int(unknown.sum()), "spread": [round(s, 4) for s in model.spread]}
            made.append(completed(trace, np.where(unknown, values, flags).astype(np.int8), how))
    return made


def impute(trace: Trace, seed: int = 0) -> Trace:
    """One completed trace, seeded and marked; see `imputations`."""
    return imputations(trace, 1, seed)[0]


def _resampled(trace: Trace, draws: int, seed: int) -> FloatArray:
    """[draws, R] how often each reply occurs when the questions are drawn with replacement."""
    names: Sequence[str] = [question_of(request_id) for request_id in trace.request_id]
    index = np.unique(np.asarray(names), return_inverse=True)[1]
    count = int(index.max()) + 1
    generator = named_generator(seed, "questions")
    drawn = generator.multinomial(count, np.full(count, 1.0 / count), draws)
    return np.asarray(drawn[:, index], dtype=np.float64)
