"""Timing, version 2: two clocks, sweeps kept one by one, own seconds; version 1 still read."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from traces.costs.pricing import tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.timing import OPERATIONS, Cell, Repeats, Timing, read_timing

SHIPPED = Path(__file__).parents[2] / "traces/data/timing-x86_64-cpu.json"
SWEEPS = 9
SPREAD = 0.1  # standard deviation of a sweep, shared by all cells


def make_timing(threads: int = 1, sweeps: int = SWEEPS) -> Timing:
    """Every cell 4 s by the wall, 3 s by the processor, times what its sweep was slower."""
    slower = 1.0 + SPREAD * np.random.default_rng(7).standard_normal(sweeps)
    wall, cpu = (tuple((s * slower).tolist()) for s in (4.0, 3.0))
    cells = tuple(
        Cell(op, batch, tokens, 100, float(np.median(wall)), 3.9, 4.1, 90, wall, cpu)
        for op in OPERATIONS
        for batch in (1, 2)
        for tokens in (1, 2)
    )
    meta = {"pair": "p", "device": "cpu", "threads": threads}
    own_s = {"payback": (1e-3, 2e-3), "fixed": (1e-6, 0.0)}
    signal, control = Repeats((0.5, 0.6, 0.4), (0.2, 0.3, 0.1)), Repeats((0.25,), (0.125,))
    return Timing(meta, cells, 0.5, 0.25, own_s, signal, control)


def test_round_trip_and_clocks(tmp_path: Path) -> None:
    timing = make_timing()
    timing.write(tmp_path / "t.json")
    read = read_timing(tmp_path / "t.json")
    assert read == timing
    assert (read.clocks, read.clock, read.sweeps) == (("wall", "cpu"), "cpu", SWEEPS)
    assert make_timing(threads=2).clock == "wall"
    wall, cpu = read.on("wall"), read.on("cpu")
    assert cpu.cells[0].median_s == pytest.approx(0.75 * wall.cells[0].median_s)
    assert (wall.signal_s, wall.control_s, cpu.signal_s, cpu.control_s) == (0.5, 0.25, 0.2, 0.125)
    assert cpu.on("wall") == wall and wall.cells == read.cells
    cpu.write(tmp_path / "cpu.json")  # a file holds the wall's medians whatever was chosen
    assert read_timing(tmp_path / "cpu.json") == timing
    bare = dataclasses.replace(
        timing, cells=tuple(dataclasses.replace(c, cpu_blocks_s=()) for c in timing.cells)
    )
    assert (bare.clocks, bare.clock) == (("wall",), "wall")
    with pytest.raises(InputError, match="no 'cpu' clock"):
        bare.on("cpu")


def test_table_reads_the_default_clock_unless_one_was_chosen() -> None:
    timing = make_timing()
    by_default, by_wall = tabulate(Table(timing)), tabulate(Table(timing.on("wall")))
    assert np.array_equal(by_default.verify_s, tabulate(Table(timing.on("cpu"))).verify_s)
    assert by_default.verify_s[0, 0, 1] < 0.8 * by_wall.verify_s[0, 0, 1]
    assert by_default.signal_s == 0.2 and by_wall.signal_s == 0.5
    assert by_default.own_s == timing.own_s


def test_resampling_is_the_spread_of_the_median() -> None:
    """The same sweeps are drawn for all cells, so what they share stays shared; over many draws
    the spread is that of the bootstrapped median."""
    timing = make_timing().on("cpu")
    again = timing.resampled(np.random.default_rng(3))
    assert again == timing.resampled(np.random.default_rng(3))
    assert again != timing.resampled(np.random.default_rng(4))
    assert again.chosen == "cpu" and again.sweeps == SWEEPS
    generator = np.random.default_rng(0)
    draws = [timing.resampled(generator) for _ in range(500)]
    medians = np.asarray([[cell.median_s for cell in draw.cells] for draw in draws])
    assert np.array_equal(medians, np.broadcast_to(medians[:, :1], medians.shape))
    blocks = np.asarray(timing.cells[0].cpu_blocks_s)
    index = np.random.default_rng(1).integers(SWEEPS, size=(20_000, SWEEPS))
    expected = float(np.median(blocks[index], axis=1).std())
    assert float(medians[:, 0].std()) == pytest.approx(expected, rel=0.15) and expected > 0.05
    signals = {draw.signal_s for draw in draws}
    assert signals == {0.1, 0.2, 0.3} and {draw.control_s for draw in draws} == {0.125}


def test_a_sweep_that_missed_a_cell(tmp_path: Path) -> None:
    timing = make_timing(sweeps=3)
    first = dataclasses.replace(timing.cells[0], blocks_s=(math.nan, 2.0, math.nan))
    holed = dataclasses.replace(timing, cells=(first, *timing.cells[1:]))
    holed.write(tmp_path / "t.json")
    assert "null, 2.0, null" in (tmp_path / "t.json").read_text()
    read = read_timing(tmp_path / "t.json").on("wall")
    assert read.cells[0].median_s == 2.0
    generator = np.random.default_rng(0)
    assert {read.resampled(generator).cells[0].median_s for _ in range(50)} == {2.0}


def version_1(timing: Timing) -> dict[str, Any]:
    """The file that version 1 would have written."""
    cells = [list(dataclasses.astuple(cell))[:8] for cell in timing.cells]
    raw: dict[str, Any] = {"kind": "timing", "version": 1, "meta": timing.meta, "cells": cells}
    return raw | {"signal_s": timing.signal_s, "control_s": timing.control_s}


def test_version_1_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(version_1(make_timing())))
    read = read_timing(path)
    assert (read.clocks, read.clock, read.sweeps, read.own_s) == (("wall",), "wall", 0, {})
    assert (read.signal_s, read.control_s) == (0.5, 0.25)
    assert read.on("wall").cells == read.cells
    with pytest.raises(InputError, match="keeps no sweeps"):
        read.resampled(np.random.default_rng(0))
    read.write(tmp_path / "two.json")
    assert read_timing(tmp_path / "two.json") == read


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda raw: raw["cells"][3][8].pop(),
            r"cells\[3\] .*: blocks_s has 8 sweeps, .*cells\[0\] 9",
        ),
        (lambda raw: raw["cells"][3][9].pop(), r"cells\[3\] .*: cpu_blocks_s has 8 sweeps"),
        (lambda raw: raw["cells"][3][8].__setitem__(2, -1.0), r"cells\[3\]: blocks_s.*possible"),
        (lambda raw: raw["cells"][3].__setitem__(8, 4.0), r"cells\[3\]: blocks_s must be a list"),
        (lambda raw: raw["cells"][3].__setitem__(8, [None] * 9), r"cells\[3\]: blocks_s has no"),
        (lambda raw: raw["cells"][3].__setitem__(4, "4"), r"cells\[3\]: median_s must be a number"),
        (lambda raw: raw["cells"][3].__setitem__(4, math.nan), r"cells\[3\]: median_s must be a"),
        (lambda raw: raw["cells"][3].__setitem__(1, True), r"cells\[3\]: batch must be a whole"),
        (lambda raw: raw["cells"][3].pop(), r"cells\[3\] must be a list of operation"),
        (lambda raw: raw["cells"].__setitem__(3, None), r"cells\[3\] must be a list"),
        (lambda raw: raw.__setitem__("cells", None), "field cells must be a list"),
        (lambda raw: raw.__setitem__("meta", []), "field meta must be an object"),
        (lambda raw: raw.__setitem__("control_s", -1), "control_s: a time of -1 seconds"),
        (lambda raw: raw.pop("own_s"), "'own_s' is missing"),
        (lambda raw: raw.__setitem__("own_s", []), "field own_s must be an object"),
        (lambda raw: raw["own_s"].__setitem__("x", [1.0]), "own_s.'x'. must be two numbers"),
        (lambda raw: raw["own_s"].__setitem__("x", [1.0, -1.0]), "own_s.'x'.: a time of -1.0"),
        (lambda raw: raw["own_s"].__setitem__("x", [1.0, "a"]), "own_s.'x'. must be a number"),
        (lambda raw: raw["signal_repeats"].pop("cpu_s"), "signal_repeats must have wall_s and cpu"),
        (lambda raw: raw["signal_repeats"]["cpu_s"].pop(), "signal_repeats: cpu_s has 2 repeats"),
        (lambda raw: raw["control_repeats"].__setitem__("wall_s", 1), "wall_s must be a list"),
    ],
)
def test_damaged_files_are_one_line(tmp_path: Path, edit: Any, message: str) -> None:
    path = tmp_path / "t.json"
    make_timing().write(path)
    raw = json.loads(path.read_text())
    edit(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=message) as error:
        read_timing(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def edited(path: Path, edit: Any) -> Path:
    """The file of make_timing(), changed as JSON; cells[2] is prefill at batch 2 and 1 token."""
    make_timing().write(path)
    raw = json.loads(path.read_text())
    edit(raw)
    path.write_text(json.dumps(raw))
    return path


def cell_of(operation: str, batch: int, tokens: int, /, **changes: Any) -> Any:
    """An edit of one cell: fields by name; all sweeps of both clocks scaled by `times`."""

    def edit(raw: dict[str, Any]) -> None:
        (row,) = [row for row in raw["cells"] if row[:3] == [operation, batch, tokens]]
        times = changes.pop("times", 1.0)
        row[8:] = [[times * block for block in blocks] for blocks in row[8:]]
        row[4:7] = [times * seconds for seconds in row[4:7]]
        for name, value in changes.items():
            row[raw["cell_fields"].index(name)] = value

    return edit


NAMED = r"cells\[2\] \(prefill at batch 2, context 100, 1 tokens\)"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda raw: raw["cells"].insert(2, raw["cells"][1]), r"cells\[2\] .*is cells\[1\] again"),
        (
            cell_of("prefill", 2, 1, batch=0),
            r"cells\[2\]: batch must be a whole number of at",
        ),
        (cell_of("prefill", 2, 1, context=-1), r"cells\[2\]: context must be a whole number"),
        (cell_of("prefill", 2, 1, tokens=10**400), r"cells\[2\]: tokens must be a whole number"),
        (
            cell_of("prefill", 2, 1, median_s=1e300),
            r"cells\[2\]: median_s: .*1e\+300 seconds is",
        ),
        (cell_of("prefill", 2, 1, median_s=10**400), r"cells\[2\]: median_s must be a number"),
        (cell_of("prefill", 2, 1, q25_s=4.2), NAMED + ": q25_s 4.2 is above q75_s"),
        (cell_of("prefill", 2, 1, times=0.0), NAMED + " takes no time on the wall clock"),
        (cell_of("prefill", 2, 1, cpu_blocks_s=[0.0] * 9), NAMED + ".* on the cpu clock"),
        (lambda raw: raw["own_s"].__setitem__("x", [1e9, 0.0]), "own_s.'x'.: .* is not possible"),
        (lambda raw: raw["cell_fields"].pop(), "field cell_fields must be operation, batch"),
        (lambda raw: raw["cell_fields"].__setitem__(1, "tokens"), "field cell_fields must be"),
        (lambda raw: raw.__setitem__("meta", {}), "field meta: 'pair' is missing"),
        (
            lambda raw: raw["meta"].__setitem__("threads", "1"),
            "'threads' must be a number, not",
        ),
        (lambda raw: raw["meta"].__setitem__("device", 1), "'device' must be a text, not 1"),
        (lambda raw: raw["meta"].__setitem__("weights", "random"), "meta: 'target' is missing"),
        (lambda raw: raw.__setitem__("version", True), "timing version True"),
    ],
)
def test_what_no_measurement_gives_is_refused(tmp_path: Path, edit: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_timing(edited(tmp_path / "t.json", edit))
    assert str(error.value).startswith(str(tmp_path / "t.json")) and "\n" not in str(error.value)


def test_cells_are_read_by_the_names_of_their_fields(tmp_path: Path) -> None:
    def swap(raw: dict[str, Any]) -> None:
        for row in (raw["cell_fields"], *raw["cells"]):
            row[1], row[4] = row[4], row[1]

    assert read_timing(edited(tmp_path / "t.json", swap)).cells == make_timing().cells


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            cell_of("verify", 1, 2, times=0.3),
            "verify at batch 1, context 100, 2 tokens) takes 0.875328 s, that of tokens 1 2.9",
        ),
        (cell_of("verify", 2, 1, times=0.3), "that of batch 1 2.9"),
        (cell_of("verify", 2, 2, times=101.0), "neighbours far apart; 1 more like it"),
        (cell_of("verify", 1, 1, median_s=5.0), "median_s is 5, the median of its blocks_s"),
        (cell_of("verify", 1, 1, times=0.4), "a draft dearer than its target at every point"),
        (lambda raw: raw["own_s"].__setitem__("x", [9.0, 0.0]), "own_s['x'] is 9 s, more than"),
    ],
)
def test_what_is_unlikely_is_said_in_one_line(
    tmp_path: Path, edit: Any, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = edited(tmp_path / "t.json", edit)
    if "dearer" in words:
        raw = json.loads(path.read_text())
        cell_of("verify", 2, 1, times=0.4)(raw)
        path.write_text(json.dumps(raw))
    read_timing(path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"gammalab: warning: {path}: ") and words in line, line


def test_a_sound_timing_is_read_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read_timing(SHIPPED)
    read_timing(edited(tmp_path / "t.json", lambda raw: None))
    assert capsys.readouterr().err == ""
