"""Ratios of a sitting: errors by hand, coverage of both intervals, and every word."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.common.statistics import Estimate, bootstrap_weights
from experiments.common.verdict import (
    CONFIRMED,
    CONTRADICTED,
    NOISY,
    Turns,
    around,
    inside,
    is_tie,
    rank_agreement,
    ratio_of,
    time_error,
    word_for,
)


def turns(seconds: list[float], priced: list[float] | None = None) -> Turns:
    """One token a turn."""
    measured = np.asarray(seconds)
    return Turns(np.ones(len(seconds)), measured, np.asarray(priced or seconds))


def test_time_error_by_hand() -> None:
    """Shares 0.4, 0.6 against priced halves: surprise -0.1, 0.1; the other one has none."""
    ours, theirs = turns([4.0, 6.0], [5.0, 5.0]), turns([5.0, 5.0])
    assert time_error(ours, theirs) == pytest.approx(math.sqrt(0.02 * 2))
    assert time_error(ours, ours) == 0.0
    assert math.isnan(time_error(turns([1.0]), turns([1.0])))


def test_what_slows_neighbours_alike_is_no_error() -> None:
    priced = [1.0, 2.0, 3.0, 4.0]
    mood = np.asarray([1.0, 3.0, 0.5, 2.0])
    ours = turns((np.asarray(priced) * mood).tolist(), priced)
    theirs = turns((2 * np.asarray(priced) * mood).tolist(), [2 * x for x in priced])
    assert time_error(ours, theirs) == pytest.approx(0.0, abs=1e-15)
    apart = turns([2.0, 4.0, 6.0, 8.0], priced)
    assert time_error(ours, apart) > 0.1


def test_the_interval_of_time_covers_the_truth() -> None:
    """Replies stay, the clock is drawn anew: 95 % of 600 intervals, -+ 2.7."""
    generator = np.random.default_rng(5)
    priced = generator.gamma(2.0, 1.0, size=(2, 40))
    truth, hits = priced[1].sum() / priced[0].sum(), 0
    for _ in range(600):
        mood = np.exp(np.cumsum(0.05 * generator.standard_normal(40)))
        measured = priced * mood * np.exp(0.06 * generator.standard_normal((2, 40)))
        ours, theirs = (Turns(np.ones(40), measured[k], priced[k]) for k in (0, 1))
        found = around(ours.tokens_per_s / theirs.tokens_per_s, time_error(ours, theirs), 40)
        hits += found.low <= truth <= found.high
    assert 0.92 <= hits / 600 <= 0.985


def test_a_placebo_is_a_tie_but_for_one_time_in_a_hundred() -> None:
    generator, ties = np.random.default_rng(6), 0
    for _ in range(600):
        priced = generator.gamma(2.0, 1.0, size=30)
        measured = priced * np.exp(0.05 * generator.standard_normal((2, 30)))
        ties += is_tie(*(Turns(np.ones(30), measured[k], priced) for k in (0, 1)))
    assert 0.975 <= ties / 600 < 1.0


@pytest.mark.parametrize(
    ("predicted", "agrees", "low", "high", "word"),
    [
        (1.10, True, 1.02, 1.15, CONFIRMED),
        (1.10, True, 0.98, 1.25, NOISY),
        (1.10, False, 1.02, 1.05, CONTRADICTED),
        (1.10, False, 0.90, 0.95, CONTRADICTED),
        (0.80, True, 0.70, 0.90, CONFIRMED),
        (0.97, True, 1.01, 1.02, NOISY),
        (1.00, True, 0.98, 1.02, NOISY),
        (1.10, True, math.nan, math.nan, NOISY),
        (1.10, False, math.nan, math.nan, NOISY),
    ],
)
def test_words(predicted: float, agrees: bool, low: float, high: float, word: str) -> None:
    assert word_for(predicted, agrees, Estimate(1.0, low, high)) == word


def test_the_timings_own_error_widens_what_agrees() -> None:
    """1.10 against 1.05 (1.03-1.07): off by 4.65 %, 1.9 % allowed; 3 % more from the timing."""
    held = Estimate(1.05, 1.03, 1.07)
    assert not inside(1.10, held, float("nan"))
    assert not inside(1.10, held, 0.02)
    assert inside(1.10, held, 0.03)
    assert inside(1.06, held, float("nan")) and inside(1.031, held, 0.0)
    assert not inside(1.05, Estimate(1.05, math.nan, math.nan), 0.1)


def test_a_ratio_that_may_not_be_judged_says_nothing() -> None:
    weights = bootstrap_weights([str(k) for k in range(20)], seed=0, resamples=200)
    generator = np.random.default_rng(0)
    priced = generator.gamma(4.0, 1.0, size=20)
    slow, fast = turns((2 * priced).tolist(), priced.tolist()), turns(priced.tolist())
    pair = ("fast", "slow")
    judged = [
        ratio_of(pair, fast, slow, 2.0, 0.0, weights, redrawn=False, judgeable=able)
        for able in (True, False)
    ]
    assert [ratio.word for ratio in judged] == [CONFIRMED, NOISY]
    assert judged[0].measured == pytest.approx(2.0) and judged[0].agrees


def test_ranks_are_compared_where_they_can_be_told_apart() -> None:
    """a > b > c > d predicted; c and d are too close; b and c came out swapped."""
    generator = np.random.default_rng(1)
    priced = generator.gamma(4.0, 1.0, size=30)
    spent = {"a": 0.5, "b": 0.9, "c": 0.7, "d": 1.01}
    seats = {
        name: Turns(np.ones(30), s * priced * np.exp(0.05 * generator.standard_normal(30)), priced)
        for name, s in spent.items()
    }
    weights = bootstrap_weights([str(k) for k in range(30)], seed=0, resamples=300)
    found = rank_agreement({"a": 2.0, "b": 1.5, "c": 1.0, "d": 0.995}, seats, weights)
    assert (found.pairs, found.of) == (5, 6)
    assert found.tau == pytest.approx((4 - 1) / 5)
    assert found.low <= found.tau <= found.high
    none = rank_agreement({"a": 1.0, "b": 1.0}, {"a": seats["a"], "b": seats["b"]}, weights)
    assert none.pairs == 0 and math.isnan(none.tau)
