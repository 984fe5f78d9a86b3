"""How a batch shares its drafts: each request for itself, one length for all, or a budget.

The first three run before the draft and change caps; the last two run after it and decide how many
of a row's drafted tokens are verified. Letters: n rows, whose slots are listed in places.decoding;
records as in simulator.serving.scheduler.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.serving.costs import start_held, verify_seconds
from traces.costs.pricing import StepCosts

FloatArray = npt.NDArray[np.float64]

EACH, SHORTEST, MEAN, LONGEST, BUDGET, TETRIS, ADAPTIVE = range(7)
ALLOTMENTS = {
    "each": EACH,
    "shortest": SHORTEST,
    "mean": MEAN,
    "longest": LONGEST,
    "budget": BUDGET,
    "tetris": TETRIS,
    "adaptive": ADAPTIVE,
}


def share_caps(mode: int, budget: int, places: Any, n: int, slots: Any) -> None:
    """Change the caps of a batch: one length for all (the smallest, mean or largest wish, inside
    each row's room), or at most `budget` tokens verified, the longest wishes shortened first.
    """
    if mode == BUDGET:
        total, longest = n, 0
        for k in range(n):
            requested_gamma = int(slots[places[k].decoding].cap)
            total += requested_gamma
            longest = max(longest, requested_gamma)
        while total > budget and longest > 0:
            for k in range(n):
                slot = slots[places[n - 1 - k].decoding]
                if total > budget and int(slot.cap) == longest:
                    slot.cap = longest - 1
                    total -= 1
            longest -= 1
        return
    least, most, total = int(slots[places[0].decoding].cap), 0, 0
    for k in range(n):
        requested_gamma = int(slots[places[k].decoding].cap)
        least, most, total = (
            min(least, requested_gamma),
            max(most, requested_gamma),
            total + requested_gamma,
        )
    if mode == SHORTEST:
        common = least
    elif mode == LONGEST:
        common = most
    else:
        common = (2 * total + n) // (2 * n)  # the mean, halves up
    for k in range(n):
        slot = slots[places[k].decoding]
        slot.cap = min(common, int(slot.room))


def trim(
    mode: int,
    budget: int,
    places: Any,
    n: int,
    slots: Any,
    survival: FloatArray,
    costs: StepCosts,
    bucket: int,
    draft_s: float,
    start_s: float,
) -> None:
    """Choose verified <= drafted by each token's chance to survive.

    survival [slots, G]: running product of the draft's confidence, so the tokens chosen of a row
    are always a prefix. TETRIS (arXiv 2502.15197, of which we have read the code alone): the
    `budget` largest of the batch; the rows' own n tokens are not in it, for its code takes
    `capacity` of the drafted ones (select_proposals_no_priority in vllm/spec_decode/tetris.py of
    github.com/ZhaoxuanWu/Tetris). There the capacity is a number per row (spec_decode_worker.py:
    proposal_len - tetris_extra_proposals, times the batch), here one for any batch.
    ADAPTIVE, vLLM's adaptive verification (the scheduler of arXiv 2607.05147): as many as maximise
    (n + sum of survivals) / seconds of the iteration: draft_s, its start included, and the target
    step, which holds start_s (simulator.serving.costs.start_held).
    """
    for k in range(n):
        slots[places[k].decoding].verified = 0
    taken, hope = 0, float(n)
    verify_s = costs.verify_s[n - 1, bucket]
    best_taken, best_rate = 0, hope / (draft_s + verify_seconds(verify_s, 1.0))
    while True:
        pick, most = -1, 0.0
        for k in range(n):
            number = int(places[k].decoding)
            chosen = int(slots[number].verified)
            kept = int(slots[number].drafted) - int(slots[number].dropped)
            if chosen < kept and float(survival[number, chosen]) > most:
                pick, most = number, float(survival[number, chosen])
        if pick < 0 or (mode == TETRIS and taken >= budget):
            break
        slots[pick].verified += 1
        taken += 1
        hope += most
        tokens = 1.0 + taken / n
        target_s = verify_seconds(verify_s, tokens) - start_held(start_s, tokens)
        rate = hope / (draft_s + target_s)
        if rate > best_rate:
            best_taken, best_rate = taken, rate
    if mode == ADAPTIVE:
        cut_to(best_taken, places, n, slots, survival)


def cut_to(count: int, places: Any, n: int, slots: Any, survival: FloatArray) -> None:
    """Take back the least likely chosen tokens until `count` are left."""
    taken = 0
    for k in range(n):
        taken += int(slots[places[k].decoding].verified)
    while taken > count:
        pick, least = -1, 2.0
        for k in range(n):
            number = int(places[k].decoding)
            last = int(slots[number].verified)
            if last > 0 and float(survival[number, last - 1]) <= least:
                pick, least = number, float(survival[number, last - 1])
        slots[pick].verified -= 1
        taken -= 1
