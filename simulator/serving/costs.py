"""What an iteration of a running batch costs: tables by batch size, and how they are read.

Letters: S batch sizes 1..S, C context buckets, W = widest step + 1, as in traces.timing.StepCosts.
With one row every function here gives the seconds of traces.costs.round_seconds, bit for bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from policies.base import Policy
from policies.overhead import EVERY_RULE, FREE, seconds_of
from traces.costs import CostModel, read_only, tabulate
from traces.timing import OwnSeconds

FloatArray = npt.NDArray[np.float64]


class BatchCosts(NamedTuple):
    """prefill_s [C], of one prompt; draft_s, verify_s [S, C, W], a step in which each of the rows
    reads n = index tokens at this mean context; signal_s per draft step; bucket_tokens. own_s:
    what rules' own arithmetic costs, in none of these yet; None where that is not known, or has
    been charged: the only form that compiled code takes.
    """

    prefill_s: FloatArray
    draft_s: FloatArray
    verify_s: FloatArray
    signal_s: float
    bucket_tokens: int
    own_s: OwnSeconds | None = None


def tabulate_batches(
    model: CostModel,
    slots: int,
    *,
    draft_model: CostModel | None = None,
    max_context: int = 4096,
    width: int = 18,
    bucket_tokens: int = 64,
) -> BatchCosts:
    """The step costs of a model at every batch size up to `slots`; see traces.costs.tabulate.

    draft_model: prices draft steps, if the draft runs on a device of its own.
    """
    tables = [
        tabulate(model, batch, max_context=max_context, width=width, bucket_tokens=bucket_tokens)
        for batch in range(1, slots + 1)
    ]
    drafts = tables
    if draft_model is not None:
        drafts = [
            tabulate(
                draft_model, batch, max_context=max_context, width=width,
                bucket_tokens=bucket_tokens,
            )
            for batch in range(1, slots + 1)
        ]  # fmt: skip
    return BatchCosts(
        read_only(tables[0].prefill_s, np.float64),
        read_only(np.stack([table.draft_s for table in drafts]), np.float64),
        read_only(np.stack([table.verify_s for table in tables]), np.float64),
        float(drafts[0].signal_s),
        tables[0].bucket_tokens,
        tables[0].own_s,
    )


def charged(policy: Policy, costs: BatchCosts) -> BatchCosts:
    """Costs with those of the policy's own arithmetic, as policies.overhead charges them, and
    nothing left to charge.

    Rows decide one after the other: b rows pay b times, per target step and per draft step.
    """
    round_s, token_s = seconds_of(policy, {} if costs.own_s is None else costs.own_s)
    if round_s == 0.0 and token_s == 0.0:
        return costs._replace(own_s=None)
    rows = np.arange(1, costs.verify_s.shape[0] + 1)[:, None, None]
    verify_s, draft_s = costs.verify_s.copy(), costs.draft_s.copy()
    verify_s[:, :, 1:] += round_s * rows
    draft_s[:, :, 1:] += token_s * (rows - 1)  # the first row's is in signal_s
    return costs._replace(
        draft_s=read_only(draft_s, np.float64),
        verify_s=read_only(verify_s, np.float64),
        signal_s=costs.signal_s + token_s,
        own_s=None,
    )


def uncharged(costs: BatchCosts) -> BatchCosts:
    """These costs for every policy, networks included."""
    return costs._replace(own_s={EVERY_RULE: FREE})


def context_bucket(costs: BatchCosts, context_tokens: int) -> int:
    """The row of the tables for this context; the last row is open."""
    return min(context_tokens // costs.bucket_tokens, int(costs.prefill_s.shape[0]) - 1)


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


def draft_seconds(costs: BatchCosts, bucket: int, places: Any, n: int, slots: Any) -> float:
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
