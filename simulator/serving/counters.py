"""Counters of a server: its clock, totals, time series, and each request's own figures.

Plain Python of plain arithmetic, compiled with simulator.serving.scheduler, which calls it.
"""

from __future__ import annotations

import math

from policies.base import Outcome
from simulator.serving.state import GAPS, Record, World

FINEST_GAP_S, GAPS_PER_DOUBLING = 1e-6, 16


def mark(world: World, request: Record, drafted: int, outcome: Outcome, end_s: float) -> None:
    """Note a round of a request that ended at end_s."""
    if int(request.rounds) == 0:
        request.first_s = end_s
    else:
        gap = end_s - float(request.last_s)
        world.gaps[gap_bin(gap)] += 1
        request.longest_s = max(float(request.longest_s), gap)
    request.last_s = end_s
    request.done += outcome.emitted
    request.rounds += 1
    request.drafted += drafted
    request.accepted += outcome.accepted


def gap_bin(gap_s: float) -> int:
    """The bin of a gap: 16 to a doubling, from a microsecond."""
    if gap_s <= FINEST_GAP_S:
        return 0
    return min(GAPS - 1, int(GAPS_PER_DOUBLING * math.log2(gap_s / FINEST_GAP_S)))


def end_iteration(world: World, elapsed: float, emitted: int, drafted: int) -> None:
    """The clock moves on, and what ran along is added up."""
    counters = world.counters[0]
    counters.now_s += elapsed
    counters.busy_s += elapsed
    counters.iterations += 1
    counters.emitted += emitted
    counters.drafted += drafted
    note(world, elapsed, emitted, drafted)


def note(world: World, seconds: float, emitted: int, drafted: int) -> None:
    """Add a stretch of work that ends now to the time series, whose last bin is open."""
    counters, rules = world.counters[0], world.rules
    place = min(int(float(counters.now_s) / rules.bin_s), world.bins.shape[0] - 1)
    stretch = world.bins[place]
    stretch.busy_s += seconds
    stretch.running_s += seconds * int(counters.running)
    stretch.waiting_s += seconds * int(counters.waiting)
    stretch.block_s += seconds * (rules.blocks - int(counters.free_blocks))
    stretch.emitted += emitted
    stretch.drafted += drafted
