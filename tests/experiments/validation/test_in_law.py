"""The law check: level under the same law, power against another one, pooling by hand."""

from __future__ import annotations

import numpy as np

from experiments.validation.in_law import check_law, chi_square, pool
from traces.roundlog import ROUND_DTYPES, RoundLog


def make_log(generator: np.random.Generator, replies: int, alpha: float, sticky: float) -> RoundLog:
    """Rounds of gamma 5 whose acceptance wanders from reply to reply by `sticky`."""
    request, accepted = [], []
    for reply in range(replies):
        level = np.clip(alpha + sticky * generator.normal(), 0.05, 0.95)
        for _ in range(25):
            request.append(reply)
            accepted.append(min(5, int(generator.geometric(1 - level)) - 1))
    columns = {name: np.zeros(len(request), dtype) for name, dtype in ROUND_DTYPES.items()}
    columns["request"] = np.asarray(request, np.int32)
    columns["accepted"] = np.asarray(accepted, np.int32)
    return RoundLog(**columns, prefill_s=np.zeros(replies), meta={})


def test_pooling_by_hand() -> None:
    real = np.array([[6.0, 3.0, 3.0, 1.0, 0.0, 1.0]])
    first, second = pool(real, real)
    assert first.tolist() == [[6.0, 8.0]] and second.tolist() == first.tolist()


def test_statistic_by_hand() -> None:
    # 2 x 2 table 10 20 / 20 10: n (ad - bc)^2 / (row and column sums) = 60 * 300^2 / 30^4.
    value = chi_square(np.array([10.0, 20.0]), np.array([20.0, 10.0]))
    assert abs(float(value) - 60 * 300**2 / 30**4) < 1e-12


def test_permutation_keeps_its_level_where_rounds_depend_on_the_reply() -> None:
    generator = np.random.default_rng(2)
    checks = []
    for k in range(40):
        first = make_log(generator, 40, 0.6, sticky=0.2)
        second = make_log(generator, 40, 0.6, sticky=0.2)
        checks.append(check_law("x", [first], [second], seed=k))
    small = np.mean([c.permutation_p < 0.05 for c in checks])
    naive = np.mean([c.chi_square_p < 0.05 for c in checks])
    assert small <= 0.15 < naive  # the plain test cries wolf there


def test_another_law_is_found() -> None:
    generator = np.random.default_rng(3)
    first = make_log(generator, 200, 0.70, sticky=0.05)
    second = make_log(generator, 200, 0.66, sticky=0.05)
    found = check_law("x", [first], [second])
    assert found.permutation_p < 0.01 and found.chi_square_p < 0.01
    assert found.real_mean > found.replayed_mean and found.real_rounds == 5000
