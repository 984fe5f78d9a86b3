"""The anchors of a sitting against its timing: how far the machine had moved, and when."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from real_backend.decoding.measured import Anchor
from traces.timing import Timing


@dataclasses.dataclass(frozen=True)
class Drift:
    """One step during the sitting, as factors on its seconds in the timing, on one clock.

    factor: median over all anchors; begin, end: over the first and the last third of the sitting.
    points: (seconds since the sitting began, factor) of every anchor.
    """

    operation: str
    tokens: int
    factor: float
    begin: float
    end: float
    points: tuple[tuple[float, float], ...]


def drift_of(timing: Timing, anchors: Sequence[Anchor], clock: str) -> tuple[Drift, ...]:
    """Every step that was anchored, in the order of the timing; timing: on that clock."""
    cells = {(c.operation, c.tokens, c.context): c.median_s for c in timing.cells if c.batch == 1}
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for anchor in anchors:
        known = cells.get((anchor.operation, anchor.tokens, anchor.context))
        seconds = anchor.cpu_s if clock == "cpu" else anchor.wall_s
        if known and np.isfinite(seconds):
            rows = found.setdefault((anchor.operation, anchor.tokens), [])
            rows.append((anchor.at_s, seconds / known))
    return tuple(_drift(*key, rows) for key, rows in sorted(found.items()))


def _drift(operation: str, tokens: int, rows: list[tuple[float, float]]) -> Drift:
    points = tuple(sorted(rows))
    factors = np.asarray([factor for _, factor in points])
    third = max(1, len(factors) // 3)
    middle, begin, end = (
        float(np.median(part)) for part in (factors, factors[:third], factors[-third:])
    )
    return Drift(operation, tokens, middle, begin, end, points)


def recalibrated(timing: Timing, drift: Sequence[Drift]) -> Timing:
    """The timing as the anchors say: every step's seconds times its factor, between anchored widths
    the factor in proportion. Steps of an operation without anchors stay.
    """
    points: dict[str, tuple[list[int], list[float]]] = {}
    for one in drift:
        tokens, factors = points.setdefault(one.operation, ([], []))
        tokens.append(one.tokens)
        factors.append(one.factor)
    cells = []
    for cell in timing.cells:
        if cell.operation in points:
            factor = float(np.interp(cell.tokens, *points[cell.operation]))
            cell = dataclasses.replace(cell, median_s=cell.median_s * factor)
        cells.append(cell)
    return dataclasses.replace(timing, cells=tuple(cells))
