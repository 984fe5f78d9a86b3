"""Aligned text tables for a terminal of 100 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

Group = tuple[str, Sequence[Sequence[str]]]


def table(header: Sequence[str], groups: Sequence[Group], *, left: int = 1) -> str:
    """Rows under a header; a group with a title gets a line of its own above its rows.

    The first `left` columns are left-aligned, all others right-aligned. A line break in a header
    cell makes the header two lines high.
    """
    tall = any("\n" in cell for cell in header)
    split = [cell.partition("\n") if "\n" in cell else ("", "", cell) for cell in header]
    tops = [[top for top, _, _ in split], [bottom for _, _, bottom in split]]
    rows = [row for _, group in groups for row in group]
    widths = [max(len(row[k]) for row in (*tops, *rows)) for k in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if k < left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    lines = [line(cells) for cells in (tops if tall else tops[1:])]
    for title, group in groups:
        if group:
            lines += [f"-- {title} "] if title else ["  ".join("-" * width for width in widths)]
            lines += [line(row) for row in group]
    return "\n".join(text.rstrip() for text in lines)


def fill(text: str, *, indent: int = 2) -> str:
    """Lines of 98 columns, all but the first indented; a name is not broken at its hyphens."""
    return textwrap.fill(
        text, 98, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False
    )


def number(value: float | None, digits: int = 2) -> str:
    """Fixed digits; a dash for what is not defined."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 0) -> str:
    """A share as percent; a dash for what is not defined."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{100 * value:.{digits}f}%".replace("-0%", "0%")


def with_interval(values: Sequence[float | None], digits: int = 2) -> str:
    """value low-high."""
    value, low, high = values
    if low is None or not math.isfinite(low):
        return number(value, digits)
    return f"{number(value, digits)} {number(low, digits)}-{number(high, digits)}"
