"""The measured cost model against a slow interpolation of its timing, and by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.costs.pricing import prices_of, round_seconds, tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.timing import OPERATIONS, Cell, Timing, read_timing
from traces.timing_grid import Grid


def make_timing(generator: np.random.Generator, batches: int, contexts: int, tokens: int) -> Timing:
    """Random seconds on a random full grid, falling here and there."""
    cells = []
    for operation in OPERATIONS:
        axes = [
            np.sort(generator.choice(np.arange(low, 300), size, replace=False)).tolist()
            for low, size in ((1, batches), (0, contexts), (1, tokens))
        ]
        for batch in axes[0]:
            for context in axes[1]:
                for count in axes[2]:
                    seconds = float(generator.exponential(1e-3))
                    cells.append(
                        Cell(operation, batch, count, context, seconds, seconds, seconds, 3)
                    )
    return Timing({}, tuple(cells), signal_s=1e-5, control_s=2e-5)


def along(points: np.ndarray, values: np.ndarray, x: float) -> float:
    """The slow reference on one axis: constant before the grid, last slope (if up) behind it."""
    if x > points[-1] and len(points) > 1:
        slope = (values[-1] - values[-2]) / (points[-1] - points[-2])
        return float(values[-1] + max(0.0, float(slope)) * (x - points[-1]))
    return float(np.interp(x, points, values))


def reference(grid: Grid, batch: float, context: float, tokens: float) -> float:
    planes = []
    for plane in grid.seconds:
        rows = np.asarray([along(grid.tokens, row, tokens) for row in plane])
        planes.append(along(grid.context, rows, context))
    return along(grid.batch, np.asarray(planes), batch)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.tuples(*[st.integers(1, 4)] * 3),
    st.tuples(*[st.floats(0, 400, allow_subnormal=False)] * 3),
)
def test_table_is_the_interpolation_of_the_timing(
    world: int, sizes: tuple[int, int, int], point: tuple[float, float, float]
) -> None:
    timing = make_timing(np.random.default_rng(world), *sizes)
    model, (batch, context, tokens) = Table(timing), point
    # np.interp rounds the weights in another order; in between, both are the same line.
    near = {"rel": 1e-9, "abs": 1e-15}
    verify, first = timing.grid("verify"), timing.grid("first")
    further = reference(timing.grid("draft"), batch, context, 1)
    alone = reference(first, batch, context, 1)
    assert model.verify_s(1, batch, context) == pytest.approx(
        reference(verify, batch, context, 1), **near
    )
    tokens += 1.5
    assert model.verify_s(tokens, batch, context) == pytest.approx(
        reference(verify, batch, context, tokens), **near
    )
    assert model.draft_start_s(batch, context) == pytest.approx(max(0.0, alone - further), **near)
    assert model.draft_step_s(batch, context) == pytest.approx(further, **near)
    assert model.draft_step_s(batch, context, tokens) == pytest.approx(
        further + max(0.0, reference(first, batch, context, tokens) - alone), **near
    )


def test_table_keeps_what_was_measured() -> None:
    # Verify falls from two tokens to three; beyond the grid a falling slope is not continued.
    seconds = {1: 5.0, 2: 9.0, 3: 7.0}
    cells = [Cell("verify", 1, t, 0, s, s, s, 1) for t, s in seconds.items()]
    cells += [Cell(name, 1, 1, 0, 1.0, 1.0, 1.0, 1) for name in ("first", "draft", "prefill")]
    model = Table(Timing({}, tuple(cells), 0.125, 0.25))
    assert [model.verify_s(n, 1, 64) for n in (1, 2, 2.5, 3, 9)] == [5.0, 9.0, 8.0, 7.0, 7.0]
    assert (model.signal_s(), model.control_s()) == (0.125, 0.25)


def test_a_round_of_the_table_is_the_sum_of_its_measured_steps() -> None:
    """First step (lag 2) 4 s, further steps 1 s, verify of 4 tokens 9 s: 4 + 1 + 1 + 9."""
    seconds = {("first", 1): 3.0, ("first", 2): 4.0, ("draft", 1): 1.0, ("prefill", 1): 1.0}
    seconds |= {("verify", 1): 6.0, ("verify", 4): 9.0}
    cells = tuple(Cell(op, 1, t, 0, s, s, s, 1) for (op, t), s in seconds.items())
    prices = prices_of(tabulate(Table(Timing({}, cells, 0.0, 0.0)), width=6), signals=False)
    assert round_seconds(prices, 0, 0, drafted=3, lag=2) == 4.0 + 1.0 + 1.0 + 9.0
    assert round_seconds(prices, 0, 0, drafted=3, lag=1) == 3.0 + 1.0 + 1.0 + 9.0
    assert round_seconds(prices, 0, 0, drafted=0, lag=1) == 6.0


def test_a_timing_with_a_hole_is_refused() -> None:
    timing = make_timing(np.random.default_rng(0), 2, 2, 2)
    with pytest.raises(InputError, match="lacks"):
        Table(dataclasses.replace(timing, cells=timing.cells[1:]))


@pytest.mark.parametrize(
    ("kind", "expected"), [("block", [6.0, 10.0, 12.0]), ("host", [9.0, 10.0, 12.0])]
)
def test_a_draft_without_steps_needs_none_timed(
    kind: str, expected: list[float], tmp_path: Path
) -> None:
    """One forward or look-up of 3 s (4 s if two tokens are unread), verifies of 6 and 9 s. A
    look-up is made in a round without a draft, too.
    """
    seconds = {("first", 1): 3.0, ("first", 2): 4.0, ("prefill", 1): 1.0}
    seconds |= {("verify", 1): 6.0, ("verify", 4): 9.0}
    cells = tuple(Cell(op, 1, t, 0, s, s, s, 1) for (op, t), s in seconds.items())
    meta = {"pair": "p", "device": "cpu", "draft_kind": kind}
    timing = Timing(meta, cells, 0.0, 0.0)
    timing.write(tmp_path / "timing.json")
    costs = tabulate(Table(read_timing(tmp_path / "timing.json")), width=6)
    assert [round_seconds(costs, 0, 0, drafted, 1) for drafted in (0, 1, 3)] == expected
    assert round_seconds(costs, 0, 0, drafted=3, lag=2) == 13.0
    with pytest.raises(InputError, match="no 'draft' cells"):
        Table(dataclasses.replace(timing, meta=meta | {"draft_kind": "step"}))


def test_an_unknown_kind_of_draft_is_refused(tmp_path: Path) -> None:
    timing = make_timing(np.random.default_rng(0), 1, 1, 1)
    meta = {"pair": "p", "device": "cpu", "draft_kind": "tree"}
    dataclasses.replace(timing, meta=meta).write(tmp_path / "timing.json")
    with pytest.raises(InputError, match="'draft_kind' must be step, block, host, not 'tree'"):
        read_timing(tmp_path / "timing.json")
