"""Ratios over imputations: Rubin's rules and min-p by hand, verdicts that other seeds give too."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from experiments.censoring.censored_check import costs_for
from experiments.censoring.intervals import complete, left_open
from experiments.censoring.intervals_text import seed_table
from experiments.censoring.rubin import (
    LEAST,
    beyond,
    combine,
    jackknife,
    judge_imputed,
    min_p,
    ratios,
    steady_verdict,
)
from policies.registry import parse_policy
from simulator.replay.replay import replay
from tests.results import lively_trace
from tests.specimens import few_or_slow
from traces.censoring.known import censor


def test_rubins_rules_by_hand() -> None:
    """Points 1, 2, 3: variance 1 between, (1 + 1/3) of it; within 0.2, 0.3, 0.4: mean 0.3."""
    found = combine(np.array([[1.0], [2.0], [3.0]]), np.array([[0.2], [0.3], [0.4]]))
    assert found.point == pytest.approx([2.0])
    assert found.error == pytest.approx([np.sqrt(0.3 + 4 / 3)])
    low, high = found.ends(np.array([2.0]))[:, 0]
    assert (low, high) == pytest.approx((2 - 2 * found.error[0], 2 + 2 * found.error[0]))
    same = combine(np.ones((3, 1)), np.zeros((3, 1)))
    assert same.ends(np.array([np.inf])).tolist() == [[1.0], [1.0]]


def test_min_p_by_hand() -> None:
    """Four resamples of two rows; the second has thick tails, and asks more of itself alone.

    Own p of the resamples: 1, .75, .5, .25 and .5, .25, 1, .75; smallest .5, .25, .5, .25. Observed
    3.5: one resample is as large, p (1 + 1) / 5; observed 50: two, 3 / 5. Smallest own p at most
    .4:
    two, so (1 + 2) / 5; at most .6: all four.
    """
    t = np.array([[1.0, 60.0], [2.0, 90.0], [3.0, 10.0], [4.0, 20.0]])
    adjusted, _, least = min_p(np.array([-3.5, 50.0]), t)
    assert least.tolist() == [0.5, 0.25, 0.5, 0.25]
    assert adjusted == pytest.approx([3 / 5, 1.0])
    assert beyond(np.arange(1.0, 100.0), 0.05) == 96.0  # 97 to 99 and itself: 4 of 100, below 5
    assert beyond(np.arange(4.0), 0.05) == np.inf


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    without = np.array([[values[np.arange(4) != m].mean()] for m in range(4)])
    assert jackknife(without) == pytest.approx([values.std(ddof=1) / 2])


@pytest.mark.parametrize(
    ("low", "high", "off", "said"),
    [
        (0.04, 0.08, 0.01, "faster"),
        (0.02, 0.08, 0.01, "undecided"),
        (-0.02, 0.08, 0.01, "undecided"),
        (-0.04, 0.08, 0.01, "tie"),
        (-0.08, -0.04, 0.01, "slower"),
        (-0.08, -0.03, 0.01, "undecided"),
        (0.001, 0.08, 0.0, "faster"),
        (0.001, 0.004, 0.0, "tie"),
        (-np.inf, np.inf, np.nan, "too few"),
    ],
)
def test_a_verdict_needs_three_standard_errors(
    low: float, high: float, off: float, said: str
) -> None:
    assert steady_verdict(low, high, off, off) == said


def world(
    seed: int, *, questions: int = 75, rows: int = 10, between: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Schedules as fast as the reference in the long run; imputations that are off by as much as
    they differ, `between` standard errors of the questions.
    """
    generator = np.random.default_rng(seed)
    base = np.broadcast_to(generator.gamma(4.0, 1.0, questions), (15, questions))
    apart = generator.normal(0, 0.05, (rows, questions))
    off = 0.05 / np.sqrt(questions) * between
    miss = generator.normal(0, off, rows) + generator.normal(0, off, (15, rows))
    return base, base[:, None] * np.exp(apart + miss[..., None])


@pytest.mark.parametrize("between", few_or_slow([0.0, 2.0], [2.0]))
@pytest.mark.slow
def test_where_nothing_differs_a_controller_is_rarely_called_so(between: float) -> None:
    """5 % of 80 worlds are 4; more than 11 come of chance in 1 of 1,000. Intervals hold 95 %."""
    found = []
    for seed in range(80):
        reference, seconds = world(seed, between=between)
        found.append(judge_imputed(reference, seconds, [True] * 10, seed=seed, draws=200))
    assert sum((one.adjusted_p < 0.05).any() for one in found) <= 11
    inside = np.mean([e.low <= 1 <= e.high for one in found for e in one.estimates])
    assert 0.92 < inside < 0.98
    assert found[0].estimates == tuple(ratios(*world(0, between=between), seed=0, draws=200))


def test_a_difference_on_one_question_is_no_verdict_and_does_not_hide_another() -> None:
    reference, seconds = world(3, rows=2, between=0.0)
    seconds[:, 0] *= 0.9
    seconds[:, 1] = reference
    seconds[:, 1, 0] *= 0.3
    found = judge_imputed(reference, seconds, [True, True], seed=0)
    assert found.verdicts[0] == "faster" and found.adjusted_p[0] < 0.01
    assert found.verdicts[1] == "too few" and np.isnan(found.adjusted_p[1])


def test_a_nearly_uniform_loss_is_slower() -> None:
    reference, seconds = world(3, rows=2, between=0.0)
    seconds[:, 1] = 2.0 * reference
    seconds[:, 1, 0] *= 1.5
    found = judge_imputed(reference, seconds, [False, True], seed=0)
    assert found.verdicts[1] == "slower" and found.adjusted_p[1] < 0.01


@pytest.mark.slow
def test_no_seed_says_faster_where_another_says_tie() -> None:
    """A controller near the edge on a small censored trace: percentiles of few draws flip here."""
    exact = lively_trace(questions=40)
    costs = costs_for(exact)
    seen = censor(exact, replay(parse_policy("fixed:gamma=1"), exact, costs))
    names = ("fixed:gamma=1", "fixed:gamma=2", "fixed:gamma=3", "fixed:gamma=4", "gammatune", "ucb")
    schedules = {
        name: functools.partial(replay, parse_policy(name), costs=costs)
        for name in (*names, "never")
    }
    found = [
        left_open(complete(seen, draws=12, seed=seed), schedules, reference="fixed:gamma=1")
        for seed in range(8)
    ]
    assert all(one.resamples >= LEAST == 1000 for one in found)
    for name in names:
        firm = {one.row(name).verdict for one in found} - {"undecided"}
        assert len(firm) <= 1, (name, firm)
    assert "NO" not in seed_table(found)
