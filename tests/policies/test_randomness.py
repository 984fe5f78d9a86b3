"""Normal and beta numbers from counter-based uniforms: their laws, their indices, compiled too."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from policies import randomness
from policies.randomness import BETA_UNIFORMS, Rng, beta, log_gamma_draw, normal, round_key, uniform
from simulator.replay.kernels import run_function

SHAPES = ((1.0, 1.0), (0.3, 0.2), (2.0, 5.0), (80.5, 20.5), (1.0, 9.0), (0.05, 3.0))


def keys(count: int) -> list[Rng]:
    return [Rng(round_key(11, k % 50, k // 50)) for k in range(count)]


@pytest.mark.parametrize("i", [0, 7])
def test_normal_has_the_moments_and_the_law(i: int) -> None:
    draws = np.array([normal(rng, i) for rng in keys(20_000)])
    # Standard errors at n = 20,000: mean 0.007, variance 0.010, third moment 0.027, fourth 0.069.
    assert abs(draws.mean()) < 0.03
    assert abs(draws.var() - 1.0) < 0.04
    assert abs((draws**3).mean()) < 0.11
    assert abs((draws**4).mean() - 3.0) < 0.28
    assert stats.kstest(draws, "norm").pvalue > 0.01


def test_normal_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {6: 1.0 - math.exp(-2.0), 7: 0.5}
    monkeypatch.setattr(randomness, "uniform", lambda rng, i: numbers[i])
    # sqrt(-2 ln e^-2) = 2, cos(pi) = -1.
    assert normal(Rng(0), 3) == pytest.approx(-2.0)
    monkeypatch.setattr(randomness, "uniform", lambda rng, i: 0.0)
    assert normal(Rng(0), 3) == 0.0  # no log(0)
    monkeypatch.setattr(randomness, "uniform", lambda rng, i: (2**32 - 1) / 2**32 * (i % 2 == 0))
    assert normal(Rng(0), 3) == pytest.approx(math.sqrt(64 * math.log(2)))  # the largest


def test_neighbouring_normals_are_independent() -> None:
    draws = np.array([[normal(rng, i) for i in range(3)] for rng in keys(10_000)])
    correlation = np.corrcoef(draws.T)
    assert np.abs(correlation - np.eye(3)).max() < 0.04


@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_beta_has_the_moments_and_the_law(a: float, b: float) -> None:
    draws = np.array([beta(rng, 2, a, b) for rng in keys(5_000)])
    law = stats.beta(a, b)
    assert draws.min() >= 0.0 and draws.max() <= 1.0
    assert abs(draws.mean() - law.mean()) < 4 * law.std() / math.sqrt(5_000)
    error = law.var() * math.sqrt((float(law.stats(moments="k")) + 2.0) / 5_000)
    assert abs(draws.var() - law.var()) < 4 * error
    assert stats.kstest(draws, law.cdf).pvalue > 0.01


@pytest.mark.parametrize("shape", [0.2, 1.0, 7.5])
def test_gamma_has_the_law(shape: float) -> None:
    draws = np.exp([log_gamma_draw(rng, 8, shape) for rng in keys(5_000)])
    assert stats.kstest(draws, stats.gamma(shape).cdf).pvalue > 0.01


def test_beta_with_shapes_near_zero_is_a_coin() -> None:
    draws = np.array([beta(rng, 0, 1e-3, 3e-3) for rng in keys(4_000)])
    assert np.isfinite(draws).all()
    assert abs((draws > 0.5).mean() - 0.25) < 0.03


def test_a_beta_stays_in_its_block_of_uniforms(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def rejecting(rng: Rng, i: int) -> float:
        asked.append(i)
        return 0.0  # normal 0 and log(1 - 0) = 0 < 0: every attempt is rejected

    monkeypatch.setattr(randomness, "uniform", rejecting)
    # Nothing accepted: the middles d = a - 1/3, ln(10 - 1/3) and ln(20 - 1/3).
    assert beta(Rng(0), 3, 10.0, 20.0) == pytest.approx((29 / 3) / (29 / 3 + 59 / 3))
    assert len(asked) == len(set(asked)) == 2 * 3 * 16
    assert min(asked) == 3 * BETA_UNIFORMS == 384 and max(asked) < 4 * BETA_UNIFORMS
    asked.clear()
    beta(Rng(0), 0, 0.5, 0.5)
    assert len(asked) == len(set(asked)) and max(asked) < BETA_UNIFORMS


def fill(keys: Any, shapes: Any, out: Any) -> None:
    """Column 0: uniforms, 1: normals, further ones: betas."""
    for row in range(keys.shape[0]):
        rng = Rng(int(keys[row]))
        out[row, 0] = uniform(rng, row)
        out[row, 1] = normal(rng, row)
        for column in range(shapes.shape[0]):
            a, b = float(shapes[column, 0]), float(shapes[column, 1])
            out[row, 2 + column] = beta(rng, column, a, b)


def test_plain_and_compiled_draws_are_the_same_bits() -> None:
    rows = np.array([rng.key for rng in keys(2_000)], dtype=np.int64)
    shapes = np.array(SHAPES)
    plain, compiled = np.zeros((2, len(rows), 2 + len(shapes)))
    fill(rows, shapes, plain)
    run_function(fill, rows, shapes, compiled)
    assert plain.tobytes() == compiled.tobytes()
