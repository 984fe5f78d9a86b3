"""A validation as text tables, findings and JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.agreement import REASONS, Cell
from experiments.files import forced_note, jsonable
from experiments.tables import number, percent, table
from experiments.validate import Check, Validation
from real_backend.passes import timed_path


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}%"


def speed_table(outcome: Validation) -> str:
    """Measured beside predicted, per policy, fastest first."""
    rows = [
        [
            check.policy,
            number(check.predicted_tokens_per_s, 1),
            number(check.measured_tokens_per_s, 1),
            f"{number(check.repeats_low, 1)}..{number(check.repeats_high, 1)}",
            _signed(check.error),
            percent(check.request_error, 1),
            _milliseconds(check.measured_s - check.predicted_s),
            _milliseconds(check.costs_s),
            _milliseconds(check.decisions_s),
        ]
        for check in sorted(outcome.checks, key=lambda check: -check.measured_tokens_per_s)
    ]
    header = (
        "policy",
        "predicted",
        "measured",
        "repeats",
        "error",
        "per reply",
        "missed ms",
        "by costs",
        "by rounds",
    )
    notes = (
        "predicted, measured: tokens/s without prefill; error: predicted / measured - 1\n"
        "per reply: median absolute error of one reply; missed: measured - predicted, of which\n"
        "by costs: the rounds that ran cost more than the model says; by rounds: other rounds ran"
    )
    return table(header, [("", rows)]) + "\n\n" + notes


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:+.0f}"


def rounds_table(outcome: Validation) -> str:
    """How many rounds were the replay's, with the cost model's clock and with the wall's."""
    rows = [_rounds_row(check, outcome) for check in outcome.checks]
    header = ("policy", "rounds", "differ", "replies=trace", "timed rounds", "differ", "why")
    table_ = table(header, [("", rows)])
    return table_ + (
        "\n\nrounds, differ: (drafted, accepted, emitted) against the replay, controllers told the "
        "model's\nseconds; timed rounds: the same with the wall clock, all repeats"
    )


def _rounds_row(check: Check, outcome: Validation) -> list[str]:
    if check.exact is None:
        return [
            check.policy,
            "-",
            "-",
            "-",
            str(check.timed_rounds),
            "-",
            why(check, outcome),
        ]
    equal = "-" if check.replies_equal is None else f"{check.replies_equal}/{outcome.requests}"
    return [
        check.policy,
        str(check.exact.rounds),
        str(check.exact.differing),
        equal,
        str(check.timed_rounds),
        str(check.clock_rounds),
        why(check, outcome),
    ]


def why(check: Check, outcome: Validation) -> str:
    """The reason of whatever differs, in a few words."""
    if check.exact is None:
        return "no exact pass" if outcome.exactness == "exact" else "sampled: only laws agree"
    if check.exact.differing:
        first = {k: n for k, n in check.exact.first.items() if n}
        return "first: " + ", ".join(f"{n} {k}" for k, n in first.items())
    return "reads the clock" if check.reads_clock else ""


def reasons(outcome: Validation) -> list[str]:
    """The meaning of the words that `why` uses in this validation."""
    used = {k for c in outcome.checks if c.exact for k, n in c.exact.first.items() if n}
    return [f"{word}: {REASONS[word]}" for word in REASONS if word in used]


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
        f"\n\nfitted: {1e6 * fit.round_s:+.0f} us per round, {1e6 * fit.draft_s:+.0f} us per "
        f"drafted token,\n{1e6 * fit.signal_s:+.0f} us per token whose signals are read"
    )


def frequent(cells: Sequence[Cell]) -> list[Cell]:
    """The kinds of round that make up at least one in a hundred."""
    total = sum(cell.rounds for cell in cells)
    return [cell for cell in cells if cell.rounds * 100 >= total]


def summary_lines(outcome: Validation) -> str:
    """The errors over all policies, in sentences."""
    factor = outcome.machine_factor
    word = "slower" if factor >= 1 else "faster"
    return "\n".join(
        [
            f"prediction error over {len(outcome.checks)} policies: median "
            f"{100 * outcome.median_error:.1f} %, maximum {100 * outcome.max_error:.1f} %; "
            f"rank agreement (Kendall's tau) {number(outcome.tau)}",
            f"the machine ran {100 * abs(factor - 1):.1f} % {word} than its timing says; without "
            f"that: median {100 * outcome.median_error_scaled:.1f} %, maximum "
            f"{100 * outcome.max_error_scaled:.1f} %",
            f"prefill of the {outcome.requests} prompts, not part of the speeds: predicted "
            f"{outcome.prefill_predicted_s:.3f} s, measured {outcome.prefill_measured_s:.3f} s",
        ]
    )


def validation_text(outcome: Validation) -> str:
    """Everything `gammalab validate` prints."""
    basis = (
        f"{outcome.requests} replies, {outcome.repeats} repeats in rotated order, "
        f"trace {outcome.exactness}, seed {outcome.seed}"
    )
    note = forced_note(next(iter(outcome.measured.timed.values()))[0].meta)
    basis = "\n".join(filter(None, [basis, textwrap.fill(note, 98)]))
    rounds = "\n".join([rounds_table(outcome), *reasons(outcome)])
    parts = [basis, speed_table(outcome), energy_table(outcome), rounds, error_table(outcome)]
    return "\n\n".join([*filter(None, parts), summary_lines(outcome)])


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


def findings(outcome: Validation, max_error_percent: float) -> list[str]:
    """What is wrong, one line each: policies whose prediction missed the bound."""
    return [
        f"{check.policy}: predicted {check.predicted_tokens_per_s:.1f} tokens/s, measured "
        f"{check.measured_tokens_per_s:.1f}: off by {_signed(check.error)}, allowed "
        f"{max_error_percent:g} %"
        for check in outcome.checks
        if abs(check.error) > max_error_percent / 100
    ]


def validation_dict(outcome: Validation) -> dict[str, Any]:
    """JSON-ready; the logs are named, not held."""
    raw = {
        field: jsonable(getattr(outcome, field))
        for field in outcome.__dataclass_fields__
        if field not in ("measured", "predicted")
    }
    for check, shown in zip(outcome.checks, raw["checks"], strict=True):
        if check.exact is not None:
            shown["exact"]["differing"] = check.exact.differing
    raw["reasons"] = {check.policy: why(check, outcome) for check in outcome.checks}
    folder = Path()
    raw["log_files"] = {
        name: [timed_path(folder, name, k).as_posix() for k in range(len(logs))]
        for name, logs in outcome.measured.timed.items()
    }
    return raw
