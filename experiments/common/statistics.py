"""Paired statistics over requests: bootstrap intervals of ratios, verdicts, rank agreement.

Letters: R requests, Q questions, B resamples, K schedules. Requests are resampled by question, so
that the turns of one dialogue move together; where every question has one turn that is a bootstrap
over requests.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from traces.split import named_generator

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

RESAMPLES = 2000
CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
POWER_Z = 0.84  # standard normal: 80 % lie below
ALONE_Z = 1.96  # and 95 % between -1.96 and 1.96
FEWEST = 5  # questions; a resample holds none of 5 with chance exp(-5)
NO_SPREAD = 1e-9  # of a log ratio, standard error: rounding, not chance
SMALLEST = 0.005  # of a speed: a sitting's standard error at its best; less is no difference
SAME, TIE, FEW = "same", "tie", "too few"
VERDICTS = {
    SAME: "the same rounds as the tuned fixed length",
    TIE: f"no difference of {100 * SMALLEST:g} % or more that is more than chance",
    FEW: f"fewer than {FEWEST} questions make the difference: not judged",
}
"""The words besides "faster" and "slower", and what they mean."""


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


def enough(questions: float) -> bool:
    """So many questions can be resampled; see FEWEST. False for NaN."""
    return questions >= FEWEST


def verdict(ratio: Estimate, questions: int) -> str:
    """Of a ratio alone: "faster" or "slower" if its interval excludes 1, else see VERDICTS."""
    if abs(ratio.value - 1.0) < SMALLEST:
        return TIE
    if not (enough(questions) and np.isfinite(ratio.low) and np.isfinite(ratio.high)):
        return FEW
    return TIE if ratio.low <= 1.0 <= ratio.high else _side(ratio.value)


def verdict_among(ratio: float, adjusted_p: float) -> str:
    """Of a speed ratio among all that were tried: "faster" or "slower" if it is significant, else
    see VERDICTS. adjusted_p: NaN if it cannot be judged.
    """
    if abs(ratio - 1.0) < SMALLEST:
        return TIE
    if math.isnan(adjusted_p):
        return FEW
    return _side(ratio) if adjusted_p < SIGNIFICANCE else TIE


def _side(ratio: float) -> str:
    return "faster" if ratio > 1.0 else "slower"


class Family(NamedTuple):
    """K speed ratios to one reference, judged together.

    adjusted_p [K]: two-sided, for all K at once; NaN where too few questions make the difference.
    critical: the |t| beyond which a steady one (see judge_together) is significant, NaN without
    any. error [K]: bootstrap standard error of each log ratio, NaN if it has no spread.
    """

    adjusted_p: FloatArray
    critical: float
    error: FloatArray

    def detectable_percent(self, z: float = ALONE_Z) -> FloatArray:
        """[K] the difference, in percent of the log ratio, that would have been found 8 times in
        10 by a test that asks for |t| >= z: (z + 0.84) standard errors. The default is the test of
        one row alone, `critical` the one behind adjusted_p.
        """
        return 100 * (z + POWER_Z) * self.error


def max_t(observed: FloatArray, resampled: FloatArray) -> tuple[FloatArray, float]:
    """Adjusted p-values [K] of the statistics |observed| [K], and the |t| beyond which one is
    significant, infinite if B is too small for any.

    resampled [B, K]: the same statistics as chance alone makes them, all K from one resample in a
    row, so that what they have in common is kept. A p-value is the share of resamples whose largest
    |t| reaches the observed one, which counts as one of them: the single-step max-t of Westfall and
    Young, Resampling-Based Multiple Testing, 1993; the share as in Romano and Wolf, Efficient
    computation of adjusted p-values, Statistics & Probability Letters 113, 2016.
    """
    largest = np.sort(np.abs(resampled).max(axis=1))[::-1]
    reached = (largest[:, None] >= np.abs(observed)).sum(axis=0)
    allowed = math.ceil(SIGNIFICANCE * (1 + len(largest))) - 2  # resamples that may reach it
    critical = float(largest[allowed]) if allowed >= 0 else math.inf
    return (1 + reached) / (1 + len(largest)), critical


def judge_together(
    reference: FloatArray,
    seconds: FloatArray,
    weights: FloatArray,
    other_error: FloatArray | float = 0.0,
) -> Family:
    """K schedules against the reference: seconds by question [K, Q] and [Q], weights [B, Q].
    other_error [K]: standard error of each log ratio that does not come from the questions; it is
    added in squares.

    t is the log of the ratio of total seconds over its standard error over questions (delta
    method), in a resample the distance from the log ratio found over the resample's own error:
    Romano and Wolf, Stepwise Multiple Testing as Formalized Data Snooping, Econometrica 73(4),
    2005. One error for all resamples would be simpler, but wrong in 11 % of worlds of 75 questions
    and 40 schedules that do nothing, where 5 % are allowed.

    Not all can be judged so, see `resting`. Resamples of one that is not steady may see hardly any
    error, and their t would set the critical value for all: so a steady one is held against the t
    of steady ones, any other, SMALLEST added to its error in squares, against the t of all.
    """
    found, error = log_ratios(reference, seconds, np.ones((1, len(reference))))
    drawn, drawn_error = log_ratios(reference, seconds, weights)
    others = np.broadcast_to(other_error, len(seconds))
    every = np.hypot(drawn.std(axis=0, ddof=1), others)
    errors = np.where(error[0] > NO_SPREAD, every, np.nan)
    judged, steady = resting(reference, seconds)
    least = np.where(steady, 0.0, SMALLEST)
    observed = divide(found[0], np.sqrt(error[0] ** 2 + others**2 + least**2))
    # A resample of one question many times has no error of its own: it may be as far as it likes.
    known, resampled = np.hypot(drawn_error, least), np.full(drawn.shape, np.inf)
    np.divide(drawn - found[0], known, out=resampled, where=known > NO_SPREAD)
    adjusted_p, critical = np.full(len(seconds), np.nan), float("nan")
    if steady.any():
        adjusted_p[steady], critical = max_t(observed[steady], resampled[:, steady])
    if (rest := judged & ~steady).any():
        adjusted_p[rest], _ = max_t(observed[rest], resampled[:, judged])
    return Family(adjusted_p, critical, errors)


def resting(reference: FloatArray, seconds: FloatArray) -> tuple[BoolArray, BoolArray]:
    """[K] twice, of schedules [K, Q] against the reference [Q]: judged and steady.

    Steady: the spread of the difference over the questions rests on FEWEST of them at least.
    Judged: that, or so many make the difference itself; the spread of a loss that is nearly the
    same everywhere may rest on one of them.
    """
    shares = reference / reference.sum() - seconds / seconds.sum(axis=1)[:, None]
    spread = np.sqrt((shares**2).sum(axis=1)) > NO_SPREAD
    steady = spread & (_parts(shares**2) >= FEWEST)
    return steady | (_parts(reference - seconds) >= FEWEST), steady


def _parts(values: FloatArray) -> FloatArray:
    """[K] of how many of the Q values [K, Q] a sum consists: (sum |x|)^2 / sum x^2, Q if all are
    alike, 1 if one is all, NaN if all are 0.
    """
    return divide(np.abs(values).sum(axis=1) ** 2, (values**2).sum(axis=1))


def log_ratios(
    reference: FloatArray, seconds: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """[B, K] log(sum of reference / sum of seconds) under each weighting, and its standard error.

    The error is the root of sum_q w_q (r_q / r - s_q / s)^2. It is taken around the unweighted
    shares, since a difference of squares would leave rounding where there is no spread.
    """
    ours, theirs = seconds.T / seconds.sum(axis=1), reference[:, None] / reference.sum()
    apart = theirs - ours
    mine, base = weights @ ours, weights @ theirs
    scale = 1.0 / base
    tilt = scale - 1.0 / mine
    squares = scale**2 * (weights @ apart**2) + 2 * scale * tilt * (weights @ (apart * ours))
    squares += tilt**2 * (weights @ ours**2)
    ratio = np.log(reference.sum() / seconds.sum(axis=1)) + np.log(base / mine)
    return ratio, np.sqrt(np.maximum(squares, 0.0))


@dataclasses.dataclass(frozen=True)
class Interval:
    """Mean over seeds with its 95 % interval (Student's t); low = high = NaN with one seed."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half its width."""
        return (self.high - self.low) / 2


def interval(values: Sequence[float]) -> Interval:
    """The interval of these values over seeds."""
    from scipy.stats import t as student

    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Interval(mean, math.nan, math.nan)
    reach = float(student.ppf(0.975, count - 1) * np.std(values, ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - reach, mean + reach)


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's tau-b of two rankings: 1 the same order, 0 unrelated, -1 reversed."""
    from scipy.stats import kendalltau

    return float(kendalltau(first, second).statistic)
