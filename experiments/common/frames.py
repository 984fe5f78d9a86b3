"""Results as frames: rows in a pandas DataFrame, and one list of columns for every rendering.

A result's rows become a frame whose columns are named by their path ("speedup.low"). What people
see of it is a list of `Column`: terminal, page, CSV and the description in the JSON are made of
that one list and the same frame, so that they cannot disagree.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.common.text_table import fill, number, percent, table, with_interval
from traces.json_text import jsonable

Row = Mapping[str, Any]
Group = tuple[str, pd.DataFrame]
ESTIMATE = ("value", "low", "high")  # experiments.common.statistics.Estimate
OVER_SEEDS = ("mean", "low", "high")  # and its Interval


@dataclasses.dataclass(frozen=True)
class Column:
    """A column as people see it.

    name: what it is called in CSV and JSON.
    header: above it on a terminal; "\\n" breaks the line. None: not shown there.
    title: above it on the page. None: not shown there.
    unit: of its numbers, "" without one.
    meaning: one line.
    fields: of the frame, what it is made of.
    show: its cell, from a row of the frame.
    """

    name: str
    header: str | None
    title: str | None
    unit: str
    meaning: str
    fields: tuple[str, ...]
    show: Callable[[Row], str]


def words(name: str, header: str | None, title: str | None, meaning: str) -> Column:
    """A column of words, as they are; "" where there are none."""
    return Column(name, header, title, "", meaning, (name,), lambda row: str(row[name] or ""))


def figure(
    name: str,
    header: str | None,
    title: str | None,
    meaning: str,
    digits: int = 2,
    *,
    unit: str = "",
) -> Column:
    """A column of numbers."""
    return Column(
        name, header, title, unit, meaning, (name,), lambda row: number(row[name], digits)
    )


def share(
    name: str, header: str | None, title: str | None, meaning: str, digits: int = 0
) -> Column:
    """A column of shares, shown as percent."""
    return Column(
        name, header, title, "1", meaning, (name,), lambda row: percent(row[name], digits)
    )


def interval(
    name: str,
    header: str | None,
    title: str | None,
    meaning: str,
    digits: int = 2,
    *,
    unit: str = "",
    parts: tuple[str, ...] = ESTIMATE,
) -> Column:
    """A column of numbers with their intervals; parts: ESTIMATE, or OVER_SEEDS."""
    fields = tuple(f"{name}.{part}" for part in parts)
    return Column(
        name, header, title, unit, meaning, fields,
        lambda row: with_interval([row[field] for field in fields], digits),
    )  # fmt: skip


def frame_of(rows: Iterable[Any]) -> pd.DataFrame:
    """A frame of dataclasses, named tuples or records: nested fields by their path, numbers plain,
    NaN as None.
    """
    flat = [dict(_flat(jsonable(row))) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    return pd.DataFrame([[row.get(name) for name in names] for row in flat], None, names, object)


def _flat(value: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{path}{name}.")
        else:
            yield path + name, item


def fields_of(frame: pd.DataFrame, start: str = "") -> list[str]:
    """The names of its fields that begin so."""
    return [name for name in map(str, frame) if name.startswith(start)]


class _Fields(dict[str, Any]):
    """A row of a frame; a field that no row of it has is None."""

    def __missing__(self, name: str) -> None:
        return None


def rows_of(frame: pd.DataFrame) -> list[Row]:
    """Its rows by field, as columns show them."""
    return [_Fields({str(name): value for name, value in row.items()})
            for row in frame.to_dict("records")]  # fmt: skip


def text_of(columns: Sequence[Column], groups: Sequence[Group]) -> str:
    """An aligned table for a terminal; groups: a title ("": none) and a frame each."""
    shown = [column for column in columns if column.header is not None]
    cells = [(title, _cells(shown, frame)) for title, frame in groups]
    return table([column.header or "" for column in shown], cells)


def page_of(columns: Sequence[Column], groups: Sequence[Group]) -> dict[str, Any]:
    """A table for the page's template: header, groups of rows of text, what the columns mean."""
    shown = [column for column in columns if column.title is not None]
    return {
        "header": [column.title for column in shown],
        "groups": [
            {"title": title, "rows": _cells(shown, frame)} for title, frame in groups if len(frame)
        ],
    }


def _cells(columns: Sequence[Column], frame: pd.DataFrame) -> list[list[str]]:
    return [[column.show(row) for column in columns] for row in rows_of(frame)]


def csv_of(columns: Sequence[Column], frame: pd.DataFrame) -> str:
    """Comma-separated values of all columns, a field each."""
    fields = [field for column in columns for field in column.fields if field in frame]
    out = io.StringIO()
    frame[list(dict.fromkeys(fields))].to_csv(out, index=False)
    return out.getvalue()


def described(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """A description of the columns, for the JSON."""
    return [
        {
            "name": column.name,
            "header": one_line(column.header or column.title or column.name),
            "unit": column.unit,
            "meaning": column.meaning,
            "fields": list(column.fields),
        }
        for column in columns
    ]


def meanings(columns: Sequence[Column]) -> str:
    """Lines that say what the columns of a terminal's table mean."""
    said = [(one_line(column.header), column.meaning) for column in columns if column.header]
    width = max((len(header) for header, meaning in said if meaning), default=0)
    return "\n".join(
        fill(f"{header:{width}}  {meaning}", indent=width + 2)
        for header, meaning in said
        if meaning
    )


def page_meanings(columns: Sequence[Column]) -> list[str]:
    """A sentence for every column of the page that needs one."""
    said = [f"{column.title}: {column.meaning}" for column in columns if column.title]
    return [line[0].upper() + line[1:] for line in said if not line.endswith(": ")]


def one_line(header: str) -> str:
    """A header of two lines as one."""
    return header.replace("-\n", "").replace("\n", " ")
