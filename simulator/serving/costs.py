"""The price of an iteration of a running batch: rows draft in lock step, and one verify serves all.

With one row every function here gives the seconds of traces.costs.pricing.round_seconds, bit for
bit. Letters as there; costs are tabulated at every batch size 1..S.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from traces.costs.pricing import StepCosts

FloatArray = npt.NDArray[np.float64]


def without_idle_starts(costs: StepCosts) -> StepCosts:
    """The same table, without start_s where no draft has a price of its own: every array of a table
    costs a call inside compiled code.
    """
    return costs if costs.start_s is not None and costs.start_s.any() else costs._replace(
        start_s=None
    )  # fmt: skip


def verify_seconds(row: FloatArray, tokens: float) -> float:
    """Seconds of a step at so many tokens per row, between the entries of row [W], the last slope
    carried on beyond them.
    """
    last = int(row.shape[0]) - 1
    low = min(int(tokens), last)
    part = tokens - low
    if part == 0.0:
        return float(row[low])
    step = min(low, last - 1)
    return float(row[low]) + part * (float(row[step + 1]) - float(row[step]))


def start_held(start_s: float, tokens: float) -> float:
    """The part of a draft's start, start_s, that verify_seconds holds at `tokens` per row: nothing
    at one token, all of it from two on, a share between them.
    """
    return min(tokens - 1.0, 1.0) * start_s


def start_due(costs: StepCosts, bucket: int, places: Any, n: int, slots: Any) -> float:
    """The price of a draft's start: it is paid whole, and by the rows that draft alone."""
    assert costs.start_s is not None
    active = 0
    for k in range(n):
        if int(slots[places[k].decoding].steps) > 0:
            active += 1
    return float(costs.start_s[active - 1, bucket]) if active > 0 else 0.0


def draft_seconds(costs: StepCosts, bucket: int, places: Any, n: int, slots: Any) -> float:
    """Seconds of a draft in lock step by the n slots listed in places.decoding: each takes its
    `steps`, step j runs the rows that still draft. The first step reads what each row's cache lacks
    (its lag), priced at the mean of it. Records as in simulator.serving.scheduler.
    """
    active, deepest, lags = 0, 0, 0
    for k in range(n):
        slot = slots[places[k].decoding]
        if int(slot.steps) > 0:
            active += 1
            deepest = max(deepest, int(slot.steps))
            lags += int(slot.lag)
    if active == 0:
        return 0.0
    widest = int(costs.draft_s.shape[2]) - 1
    seconds = 0.0
    seconds += verify_seconds(costs.draft_s[active - 1, bucket], min(lags / active, float(widest)))
    done = 1
    while True:  # stretches of steps in which the same rows draft
        active, least = 0, deepest
        for k in range(n):
            depth = int(slots[places[k].decoding].steps)
            if depth > done:
                active += 1
                least = min(least, depth)
        if active == 0:
            break
        seconds += (least - done) * float(costs.draft_s[active - 1, bucket, 1])
        done = least
    return seconds + deepest * costs.signal_s
