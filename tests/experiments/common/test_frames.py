"""One frame and one list of columns: what all renderings of a result are made of."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from experiments.common.frames import (
    Column,
    csv_of,
    described,
    figure,
    frame_of,
    interval,
    meanings,
    page_of,
    share,
    text_of,
    words,
)
from experiments.comparison.columns import COLUMNS, SHORT, left_open
from experiments.serving.columns import COLUMNS as SERVED
from experiments.serving.columns import POLICY
from experiments.validation.columns import RATIOS, SPEEDS
from tests.command import gammalab
from tests.results import save_inputs
from tests.valid_files import KINDS, compare_of


class Estimate(NamedTuple):
    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Found:
    name: str
    speed: Estimate
    part: float | None


ROWS = (
    Found("a", Estimate(1.5, 1.25, 1.75), 0.5),
    Found("b", Estimate(2.0, float("nan"), 2.0), None),
)
LIST = (
    words("name", "policy", "controller", ""),
    interval("speed", "speed-\nup", "speed-up (95 %)", "over plain decoding"),
    share("part", "kept", "kept", "of all"),
)


def test_a_frame_by_hand() -> None:
    frame = frame_of(ROWS)
    assert list(frame) == ["name", "speed.value", "speed.low", "speed.high", "part"]
    assert frame["speed.low"].tolist() == [1.25, None] and frame["part"].tolist() == [0.5, None]
    lines = text_of(LIST, [("all", frame)]).splitlines()
    assert [line.split() for line in lines[-2:]] == [
        ["a", "1.50", "1.25-1.75", "50%"],
        ["b", "2.00", "-"],
    ]
    assert page_of(LIST, [("all", frame), ("none", frame[:0])]) == {
        "header": ["controller", "speed-up (95 %)", "kept"],
        "groups": [{"title": "all", "rows": [["a", "1.50 1.25-1.75", "50%"], ["b", "2.00", "-"]]}],
    }
    assert csv_of(LIST, frame).splitlines() == [
        "name,speed.value,speed.low,speed.high,part", "a,1.5,1.25,1.75,0.5", "b,2.0,,2.0,",
    ]  # fmt: skip
    assert described(LIST)[1]["header"] == "speedup" and described(LIST)[2]["unit"] == "1"
    assert meanings(LIST).splitlines()[0].split("  ") == ["speedup", "over plain decoding"]


def test_a_field_that_no_row_has_is_not_known() -> None:
    """A sitting of the baseline alone has no ratio."""
    frame = frame_of([{"name": "a", "speed": None}])
    assert text_of(LIST, [("", frame)]).splitlines()[-1].split() == ["a", "-", "-"]
    assert csv_of(LIST, frame).splitlines() == ["name", "a"]


def renderings(columns: tuple[Column, ...], frame: pd.DataFrame) -> list[str]:
    """Terminal, page, JSON and CSV."""
    groups = [("", frame)]
    told = json.dumps(described(columns))
    return [text_of(columns, groups), json.dumps(page_of(columns, groups)), told,
            csv_of(columns, frame)]  # fmt: skip


@pytest.mark.parametrize("k", range(1, len(LIST)))
def test_a_changed_column_changes_all_four(k: int) -> None:
    before, frame = renderings(LIST, frame_of(ROWS)), frame_of(ROWS)
    gone = (*LIST[:k], *LIST[k + 1 :])
    other = figure("speed.value", "other", "other", "another one", 4)
    for columns in (gone, (*LIST[:k], other, *LIST[k + 1 :])):
        after = renderings(columns, frame)
        assert all(one != two for one, two in zip(before, after, strict=True))


def test_every_list_names_a_column_once() -> None:
    for columns in (COLUMNS, left_open(), RATIOS, SPEEDS, SERVED):
        names = [column.name for column in columns]
        assert len(set(names)) == len(names)
        assert all(column.header is not None or column.title is not None for column in columns)
    assert set(SHORT) <= {column.name for column in COLUMNS}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("compared")
    trace, timing = save_inputs(folder)
    asked = ["compare", "--trace", trace, "--timing", timing, "--policies", "gammatune,ucb"]
    return folder, asked


def test_terminal_page_json_and_csv_of_a_comparison_are_one(compared: Any) -> None:
    folder, asked = compared
    done = gammalab(*asked, "--out", folder / "out")
    assert done.code == 0 and gammalab("report", folder / "out").code == 0
    result = json.loads((folder / "out" / "compare.json").read_text())["comparisons"][0]
    page = (folder / "out" / "report.html").read_text()
    rows = list(csv.DictReader(io.StringIO(gammalab(*asked, "--csv").out)))
    assert [row["name"] for row in rows] == [row["name"] for row in result["rows"]]
    assert result["columns"] == json.loads(json.dumps(described(COLUMNS)))
    assert {field for column in COLUMNS for field in column.fields} <= set(rows[0])
    for row, told in zip(rows, result["rows"], strict=True):
        assert float(row["tokens_per_s"]) == told["tokens_per_s"]
        assert f"{told['tokens_per_s']:.0f}" in done.out and f"{told['tokens_per_s']:.0f}" in page
    for column in COLUMNS:
        assert column.title is None or column.title in page
        if column.header is not None:
            assert column.header.split("\n")[0] in done.out


@contextlib.contextmanager
def changed(column: Column) -> Iterator[None]:
    """The column with another header, title, meaning, cell and field."""
    other: dict[str, Any] = {
        "header": "HEADER", "title": "TITLE", "meaning": "MEANING", "show": lambda row: "CELL",
        "fields": ("other",),
    }  # fmt: skip
    before = {name: getattr(column, name) for name in other}
    for name, value in other.items():
        object.__setattr__(column, name, value)  # wherever its list was imported to
    yield
    for name, value in before.items():
        object.__setattr__(column, name, value)


def all_four(column: Column, asked: Sequence[object], folder: Path, page: str) -> None:
    """Terminal, page, JSON and CSV of a command follow one column."""
    fields = column.fields
    with changed(column):
        text = gammalab(*asked, "--out", folder).out
        assert gammalab("report", folder).code == 0
        told, sheet = gammalab(*asked, "--json").out, gammalab(*asked, "--csv").out
    html = (folder / page).read_text()
    assert "HEADER" in text and "CELL" in text
    assert "TITLE" in html and "<td>CELL</td>" in html
    assert '"meaning": "MEANING"' in told
    assert sheet and not set(fields) & set(sheet.splitlines()[0].split(","))
    before = gammalab(*asked, "--csv").out.splitlines()[0].split(",")
    assert set(fields) <= set(before)


def test_a_changed_column_changes_all_four_of_a_comparison(compared: Any, tmp_path: Path) -> None:
    (column,) = (column for column in COLUMNS if column.name == "tokens_per_round")
    all_four(column, compared[1], tmp_path / "out", "report.html")


def test_a_changed_column_changes_all_four_of_a_validation(tmp_path: Path) -> None:
    (kind,) = (kind for kind in KINDS if kind.name == "sitting")
    (asked,) = kind.commands(kind.write(tmp_path), tmp_path)
    assert gammalab(*compare_of(tmp_path, tmp_path / "out")).code == 0
    (column,) = (column for column in SPEEDS if column.name == "wall_tokens_per_s")
    all_four(column, asked, tmp_path / "out", "report.html")


@pytest.mark.parametrize(
    ("asked", "column"),
    [
        pytest.param(("fleet", "bursts"), SERVED[1], marks=pytest.mark.slow),
        (("serve", "--workload", "closed:users=2"), SERVED[1]),
        pytest.param(("fleet", "placement"), POLICY, marks=pytest.mark.slow),
        (("fleet", "routing"), POLICY),
        pytest.param(("fleet", "capacity"), POLICY, marks=pytest.mark.slow),
        pytest.param(("fleet", "break-even"), POLICY, marks=pytest.mark.slow),
    ],
)
def test_a_changed_column_changes_all_four_of_serving(
    asked: Sequence[object], column: Column, compared: Any, tmp_path: Path
) -> None:
    few = ("--policies", "fixed:gamma=4", "--requests", 12, "--seeds", 1, "--server", "slots=2")
    made = (*asked, *compared[1][1:5], *few)
    all_four(column, made, tmp_path / "out", f"{asked[0]}.html")
