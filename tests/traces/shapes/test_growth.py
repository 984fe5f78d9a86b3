"""Growing trees at rest: what a reply meets of them, by hand, and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from traces.errors import InputError
from traces.schema import Trace, TraceMeta
from traces.shapes.growth import OUTSIDE, Growth, hash_of_reply, read_growth, write_growth
from traces.shapes.shape import Grown, parse_draft


def a_trace(limit: int = 3, **meta: Any) -> Trace:
    """One reply of three tokens."""
    described = {"depth": 2, "max_new_tokens": limit} | meta
    return Trace(
        meta=TraceMeta("p", "t", "d", "", "cpu", "none", "exact", **described),
        offsets=np.array([0, 3]),
        prompt_tokens=np.array([5], dtype=np.int32),
        request_id=("r",),
        category=("c",),
        accept_len=np.zeros(3, dtype=np.int16),
        token_ids=np.array([4, 5, 6], dtype=np.int32),
        target_rank=np.zeros(3, dtype=np.int16),
    )


def a_growth(trace: Trace) -> Growth:
    """Beam 2. The reply's nodes: third likeliest of level 1; first of it, and of level 2 the one
    with one of level 1 and one of level 2 before it; second of level 1, then the end.
    """
    out = [OUTSIDE, OUTSIDE]
    before = [[[2, 1], out], [[0, 0], [1, 1]], [[1, 4], out]]
    ones = np.ones((3, 2), dtype=np.float32)
    counts = np.array(before, dtype=np.int16)
    return Growth(2, trace.offsets, counts, ones / 2, ones / 4, hash_of_reply(trace))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Grown(2, 1), [0, 1, 1]),
        (Grown(2, 2), [0, 2, 1]),  # the beam of every level
        (Grown(2, 2, 1), [0, 1, 0]),  # the likeliest candidate alone
        (Grown(2, 2, 2), [0, 1, 0]),  # two come before the second level's node
        (Grown(2, 2, 3), [0, 2, 0]),  # last: five likelier ones
        (Grown(2, 2, 4), [1, 2, 0]),
        (Grown(2, 2, 6), [1, 2, 1]),
        (Grown(2, 1, 2), [0, 1, 1]),
        (Grown(2, 1, 3), [1, 1, 1]),
    ],
    ids=str,
)
def test_what_a_reply_meets_by_hand(rule: Grown, expected: list[int]) -> None:
    trace = a_trace(limit=99)
    assert a_growth(trace).reach(trace, rule).tolist() == expected


def test_where_the_limit_leaves_one_level_the_tree_has_one() -> None:
    """At the second position of three there is room for one level: then one node comes before the
    reply's, with the next level two.
    """
    rule = Grown(2, 2, 2)
    for limits, expected in (
        ({"limit": 99}, [0, 0, 0]),
        ({"limit": 3}, [0, 1, 0]),
        ({"limit": 99, "max_context": 8}, [0, 1, 0]),  # the prompt has five
    ):
        trace = a_trace(**limits)
        growth = a_growth(trace)
        growth.before[1, 0] = [1, 1]
        assert growth.reach(trace, rule).tolist() == expected


def test_trees_are_written_as_they_are_read() -> None:
    for rule in (Grown(8, 6), Grown(8, 6, 32), Grown(1, 1)):
        assert parse_draft(str(rule)) == rule
    assert str(parse_draft("3x2x1")) == "3x2x1"
    for text in ("g", "g8", "g8x", "g8x6x", "g8x6x1x1", "g-1x2", "G8x6", "g8x6x0x", "g99999x1"):
        with pytest.raises(InputError, match="children by level"):
            parse_draft(text)
    for text in ("g0x3", "g3x0", "g600x1", "g8x6x999"):
        with pytest.raises(InputError):
            parse_draft(text)


def test_nodes_by_levels() -> None:
    assert Grown(3, 3).nodes_to == (0, 3, 6, 9)
    assert Grown(3, 3, 10).nodes_to == (0, 3, 10, 10)
    assert Grown(3, 3, 99).nodes_to == (0, 3, 12, 21)
    assert Grown(3, 2, 2).nodes_to == (0, 2, 2)
    assert (Grown(3, 2).nodes, Grown(3, 2).widths, Grown(1, 2).is_chain) == (6, (3, 3), True)


def test_files(tmp_path: Path) -> None:
    trace = a_trace()
    growth, path = a_growth(trace), tmp_path / "g.npz"
    write_growth(path, growth)
    found = read_growth(path, trace)
    assert (found.before == growth.before).all() and found.beam == 2
    assert (found.select([0]).share == growth.share).all()
    whole = path.read_bytes()
    other = Trace(**{**vars(trace), "token_ids": np.array([4, 5, 7], dtype=np.int32)})
    with pytest.raises(InputError, match="another recording"):
        read_growth(path, other)
    with pytest.raises(InputError, match="exists"):
        write_growth(path, growth)
    for damaged in (b"", whole[:300], b"hello", whole[:-30]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged"):
            read_growth(path, trace)
    with pytest.raises(InputError, match="no such file"):
        read_growth(tmp_path / "none.npz", trace)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"before": np.zeros((3, 2), np.int16)}, "before"),
        ({"before": np.zeros((3, 2, 2), np.int64)}, "before"),
        ({"before": np.full((3, 2, 2), -1, np.int16)}, "range"),
        ({"share": np.zeros((2, 2), np.float32)}, "share"),
        ({"share": np.full((3, 2), np.nan, np.float32)}, "range"),
        ({"entropy": np.full((3, 2), -1, np.float32)}, "range"),
        ({"offsets": np.array([0, 2])}, "range"),
        ({"beam": 0}, "range"),
    ],
)
def test_a_file_that_fits_nothing(tmp_path: Path, changed: dict[str, Any], word: str) -> None:
    trace = a_trace()
    write_growth(tmp_path / "g.npz", Growth(**{**vars(a_growth(trace)), **changed}))
    with pytest.raises(InputError, match=word):
        read_growth(tmp_path / "g.npz", trace)
