"""Counts of one fixed length, and the tokens per round of the others: by hand, in closed form, and
against the replay of every shipped recording.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.fixed import Fixed
from simulator.replay.replay import replay
from traces.censoring.rates import bounds, estimate, naive
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate
from traces.schema import Trace
from traces.store import read_trace

DATA = Path(__file__).parents[3] / "traces/data"
CHAINS = sorted(path.stem for path in DATA.glob("*.parquet") if "eagle3" not in path.stem)
LENGTHS = range(1, 9)
chance = st.floats(0.0, 1.0)


def counts(gaps: list[int], length: int) -> tuple[int, list[int]]:
    """steps and at_least of rounds of one length that cross gaps of n accepted tokens each."""
    accepted = [min(length, n - at) for n in gaps for at in range(0, n + 1, length + 1)]
    return len(accepted), [sum(a >= d for a in accepted) for d in range(1, length + 1)]


def truth(gaps: list[int], length: int) -> float:
    steps, at_least = counts(gaps, length)
    return 1 + sum(at_least) / steps


def test_one_length_above_by_hand() -> None:
    """Gaps of 0, 1, 2, 3 and 6 tokens at length 3: of six rounds 5, 4 and 2 accept 1, 2 and 3.

    17 tokens in six rounds; with length 1 the gaps take 1, 1, 2, 2 and 4 rounds.
    """
    gaps = [0, 1, 2, 3, 6]
    assert counts(gaps, 3) == (6, [5, 4, 2])
    low, high = bounds(6, [5, 4, 2])
    assert truth(gaps, 1) == 1.7  # 17 / 10, exactly said, as 2 divides 4
    assert (low[0], high[0]) == pytest.approx((1.7, 1.7))
    assert naive(6, [5, 4, 2])[0] == pytest.approx(11 / 6)
    # Length 2: 17 / 8 tokens; (17 / 6) / (1 + 2/6) to (17 / 6) / (1 - 2/6 + 2/6), or 3.
    assert truth(gaps, 2) == 17 / 8
    assert (low[1], high[1]) == pytest.approx((17 / 8, 17 / 6))
    assert low[2] == high[2] == pytest.approx(17 / 6)


def test_the_estimate_by_hand() -> None:
    """Length 2, A = 1, 1/2, 1/4: t = 1/2, an eighth of the rounds starts within a gap, Z = 8/7.

    S = 1, 8/7 1/2 - 1/7 1/2 = 1/2, 1/4, then 1/8 ...: of a coin, so 1 + 1/2 for length 1.
    """
    assert estimate(8, [4, 2]) == pytest.approx([1.5, 1.75])
    # A = 1, 1/2, 3/8: t = 3/4, Z = 32/23, S = 1, 37/92, 111/368, and then 3/4 of the one before.
    z, t = 32 / 23, 3 / 4
    gaps = [1.0, z / 2 - (z - 1) * t, z * 3 / 8 - (z - 1) * t * t]
    assert gaps == pytest.approx([1, 37 / 92, 111 / 368])
    every_second = 1 + gaps[2] / (1 - t * t)
    found = estimate(8, [4, 3])
    assert found == pytest.approx([z * 1.875 / every_second, 1.875])
    assert naive(8, [4, 3])[0] == 1.5 < found[0]


@given(chance, st.integers(1, 12))
def test_where_acceptance_is_constant_so_is_the_answer(p: float, length: int) -> None:
    """(1 - p^(k+1)) / (1 - p) for every k; the naive sum is right here, too."""
    steps = 10**9
    at_least = [round(steps * p**d) for d in range(1, length + 1)]
    closed = [sum(p**i for i in range(k + 1)) for k in range(1, length + 1)]
    assert estimate(steps, at_least) == pytest.approx(closed, rel=1e-6)
    assert naive(steps, at_least) == pytest.approx(closed, rel=1e-6)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(1, 12))
def test_every_text_lies_within_the_bounds(gaps: list[int], length: int) -> None:
    """Whatever its gaps; and what k + 1 | L + 1 makes exact is."""
    low, high = bounds(*counts(gaps, length))
    found = estimate(*counts(gaps, length))
    for k in range(1, length + 1):
        tokens = truth(gaps, k)
        assert low[k - 1] - 1e-9 <= tokens <= high[k - 1] + 1e-9
        assert low[k - 1] - 1e-9 <= found[k - 1] <= high[k - 1] + 1e-9
        if (length + 1) % (k + 1) == 0:
            assert found[k - 1] == pytest.approx(tokens)


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=12))
def test_counts_that_no_text_has_give_numbers(at_least: list[int]) -> None:
    found = estimate(1000, at_least)
    assert np.isfinite(found).all() and (found >= 1).all()
    assert (found <= np.arange(2, len(at_least) + 2) + 1e-9).all()


def replayed(trace: Trace) -> dict[int, npt.NDArray[np.int64]]:
    """Accepted tokens of every round, by length."""
    costs = tabulate(Affine())
    return {k: replay(Fixed(k), trace, costs).accepted.astype(np.int64) for k in LENGTHS}


def misses(accepted: dict[int, npt.NDArray[np.int64]], length: int) -> tuple[float, float]:
    """The largest relative error below `length`, of the naive sum and of the estimate."""
    ran = accepted[length]
    told = len(ran), [int((ran >= d).sum()) for d in range(1, length + 1)]
    real = np.array([1 + accepted[k].mean() for k in range(1, length)])
    errors = [np.abs(f(*told)[:-1] / real - 1).max() for f in (naive, estimate)]
    return float(errors[0]), float(errors[1])


@pytest.mark.parametrize("name", CHAINS)
def test_shipped_recordings(name: str) -> None:
    """Six recordings, lengths 2 to 8: never off by 0.7 %, never worse than the naive sum."""
    accepted = replayed(read_trace(DATA / f"{name}.parquet"))
    for length in LENGTHS[1:]:
        by_rates, corrected = misses(accepted, length)
        assert corrected < min(0.007, by_rates)


def test_where_it_matters_it_is_ten_times_closer() -> None:
    """Fails for any estimate that takes the starts of 8 for those of the others."""
    accepted = replayed(read_trace(DATA / "embedded-greedy.parquet"))
    by_rates, corrected = misses(accepted, 8)
    assert by_rates > 0.07 and corrected < by_rates / 10


def test_heads_that_see_more_than_tokens_are_no_chain() -> None:
    """EAGLE-3: no promise beyond that of the naive sum, which is within 1 % there."""
    accepted = replayed(read_trace(DATA / "smollm2-eagle3-greedy.parquet"))
    pairs = [misses(accepted, length) for length in LENGTHS[1:]]
    assert all(corrected < 0.009 for _, corrected in pairs)
    assert max(itertools.chain(*pairs)) < 0.01
