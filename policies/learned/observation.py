"""Observations of a learned controller: numbers that a server could know, in -1..1.

The environments of simulator.envs and the networks of policies.learned.neural call these functions,
so that a network meets in an engine what it was trained on. Every number lies on a grid of 1/1024:
exact in float32 and in float64, and deaf to the last bit of a logarithm. Plain arithmetic, as in
every hook (policies.base).

What is remembered of a request (MEMORY numbers a slot, float64): how its last drafted round went,
rounds since, and running means of acceptance. What is shown before a round: see ROUND; after k
drafted tokens of it: those, and DRAFTING.
"""

from __future__ import annotations

import math

from policies.base import FloatArray

GRID = 1024.0

LAST_ACCEPTED, LAST_DRAFTED, QUIET, FAST, SLOW, RUN = range(6)
MEMORY = 6
"""Of the last round that drafted: tokens accepted and drafted; rounds without a draft since then;
share of judged tokens that were accepted, averaged over about 4 and 32 such rounds; accepted tokens
of a round, over about 8."""

ROUND = (
    "accepted tokens of the last round that drafted, of 16",
    "its drafted tokens, of 16",
    "1 if it was accepted whole",
    "rounds without a draft since, of 8 at most",
    "share of judged tokens accepted, over about 4 rounds that drafted",
    "the same over about 32 rounds",
    "accepted tokens of a round over about 8 rounds, of 16",
    "room: tokens that may be drafted, of 16 at most",
    "context tokens n as n / (n + 512)",
    "seconds c of a draft step in plain rounds, as c / (1 + c)",
    "what verifying 2 tokens adds, in plain rounds x, as x / (1 + x)",
    "what verifying 5 tokens adds, as x / (1 + x)",
    "what verifying 9 tokens adds, as x / (1 + x)",
    "batch size b as 1 - 1 / b",
    "requests waiting w as w / (w + 8)",
)
"""A plain round: verify_s[1], one token and no draft, at the present batch and context."""

DRAFTING = (
    "tokens drafted so far, of 16",
    "log odds of the newest token's top-1 probability, of 9.21 (0.9999)",
    "its entropy h, nats, as h / (1 + h)",
    "product of the top-1 probabilities so far",
    "lowest log odds so far, of 9.21",
    "log odds of the token before the newest, of 9.21",
)
FACTS = 9  # the first number of ROUND that hangs on costs and load alone
_LONGEST = 9.210240366975849  # log odds of 0.9999


def on_grid(x: float) -> float:
    """The nearest multiple of 1/1024."""
    return math.floor(x * GRID + 0.5) / GRID


def part(x: float) -> float:
    """x / (1 + x) for x >= 0, on the grid; 0 for what is below 0."""
    return on_grid(x / (1.0 + x)) if x > 0.0 else 0.0


def forget(memory: FloatArray, slot: int) -> None:
    """A new request: nothing known; the means start where most pairs are."""
    memory[slot, LAST_ACCEPTED] = 0.0
    memory[slot, LAST_DRAFTED] = 0.0
    memory[slot, QUIET] = 0.0
    memory[slot, FAST] = 0.75
    memory[slot, SLOW] = 0.75
    memory[slot, RUN] = 2.0


def remember(memory: FloatArray, slot: int, drafted: int, accepted: int) -> None:
    """A round is over."""
    if drafted == 0:
        memory[slot, QUIET] += 1.0
        return
    rate = accepted / min(accepted + 1, drafted)
    memory[slot, LAST_ACCEPTED] = float(accepted)
    memory[slot, LAST_DRAFTED] = float(drafted)
    memory[slot, QUIET] = 0.0
    memory[slot, FAST] += (rate - float(memory[slot, FAST])) * 0.25
    memory[slot, SLOW] += (rate - float(memory[slot, SLOW])) * 0.03125
    memory[slot, RUN] += (accepted - float(memory[slot, RUN])) * 0.125


def show_request(
    memory: FloatArray, slot: int, room: int, context_tokens: int, out: FloatArray, row: int
) -> None:
    """Fill out[row, :FACTS], what hangs on the request."""
    accepted, drafted = float(memory[slot, LAST_ACCEPTED]), float(memory[slot, LAST_DRAFTED])
    out[row, 0] = min(accepted, 16.0) / 16.0
    out[row, 1] = min(drafted, 16.0) / 16.0
    out[row, 2] = 1.0 if accepted == drafted and drafted > 0.0 else 0.0
    out[row, 3] = min(float(memory[slot, QUIET]), 8.0) / 8.0
    out[row, 4] = on_grid(float(memory[slot, FAST]))
    out[row, 5] = on_grid(float(memory[slot, SLOW]))
    out[row, 6] = on_grid(min(float(memory[slot, RUN]), 16.0) / 16.0)
    out[row, 7] = min(room, 16) / 16.0
    out[row, 8] = on_grid(context_tokens / (context_tokens + 512.0))


def show_costs(
    draft_step_s: float,
    verify_s: FloatArray,
    batch_size: int,
    waiting: int,
    out: FloatArray,
    row: int,
) -> None:
    """Fill out[row, FACTS:len(ROUND)], what hangs on costs and load; verify_s [W] as in View. Where
    nothing was measured the costs are shown as 0.
    """
    plain, last = float(verify_s[1]), verify_s.shape[0] - 1
    known = plain > 0.0
    out[row, 9] = part(draft_step_s / plain) if known else 0.0
    out[row, 10] = part(float(verify_s[min(2, last)]) / plain - 1.0) if known else 0.0
    out[row, 11] = part(float(verify_s[min(5, last)]) / plain - 1.0) if known else 0.0
    out[row, 12] = part(float(verify_s[min(9, last)]) / plain - 1.0) if known else 0.0
    out[row, 13] = part(batch_size - 1.0)
    out[row, 14] = on_grid(waiting / (waiting + 8.0))


def show_no_draft(out: FloatArray, row: int) -> None:
    """Fill out[row, len(ROUND):] at the start of a round."""
    for k in range(6):
        out[row, 15 + k] = 0.0
    out[row, 18] = 1.0
    out[row, 19] = 1.0


def show_draft(drafted: int, top1_prob: float, entropy: float, out: FloatArray, row: int) -> None:
    """Update out[row, len(ROUND):] after one more drafted token; before the first one it is what
    show_no_draft made it.
    """
    inside = min(max(top1_prob, 1e-4), 1.0 - 1e-4)
    odds = on_grid(math.log(inside / (1.0 - inside)) / _LONGEST)
    out[row, 20] = out[row, 16]
    out[row, 15] = min(drafted, 16) / 16.0
    out[row, 16] = odds
    out[row, 17] = part(entropy)
    out[row, 18] = on_grid(float(out[row, 18]) * top1_prob)
    out[row, 19] = min(float(out[row, 19]), odds)
