"""Speed ratios over imputations of a censored trace: Rubin's rules, judged together, or undecided.

Letters: M imputations, Q questions, K schedules, N draws of questions per imputation. Everything is
about the log of (seconds of the reference / seconds of a schedule).

*Combination*: the point is the mean over imputations, its variance the mean variance over questions
within an imputation plus (1 + 1/M) times the variance between them (Rubin, Multiple Imputation for
Nonresponse in Surveys, 1987, section 3.1). Percentiles of the M N pooled draws would be simpler,
but they take the M imputations for all there are: neither the 1/M nor the thick tails of a variance
known from M numbers is in them. Nor is Student's t the reference: a few long replies make the tails
thicker. So t is drawn: a resample has the questions of one imputation drawn again, is off by a
normal deviate with the imputations' covariance, and knows the variance between them from M - 1
deviates only (t with M - 1 degrees of freedom, where questions do not matter). Rubin's variance is
right where imputation and analysis rest on one model, and may not be elsewhere (Bartlett & Hughes,
Statistical Methods in Medical Research 29, 2020): experiments.censoring.censored_check counts its
coverage.

*Verdict*: corrected for the number of controllers over the same resamples, by single-step min-p
(Westfall & Young, Resampling-Based Multiple Testing, 1993; as intervals: Beran, Journal of the
American Statistical Association 83, 1988). Max-t, as on exact traces, asks the same |t| of every
controller: one whose difference rests on few questions, whose t reaches 8 by chance, would set it
for all. Min-p holds each against its own tail; a difference that many resamples do not have can
then never be significant, and does not stand in the way of others.

*Undecided*: another seed moves both ends of the corrected interval. By how much is known from
leaving out one imputation at a time, with its draws (jackknife). A verdict that would change if an
end moved STEADY such standard errors is not given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from experiments.common.statistics import (
    FEW,
    NO_SPREAD,
    SIGNIFICANCE,
    SMALLEST,
    TIE,
    Estimate,
    log_ratios,
    max_t,
    resting,
)
from traces.split import named_generator

FloatArray = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

LEAST = 1000  # draws of questions per imputation
FEWEST_IMPUTATIONS = 3  # without one, two are left to show a variance
STEADY = 3.0  # standard errors; the ends of 20 seeds reach over 3.7 on average, over 6 hardly ever
UNDECIDED = "undecided"


class Combined(NamedTuple):
    """[K] points (log ratios) and their standard errors."""

    point: FloatArray
    error: FloatArray

    def ends(self, critical: FloatArray) -> FloatArray:
        """[2, K] low and high end of point +- critical errors, the point where there is none."""
        far = np.where(self.error > NO_SPREAD, critical, 0.0) * self.error
        return np.stack([self.point - far, self.point + far])


def combine(points: FloatArray, within: FloatArray) -> Combined:
    """Rubin's rules for points [M, K] and their variances over questions."""
    between = (1 + 1 / len(points)) * points.var(axis=0, ddof=1)
    return Combined(points.mean(axis=0), np.sqrt(within.mean(axis=0) + between))


class Judgement(NamedTuple):
    """K schedules against the reference.

    estimates: ratio and 95 % interval of each alone. verdicts: faster, slower, undecided or one of
    experiments.common.statistics.VERDICTS; of a controller by adjusted_p, for all of them at once
    (NaN for others, and where too few questions make the difference), of any other row by its
    own interval. level: the p of its own at which a controller is significant among all, NaN
    without any.
    """

    estimates: tuple[Estimate, ...]
    verdicts: tuple[str, ...]
    adjusted_p: FloatArray
    level: float


class _Drawn(NamedTuple):
    """points, within [M, K]: of every imputation. distance, apart [M, N, K]: of its draws from it,
    and their standard errors.
    """

    points: FloatArray
    within: FloatArray
    distance: FloatArray
    apart: FloatArray

    @property
    def t(self) -> FloatArray:
        """[M, N, K] |t|. A draw of one question many times has no error: as far as it likes."""
        found = np.full(self.apart.shape, np.inf)
        np.divide(self.distance, self.apart, out=found, where=self.apart > NO_SPREAD)
        return found

    def plus(self, error: FloatArray) -> _Drawn:
        """With a further standard error [K] everywhere."""
        within, apart = self.within + error**2, np.hypot(self.apart, error)
        return self._replace(within=within, apart=apart)

    def of(self, rows: npt.NDArray[np.intp]) -> _Drawn:
        """Some of the K."""
        points, within = self.points[:, rows], self.within[:, rows]
        return _Drawn(points, within, self.distance[:, :, rows], self.apart[:, :, rows])

    def ends(self, keep: Mask, share: float) -> FloatArray:
        """[2, K] of the imputations `keep` [M], at an error of `share`."""
        found = combine(self.points[keep], self.within[keep])
        t = np.moveaxis(self.t[keep], 2, 0)
        return found.ends(np.array([beyond(one.ravel(), share) for one in t]))


def judge_imputed(
    reference: FloatArray,
    seconds: FloatArray,
    controllers: Sequence[bool] | Mask,
    *,
    seed: int,
    draws: int = LEAST,
) -> Judgement:
    """Seconds by question of the reference [M, Q] and of the schedules [M, K, Q].

    controllers [K]: who is judged together. draws: of questions, in every imputation. Who is judged
    at all, and whose error is SMALLEST at least: see experiments.common.statistics.judge_together.
    """
    drawn = _draw(reference, seconds, seed, draws)
    alone, chosen = _alone(drawn), np.asarray(controllers, dtype=np.bool_)
    judged, steady = resting(reference.mean(axis=0), seconds.mean(axis=0))
    drawn = drawn.plus(np.where(steady, 0.0, SMALLEST))
    found = combine(drawn.points, drawn.within)
    verdicts = np.where(np.abs(found.point) < SMALLEST, TIE, FEW).astype(object)
    adjusted_p, level = np.full(len(chosen), np.nan), math.nan
    others, family = np.flatnonzero(~chosen & judged), np.flatnonzero(chosen & judged)
    verdicts[others] = _steady(drawn.of(others))
    if len(family):
        members = drawn.of(family)
        flat = members.t.reshape(-1, len(family))
        observed = found.point[family] / found.error[family]
        adjusted_p[family], level, least = min_p(observed, flat)
        verdicts[family] = _steady(members, least.reshape(members.t.shape[:2]))
    return Judgement(tuple(alone), tuple(verdicts.tolist()), adjusted_p, level)


def ratios(reference: FloatArray, seconds: FloatArray, *, seed: int, draws: int) -> list[Estimate]:
    """The estimates of judge_imputed, without verdicts."""
    return _alone(_draw(reference, seconds, seed, draws))


def _alone(drawn: _Drawn) -> list[Estimate]:
    ends = drawn.ends(np.ones(len(drawn.points), dtype=np.bool_), SIGNIFICANCE)
    point = combine(drawn.points, drawn.within).point
    with np.errstate(over="ignore"):
        return [Estimate(*row) for row in np.exp(np.stack([point, *ends], axis=1)).tolist()]


def min_p(observed: FloatArray, resampled: FloatArray) -> tuple[FloatArray, float, FloatArray]:
    """Adjusted p-values [K] of |observed| [K], the p of its own below which one is significant, and
    the smallest own p [B] of every resample.

    resampled [B, K]: |t| as chance makes them. An own p is the share of resamples whose |t| is as
    large; the smallest of a resample's are then what the observed ones are held against.
    """
    count = len(resampled)
    ordered = np.sort(resampled, axis=0)

    def larger(values: FloatArray, k: int) -> FloatArray:
        return np.asarray(count - np.searchsorted(ordered[:, k], values, side="left"), float)

    columns = range(len(observed))
    own = np.stack([larger(resampled[:, k], k) / count for k in columns], axis=1)
    ours = np.array([(1 + larger(np.abs(observed[k]), k)) / (1 + count) for k in columns])
    adjusted, critical = max_t(1 / ours, 1 / own)
    return adjusted, 1 / critical, own.min(axis=1)


def _draw(reference: FloatArray, seconds: FloatArray, seed: int, draws: int) -> _Drawn:
    """Draw the questions of every imputation again, each time new ones."""
    count, questions = reference.shape
    everyone = np.ones((1, questions))
    once = [log_ratios(r, s, everyone) for r, s in zip(reference, seconds, strict=True)]
    points = np.concatenate([log_ratio for log_ratio, _ in once])
    within = np.concatenate([error**2 for _, error in once])
    centred = points - points.mean(axis=0)
    between = (1 + 1 / count) * points.var(axis=0, ddof=1)
    generator = named_generator(seed, "imputed")
    distance = np.empty((count, draws, points.shape[1]))
    apart = np.empty_like(distance)
    for m in range(count):
        weights = generator.multinomial(questions, np.full(questions, 1 / questions), draws)
        found, error = log_ratios(reference[m], seconds[m], weights.astype(np.float64))
        off = generator.normal(size=(draws, count)) @ centred / math.sqrt(count - 1)
        known = generator.chisquare(count - 1, (draws, 1)) / (count - 1) * between
        apart[m] = np.sqrt(error**2 + known)
        distance[m] = np.abs(found - points[m] + math.sqrt(1 + 1 / count) * off)
    return _Drawn(points, within, distance, apart)


def _steady(drawn: _Drawn, least: FloatArray | None = None) -> list[str]:
    """Verdicts of K rows that do not hang on an imputation. least [M, N]: the smallest own p of
    every resample, where the rows are judged together.
    """

    def ends(keep: Mask) -> FloatArray:
        share = SIGNIFICANCE
        if least is not None:
            share = 1 / beyond(1 / least[keep].ravel(), SIGNIFICANCE)
        return drawn.ends(keep, share)

    count = len(drawn.points)
    low, high = ends(np.ones(count, dtype=np.bool_))
    without = np.stack([ends(np.arange(count) != m) for m in range(count)])
    with np.errstate(invalid="ignore"):  # of ends that are infinite
        off_low, off_high = jackknife(without)
    rows = zip(low.tolist(), high.tolist(), off_low.tolist(), off_high.tolist(), strict=True)
    return [steady_verdict(*row) for row in rows]


def beyond(values: FloatArray, share: float) -> float:
    """The value above which an observed one is as rare as `share` among `values` [B], itself
    counted; infinite if B is too small. See max_t.
    """
    allowed = math.ceil(share * (1 + len(values))) - 2
    return float(-np.partition(-values, allowed)[allowed]) if allowed >= 0 else math.inf


def jackknife(without: FloatArray) -> FloatArray:
    """Standard error of a number from its M values [M, ...] with one imputation left out."""
    count = len(without)
    spread = ((without - without.mean(axis=0)) ** 2).sum(axis=0)
    return np.asarray(np.sqrt((count - 1) / count * spread))


def steady_verdict(low: float, high: float, off_low: float, off_high: float) -> str:
    """Of the interval [low, high] of a log ratio and the standard errors of its ends over seeds.

    "faster", "slower", or "tie" where it covers 0; "undecided" where an end lies too close to 0;
    "too few" where it has no end: many draws of questions do not hold the difference.
    """
    if math.isinf(low):
        return FEW
    if not min(abs(low) - STEADY * off_low, abs(high) - STEADY * off_high) > 0:
        return UNDECIDED
    if low <= 0 <= high or max(abs(low), abs(high)) < SMALLEST:
        return TIE
    return "faster" if low > 0 else "slower"
