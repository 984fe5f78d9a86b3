"""Acceptance of a censored trace without a model: Kaplan-Meier over depths, and rates by run."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from traces.censoring.known import flags_of
from traces.importers.flags import ACCEPTED, REJECTED, UNKNOWN
from traces.schema import Trace

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


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
