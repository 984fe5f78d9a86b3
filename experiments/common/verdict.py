"""The ratio of two policies of one sitting, its intervals, and the word that it deserves.

Letters: R requests, P repeats, T = P R turns. A ratio is tokens/s over tokens/s. Two intervals:
*time* is about these very replies, so that only the clock's chance is in it; *others* is about
other questions as well. A prediction for these replies is held against the first, what is said of a
pair of models against the second.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from experiments.common.statistics import (
    ALONE_Z,
    NO_SPREAD,
    POWER_Z,
    Estimate,
    divide,
    estimate,
    kendall_tau,
)

FloatArray = npt.NDArray[np.float64]

CONFIRMED = "confirmed"
CONTRADICTED = "contradicted"
NOISY = "too noisy to say"
PLACEBO_CONFIDENCE = 0.99  # it voids the whole sitting: once in a hundred by chance


@dataclasses.dataclass(frozen=True, eq=False)
class Turns:
    """The turns of one seat, one by one, repeat after repeat.

    tokens, seconds, priced [T]: emitted, measured, and what the timing charges for the rounds that
    ran, own arithmetic included.
    """

    tokens: FloatArray
    seconds: FloatArray
    priced: FloatArray

    @property
    def tokens_per_s(self) -> float:
        """Of all turns."""
        return float(self.tokens.sum() / self.seconds.sum())

    def plus(self, other: Turns) -> Turns:
        """Turn by turn, both seats together."""
        return Turns(
            self.tokens + other.tokens, self.seconds + other.seconds, self.priced + other.priced
        )


@dataclasses.dataclass(frozen=True)
class Ratio:
    """`policy` over `reference` in one sitting.

    predicted: of the replay of the same replies in the same order, on the same clock.
    timing_error: standard error of its logarithm that the timing's own repeats give it, NaN if not
        known. measured.
    time, others: see the module.
    detectable_percent: the smallest gain that the sitting could have found 8 times in 10, other
        questions allowed for.
    agrees: the prediction lies inside the interval (time; where replies are drawn anew: others),
        widened by timing_error.
    word: see `word_for`.
    """

    policy: str
    reference: str
    predicted: float
    timing_error: float
    measured: float
    time: Estimate
    others: Estimate
    detectable_percent: float
    agrees: bool
    word: str


def time_error(ours: Turns, theirs: Turns) -> float:
    """Standard error of the log ratio of seconds, from the clock alone.

    A turn's share of all seconds differs from its share of the priced ones by chance (and by what
    the cost model misses from turn to turn, so that this is no underestimate). What slows
    neighbours alike cancels in the difference of the two policies. NaN for a single turn.
    """
    count = len(ours.seconds)
    if count < 2:
        return float("nan")
    apart = _surprise(ours) - _surprise(theirs)
    return math.sqrt(float((apart**2).sum()) * count / (count - 1))


def _surprise(turns: Turns) -> FloatArray:
    """[T] measured minus priced share of the seconds, sum 0."""
    surprise: FloatArray = turns.seconds / turns.seconds.sum() - turns.priced / turns.priced.sum()
    return surprise


def around(value: float, error: float, count: int, confidence: float = 0.95) -> Estimate:
    """value x exp(-+ t error), Student's t of count - 1 degrees."""
    from scipy.stats import t as student

    if not math.isfinite(error):
        return Estimate(value, float("nan"), float("nan"))
    reach = float(student.ppf(0.5 + confidence / 2, count - 1)) * error
    return Estimate(value, value * math.exp(-reach), value * math.exp(reach))


def by_request(values: FloatArray, requests: int) -> FloatArray:
    """[T] -> [R]: the repeats of a request together."""
    together: FloatArray = values.reshape(-1, requests).sum(axis=0)
    return together


def ratio_of(
    names: tuple[str, str],
    ours: Turns,
    theirs: Turns,
    predicted: float,
    timing_error: float,
    weights: FloatArray,
    *,
    redrawn: bool,
    judgeable: bool,
) -> Ratio:
    """Judge one pair. weights: [B, R] bootstrap weights of the requests. redrawn: replies are drawn
    anew, not the recording's. judgeable: enough questions, and the placebo was a tie.
    """
    requests = weights.shape[1]
    measured = ours.tokens_per_s / theirs.tokens_per_s
    error = time_error(ours, theirs)
    time = around(measured, error, len(ours.seconds))
    speeds = [
        divide(weights @ by_request(t.tokens, requests), weights @ by_request(t.seconds, requests))
        for t in (ours, theirs)
    ]
    drawn = divide(speeds[0], speeds[1])
    others = estimate(measured, drawn)
    finite = drawn[np.isfinite(drawn)]
    spread = float(np.log(finite).std(ddof=1)) if len(finite) > 1 else math.nan
    held = others if redrawn else time
    agrees = inside(predicted, held, timing_error)
    return Ratio(
        *names,
        predicted=predicted,
        timing_error=timing_error,
        measured=measured,
        time=time,
        others=others,
        detectable_percent=100 * (ALONE_Z + POWER_Z) * spread,
        agrees=agrees,
        word=word_for(predicted, agrees, others) if judgeable else NOISY,
    )


def inside(predicted: float, interval: Estimate, timing_error: float) -> bool:
    """The prediction lies in the interval once the timing's own error is added to it in squares."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return False
    known = timing_error if math.isfinite(timing_error) else 0.0
    off = math.log(predicted / interval.value)
    half = math.log(interval.high / interval.value if off > 0 else interval.value / interval.low)
    return abs(off) <= max(math.hypot(half, ALONE_Z * known), NO_SPREAD)


def word_for(predicted: float, agrees: bool, others: Estimate) -> str:
    """The word for a predicted ratio.

    Contradicted: the measurement excludes it. Confirmed: the measurement agrees, and its interval
    over other questions excludes 1 on the predicted side. Else too noisy to say.
    """
    if not (math.isfinite(others.low) and math.isfinite(others.high)):
        return NOISY
    if not agrees:
        return CONTRADICTED
    right = others.low > 1.0 if predicted > 1.0 else others.high < 1.0
    return CONFIRMED if right else NOISY


def is_tie(placebo: Turns, baseline: Turns) -> bool:
    """The placebo cannot be told from its baseline; never so with a single turn."""
    measured = placebo.tokens_per_s / baseline.tokens_per_s
    found = around(
        measured, time_error(placebo, baseline), len(placebo.seconds), PLACEBO_CONFIDENCE
    )
    return found.low <= 1.0 <= found.high


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Do the predicted and the measured order agree? Over the pairs of policies whose predicted
    ratio is larger than what could have been found between them, of all pairs.

    tau: Kendall's, over those pairs (concordant less discordant over all); low, high: 95 %, the
    questions resampled. NaN without a pair.
    """

    tau: float
    low: float
    high: float
    pairs: int
    of: int


def rank_agreement(
    predicted: Mapping[str, float], turns: Mapping[str, Turns], weights: FloatArray
) -> Ranking:
    """Of these policies: predicted tokens/s and what they did. weights [B, R]."""
    names, requests = list(predicted), weights.shape[1]
    drawn = {
        name: divide(
            weights @ by_request(turns[name].tokens, requests),
            weights @ by_request(turns[name].seconds, requests),
        )
        for name in names
    }
    pairs = [(a, b) for k, a in enumerate(names) for b in names[:k]]
    apart = []
    for a, b in pairs:
        least = (ALONE_Z + POWER_Z) * time_error(turns[a], turns[b])
        if abs(math.log(predicted[a] / predicted[b])) > least:
            apart.append((a, b))
    if not apart:
        return Ranking(float("nan"), float("nan"), float("nan"), 0, len(pairs))
    signs = [math.copysign(1.0, predicted[a] - predicted[b]) for a, b in apart]
    value = np.mean(
        [s * np.sign(turns[a].tokens_per_s - turns[b].tokens_per_s)
         for s, (a, b) in zip(signs, apart, strict=True)]
    )  # fmt: skip
    resampled = np.mean(
        [s * np.sign(drawn[a] - drawn[b]) for s, (a, b) in zip(signs, apart, strict=True)], axis=0
    )
    held = estimate(float(value), resampled)
    return Ranking(held.value, held.low, held.high, len(apart), len(pairs))


def tau_of_all(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """Kendall's tau-b over all pairs, NaN for fewer than two."""
    return kendall_tau(predicted, measured) if len(predicted) > 1 else float("nan")
