"""Accepted, rejected, unknown: flags of rounds by hand, and the schedules behind them."""

from __future__ import annotations

import numpy as np
import pytest

from traces.errors import InputError
from traces.importers.flags import accept_lengths, merge_flags, round_flags
from traces.importers.schedule import Schedule, parse_schedules

# Flags


def test_flags_by_hand() -> None:
    """Two replies: a run that ends in a rejection, in the unknown, and at the reply's end."""
    flags = np.array([1, 1, 0, 1, -1, 1, 1, 1, -1, 1], dtype=np.int8)
    accept_len, censored = accept_lengths(flags, np.array([0, 7, 10]))
    assert accept_len.tolist() == [2, 1, 0, 1, 0, 2, 1, 1, 0, 1]
    assert accept_len.dtype == np.int16
    assert np.flatnonzero(censored).tolist() == [3, 4, 7, 8]


def test_flags_of_rounds_by_hand() -> None:
    """2 of 5, 3 of 3, 0 of 0, 0 of 1: a rejection, a bonus token, no draft, a rejection."""
    assert round_flags([5, 3, 0, 1], [2, 3, 0, 0]).tolist() == [1, 1, 0, 1, 1, 1, -1, -1, 0]


def test_a_second_recording_resolves_and_contradicts() -> None:
    first = np.array([1, -1, 0, -1, 1, 0], dtype=np.int8)
    second = np.array([1, 1, -1, -1, 0, 1], dtype=np.int8)
    merged, resolved, conflicts = merge_flags(first, second)
    assert (merged.tolist(), resolved, conflicts) == ([1, 1, 0, -1, 1, 0], 1, 2)


def test_runs_longer_than_int16_are_cut() -> None:
    flags = np.ones(40_000, dtype=np.int8)
    accept_len, censored = accept_lengths(flags, np.array([0, 40_000]))
    assert accept_len[0] == accept_len.max() == 32767 and accept_len[-1] == 1
    assert not censored.any()


# Schedules


def test_the_heuristic_by_hand() -> None:
    """5: full -> 7 -> 6 (3 accepted) -> 5 (0) ...; capped by what is left of 20 tokens."""
    heuristic = Schedule("heuristic", 5)
    assert heuristic.drafted([6, 4, 1, 1], limit=1000) == [5, 7, 6, 5]
    assert heuristic.drafted([6, 4, 1, 1], limit=20) == [5, 7, 6, 5]
    assert heuristic.drafted([6, 4, 1, 1], limit=13) == [5, 6, 2, 1]
    assert Schedule("heuristic", 1).drafted([1, 1, 2, 1], limit=99) == [1, 1, 1, 3]
    assert Schedule("fixed", 3).drafted([4, 1, 2], limit=7) == [3, 2, 1]


def test_schedules_are_one_or_one_per_file() -> None:
    a, b = Schedule("heuristic", 5), Schedule("fixed", 7)
    assert parse_schedules("heuristic:5", 2) == [a, a]
    assert parse_schedules("heuristic:5, fixed:7", 2) == [a, b]
    assert parse_schedules("", 2) == [None, None]
    for text in ("heuristic", "fixed:0", "fixed:-1", "fixed:x", "magic:3", "fixed:1,fixed:2", ","):
        with pytest.raises(InputError, match="--schedule"):
            parse_schedules(text, 3)
