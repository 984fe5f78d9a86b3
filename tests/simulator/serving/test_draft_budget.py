"""How a batch shares its drafts: caps and trims by hand, and against all choices there are."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.serving.costs import verify_seconds
from simulator.serving.draft_budget import (
    ADAPTIVE,
    BUDGET,
    LONGEST,
    MEAN,
    SHORTEST,
    TETRIS,
    share_caps,
    trim,
)
from simulator.serving.state import PLACE, SLOT
from traces.costs.pricing import make_step_costs

Records = tuple[Any, Any]
WIDTH = 30
WISHES = st.lists(st.integers(0, 8), min_size=1, max_size=6)


def batch_of(order: list[int] | None = None, **fields: list[int]) -> Records:
    """places and slots of rows with these fields; row k of the batch lies in slot order[k]."""
    count = len(next(iter(fields.values())))
    places = np.zeros(count, dtype=PLACE).view(np.recarray)
    slots = np.zeros(count, dtype=SLOT).view(np.recarray)
    places.decoding = order or list(range(count))
    for name, values in fields.items():
        for k, value in enumerate(values):
            slots[places[k].decoding][name] = value
    return places, slots


def read(records: Records, field: str) -> list[int]:
    """A field by row of the batch."""
    places, slots = records
    return [int(slots[number][field]) for number in places.decoding]


def shared(
    mode: int,
    wishes: list[int],
    rooms: list[int] | None = None,
    budget: int = 0,
    order: list[int] | None = None,
) -> list[int]:
    """The caps after sharing."""
    records = batch_of(order, cap=wishes, room=rooms or [99] * len(wishes))
    share_caps(mode, budget, records[0], len(wishes), records[1])
    return read(records, "cap")


def trimmed(
    mode: int,
    survival: list[list[float]],
    *,
    budget: int = 0,
    verify_s: Any = None,
    start_s: float = 0.0,
    draft_s: float = 0.0,
    order: list[int] | None = None,
) -> list[int]:
    """What is verified of rows whose drafted tokens survive with these chances."""
    records = batch_of(order, drafted=[len(row) for row in survival])
    table = np.full((len(survival), WIDTH), 9.0)  # nobody may look behind what was drafted
    for k, row in enumerate(survival):
        table[records[0][k].decoding, : len(row)] = row
    seconds = np.arange(float(WIDTH)) if verify_s is None else verify_s
    n = len(survival)
    plane = np.broadcast_to(seconds, (n, 1, len(seconds)))
    starts = np.full((n, 1), start_s)
    costs = make_step_costs(plane, plane, batch_sizes=range(1, n + 1), start_s=starts)
    trim(mode, budget, records[0], n, records[1], table, costs, 0, draft_s, start_s)
    return read(records, "verified")


# --- caps


@pytest.mark.parametrize(
    ("mode", "wishes", "caps"),
    [
        (SHORTEST, [5, 2, 7], [2, 2, 2]),
        (SHORTEST, [5, 0, 7], [0, 0, 0]),
        (LONGEST, [5, 2, 7], [7, 7, 7]),
        (MEAN, [5, 2, 7], [5, 5, 5]),  # 14 / 3
        (MEAN, [1, 2], [2, 2]),  # 1.5, halves up
        (MEAN, [2, 2, 2, 3], [2, 2, 2, 2]),
        (MEAN, [0, 0, 1], [0, 0, 0]),
        (MEAN, [4], [4]),
        (LONGEST, [0], [0]),
    ],
)
def test_one_length_for_all(mode: int, wishes: list[int], caps: list[int]) -> None:
    assert shared(mode, wishes) == caps


@pytest.mark.parametrize(
    ("mode", "caps"), [(SHORTEST, [3, 3, 1]), (LONGEST, [6, 4, 1]), (MEAN, [4, 4, 1])]
)
def test_one_length_stays_inside_each_rows_room(mode: int, caps: list[int]) -> None:
    # The third row has room for 1 and wished 3 before the server clamped: never in a run.
    assert shared(mode, [6, 3, 3], rooms=[9, 4, 1]) == caps


@pytest.mark.parametrize(
    ("wishes", "budget", "caps"),
    [
        ([5, 2, 7], 17, [5, 2, 7]),  # 3 + 14: just fits
        ([5, 2, 7], 16, [5, 2, 6]),
        ([5, 2, 7], 15, [5, 2, 5]),
        ([5, 2, 7], 14, [5, 2, 4]),  # of two longest the last admitted gives first
        ([5, 2, 7], 13, [4, 2, 4]),
        ([5, 2, 7], 9, [2, 2, 2]),
        ([5, 2, 7], 8, [2, 2, 1]),
        ([5, 2, 7], 3, [0, 0, 0]),
        ([5, 2, 7], 0, [0, 0, 0]),  # below the rows' own tokens: nothing is left to take
        ([0, 0], 2, [0, 0]),
        ([4], 3, [2]),
        ([3, 3, 3, 3], 11, [2, 2, 2, 1]),
    ],
)
def test_a_budget_shortens_the_longest_first(
    wishes: list[int], budget: int, caps: list[int]
) -> None:
    assert shared(BUDGET, wishes, budget=budget) == caps
    order = list(range(len(wishes)))[::-1]
    assert shared(BUDGET, wishes, budget=budget, order=order) == caps  # batch order, not slot order


@given(wishes=WISHES, spare=st.integers(0, 60))
def test_a_budget_is_used_up_and_as_even_as_can_be(wishes: list[int], spare: int) -> None:
    caps = shared(BUDGET, wishes, budget=len(wishes) + spare)
    assert sum(caps) == min(spare, sum(wishes))
    assert all(
        0 <= cap <= requested_gamma for cap, requested_gamma in zip(caps, wishes, strict=True)
    )
    cut = [cap for cap, requested_gamma in zip(caps, wishes, strict=True) if cap < requested_gamma]
    # Whoever gave something has as much as anybody keeps, up to one token.
    assert all(cap >= max(caps) - 1 for cap in cut)


@given(wishes=WISHES, mode=st.sampled_from([SHORTEST, MEAN, LONGEST]))
def test_one_length_is_between_the_wishes(wishes: list[int], mode: int) -> None:
    (common,) = set(shared(mode, wishes))
    mean = np.floor(np.mean(wishes) + 0.5)
    assert common == {SHORTEST: min(wishes), MEAN: mean, LONGEST: max(wishes)}[mode]


# --- trims


CHANCES = [[0.9, 0.8, 0.3], [0.6, 0.5, 0.4], [0.2]]
LIKELIEST = [  # tokens taken one after another: rows 0, 0, 1, 1, 1, 0, 2
    [0, 0, 0], [1, 0, 0], [2, 0, 0], [2, 1, 0], [2, 2, 0], [2, 3, 0], [3, 3, 0], [3, 3, 1],
]  # fmt: skip


@pytest.mark.parametrize("count", range(8))
def test_tetris_takes_the_likeliest(count: int) -> None:
    """The capacity is of drafted tokens: the rows' own three are not in it."""
    assert trimmed(TETRIS, CHANCES, budget=count) == LIKELIEST[count]
    assert trimmed(TETRIS, CHANCES, budget=count, order=[2, 0, 1]) == LIKELIEST[count]


def test_tetris_keeps_everything_that_fits_and_nothing_hopeless() -> None:
    assert trimmed(TETRIS, CHANCES, budget=99) == [3, 3, 1]
    assert trimmed(TETRIS, [[0.5, 0.0, 0.0], []], budget=99) == [1, 0]
    assert trimmed(TETRIS, [[], []], budget=99) == [0, 0]
    assert trimmed(TETRIS, [[0.5, 0.5], [0.5]], budget=2) == [2, 0]  # ties: the first admitted


def test_adaptive_by_hand() -> None:
    # Seconds 6 + tokens per row; survivals 0.9, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2 of three rows:
    #  0: 3 / 7 = 0.4286            1: 3.9 / 7.333 = 0.5318     2: 4.7 / 7.667 = 0.6130
    #  3: 5.3 / 8 = 0.6625          4: 5.8 / 8.333 = 0.6960     5: 6.2 / 8.667 = 0.7154
    #  6: 6.5 / 9 = 0.7222          7: 6.7 / 9.333 = 0.7179
    seconds = 6.0 + np.arange(float(WIDTH))
    assert trimmed(ADAPTIVE, CHANCES, verify_s=seconds) == LIKELIEST[6]
    # The draft's seconds count: with 4 of these 6 in the draft the same is chosen; without any
    # fixed part, (3 + sum) / (3 + taken) * 3 only falls and nothing is.
    assert trimmed(ADAPTIVE, CHANCES, verify_s=seconds - 4.0, draft_s=4.0) == LIKELIEST[6]
    assert trimmed(ADAPTIVE, CHANCES, verify_s=seconds - 6.0) == LIKELIEST[0]
    # Fixed 2: 3/3 = 1, 3.9/3.333 = 1.17, 4.7/3.667 = 1.282, 5.3/4 = 1.325, 5.8/4.333 = 1.338,
    # 6.2/4.667 = 1.3286.
    assert trimmed(ADAPTIVE, CHANCES, verify_s=seconds - 4.0) == LIKELIEST[4]
    # A step of two tokens per row that costs the earth: nothing is verified.
    cliff = np.where(np.arange(WIDTH) < 2, 6.0 + np.arange(WIDTH), 600.0)
    assert trimmed(ADAPTIVE, [[0.9, 0.9]], verify_s=cliff) == [0]


def test_what_a_draft_has_cost_is_not_saved_by_verifying_less() -> None:
    # Two rows, a token of chance 0.2 each; the block has cost 4, a step 9 + tokens per row / 2:
    # 2 / 14 < 2.2 / 14.25 < 2.4 / 14.5. If verifying nothing saved the block: 2 / 10 > 2.4 / 14.5.
    seconds = 10.0 + np.asarray([0.0, 0.0, 4.5, 5.0])
    kept = trimmed(ADAPTIVE, [[0.2], [0.2]], verify_s=seconds, start_s=4.0, draft_s=4.0)
    assert kept == [1, 1]


def test_a_tie_is_taken_back_from_the_last_admitted() -> None:
    # Two rows with two tokens of chance 0.5 each; one or two tokens per row cost 1 s, three 1.5 s.
    # Rates: 2 / 1, 2.5 / 1, 3 / 1, 3.5 / 1.25 = 2.8, 4 / 1.5 = 2.67: two tokens are kept.
    seconds = np.asarray([1.0, 1.0, 1.0, 1.5, 3.0, 5.0])
    assert trimmed(ADAPTIVE, [[0.5, 0.5], [0.5, 0.5]], verify_s=seconds) == [2, 0]


def test_a_later_peak_is_found() -> None:
    # One row: 1 / 2, 1.5 / 4, 2 / 4, 2.5 / 4: the rate falls before it rises.
    seconds = np.asarray([0.0, 2.0, 4.0, 4.0, 4.0, 99.0])
    assert trimmed(ADAPTIVE, [[0.5, 0.5, 0.5]], verify_s=seconds) == [3]


ROWS = st.lists(
    st.lists(st.floats(0.05, 1.0), max_size=3).map(
        lambda shown: np.cumprod(shown).tolist()  # running products of the draft's confidence
    ),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=150)
@given(
    survival=ROWS,
    verify_s=st.lists(st.floats(0.1, 10.0), min_size=6, max_size=6),
    draft_s=st.floats(0.0, 5.0),
)
def test_adaptive_has_the_best_rate_of_all_choices(
    survival: list[list[float]], verify_s: list[float], draft_s: float
) -> None:
    """Against every choice of a prefix of every row, whatever the seconds, falling ones too."""
    seconds, n = np.asarray(verify_s), len(survival)

    def rate(chosen: tuple[int, ...] | list[int]) -> float:
        hope = n + sum(sum(row[:c]) for row, c in zip(survival, chosen, strict=True))
        return hope / (draft_s + verify_seconds(seconds, 1.0 + sum(chosen) / n))

    chosen = trimmed(ADAPTIVE, survival, verify_s=seconds, draft_s=draft_s)
    everything = itertools.product(*(range(len(row) + 1) for row in survival))
    assert rate(chosen) >= max(map(rate, everything)) * (1 - 1e-12)


@settings(deadline=None, max_examples=150)
@given(survival=ROWS, spare=st.integers(0, 14))
def test_tetris_has_the_largest_sum_of_all_choices(survival: list[list[float]], spare: int) -> None:
    def hope(chosen: tuple[int, ...] | list[int]) -> float:
        return sum(sum(row[:c]) for row, c in zip(survival, chosen, strict=True))

    chosen = trimmed(TETRIS, survival, budget=spare)
    everything = itertools.product(*(range(len(row) + 1) for row in survival))
    best = max(hope(c) for c in everything if sum(c) <= spare)
    assert sum(chosen) == min(spare, sum(map(len, survival)))
    assert hope(chosen) >= best * (1 - 1e-12)
