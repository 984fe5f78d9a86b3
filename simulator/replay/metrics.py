"""Metrics of a RoundLog: tokens, seconds, waste, and the distance to the best possible.

Letters: K rounds, R requests (the length of prefill_s). Two bases, always named: *decode* seconds
are the sum of elapsed_s over a request's rounds, *total* seconds add its prefill. Regret and
headroom are about decode seconds: no controller can change the prefill. Two logs are compared
only if they cover the same requests and emitted the same tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from traces.errors import InputError
from traces.roundlog import RoundLog

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class PerRequest:
    """Sums over the rounds of each request, all [R]; zeros for one without a round (cut off).

    rounds: int64, as all counts.
    tokens: emitted.
    drafted, accepted: tokens.
    gamma: sum of the caps in force.
    decode_s: seconds of the rounds.
    prefill_s: seconds before the first round.
    first_round_s: seconds of the first round alone.
    """

    rounds: IntArray
    tokens: IntArray
    drafted: IntArray
    accepted: IntArray
    gamma: IntArray
    decode_s: FloatArray
    prefill_s: FloatArray
    first_round_s: FloatArray

    @property
    def total_s(self) -> FloatArray:
        """[R] seconds with prefill."""
        return self.prefill_s + self.decode_s

    @property
    def tokens_per_s(self) -> FloatArray:
        """[R] emitted tokens per decode second."""
        return _ratio(self.tokens, self.decode_s)

    @property
    def ttft_s(self) -> FloatArray:
        """[R] time to first token: prefill and the first round, whose tokens arrive together."""
        return self.prefill_s + self.first_round_s

    @property
    def tpot_s(self) -> FloatArray:
        """[R] time per output token: decode seconds per emitted token."""
        return _ratio(self.decode_s, self.tokens)


def _ratio(above: npt.NDArray[np.generic], below: npt.NDArray[np.generic]) -> FloatArray:
    """above / below, NaN where below is 0."""
    top, bottom = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    quotient = np.full(top.shape, np.nan)
    np.divide(top, bottom, out=quotient, where=bottom != 0)
    return quotient


def per_request(log: RoundLog) -> PerRequest:
    """Sums by request."""
    count = len(log.prefill_s)

    def total(column: npt.NDArray[np.int32]) -> IntArray:
        # Sums of integers below 2**53 are exact in float64.
        return np.bincount(log.request, weights=column, minlength=count).astype(np.int64)

    first = np.zeros(count)
    decode = np.bincount(log.request, weights=log.elapsed_s, minlength=count)
    seen, rows = np.unique(log.request, return_index=True)
    first[seen] = log.elapsed_s[rows]
    return PerRequest(
        rounds=np.bincount(log.request, minlength=count).astype(np.int64),
        tokens=total(log.emitted),
        drafted=total(log.drafted),
        accepted=total(log.accepted),
        gamma=total(log.gamma),
        decode_s=decode.astype(np.float64),
        prefill_s=log.prefill_s,
        first_round_s=first,
    )


@dataclasses.dataclass(frozen=True)
class Summary:
    """One log (or the requests of one category) in numbers; NaN where nothing was counted.

    tokens_per_s: token-weighted, all tokens over all decode seconds.
    tokens_per_total_s: prefill included.
    ttft_s: mean over requests.
    tpot_s: decode seconds per token, token-weighted.
    acceptance_rate: accepted / drafted.
    tokens_per_round: emitted / rounds.
    mean_gamma: mean cap in force.
    wasted_drafts: drafted - accepted, tokens.
    """

    requests: int
    rounds: int
    tokens: int
    decode_s: float
    prefill_s: float
    tokens_per_s: float
    tokens_per_total_s: float
    ttft_s: float
    tpot_s: float
    acceptance_rate: float
    tokens_per_round: float
    mean_gamma: float
    wasted_drafts: int


def summarize(log: RoundLog, rows: Sequence[int] | IntArray | None = None) -> Summary:
    """The summary of a log, or of the requests `rows` of it."""
    sums = per_request(log)
    keep = np.arange(len(sums.rounds)) if rows is None else np.asarray(rows, dtype=np.int64)
    rounds, tokens = int(sums.rounds[keep].sum()), int(sums.tokens[keep].sum())
    drafted, accepted = int(sums.drafted[keep].sum()), int(sums.accepted[keep].sum())
    decode_s, prefill_s = float(sums.decode_s[keep].sum()), float(sums.prefill_s[keep].sum())
    return Summary(
        requests=len(keep),
        rounds=rounds,
        tokens=tokens,
        decode_s=decode_s,
        prefill_s=prefill_s,
        tokens_per_s=_per(tokens, decode_s),
        tokens_per_total_s=_per(tokens, decode_s + prefill_s),
        ttft_s=_per(float(sums.ttft_s[keep].sum()), len(keep)),
        tpot_s=_per(decode_s, tokens),
        acceptance_rate=_per(accepted, drafted),
        tokens_per_round=_per(tokens, rounds),
        mean_gamma=_per(int(sums.gamma[keep].sum()), rounds),
        wasted_drafts=drafted - accepted,
    )


def _per(above: float, below: float) -> float:
    return above / below if below else float("nan")


def summarize_categories(log: RoundLog, category: Sequence[str]) -> dict[str, Summary]:
    """The summary of each category (R names, one per request), in order of first appearance."""
    if len(category) != len(log.prefill_s):
        raise InputError(f"{len(category)} category names for {len(log.prefill_s)} requests")
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(category):
        rows.setdefault(name, []).append(row)
    return {name: summarize(log, keep) for name, keep in rows.items()}


def paired(log: RoundLog, baseline: RoundLog) -> tuple[PerRequest, PerRequest]:
    """Both logs by request; raises InputError unless request by request the tokens agree."""
    ours, theirs = per_request(log), per_request(baseline)
    if len(ours.tokens) != len(theirs.tokens):
        raise InputError(
            f"logs of {len(ours.tokens)} and {len(theirs.tokens)} requests cannot be paired"
        )
    differing = np.flatnonzero(ours.tokens != theirs.tokens)
    if len(differing):
        row = int(differing[0])
        raise InputError(
            f"request {row} has {ours.tokens[row]} tokens in one log and {theirs.tokens[row]} in "
            "the other; compare runs of the same replies"
        )
    return ours, theirs


def same_rounds(log: RoundLog, other: RoundLog) -> bool:
    """Round by round as many tokens drafted and emitted."""
    return np.array_equal(log.drafted, other.drafted) and np.array_equal(log.emitted, other.emitted)


def regret_s(log: RoundLog, clairvoyant: RoundLog) -> FloatArray:
    """[R] decode seconds lost against the clairvoyant schedule."""
    ours, best = paired(log, clairvoyant)
    return ours.decode_s - best.decode_s


def headroom_captured(log: RoundLog, reference: RoundLog, clairvoyant: RoundLog) -> float:
    """(t_reference - t_log) / (t_reference - t_clairvoyant): 0 as good as the reference, 1 as good
    as possible; negative: worse than the reference. NaN if the reference leaves no headroom.
    """
    ours, best = paired(log, clairvoyant)
    theirs, _ = paired(reference, clairvoyant)
    start, end = float(theirs.decode_s.sum()), float(best.decode_s.sum())
    return _per(start - float(ours.decode_s.sum()), start - end)
