"""Strips by hand, as letters and as pixels."""

from __future__ import annotations

import numpy as np
import pytest

from policies.base import Outcome
from simulator.envs.render import CELL, INK, LEGEND, LINE, MARGIN, PAPER, ansi, render_line, rgb
from traces.errors import InputError


def outcome(drafted: int, accepted: int, emitted: int) -> Outcome:
    return Outcome(drafted, drafted, accepted, emitted, emitted <= accepted, 0.01, 0.01)


ROUNDS = [
    outcome(4, 2, 3),
    outcome(0, 0, 1),
    outcome(2, 2, 3),
    outcome(3, 0, 1),
    outcome(2, 1, 1),  # the reply ended with an accepted draft
]


def test_strip_by_hand() -> None:
    assert render_line(ROUNDS) == "++--*|.|++*|---*|+-|"
    assert render_line([]) == ""
    assert ansi(ROUNDS) == f"++--*|.|++*|---*|+-|\n{LEGEND}"
    assert "\n" not in LEGEND


def test_every_letter_is_in_the_legend() -> None:
    assert set(render_line(ROUNDS)) <= {word for word in LEGEND.split() if len(word) == 1}


@pytest.mark.parametrize("rounds", [0, 1, 400])
def test_size_hangs_on_width_and_lines_alone(rounds: int) -> None:
    picture = rgb(ROUNDS * rounds, width=300, lines=3)
    assert picture.shape == (3 * LINE + 2 * MARGIN, 300, 3)
    assert picture.dtype == np.uint8
    assert (picture == PAPER).all() == (rounds == 0)


def test_pixels_by_hand() -> None:
    picture = rgb([outcome(2, 1, 2), outcome(0, 0, 1)], width=100, lines=1)
    middle, top = MARGIN + LINE // 2, MARGIN + (LINE - CELL) // 2
    row = [tuple(pixel) for pixel in picture[middle].tolist()]
    lefts = [MARGIN + k * (CELL + 1) for k in range(3)]
    assert row[lefts[0]] == row[lefts[0] + CELL // 2] == INK["+"]
    assert (row[lefts[1]], row[lefts[1] + CELL // 2]) == (INK["-"], PAPER)
    assert row[lefts[2] + CELL // 2] == INK["*"]
    alone = lefts[2] + CELL + 1 + 5
    assert tuple(picture[top, alone].tolist()) == PAPER
    assert tuple(picture[top + CELL - 1, alone].tolist()) == INK["."]
    assert all(pixel == PAPER for pixel in row[alone + CELL :])


def test_the_newest_rounds_are_shown() -> None:
    """A long past, and a last line of its own: only rejected drafts, as wide as a line."""
    past, last = [outcome(1, 1, 2)] * 100, outcome(12, 0, 1)
    picture = rgb([*past, last], width=2 * MARGIN + 13 * (CELL + 1), lines=1)
    assert not (picture == INK["+"]).all(axis=2).any()
    assert (picture == INK["-"]).all(axis=2).sum() == 12 * (CELL**2 - (CELL - 4) ** 2)


def test_rounds_wider_than_a_line_are_broken() -> None:
    picture = rgb([outcome(9, 9, 10)], width=2 * MARGIN + 4 * (CELL + 1), lines=3)
    assert (picture == INK["+"]).all(axis=2).sum() == 9 * CELL**2


def test_colours_differ_in_lightness_or_shape() -> None:
    """Luma of any two whole blocks differs by 40 of 255, so that grey pictures read as well."""
    luma = [np.dot(INK[token], (0.299, 0.587, 0.114)) for token in ("+", "*", ".")]
    assert min(abs(a - b) for k, a in enumerate(luma) for b in luma[:k]) > 40


@pytest.mark.parametrize(("width", "lines"), [(10, 4), (300, 0)])
def test_no_room(width: int, lines: int) -> None:
    with pytest.raises(InputError, match="has no room for a token"):
        rgb(ROUNDS, width, lines)
