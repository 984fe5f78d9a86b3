"""Many rows at once: adjusted p-values by hand, by a slow reference, and against the truth."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from experiments.common import statistics
from experiments.common.statistics import (
    FEW,
    SIGNIFICANCE,
    Estimate,
    bootstrap_weights,
    interval,
    judge_together,
    max_t,
    ratio_of_sums,
    resting,
    share_of_gap,
    verdict,
    verdict_among,
)

Array = npt.NDArray[np.float64]


def world(rows: int, questions: int, seed: int, effect: float = 0.0) -> tuple[Array, Array]:
    """Seconds of a reference [Q] and of schedules [K, Q] that are `effect` faster in truth.

    Schedules share part of their noise, as controllers on the same replies do.
    """
    generator = np.random.default_rng(seed)
    own, shared = 0.15, 0.1
    noise = generator.normal(0, own, (rows, questions)) + generator.normal(0, shared, questions)
    length = generator.lognormal(0, 0.6, questions)
    seconds = length * np.exp(noise - (own**2 + shared**2) / 2) * math.exp(-effect)
    return length, seconds


def weights_of(questions: int, seed: int, resamples: int = 400) -> Array:
    return bootstrap_weights([str(k) for k in range(questions)], seed=seed, resamples=resamples)


def test_max_t_by_hand() -> None:
    resampled = np.array([[0.1, 3.0, 0.0], [-1.0, 0.2, 0.3], [0.4, -0.6, 0.7], [0.0, 0.0, -2.5]])
    # The largest of each resample: 3, 1, 0.7, 2.5; |t| = 2 is reached by two of them, 1 by three.
    adjusted, critical = max_t(np.array([2.0, -1.0, 0.5]), resampled)
    assert adjusted.tolist() == [3 / 5, 4 / 5, 5 / 5]
    assert critical == math.inf  # of four resamples nothing is significant


def test_critical_t_is_where_significance_begins() -> None:
    resampled = np.arange(1.0, 60.0)[:, None]
    # P of 59: (1 + reached) / 60 < 0.05 asks for fewer than two of them: t beyond the second.
    _, critical = max_t(np.array([1.0]), resampled)
    (at, beyond), _ = max_t(np.array([critical, critical + 0.5]), resampled)
    assert critical == 58.0 and at == 3 / 60 and beyond == 2 / 60
    assert verdict_among(1.2, at) == "tie" and verdict_among(1.2, beyond) == "faster"
    assert verdict_among(0.8, beyond) == "slower" and verdict_among(0.8, math.nan) == FEW
    assert verdict_among(1.0049, beyond) == verdict_among(0.9951, math.nan) == "tie"


def test_judging_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "FEWEST", 1)
    """Two questions; a resample of one question alone has no error of its own and may be as far
    away as it likes, so with so few questions nothing is significant.
    """
    weights = np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    found = judge_together(np.array([2.0, 2.0]), np.array([[1.0, 2.0]]), weights)
    logs = np.array([math.log(2), 0.0, math.log(4 / 3)])
    error = math.sqrt(((logs - logs.mean()) ** 2).sum() / 2)
    assert found.error.tolist() == pytest.approx([error])
    assert found.adjusted_p.tolist() == [3 / 4]
    assert found.detectable_percent().tolist() == pytest.approx([100 * (1.96 + 0.84) * error])
    assert found.detectable_percent(3.0).tolist() == pytest.approx([100 * 3.84 * error])


def slow_p(reference: Array, seconds: Array, weights: Array) -> Array:
    """judge_together with loops over questions that are really drawn."""

    def statistic(k: int, drawn: list[int], around: float) -> float:
        base, ours = sum(reference[q] for q in drawn), sum(seconds[k][q] for q in drawn)
        square = sum((reference[q] / base - seconds[k][q] / ours) ** 2 for q in drawn)
        return abs(math.log(base / ours) - around) / math.sqrt(square)

    everything = list(range(len(reference)))
    found = [math.log(reference.sum() / own.sum()) for own in seconds]
    largest = []
    for counts in weights:
        drawn = [q for q in everything for _ in range(int(counts[q]))]
        largest.append(max(statistic(k, drawn, log) for k, log in enumerate(found)))
    return np.array(
        [
            (1 + sum(t >= statistic(k, everything, 0.0) for t in largest)) / (1 + len(largest))
            for k in range(len(seconds))
        ]
    )


def test_judging_equals_a_slow_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "FEWEST", 1)
    reference, seconds = world(rows=6, questions=14, seed=4)
    seconds[2] *= 0.9
    weights = weights_of(14, seed=1, resamples=150)
    found = judge_together(reference, seconds, weights)
    assert found.adjusted_p == pytest.approx(slow_p(reference, seconds, weights))
    assert len(set(found.adjusted_p.tolist())) >= 4


def test_rows_without_spread_are_judged_and_leave_the_others_alone() -> None:
    reference, seconds = world(rows=3, questions=30, seed=2, effect=0.15)
    weights = weights_of(30, seed=0)
    alone = judge_together(reference, seconds, weights)
    padded = np.stack([reference, *seconds, reference * 1.05, reference * 1.0001])
    found = judge_together(reference, padded, weights)
    assert np.isnan(found.adjusted_p[0]) and found.adjusted_p[5] == 1.0
    assert found.adjusted_p[1:4].tolist() == alone.adjusted_p.tolist()
    assert np.isnan(found.error[[0, 4, 5]]).all()
    assert found.critical == pytest.approx(alone.critical, rel=1e-12)  # a product of other shape
    said = [
        verdict_among(reference.sum() / row.sum(), p)
        for row, p in zip(padded, found.adjusted_p, strict=True)
    ]
    assert said == ["tie", *["faster"] * 3, "slower", "tie"]
    for rows in (reference[None, :], np.empty((0, 30))):
        nothing = judge_together(reference, rows, weights)
        assert np.isnan(nothing.adjusted_p).all() and math.isnan(nothing.critical)
        assert len(nothing.adjusted_p) == len(rows)


def test_a_row_that_differs_in_one_question_leaves_the_others_alone() -> None:
    """One resample in three holds no such question; it then knows nothing of that row's error."""
    reference, seconds = world(3, 75, 4)
    seconds[0] = 0.9 * reference * np.linspace(0.9, 1.1, 75)
    sparse = reference.copy()
    sparse[7] *= 1.02
    weights = weights_of(75, 4)
    alone = judge_together(reference, seconds, weights)
    found = judge_together(reference, np.vstack([seconds, sparse]), weights)
    assert alone.adjusted_p[0] < 0.01 and np.isnan(found.adjusted_p[3])
    assert found.adjusted_p[:3].tolist() == alone.adjusted_p.tolist()
    assert found.critical == alone.critical


@pytest.mark.parametrize("odd", [1.0, 1.5])
def test_a_nearly_uniform_loss_is_slower(odd: float) -> None:
    """All 75 questions take about twice as long, one of them `odd` times that: its spread rests on
    that one, the loss on all.
    """
    reference, seconds = world(3, 75, 4)
    loss = 2.0 * reference * np.linspace(0.999, 1.001, 75)
    loss[7] *= odd
    _, steady = resting(reference, loss[None, :])
    found = judge_together(reference, np.vstack([seconds, loss]), weights_of(75, 4))
    assert steady.tolist() == [odd == 1.0]
    assert verdict_among(reference.sum() / loss.sum(), found.adjusted_p[3]) == "slower"


def test_four_questions_are_too_few() -> None:
    reference = np.array([1.0, 2.0, 3.0, 2.0])
    found = judge_together(reference, np.array([2.0 * reference]), weights_of(4, 0))
    assert verdict_among(0.5, found.adjusted_p[0]) == FEW
    assert verdict(Estimate(0.5, 0.5, 0.5), 4) == FEW and verdict(Estimate(0.5, 0.5, 0.5), 5) != FEW


def test_on_how_many_questions_a_difference_rests() -> None:
    """Seconds saved 1 and 3: (1 + 3)^2 / (1 + 9) = 1.6 of two questions."""
    assert statistics._parts(np.array([[1.0, -3.0], [2.0, 2.0]])).tolist() == [1.6, 2.0]


@pytest.mark.long
def test_forty_rows_that_do_nothing() -> None:
    """In most worlds one of them is "faster" or "slower" by its own interval; corrected, in about
    5 % (two binomial deviations are left to 200 worlds).
    """
    worlds, questions = 200, 75
    alone = together = 0
    for seed in range(worlds):
        reference, seconds = world(40, questions, seed)
        weights = weights_of(questions, seed)
        own = [verdict(ratio_of_sums(reference, row, weights), questions) for row in seconds]
        alone += any(said != "tie" for said in own)
        together += judge_together(reference, seconds, weights).adjusted_p.min() < SIGNIFICANCE
    assert alone / worlds > 0.6
    assert together / worlds < 0.05 + 2 * math.sqrt(0.05 * 0.95 / worlds)


@pytest.mark.long
def test_the_detectable_difference_is_found_8_times_in_10() -> None:
    """By the test of one row alone; the true difference is set to what it says it can find."""
    worlds, questions = 300, 150
    errors = []
    for seed in range(20):
        found = judge_together(*world(1, questions, seed), weights_of(questions, seed))
        errors.append(found.detectable_percent()[0])
    effect = float(np.median(errors)) / 100
    hits = 0
    for seed in range(100, 100 + worlds):
        reference, seconds = world(1, questions, seed, effect)
        found = judge_together(reference, seconds, weights_of(questions, seed))
        hits += found.adjusted_p[0] < SIGNIFICANCE
    assert 0.72 < hits / worlds < 0.88


def test_an_interval_over_seeds_by_hand() -> None:
    """Student's t of one degree of freedom is 12.706; one seed has none."""
    two = interval([2.0, 4.0])
    assert (two.mean, two.low, two.high) == pytest.approx((3.0, 3 - 12.706, 3 + 12.706), abs=1e-3)
    assert two.half == pytest.approx(12.706, abs=1e-3)
    assert math.isnan(interval([2.0]).low) and interval([2.0]).mean == 2.0


def test_headroom_is_the_share_of_the_gap() -> None:
    weights = np.ones((5, 2))
    start, ours, best = np.array([10.0, 20.0]), np.array([8.0, 16.0]), np.array([5.0, 10.0])
    assert share_of_gap(start, ours, best, weights).value == pytest.approx(6 / 15)
    assert share_of_gap(start, start, best, weights).value == 0.0
    assert np.isnan(share_of_gap(start, ours, start, weights).value)


def test_verdict_needs_an_interval_beside_one() -> None:
    assert verdict(Estimate(1.1, 1.01, 1.2), 9) == "faster"
    assert verdict(Estimate(0.9, 0.8, 0.99), 9) == "slower"
    assert verdict(Estimate(1.1, 0.99, 1.2), 9) == "tie"
    assert verdict(Estimate(1.1, 1.0, 1.2), 9) == "tie"
    assert verdict(Estimate(1.1, float("nan"), float("nan")), 9) == "too few"
    assert verdict(Estimate(1.001, 1.0005, 1.002), 9) == "tie"


def test_policies_that_differ_by_chance_tie() -> None:
    """Each is faster on half of the replies by the same amount, so neither wins."""
    seconds = np.array([10.0, 12.0] * 20)
    weights = bootstrap_weights([str(k) for k in range(40)], seed=0)
    assert verdict(ratio_of_sums(seconds, seconds[::-1], weights), 40) == "tie"
    assert verdict(ratio_of_sums(seconds * 1.05, seconds, weights), 40) == "faster"


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Ratio of means of two independent exponentials, true value 2; 95 % within binomial error."""
    generator = np.random.default_rng(1)
    covered, runs, requests = 0, 300, 80
    names = [str(k) for k in range(requests)]
    for seed in range(runs):
        above, below = generator.exponential(2.0, requests), generator.exponential(1.0, requests)
        weights = bootstrap_weights(names, seed=seed, resamples=300)
        found = ratio_of_sums(above, below, weights)
        covered += found.low <= 2.0 <= found.high
    assert 0.89 <= covered / runs <= 0.985


def test_turns_of_a_question_are_resampled_together() -> None:
    weights = bootstrap_weights(["a", "b", "a", "c"], seed=0, resamples=200)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert len(np.unique(weights[:, 1])) > 1
