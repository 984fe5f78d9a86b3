"""Paired statistics over requests: bootstrap intervals of ratios, verdicts, rank agreement.

Letters: R requests, Q questions, B resamples. Requests are resampled by question, so that the turns
of one dialogue move together; where every question has one turn that is a bootstrap over requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from traces.split import named_generator

FloatArray = npt.NDArray[np.float64]

RESAMPLES = 2000
CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A value and the 95 % interval around it; NaN where it is not defined."""

    value: float
    low: float
    high: float


def bootstrap_weights(
    questions: Sequence[str], *, seed: int, resamples: int = RESAMPLES
) -> FloatArray:
    """[B, R] how often each request occurs in each resample of the questions.

    questions: R names, one per request. One matrix serves every policy, so that all comparisons
    are paired.
    """
    names, index = np.unique(np.asarray(questions), return_inverse=True)
    generator = named_generator(seed, "bootstrap")
    counts = generator.multinomial(len(names), np.full(len(names), 1.0 / len(names)), resamples)
    return counts[:, index].astype(np.float64)


def divide(above: Any, below: Any) -> FloatArray:
    """above / below elementwise, NaN where below is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(above, float), np.asarray(below, float))
    quotient = np.full(top.shape, np.nan)
    np.divide(top, bottom, out=quotient, where=bottom != 0)
    return quotient


def estimate(value: float, resampled: FloatArray) -> Estimate:
    """The percentile interval of `resampled` [B] around `value`."""
    finite = resampled[np.isfinite(resampled)]
    if not np.isfinite(value) or len(finite) == 0:
        return Estimate(float(value), float("nan"), float("nan"))
    tail = (1.0 - CONFIDENCE) / 2
    low, high = np.quantile(finite, [tail, 1.0 - tail])
    return Estimate(float(value), float(low), float(high))


def ratio_of_sums(above: FloatArray, below: FloatArray, weights: FloatArray) -> Estimate:
    """sum(above) / sum(below) over requests [R], with its interval."""
    value = float(divide(above.sum(), below.sum()))
    return estimate(value, divide(weights @ above, weights @ below))


def share_of_gap(
    start: FloatArray, ours: FloatArray, best: FloatArray, weights: FloatArray
) -> Estimate:
    """How much of the way from `start` to `best` (seconds [R]) `ours` goes: 0 none, 1 all of it."""

    def share(sums: tuple[Any, Any, Any]) -> FloatArray:
        return divide(sums[0] - sums[1], sums[0] - sums[2])

    value = float(share((start.sum(), ours.sum(), best.sum())))
    return estimate(value, share((weights @ start, weights @ ours, weights @ best)))


def verdict(ratio: Estimate) -> str:
    """ "faster" or "slower" if the interval of a speed ratio excludes 1, else "tie"."""
    if not (np.isfinite(ratio.low) and np.isfinite(ratio.high)) or ratio.low <= 1.0 <= ratio.high:
        return "tie"
    return "faster" if ratio.low > 1.0 else "slower"


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b of two rankings: 1 the same order, 0 unrelated, -1 reversed."""
    from scipy.stats import kendalltau

    return float(kendalltau(first, second).statistic)
