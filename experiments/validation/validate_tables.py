"""The tables of a validation: ratios, speeds, rounds, drift, energy, and where seconds differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pandas as pd

from experiments.common.frames import meanings, text_of
from experiments.common.statistics import Estimate
from experiments.common.text_table import number, table
from experiments.validation.agreement import REASONS, Cell
from experiments.validation.columns import RATIOS, SPEEDS
from experiments.validation.result import Check, Validation

CLOCKS = {
    "cpu": "the processor's clock",
    "events": "events in the GPU's stream",
    "wall": "the wall's clock",
}


def ratio_table(frame: pd.DataFrame, baseline: str) -> str:
    """Every policy over the baseline, fastest first."""
    head = dataclasses.replace(RATIOS[0], header=f"over {baseline}")
    return f"{text_of([head, *RATIOS[1:]], [('', frame)])}\n\n{meanings(RATIOS)}"


def speed_table(frame: pd.DataFrame, clock: str) -> str:
    """Measured beside predicted tokens/s, per policy, fastest first."""
    head = dataclasses.replace(SPEEDS[0], header="tokens/s")
    shown = text_of([head, *SPEEDS[1:]], [("", frame)])
    return f"{shown}\n\n{meanings(SPEEDS)}\nseconds are by {CLOCKS[clock]}"


def rounds_table(outcome: Validation) -> str:
    """How many rounds of the first repeat were the replay's."""
    rows = [
        [
            check.policy,
            "-" if check.agreement is None else str(check.agreement.rounds),
            "-" if check.agreement is None else str(check.agreement.differing),
            "-" if check.replies_equal is None else f"{check.replies_equal}/{outcome.requests}",
            why(check, outcome),
        ]
        for check in outcome.checks
    ]
    header = ("policy", "rounds", "differ", "replies=trace", "why")
    return table(header, [("", rows)]) + (
        "\n\nrounds, differ: (drafted, accepted, emitted) against the replay of the same replies"
    )


def why(check: Check, outcome: Validation) -> str:
    """The reason of whatever differs, in a few words."""
    if check.agreement is None:
        return "sampled: only laws agree"
    if not check.agreement.differing:
        return ""
    first = {k: n for k, n in check.agreement.first.items() if n}
    said = "first: " + ", ".join(f"{n} {k}" for k, n in first.items())
    return f"reads the clock; {said}" if check.reads_clock else said


def reasons(outcome: Validation) -> list[str]:
    """The meaning of the words that `why` uses in this validation."""
    used = {k for c in outcome.checks if c.agreement for k, n in c.agreement.first.items() if n}
    return [f"{word}: {REASONS[word]}" for word in REASONS if word in used]


def drift_table(outcome: Validation) -> str:
    """The anchors: steps measured again during the sitting; empty without any."""
    if not outcome.drift:
        return ""
    rows = [
        [
            f"{one.operation} {one.tokens}",
            number(one.factor, 3),
            number(one.begin, 3),
            number(one.end, 3),
            str(len(one.points)),
        ]
        for one in outcome.drift
    ]
    header = ("step, tokens", "of timing", "first third", "last third", "blocks")
    return table(header, [("", rows)]) + (
        "\n\nseconds of a step during the sitting over those of the timing, medians"
    )


def error_table(outcome: Validation) -> str:
    """Where the seconds differ: per kind of round, and fitted to the terms of the cost model."""
    rows = [
        [
            "yes" if cell.signals else "no",
            str(cell.drafted),
            str(cell.rounds),
            number(1000 * cell.priced_s, 3),
            number(1000 * cell.measured_s, 3),
            f"{1000 * cell.residual_s:+.3f}",
        ]
        for cell in frequent(outcome.cells)
    ]
    header = ("signals read", "drafted", "rounds", "model ms", "measured ms", "missed ms")
    fit = outcome.residual
    return table(header, [("", rows)]) + (
        "\n\nmodel, measured: of one round, medians; missed: their difference"
        f"\nfitted: {1e6 * fit.round_s:+.0f} us per round, {1e6 * fit.draft_s:+.0f} us per "
        f"drafted token,\n{1e6 * fit.signal_s:+.0f} us per token whose signals are read"
    )


def frequent(cells: Sequence[Cell]) -> list[Cell]:
    """The kinds of round that make up at least one in a hundred."""
    total = sum(cell.rounds for cell in cells)
    return [cell for cell in cells if cell.rounds * 100 >= total]


def energy_table(outcome: Validation) -> str:
    """Joules per token and peak memory of each policy; empty where the device reports neither."""
    checks = sorted(outcome.checks, key=lambda check: -check.measured_tokens_per_s)
    if all(c.joules_per_token is None and c.peak_memory_bytes is None for c in checks):
        return ""
    rows = [
        [
            check.policy,
            "-" if check.joules_per_token is None else number(check.joules_per_token, 3),
            "-" if check.peak_memory_bytes is None else number(check.peak_memory_bytes / 2**20, 0),
        ]
        for check in checks
    ]
    note = "joules of the whole board, prompts included; MiB that torch held at most"
    return table(("policy", "J/token", "peak MiB"), [("", rows)]) + "\n\n" + note


def signed(value: float) -> str:
    """0.031 -> "+3.1%"."""
    return f"{100 * value:+.1f}%"


def low_to_high(found: Estimate, digits: int) -> str:
    """An interval without its value, "1.031-1.054"."""
    return f"{number(found.low, digits)}-{number(found.high, digits)}"
