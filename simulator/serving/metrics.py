"""Metrics of a served workload: latencies, throughput, goodput, waste, load, fairness.

Definitions. TTFT: from a request's arrival to the end of the iteration that gave its first tokens.
Queueing: from its arrival to its slot. End to end: from its arrival to its last token. TPOT: (end
to end - TTFT) / (tokens - 1), as servers report it. Gap: between two iterations that gave a request
tokens, which is what a reader of a stream waits for. Goodput: requests per second that kept both
objectives. Letters: Q requests.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from simulator.serving.counters import FINEST_GAP_S, GAPS_PER_DOUBLING
from simulator.serving.result import ServingResult
from traces.errors import InputError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
QUANTILES = (0.5, 0.9, 0.99)


@dataclasses.dataclass(frozen=True)
class Objective:
    """Service level objective: the longest TTFT and TPOT, seconds. Raises InputError if below 0."""

    ttft_s: float = math.inf
    tpot_s: float = math.inf

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0.0:
                raise InputError(f"objective: {name} is {value}; give seconds, 0 or more")


ANYTHING = Objective()


@dataclasses.dataclass(frozen=True)
class LatencySummary:
    """Of one latency over requests, seconds: mean and quantiles."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclasses.dataclass(frozen=True)
class ServingMetrics:
    """One run.

    span_s: from the first arrival that counts to the last token.
    tokens_per_s, requests_per_s: of finished requests over span_s.
    goodput_per_s: those of them within the objective.
    goodput_share: of all requests that count, unfinished ones included.
    gap_p50_s, gap_p99_s: to 4 % (the bins).
    worst_gap_s: longest gap of any request.
    wasted_drafts: tokens drafted in vain per emitted one, those drafted ahead included.
    wasted_verifies: verified in vain.
    utilisation: busy share of the machine.
    mean_running, mean_waiting (for a first slot): requests, over busy time.
    peak_blocks: share of the budget (0 without one).
    mean_blocks: over busy time.
    fairness: Jain's index of the requests' seconds per token, 1 if all are alike (Jain, Chiu and
        Hawe, DEC-TR-301, 1984).
    """

    requests: int
    finished: int
    span_s: float
    tokens_per_s: float
    requests_per_s: float
    goodput_per_s: float
    goodput_share: float
    ttft: LatencySummary
    tpot: LatencySummary
    end_to_end: LatencySummary
    queueing: LatencySummary
    gap_p50_s: float
    gap_p99_s: float
    worst_gap_s: float
    tokens_per_round: float
    mean_drafted: float
    acceptance: float
    wasted_drafts: float
    wasted_verifies: float
    utilisation: float
    mean_running: float
    mean_waiting: float
    peak_blocks: float
    mean_blocks: float
    preemptions: int
    fairness: float


def serving_metrics(
    served: ServingResult, objective: Objective = ANYTHING, *, warmup: float = 0.0
) -> ServingMetrics:
    """Sum a run up. warmup: share of the requests, by number, that fill the server and count in
    totals only.
    """
    first = int(len(served.arrival_s) * warmup)
    known = np.isfinite(served.arrival_s)
    known[:first] = False
    done = known & np.isfinite(served.finish_s)
    ttft, tpot = ttft_s(served), tpot_s(served)
    kept = within(served, objective) & done
    begin = float(served.arrival_s[known].min()) if known.any() else 0.0
    end = float(served.finish_s[done].max()) if done.any() else begin
    span = end - begin
    total, bins = served.totals, served.bins
    emitted, busy = total["emitted"], float(served.busy_s.sum())
    budget = served.server.blocks
    whole = (served.finish_s - served.arrival_s)[done]
    return ServingMetrics(
        requests=int(known.sum()),
        finished=int(done.sum()),
        span_s=span,
        tokens_per_s=_over(float(served.tokens[done].sum()), span),
        requests_per_s=_over(float(done.sum()), span),
        goodput_per_s=_over(float(kept.sum()), span),
        goodput_share=_over(float(kept.sum()), float(known.sum())),
        ttft=spread(ttft[done]),
        tpot=spread(tpot[done & (served.tokens > 1)]),
        end_to_end=spread(whole),
        queueing=spread((served.admitted_s - served.arrival_s)[done]),
        gap_p50_s=gap_quantile(served, 0.5),
        gap_p99_s=gap_quantile(served, 0.99),
        worst_gap_s=float(served.longest_s.max()) if served.gaps.any() else math.nan,
        tokens_per_round=_over(float(served.tokens.sum()), float(served.rounds.sum())),
        mean_drafted=_over(float(total["drafted"]), float(served.rounds.sum())),
        acceptance=_over(float(total["accepted"]), float(total["drafted"])),
        wasted_drafts=_over(float(total["steps"] + total["ahead"] - total["accepted"]), emitted),
        wasted_verifies=_over(float(total["verified"] - total["accepted"]), emitted),
        utilisation=_over(busy, served.end_s * len(served.busy_s)),
        mean_running=_over(float(bins.running_s.sum()), busy),
        mean_waiting=_over(waited_s(served), busy),
        peak_blocks=_over(float(total["peak_blocks"]), budget) if budget else 0.0,
        mean_blocks=_over(float(bins.block_s.sum()), busy * budget) if budget else 0.0,
        preemptions=total["preemptions"],
        fairness=jain(whole / np.maximum(served.tokens[done], 1)),
    )


def ttft_s(served: ServingResult) -> FloatArray:
    """[Q] time to first token, NaN where there is none."""
    result: FloatArray = served.first_s - served.arrival_s
    return result


def tpot_s(served: ServingResult) -> FloatArray:
    """[Q] seconds per token behind the first; 0 for replies of one token, NaN if not finished."""
    result: FloatArray = (served.finish_s - served.first_s) / np.maximum(served.tokens - 1, 1)
    return result


def within(served: ServingResult, objective: Objective) -> BoolArray:
    """[Q] True where a finished request kept the objective."""
    result: BoolArray = (
        np.isfinite(served.finish_s)
        & (ttft_s(served) <= objective.ttft_s)
        & (tpot_s(served) <= objective.tpot_s)
    )
    return result


def waited_s(served: ServingResult) -> float:
    """Seconds that requests waited for their first slot, up to the end of the run."""
    came = np.isfinite(served.arrival_s) & (served.arrival_s <= served.end_s)
    until = np.where(np.isfinite(served.admitted_s), served.admitted_s, served.end_s)
    return float((until - served.arrival_s)[came].sum())


def spread(values: FloatArray) -> LatencySummary:
    """Mean and quantiles; NaN without values."""
    if len(values) == 0:
        return LatencySummary(math.nan, math.nan, math.nan, math.nan)
    return LatencySummary(float(values.mean()), *(float(q) for q in np.quantile(values, QUANTILES)))


def gap_quantile(served: ServingResult, share: float) -> float:
    """Quantile of the gaps, at the upper edge of its bin (16 to a doubling); NaN without gaps."""
    total = int(served.gaps.sum())
    if total == 0:
        return math.nan
    place = int(np.searchsorted(np.cumsum(served.gaps), math.ceil(share * total)))
    return float(FINEST_GAP_S * 2.0 ** ((place + 1) / GAPS_PER_DOUBLING))


def jain(values: FloatArray) -> float:
    """(sum x)^2 / (n sum x^2): 1 if all are alike, 1 / n if one has everything."""
    squares = float((values**2).sum())
    return float(values.sum()) ** 2 / (len(values) * squares) if squares > 0 else math.nan


def _over(above: float, below: float) -> float:
    return above / below if below else math.nan
