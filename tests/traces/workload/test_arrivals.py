"""Workloads drawn: arrivals against their closed forms, mixes, common random numbers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from tests.traces.workload.samples import CATEGORIES, EVERY, SAMPLES, draw, same_bytes
from traces.workload.workload import Workload, mean_rate_per_s

SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


# --- arrivals


@SEEDS
@pytest.mark.parametrize(
    ("process", "cv"), [("poisson", 1.0), ("gamma", 0.3), ("gamma", 1.0), ("gamma", 2.0)]
)
def test_gaps_have_the_mean_and_variance_of_their_law(process: str, cv: float, seed: int) -> None:
    count, rate_per_s = 200_000, 4.0
    arrival_s = draw(Workload(count, process, rate_per_s=rate_per_s, cv=cv), seed).arrival_s
    gap_s = np.diff(arrival_s, prepend=0.0)
    sigma_s = cv / rate_per_s
    assert abs(gap_s.mean() - 1 / rate_per_s) < 5 * sigma_s / math.sqrt(count)
    # A gamma law has excess kurtosis 6 cv^2, so the sample variance has this standard error.
    error = sigma_s**2 * math.sqrt((2 + 6 * cv**2) / count)
    assert abs(gap_s.var() - sigma_s**2) < 5 * error


@SEEDS
def test_poisson_gaps_are_exponential_and_independent(seed: int) -> None:
    count = 100_000
    gap_s = np.diff(draw(Workload(count, "poisson", rate_per_s=1.0), seed).arrival_s)
    for t in (0.1, 1.0, 3.0):
        p = math.exp(-t)
        assert abs((gap_s > t).mean() - p) < 5 * math.sqrt(p * (1 - p) / count)
    lag = np.corrcoef(gap_s[1:], gap_s[:-1])[0, 1]
    assert abs(lag) < 5 / math.sqrt(count)


def test_gamma_with_cv_1_is_the_poisson_process() -> None:
    poisson = draw(Workload(100, "poisson", rate_per_s=3.0))
    assert same_bytes(poisson, draw(Workload(100, "gamma", rate_per_s=3.0, cv=1.0)))


@pytest.mark.parametrize("off_rate_per_s", [0.0, 1.0])
def test_counts_of_bursts_have_the_mean_and_dispersion_of_their_law(off_rate_per_s: float) -> None:
    """Counts in a window of a stationary Markov-modulated Poisson process, Fischer and
    Meier-Hellstern, The Markov-modulated Poisson process cookbook (Performance Evaluation, 1993).
    """
    on_rate_per_s, on_s, off_s, window_s, replicas = 8.0, 2.0, 6.0, 10.0, 3000
    workload = Workload(
        400,
        "bursts",
        on_rate_per_s=on_rate_per_s,
        off_rate_per_s=off_rate_per_s,
        on_s=on_s,
        off_s=off_s,
    )
    counts = np.empty(replicas)
    for seed in range(replicas):
        arrival_s = draw(workload, seed).arrival_s
        assert arrival_s[-1] > window_s
        counts[seed] = np.searchsorted(arrival_s, window_s)
    leave_on, leave_off = 1 / on_s, 1 / off_s
    both = leave_on + leave_off
    mean = window_s * (on_rate_per_s * leave_off + off_rate_per_s * leave_on) / both
    assert mean == pytest.approx(window_s * mean_rate_per_s(workload))
    spread = on_rate_per_s - off_rate_per_s
    excess = 2 * leave_on * leave_off * spread**2
    excess /= both**2 * (on_rate_per_s * leave_off + off_rate_per_s * leave_on)
    seen = both * window_s
    variance = mean * (1 + excess * (1 - (1 - math.exp(-seen)) / seen))
    assert variance / mean > 5  # a Poisson process has 1
    assert abs(counts.mean() - mean) < 5 * math.sqrt(variance / replicas)
    fourth = ((counts - counts.mean()) ** 4).mean()
    error = math.sqrt((fourth - counts.var() ** 2) / replicas)
    assert abs(counts.var() - variance) < 5 * error


@SEEDS
def test_bursts_keep_their_rate_in_the_long_run(seed: int) -> None:
    workload = Workload(
        200_000, "bursts", on_rate_per_s=8.0, off_rate_per_s=1.0, on_s=1.0, off_s=3.0
    )
    arrival_s = draw(workload, seed).arrival_s
    assert mean_rate_per_s(workload) == 2.75
    seconds = int(arrival_s[-1])
    counts = np.histogram(arrival_s, bins=seconds // 100, range=(0, seconds // 100 * 100))[0]
    error = counts.std() / math.sqrt(len(counts))
    assert abs(counts.mean() - 275) < 5 * error
    assert counts.var() / counts.mean() > 2


def test_bursts_of_equal_rates_are_the_poisson_process() -> None:
    bursts = Workload(
        500, "bursts", on_rate_per_s=4.0, off_rate_per_s=4.0, on_s=0.1, off_s=0.3, order="recorded"
    )
    poisson = Workload(500, "poisson", rate_per_s=4.0, order="recorded")
    np.testing.assert_allclose(draw(bursts).arrival_s, draw(poisson).arrival_s, rtol=1e-12)


def test_nobody_comes_while_bursts_are_off() -> None:
    """Rate 1000 on for about 1 s, 0 off for about 1000 s: gaps are either tiny or huge."""
    workload = Workload(20_000, "bursts", on_rate_per_s=1000.0, on_s=1.0, off_s=1000.0)
    gap_s = np.diff(draw(workload).arrival_s)
    assert (gap_s >= 0).all()
    assert 5 < (gap_s > 1).sum() < 60  # one per cycle, about 20
    assert np.median(gap_s) < 0.002


@pytest.mark.parametrize("process", ["poisson", "gamma"])
def test_another_rate_scales_the_same_arrivals(process: str) -> None:
    cv = 3.0 if process == "gamma" else 1.0
    unit = draw(Workload(200, process, rate_per_s=1.0, cv=cv))
    for rate_per_s in (0.25, 3.0, 7.1):
        fast = draw(Workload(200, process, rate_per_s=rate_per_s, cv=cv))
        assert (fast.arrival_s == unit.arrival_s / rate_per_s).all()
        assert fast.row.tolist() == unit.row.tolist()


def test_bursts_twice_as_fast_are_the_same_arrivals_in_half_the_time() -> None:
    slow = Workload(200, "bursts", on_rate_per_s=4.0, off_rate_per_s=0.5, on_s=2.0, off_s=6.0)
    fast = Workload(200, "bursts", on_rate_per_s=8.0, off_rate_per_s=1.0, on_s=1.0, off_s=3.0)
    assert (draw(slow).arrival_s == 2 * draw(fast).arrival_s).all()


@pytest.mark.parametrize("name", ["poisson", "gamma", "bursts", "silence"])
def test_more_requests_continue_the_same_arrivals(name: str) -> None:
    more = draw(dataclasses.replace(SAMPLES[name], requests=5000))
    few = draw(SAMPLES[name])
    assert (more.arrival_s[:50] == few.arrival_s).all()
    assert (more.row[:50] == few.row).all()


def test_recorded_timestamps_and_order_by_hand() -> None:
    workload = Workload(8, "recorded", arrival_s=(0, 1, 1, 2, 3, 5, 8, 13), order="recorded")
    drawn = draw(workload)
    assert drawn.row.tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert drawn.arrival_s.tolist() == [0.0, 1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0]
    assert drawn.think_s.tolist() == [0.0] * 8 and drawn.users == 0
    assert mean_rate_per_s(workload) == 7 / 13


def test_a_closed_loop_by_hand() -> None:
    drawn = draw(Workload(5, "closed", users=2, think_s=0.5, think="fixed"))
    assert drawn.arrival_s.tolist() == [0.0, 0.0, math.inf, math.inf, math.inf]
    assert drawn.think_s.tolist() == [0.0, 0.0, 0.5, 0.5, 0.5]
    assert drawn.users == 2
    crowd = draw(Workload(3, "closed", users=9, think_s=0.5))
    assert crowd.arrival_s.tolist() == [0.0] * 3 and crowd.think_s.tolist() == [0.0] * 3
    assert crowd.users == 9


@SEEDS
def test_think_times_are_exponential_and_follow_the_request(seed: int) -> None:
    count = 100_000
    pauses = draw(Workload(count, "closed", users=8, think_s=0.5), seed).think_s
    assert (pauses[:8] == 0).all() and (pauses[8:] > 0).all()
    assert abs(pauses[8:].mean() - 0.5) < 5 * 0.5 / math.sqrt(count)
    assert abs(pauses[8:].var() - 0.25) < 5 * 0.25 * math.sqrt(8 / count)
    more = draw(Workload(count, "closed", users=50, think_s=1.0), seed).think_s
    assert (more[50:] == 2 * pauses[50:]).all()


# --- mix


def test_gaps_mix_and_think_times_have_streams_of_their_own_by_position() -> None:
    gaps, mix, think, _ = (np.random.default_rng(c) for c in np.random.SeedSequence(7).spawn(4))
    open_loop = draw(Workload(40, "poisson", rate_per_s=1.0), 7)
    closed = draw(Workload(40, "closed", users=1, think_s=1.0), 7)
    assert (open_loop.arrival_s == np.cumsum(gaps.standard_exponential(40))).all()
    assert open_loop.row.tolist() == (mix.random(40) * 6).astype(int).tolist()
    assert (closed.think_s[1:] == think.standard_exponential(40)[1:]).all()


def test_the_mix_does_not_depend_on_the_process() -> None:
    drawn = [draw(SAMPLES[name]) for name in ("poisson", "gamma", "bursts", "silence", "closed")]
    for other in drawn[1:]:
        assert other.row.tolist() == drawn[0].row.tolist()
    assert len(set(drawn[0].row.tolist())) == 6


def test_the_arrivals_do_not_depend_on_the_mix() -> None:
    plain = draw(Workload(50, "poisson", rate_per_s=1.0))
    mixed = draw(SAMPLES["mix"])
    assert mixed.arrival_s.tobytes() == plain.arrival_s.tobytes()
    assert mixed.row.tolist() != plain.row.tolist()


@SEEDS
@pytest.mark.parametrize(
    ("weights", "chances"),
    [
        ((), (1 / 6,) * 6),
        ((("chat", 3.0), ("math", 1.0)), (0.25, 0.25, 0.25, 0.0, 0.125, 0.125)),
        ((("math", 0.0), ("code", 1e-300)), (0.0, 0.0, 0.0, 1.0, 0.0, 0.0)),
    ],
)
def test_rows_have_the_chances_of_their_weights(
    weights: tuple[tuple[str, float], ...], chances: tuple[float, ...], seed: int
) -> None:
    count = 60_000
    rows = draw(Workload(count, "poisson", rate_per_s=1.0, weights=weights), seed).row
    seen = np.bincount(rows, minlength=6) / count
    for found, p in zip(seen, chances, strict=True):
        assert abs(found - p) <= 5 * math.sqrt(p * (1 - p) / count)


def test_priorities_follow_the_category_of_the_row() -> None:
    drawn = draw(SAMPLES["mix"])
    by_category = {"chat": 0, "code": 2, "math": -1}
    expected = [by_category[CATEGORIES[row]] for row in drawn.row]
    assert drawn.priority.tolist() == expected and -1 in expected and 0 in expected


@EVERY
def test_types_order_and_the_same_seed(workload: Workload) -> None:
    one, two, other = draw(workload, 1), draw(workload, 1), draw(workload, 2)
    assert [array.dtype.name for array in one[:4]] == ["int32", "float64", "float64", "int32"]
    assert all(array.shape == (workload.requests,) for array in one[:4])
    assert not np.diff(one.arrival_s[np.isfinite(one.arrival_s)]).min(initial=0.0) < 0
    assert same_bytes(one, two)
    assert same_bytes(one, other) == (workload.order == "recorded")
