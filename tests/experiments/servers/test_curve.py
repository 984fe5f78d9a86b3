"""Seconds of a round from few lengths, and acceptance from counts: hand-computed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.servers.acceptance import tokens_at
from experiments.servers.answers import Answer
from experiments.servers.curve import (
    BETWEEN,
    BEYOND,
    MEASURED,
    TAILS,
    Played,
    Tails,
    average_over_full,
    context_share,
    curve_of,
)

ONE = np.ones((1, 2))


def played(length: int, round_s: float, plain: float = 0.0, plain_s: float = 0.0) -> Played:
    """Two requests of 10 and 30 rounds at round_s, and some without a draft."""
    rounds, idle = np.array([10.0, 30.0]), np.full(2, plain)
    if length == 0:
        return Played(0, rounds * round_s, np.zeros(2), rounds, rounds)
    return Played(length, rounds * round_s + idle * plain_s, rounds, idle, 2 * rounds)


def test_a_line_between_and_beyond() -> None:
    curve = curve_of([played(6, 0.060), played(0, 0.020), played(2, 0.040)], ONE)
    found = {length: float(curve.at(length)[0]) for length in (0, 1, 2, 4, 6, 8)}
    assert found == pytest.approx({0: 0.020, 1: 0.035, 2: 0.040, 4: 0.050, 6: 0.060, 8: 0.070})
    assert [curve.basis(n) for n in (0, 1, 2, 4, 8)] == [
        MEASURED,
        BEYOND,
        MEASURED,
        BETWEEN,
        BEYOND,
    ]


def test_no_round_is_cheaper_than_plain_decoding() -> None:
    curve = curve_of([played(0, 0.038), played(2, 0.040), played(6, 0.060)], ONE)
    assert float(curve.at(1)[0]) == pytest.approx(0.038)  # the line says 0.035


def test_rounds_without_a_draft_cost_a_plain_round() -> None:
    curve = curve_of([played(0, 0.020), played(3, 0.050, plain=5.0, plain_s=0.020)], ONE)
    assert float(curve.at(3)[0]) == pytest.approx(0.050)


def test_ends_of_replies_time_the_lengths_between() -> None:
    ends = [Tails(4, np.array([0.9, 1.1]), np.array([18.0, 22.0])),
            Tails(5, np.array([0.9, 0.0]), np.array([9.0, 0.0]))]  # fmt: skip
    runs = [played(0, 0.020), played(2, 0.040), played(6, 0.060)]
    curve = curve_of(runs, ONE, ends)
    assert float(curve.at(4)[0]) == pytest.approx(2.0 / 40) and curve.basis(4) == TAILS
    assert float(curve.at(5)[0]) == pytest.approx(0.055)  # nine rounds are too few: on the line
    assert float(curve.at(8)[0]) == pytest.approx(0.070)  # by the lengths that were played
    dearer = curve_of(runs, ONE, [Tails(4, np.array([1.2, 1.2]), np.array([20.0, 20.0]))])
    assert [length for length, _ in dearer.kinks()] == [4]


def test_a_kink_is_named() -> None:
    straight = [played(0, 0.02), played(2, 0.04), played(4, 0.05), played(6, 0.06)]
    assert curve_of(straight, ONE).kinks() == []
    bent = [*straight[:2], played(4, 0.06), straight[3]]
    ((length, off),) = curve_of(bent, ONE).kinks()
    assert length == 4 and off == pytest.approx(0.2)


def test_noise_is_no_kink() -> None:
    weights = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]])
    torn = Played(4, np.array([0.4, 2.2]), np.array([10.0, 30.0]), np.zeros(2), np.ones(2))
    runs = [played(0, 0.02), played(2, 0.04), torn, played(6, 0.06)]  # 40 and 73 ms
    assert curve_of(runs, np.ones((1, 2))).kinks() and not curve_of(runs, weights).kinks()


def answer(rounds: int, start: int, base: float, slope: float, noise: float = 0.0) -> Answer:
    """Rounds of two drafted tokens, one kept, and a last one of one; seconds by context."""
    steps = [(2, 1)] * (rounds - 1) + [(1, 0)]
    step_s = [
        base + slope * (start + 1 + 2 * k) + noise * (-1) ** k for k in range(rounds - 1)
    ] + [0.5 * base]  # fmt: skip
    return Answer(
        request_id=f"{start}.1", category="qa", length=2, block=0, seat="2", prompt_tokens=start,
        tokens=2 * rounds, text="", sent_unix_s=0.0, first_s=0.0, last_s=1.0,
        decode_s=sum(step_s), drafted=2 * rounds - 1, accepted=rounds - 1, steps=tuple(steps),
        step_s=tuple(step_s), inferred=False, raw={}, tries=1,
    )  # fmt: skip


def test_context_share() -> None:
    runs = {2: [answer(20, 10, 0.04, 2e-6), answer(9, 900, 0.04, 2e-6)]}
    assert context_share(runs) == pytest.approx(2e-6)
    # Short replies have a larger share of short last rounds: no price of context.
    assert math.isnan(context_share({2: [answer(20, 10, 0.04, 0.0), answer(4, 900, 0.04, 0.0)]}))
    assert math.isnan(context_share({2: [answer(9, 10, 0.04, 1e-6, noise=0.02)]}))


def test_average_over_full_rounds() -> None:
    # Nineteen rounds of 40 ms and one of 20.
    found = average_over_full({0: [], 2: [answer(20, 10, 0.04, 0.0)]})
    assert found == {2: pytest.approx((19 * 0.04 + 0.02) / 20 / 0.04)}


@given(chance=st.floats(0.05, 0.95), known=st.sets(st.integers(1, 8), min_size=1, max_size=3))
def test_constant_acceptance_comes_back(chance: float, known: set[int]) -> None:
    def truth(length: int) -> float:
        return (1 - chance ** (length + 1)) / (1 - chance)

    places = sorted(known)
    found = tokens_at(places, np.array([truth(n) for n in places]), range(9))
    assert found == pytest.approx([truth(n) for n in range(9)], rel=2e-3)


def test_two_numbers_of_acceptance_come_back() -> None:
    # First token 0.6, every later one 0.9: 1 + 0.6 (1 + 0.9 + ...).
    truth = [1 + 0.6 * sum(0.9**k for k in range(n)) for n in range(9)]
    found = tokens_at([2, 6], np.array([truth[2], truth[6]]), range(9))
    assert found == pytest.approx(truth, rel=1e-4)
