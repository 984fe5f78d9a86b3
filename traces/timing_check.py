"""Checks of a timing when it is read: impossible values are refused, unlikely ones said."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from traces.errors import InputError

if TYPE_CHECKING:
    from traces.timing import Cell, Timing

AXES = ("batch", "tokens", "context")
_CHEAPER = 3.0  # times a step of less work, at most; kernels do fall, from one width to the next
_DEARER = 100.0  # times the neighbour of less work, or the square of the ratio of their work
_ROUNDING = 0.01  # of a median


def named(number: int, cell: Cell) -> str:
    """A cell for messages, by its place in the file and on the grid."""
    return (
        f"cells[{number}] ({cell.operation} at batch {cell.batch}, context {cell.context}, "
        f"{cell.tokens} tokens)"
    )


def refuse_impossible(timing: Timing) -> None:
    """Raise InputError naming the first cell that no measurement gives."""
    seen: dict[tuple[str, int, int, int], int] = {}
    for k, cell in enumerate(timing.cells):
        key = cell.operation, cell.batch, cell.context, cell.tokens
        if seen.setdefault(key, k) != k:
            raise InputError(f"{named(k, cell)} is cells[{seen[key]}] again; drop one")
        if cell.q25_s > cell.q75_s:
            raise InputError(
                f"{named(k, cell)}: q25_s {cell.q25_s:g} is above q75_s; measure again"
            )
        for name, blocks, known in (
            ("blocks_s", cell.blocks_s, (timing.sweeps,)),
            ("cpu_blocks_s", cell.cpu_blocks_s, (0, timing.sweeps)),
        ):
            if len(blocks) not in known:  # number k is the same sweep in all cells
                raise InputError(
                    f"{named(k, cell)}: {name} has {len(blocks)} sweeps, blocks_s of cells[0] "
                    f"{timing.sweeps}"
                )
    for clock in timing.clocks:
        for k, cell in enumerate(timing.on(clock).cells):
            # A fit of whole replies may find nothing left for the prompt.
            if cell.median_s <= 0 and (cell.blocks_s or cell.operation != "prefill"):
                raise InputError(
                    f"{named(k, cell)} takes no time on the {clock} clock; measure again"
                )


def unlikely(timing: Timing) -> list[str]:
    """A line for everything that is odd enough to say, on the clock that prices are made on; empty
    for a sound timing.
    """
    return [*_medians(timing), *_drafts(timing), *_overheads(timing), *_slopes(timing)]


def _medians(timing: Timing) -> Iterator[str]:
    """A median_s beside its own sweeps."""
    for k, cell in enumerate(timing.cells):
        known = [block for block in cell.blocks_s if not math.isnan(block)]
        found = float(np.median(known)) if known else cell.median_s
        if not math.isclose(found, cell.median_s, rel_tol=_ROUNDING):
            yield (
                f"{named(k, cell)}: median_s is {cell.median_s:g}, the median of its blocks_s "
                f"{found:g}, which counts"
            )


def _drafts(timing: Timing) -> Iterator[str]:
    """A draft that is dearer than its target at every point."""
    cells = list(enumerate(timing.settled().cells))
    target = {(c.batch, c.context): c for _, c in cells if (c.operation, c.tokens) == ("verify", 1)}
    pairs = [
        (k, cell, target[cell.batch, cell.context])
        for k, cell in cells
        if cell.operation == "draft" and (cell.batch, cell.context) in target
    ]
    if pairs and all(draft.median_s > verify.median_s for _, draft, verify in pairs):
        k, draft, verify = pairs[0]
        yield (
            f"{named(k, draft)} takes {draft.median_s:g} s, the target's own step "
            f"{verify.median_s:g}: a draft dearer than its target at every point; the wrong way "
            "round?"
        )


def _overheads(timing: Timing) -> Iterator[str]:
    """Arithmetic of a rule or the engine that takes longer than any step of the target."""
    settled = timing.settled()
    step = max(c.median_s for c in settled.cells if c.operation == "verify")
    overheads = {"signal_s": settled.signal_s, "control_s": settled.control_s}
    overheads |= {f"own_s[{name!r}]": max(pair) for name, pair in timing.own_s.items()}
    for name, seconds in overheads.items():
        if seconds > step:
            yield f"{name} is {seconds:g} s, more than the target's longest step, {step:g} s"


def _slopes(timing: Timing) -> Iterator[str]:
    """Steps far cheaper than one of less work, or far dearer than their neighbour."""
    cells = list(enumerate(timing.settled().cells))
    for axis in AXES:
        others = [name for name in AXES if name != axis]

        def line_of(pair: tuple[int, Cell], rest: Sequence[str] = others) -> tuple[str, ...]:
            return (pair[1].operation, *(f"{getattr(pair[1], name):012d}" for name in rest))

        for _, group in groupby(sorted(cells, key=line_of), key=line_of):
            yield from _along(axis, sorted(group, key=lambda pair: getattr(pair[1], axis)))


def _along(axis: str, line: Sequence[tuple[int, Cell]]) -> Iterator[str]:
    """The same along one axis; line: cells that differ in nothing else, ascending."""
    dearest = before = line[0][1]
    for k, cell in line[1:]:
        less, more = getattr(before, axis) or 1, getattr(cell, axis)
        if cell.median_s * _CHEAPER < dearest.median_s:
            yield (
                f"{named(k, cell)} takes {cell.median_s:g} s, that of {axis} "
                f"{getattr(dearest, axis)} {dearest.median_s:g}: more work in far less time"
            )
        elif cell.median_s > max(_DEARER, (more / less) ** 2) * before.median_s:
            yield (
                f"{named(k, cell)} takes {cell.median_s:g} s, that of {axis} "
                f"{getattr(before, axis)} {before.median_s:g}: neighbours far apart"
            )
        before, dearest = cell, max(cell, dearest, key=lambda c: c.median_s)
