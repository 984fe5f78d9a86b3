"""The measured cost model: the grid of a Timing, interpolated."""

from __future__ import annotations

import bisect
import dataclasses

import numpy as np
import numpy.typing as npt

from traces.timing import FEATURE_HEADS, STEP, OwnSeconds, Timing
from traces.timing_grid import Grid

FloatArray = npt.NDArray[np.float64]


class _Axis:
    """Grid points of one axis; finds the segment in which a point lies."""

    def __init__(self, points: FloatArray) -> None:
        self.points: list[float] = points.tolist()

    def segment(self, x: float) -> tuple[int, int]:
        """Indices of the two grid points that decide the value at x; equal ones: no slope."""
        points = self.points
        last = len(points) - 1
        if x <= points[0] or last == 0:
            return 0, 0
        if x >= points[last]:
            return last - 1, last
        right = bisect.bisect_right(points, x)
        return right - 1, right

    def between(self, x: float, lo: int, hi: int, low: float, high: float) -> float:
        """The value at x on the segment; behind the last point the slope goes on, never down."""
        if lo == hi:
            return low
        slope = (high - low) / (self.points[hi] - self.points[lo])
        if x >= self.points[-1]:
            return high + max(0.0, slope) * (x - self.points[-1])
        return slope * (x - self.points[lo]) + low


class _Surface:
    """A Grid, piecewise linear along each axis; fast enough for thousands of cells in milliseconds.

    Before the first point of an axis the first value holds; behind the last one the last slope goes
    on, never falling.
    """

    def __init__(self, grid: Grid) -> None:
        self.batch, self.context = _Axis(grid.batch), _Axis(grid.context)
        self.tokens = _Axis(grid.tokens)
        self.seconds: list[list[list[float]]] = grid.seconds.tolist()

    def at(self, batch: float, context: float, tokens: float) -> float:
        """Seconds at this point, tokens interpolated first, then context, then batch."""
        t0, t1 = self.tokens.segment(tokens)
        c0, c1 = self.context.segment(context)
        b0, b1 = self.batch.segment(batch)

        def by_tokens(b: int, c: int) -> float:
            row = self.seconds[b][c]
            return self.tokens.between(tokens, t0, t1, row[t0], row[t1])

        def by_context(b: int) -> float:
            low = by_tokens(b, c0)
            high = low if c0 == c1 else by_tokens(b, c1)
            return self.context.between(context, c0, c1, low, high)

        low = by_context(b0)
        high = low if b0 == b1 else by_context(b1)
        return self.batch.between(batch, b0, b1, low, high)


class Table:
    """Measured seconds, interpolated between the grid points of a Timing.

    What was measured is kept: a verify of five tokens that was faster than one of four stays
    faster. A draft of kind "step" costs a further forward per token; what its first forward of a
    round, right behind the target's, costs beyond that is draft_start_s. Of the other kinds
    the first forward, or look-up, is all of it. A timing on which no clock was chosen is read on
    its default one: the processor's where one thread did all the work. Raises InputError if it
    lacks a grid point.
    """

    def __init__(self, timing: Timing) -> None:
        self.timing = timing.settled()
        self._surface = {name: _Surface(self.timing.grid(name)) for name in self.timing.operations}
        if self.knows_trees:
            self._surface["tree"] = _Surface(self._beyond_chains(self.timing.grid("tree")))
        self._steps = self.timing.draft_kind == STEP
        self.draft_kind = self.timing.draft_kind

    def prefill_s(self, tokens: float, batch: int) -> float:
        return self._surface["prefill"].at(batch, 0, tokens)

    @property
    def reads_states(self) -> bool:
        """True if the timing is of a feature head."""
        return self.timing.drafter in FEATURE_HEADS

    def draft_start_s(self, batch: int, context_tokens: float) -> float:
        first_s = self._surface["first"].at(batch, context_tokens, 1)
        return max(0.0, first_s - self._further_s(batch, context_tokens))

    def draft_step_s(self, batch: int, context_tokens: float, tokens: float = 1) -> float:
        further_s = self._further_s(batch, context_tokens)
        if tokens == 1:
            return further_s
        first = self._surface["first"]
        lagging = first.at(batch, context_tokens, tokens) - first.at(batch, context_tokens, 1)
        return further_s + max(0.0, lagging)

    def _further_s(self, batch: int, context_tokens: float) -> float:
        """Another forward of the draft, 0 where one a round is all."""
        return self._surface["draft"].at(batch, context_tokens, 1) if self._steps else 0.0

    def verify_s(self, tokens: float, batch: int, context_tokens: float) -> float:
        return self._surface["verify"].at(batch, context_tokens, tokens)

    @property
    def knows_trees(self) -> bool:
        """True if steps of trees were timed."""
        return self.timing.knows_trees

    @property
    def widest(self) -> int:
        """Tokens of the target's widest step that was timed, of a tree's where there are any."""
        return int(self.timing.grid("tree" if self.knows_trees else "verify").tokens.max())

    def level_s(self, nodes: float, context_tokens: float) -> float:
        return self._surface["level"].at(1, context_tokens, nodes)

    def tree_s(self, tokens: float, context_tokens: float) -> float:
        beyond_s = self._surface["tree"].at(1, context_tokens, tokens)
        return self.verify_s(tokens, 1, context_tokens) + beyond_s

    def _beyond_chains(self, grid: Grid) -> Grid:
        """Seconds of trees beyond those of chains of as many tokens, which go evenly from point to
        point; a target's own steps rise and fall from one width to the next.
        """
        verify = self._surface["verify"]
        chains = [
            [[verify.at(b, c, t) for t in grid.tokens] for c in grid.context] for b in grid.batch
        ]
        return dataclasses.replace(grid, seconds=grid.seconds - np.asarray(chains))

    def signal_s(self) -> float:
        return self.timing.signal_s

    def control_s(self) -> float:
        return self.timing.control_s

    def own_s(self) -> OwnSeconds:
        return self.timing.own_s
