"""The tables of a validation as text, and why rounds differ."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from experiments.common.frames import Column, frame_of, meanings, text_of
from experiments.common.statistics import Estimate
from experiments.common.text_table import number
from experiments.validation.agreement import REASONS
from experiments.validation.columns import (
    CELLS,
    DRIFT,
    ENERGY,
    RATIOS,
    ROUNDS,
    SPEEDS,
    cells_of,
    checks_of,
)
from experiments.validation.result import PolicyCheck, Validation

CLOCKS = {
    "cpu": "the processor's clock",
    "events": "events in the GPU's stream",
    "wall": "the wall's clock",
}


def tables(found: dict[str, Any]) -> list[str]:
    """Ratios, speeds, drift, energy and rounds of a validate.json; those that it holds."""
    checks = checks_of(found)
    shown = [
        _table(RATIOS, checks, f"over {found['baseline']}"),
        _table(SPEEDS, checks, "tokens/s") + f"\nseconds are by {CLOCKS[found['clock']]}",
    ]
    if found["drift"]:
        shown.append(_table(DRIFT, frame_of(found["drift"])))
    if not checks[["joules_per_token", "peak_memory_bytes"]].isna().to_numpy().all():
        shown.append(_table(ENERGY, checks))
    return [*shown, _table(ROUNDS, checks)]


def error_table(found: dict[str, Any]) -> str:
    """Where the seconds differ: per kind of round, and fitted to the terms of the cost model."""
    return f"{_table(CELLS, cells_of(found))}\n{fitted(found['residual'])}"


def fitted(found: dict[str, float]) -> str:
    """The residual of the cost model by its terms, a sentence."""
    return (
        f"fitted to these rounds, the model misses {1e6 * found['round_s']:+.0f} us per round, "
        f"{1e6 * found['draft_s']:+.0f} us per drafted token,\nand {1e6 * found['signal_s']:+.0f} "
        "us per token whose signals are read"
    )


def _table(columns: Sequence[Column], frame: pd.DataFrame, first: str = "") -> str:
    """A table and what its columns mean; first: the header of the first column instead."""
    head = dataclasses.replace(columns[0], header=first or columns[0].header)
    return f"{text_of([head, *columns[1:]], [('', frame)])}\n\n{meanings(columns)}"


def why(check: PolicyCheck) -> str:
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


def signed(value: float) -> str:
    """0.031 -> "+3.1%"."""
    return f"{100 * value:+.1f}%"


def low_to_high(found: Estimate, digits: int) -> str:
    """An interval without its value, "1.031-1.054", or that there is none."""
    if not math.isfinite(found.low):
        return "no interval"
    return f"{number(found.low, digits)}-{number(found.high, digits)}"
