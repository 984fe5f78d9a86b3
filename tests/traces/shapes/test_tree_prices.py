"""What draft trees cost where their own steps were measured, by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.results import make_timing
from tests.traces.shapes.test_shapes import ranked
from traces.costs.of_trace import prices_of_levels, prices_of_menu, tabulate_for
from traces.costs.pricing import tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.shapes.shape import chain, parse_shape
from traces.shapes.unfold import under
from traces.timing import Cell, Timing, read_timing


def timing_of_trees() -> Timing:
    """With levels of n nodes at 2 + n s, trees of n tokens at 20 + n s, a second more at 64."""
    plain = make_timing(draft_s=1.0, verify_s=10.0, control_s=0.5)
    cells = []
    for context, more in ((8, 0.0), (64, 1.0)):
        for n in (1, 4):
            seconds = 2.0 + n + more
            cells.append(Cell("level", 1, n, context, seconds, seconds, seconds, 9))
        for n in (3, 9):
            seconds = 20.0 + n + more
            cells.append(Cell("tree", 1, n, context, seconds, seconds, seconds, 9))
    return dataclasses.replace(plain, cells=(*plain.cells, *cells))


def test_trees_are_priced_by_their_own_steps(tmp_path: Path) -> None:
    timing_of_trees().write(tmp_path / "t.json")
    timing = read_timing(tmp_path / "t.json")
    assert timing.knows_trees and timing.operations[-2:] == ("level", "tree")
    costs = tabulate(Table(timing), max_context=16, width=18, bucket_tokens=16)
    tree = parse_shape("3x2x1")
    by_level = prices_of_levels(costs, tree)
    # One token, levels of 3 and 6 nodes are read at 3, 5 and 8 s, a step of 1 s is charged anyhow;
    # 0, 3, 9 and 15 nodes are judged with the newest token at 23 (as of three tokens, the fewest
    # that were timed), 24, 30 and 36 s, and the engine adds 0.5.
    want = [0.0, 23.5, 24.5 + 2.0, 30.5 + 2.0 + 4.0, 36.5 + 2.0 + 4.0 + 7.0]
    assert by_level.verify_s[0, 0, :5].tolist() == pytest.approx(want)
    assert by_level.trees is None
    menu = prices_of_menu(costs, [tree, chain(2)])
    assert menu.verify_s[0, 0, :5].tolist() == pytest.approx(want) and menu.trees is None
    # A chain of a menu is decoded by the steps of trees: two more seconds a level, 23 to judge.
    assert menu.verify_s[1, 0, 1:4].tolist() == pytest.approx([23.5, 23.5 + 2.0, 23.5 + 4.0])
    # Elsewhere a chain is priced as before, whoever measured trees; so is a tree where nobody did.
    plain = tabulate(Table(make_timing(1.0, 10.0, 0.5)), max_context=16, width=18, bucket_tokens=16)
    assert (prices_of_levels(costs, chain(4)).verify_s[..., :6] == costs.verify_s[..., :6]).all()
    assert plain.trees is None
    assert prices_of_levels(plain, tree).verify_s[0, 0, 1:5].tolist() == pytest.approx([10.5] * 4)
    assert tabulate(Table(timing), (1, 2), max_context=16, width=18).trees is None


def test_a_draft_that_begins_pays_for_it() -> None:
    """A first step of 1.25 s before further ones of one: a quarter if anything is drafted."""
    timing = timing_of_trees()
    cells = [
        dataclasses.replace(cell, median_s=1.25) if cell.operation == "first" else cell
        for cell in timing.cells
    ]
    dear = tabulate(Table(dataclasses.replace(timing, cells=tuple(cells))), max_context=16, width=8)
    cheap = tabulate(Table(timing), max_context=16, width=8)
    assert dear.trees is not None and cheap.trees is not None
    assert (dear.trees.tree_s - cheap.trees.tree_s)[0, 1:4].tolist() == pytest.approx(
        [0.0, 0.25, 0.25]
    )


def test_a_trees_steps_follow_the_targets() -> None:
    """Verify takes 50 s of three tokens, 20 of four and 30 of five; the tree 1 and 3 s more."""
    timing = timing_of_trees()
    others = [cell for cell in timing.cells if cell.operation not in ("verify", "tree")]
    for context in (8, 64):
        for operation, ladder in (
            ("verify", {1: 10.0, 3: 50.0, 4: 20.0, 5: 30.0}),
            ("tree", {3: 51.0, 5: 33.0}),
        ):
            others += [Cell(operation, 1, n, context, s, s, s, 9) for n, s in ladder.items()]
    model = Table(dataclasses.replace(timing, cells=tuple(others)))
    assert [model.tree_s(n, 8) for n in (3, 4, 5)] == pytest.approx([51.0, 22.0, 33.0])


def test_a_tree_beyond_what_was_timed_is_refused() -> None:
    trace = ranked([[0, 1, 0, 0, 2, 0, 0, 0]])
    with pytest.raises(InputError, match="verifies 16 tokens, the timing measured up to 9"):
        tabulate_for(under(trace, parse_shape("3x2x1")), Table(timing_of_trees()))


def test_half_of_the_cells_of_trees_are_refused(tmp_path: Path) -> None:
    timing = timing_of_trees()
    dataclasses.replace(timing, cells=timing.cells[:-1]).write(tmp_path / "t.json")
    with pytest.raises(InputError, match=r"t\.json: the timing lacks tree at batch 1, context 64"):
        read_timing(tmp_path / "t.json")
    levels = [cell for cell in timing.cells if cell.operation != "tree"]
    dataclasses.replace(timing, cells=tuple(levels)).write(tmp_path / "u.json")
    with pytest.raises(InputError, match="the timing has no 'tree' cells"):
        read_timing(tmp_path / "u.json")
