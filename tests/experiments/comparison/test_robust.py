"""Orders of replies, resampled timings, and the simplest rule: by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from experiments.common.cost_sources import step_costs
from experiments.common.statistics import bootstrap_weights, ratio_of_sums
from experiments.comparison.robust import (
    Player,
    Plays,
    orders_of,
    ratio_over_timings,
    redrawn,
    runner_up,
    shuffled,
    simplest,
    simplicity,
    timing_error,
)
from policies.fixed import Fixed, Never
from policies.registry import parse_policies
from simulator.replay.replay import replay
from tests.results import lively_trace, make_timing
from traces.timing import Timing


def swept(factors: list[float]) -> Timing:
    """make_timing, each sweep as many times as dear."""
    timing = make_timing()
    cells = tuple(
        dataclasses.replace(cell, blocks_s=tuple(cell.median_s * f for f in factors))
        for cell in timing.cells
    )
    return dataclasses.replace(timing, cells=cells)


def test_other_orders_hold_the_same_replies() -> None:
    trace = lively_trace()
    first, second = shuffled(trace, 2, seed=1)
    assert sorted(first.request_id) == sorted(trace.request_id)
    assert first.request_id != trace.request_id != second.request_id != first.request_id
    assert [t.request_id for t in shuffled(trace, 2, seed=1)] == [
        first.request_id,
        second.request_id,
    ]


def test_orders_by_hand() -> None:
    log = replay(Fixed(2), lively_trace(), step_costs(make_timing(), lively_trace()))
    fixed, ours = (
        Plays(dataclasses.replace(log, elapsed_s=log.elapsed_s * f), np.ones((1, 1)), 1.0, mixed)
        for f, mixed in ((1.2, (6.0, 6.0, 6.0)), (1.0, (6.0, 5.0, 4.0)))
    )
    found = orders_of(ours, fixed)
    assert (found.value, found.low, found.high, found.recorded) == pytest.approx(
        ((1.0 + 1.2 + 1.5) / 3, 1.0, 1.5, 1.2)
    )


def test_a_player_plays_what_replay_plays() -> None:
    """A rule that learns across replies has other seconds in other orders; a fixed length not."""
    trace = lively_trace()
    costs = step_costs(make_timing(), trace)
    player = Player(trace, trace, costs, [costs, costs], 3, 0)
    (bandit,) = parse_policies("ucb")
    fixed, learner = player.play(Fixed(2)), player.play(bandit)
    assert learner.log.same_rounds(replay(bandit, trace, costs))
    assert learner.drawn.shape == (3, trace.requests) and np.ptp(learner.drawn, axis=0).max() == 0.0
    assert fixed.mixed_s == pytest.approx((fixed.decode_s,) * 3)
    assert fixed.train_s == pytest.approx(4 * fixed.decode_s)
    assert len(set(learner.mixed_s)) > 1
    assert math.isnan(player.ceiling(lambda at: replay(Fixed(1), trace, at)).train_s)


def test_a_timing_without_sweeps_cannot_be_redrawn() -> None:
    assert redrawn(make_timing(), 3, seed=0) == []
    timings = redrawn(swept([0.9, 1.0, 1.1]), 20, seed=0)
    medians = {round(t.cells[0].median_s / 5.0, 6) for t in timings}
    assert len(timings) == 20 and medians <= {0.9, 1.0, 1.1} and len(medians) > 1


def test_the_timings_chance_widens_the_interval() -> None:
    """Without resampled timings it is the ratio of sums; with them it covers their spread."""
    generator = np.random.default_rng(0)
    ours, theirs = generator.gamma(5.0, 1.0, (2, 30))
    weights = bootstrap_weights([str(k) for k in range(30)], seed=0, resamples=1000)
    plain = ratio_over_timings(ours[None], theirs[None], weights)
    assert plain == pytest.approx(ratio_of_sums(ours, theirs, weights))
    factors = np.exp(0.2 * generator.standard_normal(25))
    wide = ratio_over_timings(
        np.vstack([ours, factors[1:, None] * ours]), np.tile(theirs, (25, 1)), weights
    )
    assert wide.value == plain.value
    assert wide.low < plain.low < plain.high < wide.high
    error = timing_error(np.vstack([ours, factors[1:, None] * ours]), np.tile(theirs, (25, 1)))
    assert error == pytest.approx(np.std(np.log(factors[1:]), ddof=1))
    assert math.isnan(timing_error(ours[None], theirs[None]))


def test_a_twin_is_no_rival() -> None:
    trace = lively_trace()
    player = Player(trace, trace, step_costs(make_timing(), trace), [], 1, 0)
    plays = {
        name: player.play(policy)
        for name, policy in {"a": Fixed(2), "twin": Fixed(2), "b": Fixed(3)}.items()
    }
    assert runner_up(["a", "twin", "b"], plays) == "b"
    assert runner_up(["b", "a", "twin"], plays) == "a"
    assert runner_up(["a", "twin"], plays) == "a"


def test_simplicity_has_an_order() -> None:
    threshold, moving, bandit = parse_policies("hf-confidence,gammatune,ucb")
    order = [Never(), Fixed(3), threshold, moving]
    assert sorted(order[::-1], key=simplicity) == order
    assert simplicity(threshold) < simplicity(bandit)


def test_the_simplest_that_cannot_be_told_from_the_first() -> None:
    generator = np.random.default_rng(2)
    weights = bootstrap_weights([str(k) for k in range(40)], seed=0, resamples=500)
    base = generator.gamma(5.0, 1.0, 40)
    entrants = dict(
        zip(
            ("never", "fixed", "threshold", "moving"),
            [Never(), Fixed(3), *parse_policies("hf-confidence,gammatune")],
            strict=True,
        )
    )
    noise = [1.5, 1.2, 1.002, 1.0]
    log = replay(Fixed(2), lively_trace(), step_costs(make_timing(), lively_trace()))
    plays = {
        name: Plays(log, (base * f * np.exp(0.05 * generator.standard_normal(40)))[None], 1.0)
        for name, f in zip(entrants, noise, strict=True)
    }
    assert simplest("moving", entrants, plays, weights) == "threshold"
    assert simplest("never", entrants, plays, weights) == "never"
