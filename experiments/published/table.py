"""Common parts of the suites of published numbers: other people's CSV files in, tables of errors
out.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from experiments.common.text_table import percent, table
from traces.errors import InputError

FloatArray = npt.NDArray[np.float64]

ERROR_COLUMNS = ("median", "90 %", "largest", "mean, signed")


@dataclasses.dataclass(frozen=True)
class CsvRow:
    """One row of a CSV file; its cells are asked for by column, and named where they are bad.

    row: its line in the file; the header is row 1.
    """

    path: Path
    row: int
    cells: dict[str, str]

    def text(self, column: str) -> str:
        """The cell without blanks around it; raises InputError if it is empty."""
        text = self.cells[column].strip()
        if not text:
            raise self.bad(column, "is empty")
        return text

    def number(self, column: str, least: float = 0.0) -> float:
        """The cell as a finite number above `least`."""
        text = self.text(column)
        try:
            value = float(text)
        except ValueError:
            raise self.bad(column, f"holds {text!r}, not a number") from None
        if not (math.isfinite(value) and value > least):
            raise self.bad(column, f"holds {text}; it must be a finite number above {least:g}")
        return value

    def count(self, column: str) -> int:
        """The cell as an integer of at least 1."""
        value = self.number(column)
        if value != int(value):
            raise self.bad(column, f"holds {self.text(column)}, not a whole number")
        return int(value)

    def bad(self, column: str, what: str) -> InputError:
        """The error that names this cell."""
        return InputError(f"{self.path}, row {self.row}, column {column!r} {what}")


def read_csv(paths: Sequence[Path], columns: Sequence[str]) -> list[CsvRow]:
    """All rows of the files, which must have these columns; further ones are ignored."""
    rows = [row for path in paths for row in _rows_of(path, columns)]
    if not rows:
        raise InputError(f"{', '.join(map(str, paths))}: a header, but no row below it")
    return rows


def _rows_of(path: Path, columns: Sequence[str]) -> Iterator[CsvRow]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; --data is your copy of the published data")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = reader.fieldnames
            if not header:
                raise InputError(f"{path} is empty; expected a header with {', '.join(columns)}")
            if missing := [name for name in columns if name not in header]:
                raise InputError(
                    f"{path}, row 1: column {missing[0]!r} is missing; found {', '.join(header)}"
                )
            for cells in reader:
                row = reader.line_num
                if None in cells or None in cells.values():
                    raise InputError(
                        f"{path}, row {row} has another number of cells than the header's "
                        f"{len(header)}; truncated?"
                    )
                yield CsvRow(path, row, dict(cells))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file in UTF-8 ({error})") from None


@dataclasses.dataclass(frozen=True)
class Errors:
    """Relative errors, predicted / measured - 1, of `count` cases in numbers.

    median, p90, largest: of the absolute value; mean: signed, so that a bias shows.
    """

    count: int
    median: float
    p90: float
    largest: float
    mean: float

    def cells(self, digits: int = 1) -> list[str]:
        """As printed under ERROR_COLUMNS."""
        values = (self.median, self.p90, self.largest)
        return [*(percent(v, digits) for v in values), f"{100 * self.mean:+.{digits}f}%"]


def relative(predicted: FloatArray, measured: FloatArray) -> FloatArray:
    """predicted / measured - 1."""
    return predicted / measured - 1.0


def errors(signed: FloatArray) -> Errors:
    """The summary of relative errors; at least one."""
    size = np.abs(signed)
    return Errors(
        len(signed),
        float(np.median(size)),
        float(np.quantile(size, 0.9)),
        float(size.max()),
        float(signed.mean()),
    )


def errors_by(signed: FloatArray, names: Sequence[object]) -> dict[str, Errors]:
    """The summary for each name, one name per error, in order of first appearance."""
    labels = np.asarray([str(name) for name in names])
    return {name: errors(signed[labels == name]) for name in dict.fromkeys(labels.tolist())}


def error_table(title: str, found: dict[str, Errors]) -> str:
    """A line of text for each name."""
    body = [[name, str(e.count), *e.cells()] for name, e in found.items()]
    return table((title, "series", *ERROR_COLUMNS), [("", body)])
