"""What the report's tables say: result files turned into rows of text for the page."""

from __future__ import annotations

import base64
from typing import Any

from experiments.compare import ROLES
from experiments.figure_style import Json, Picture
from experiments.figures import by_role
from experiments.files import forced_note, random_weights_note
from experiments.tables import number, percent, with_interval
from traces.schema import EXACTNESS

HEADER = (
    "schedule",
    "speed-up (95 %)",
    "by question",
    "against tuned fixed (95 %)",
    "verdict",
    "p, corrected",
    "headroom",
    "tokens per round",
    "mean gamma",
    "mean draft",
    "accepted / drafted",
    "tokens/s",
)


def points(share: float) -> str:
    """0.034 -> "3.4 %"."""
    return f"{100 * share:.1f} %"


def interval(estimate: Json, digits: int = 2) -> str:
    """Value and interval of an estimate."""
    return with_interval([estimate[k] for k in ("value", "low", "high")], digits)


def comparison_view(part: Json, pictures: list[Picture]) -> dict[str, Any]:
    """What the template shows of one comparison."""
    known = {row["name"]: row for row in (part.get("censoring") or {"rows": []})["rows"]}
    groups = []
    for role, title in ROLES.items():
        if role == "hindsight":
            title += f" (gamma = {part['hindsight_gamma']})"
        rows = [
            _open_row(row, known[row["name"]]) if known else _row(row)
            for row in part["rows"]
            if row["role"] == role
        ]
        if rows:
            groups.append({"title": title, "rows": rows})
    tokens = by_role(part, "never")["rounds"]  # plain decoding: one token a round
    censored = part["censored_positions"]
    return {
        "trace": part["trace"],
        "basis": (
            f"{part['questions']} held-out questions, {len(part['test_rows'])} replies, {tokens} "
            f"tokens. Trace: {part['exactness']} ({EXACTNESS[part['exactness']]}); "
            f"{censored} positions are censored." + (OPEN if known else "")
        ),
        "whose": random_weights_note(part["timing_meta"], part["trace_meta"]["pair"]),
        "header": HEADER,
        "groups": groups,
        "recommended": part["recommended"],
        "resamples": part["resamples"],
        "verdicts": STEADILY if known else CORRECTED,
        "certainty": part["certainty"],
        "depth": part["trace_meta"]["depth"],
        "tasks": [task.replace("_", " ") for task in part["tasks"]],
        "task_rows": [
            [row["name"], *(_task(row, known, task) for task in part["tasks"])]
            for row in part["rows"]
        ],
        "pictures": [embedded(picture) for picture in pictures],
    }


CORRECTED = (
    "The verdict on a controller is corrected for their number (single-step max-t over the same "
    "resamples, p < 0.05; Westfall and Young, 1993), any other row's is a tie if its 95 % interval "
    "covers 1. Intervals are not corrected."
)

STEADILY = (
    "The verdict on a controller is corrected for their number (single-step min-p over questions "
    "drawn anew in every imputation, p < 0.05), any other row's is of its own interval; undecided: "
    "other imputations may say otherwise. Intervals are not corrected."
)

OPEN = (
    " Speed-up, ratio to the tuned fixed gamma, tokens per round and tokens/s are medians and 95 % "
    "intervals over imputations of what was never proposed to the target; the two ratios allow for "
    "other questions as well. All other numbers and the figures are of one imputation."
)


def _open_row(row: Json, known: Json) -> list[str]:
    """A row of a censored trace: intervals where points would stand."""
    cells = _row(row | {"speedup": known["speedup_others"], "vs_fixed": known["vs_fixed_others"]})
    cells[2] = cells[5] = "-"
    cells[4] = cells[4] and known["verdict"]
    cells[7] = interval(known["tokens_per_round"])
    cells[-1] = interval(known["tokens_per_s"], 1)
    return cells


def _task(row: Json, known: Json, task: str) -> str:
    if known:
        return interval(known[row["name"]]["tasks"][task])
    return number(row["tasks"][task]["value"])


def _row(row: Json) -> list[str]:
    fixed = row["role"] == "tuned"
    return [
        row["name"],
        interval(row["speedup"]),
        number(row["speedup_by_question"]),
        "1" if fixed else interval(row["vs_fixed"], 3),
        "" if fixed else row["verdict"],
        number(row["adjusted_p"], 4),
        percent(row["headroom"]["value"]),
        number(row["tokens_per_round"]),
        number(row["mean_gamma"], 1),
        number(row["mean_drafted"], 1),
        number(row["acceptance"]),
        number(row["tokens_per_s"], 0),
    ]


def embedded(picture: Picture) -> dict[str, str]:
    """A picture for the template, its PNG as base64."""
    data = base64.b64encode(picture.png).decode()
    return {"title": picture.title, "caption": picture.caption, "data": data}


def validation_view(validation: Json, pictures: list[Picture]) -> dict[str, Any]:
    """What the template shows of a validation."""
    checks = sorted(validation["checks"], key=lambda check: -float(check["measured_tokens_per_s"]))
    factor, fit = validation["machine_factor"], validation["residual"]
    total = sum(cell["rounds"] for cell in validation["cells"])
    return {
        "summary": (
            f"{len(checks)} controllers decoded {validation['requests']} replies on the real "
            f"models, {validation['repeats']} times in rotated order. Median error "
            f"{points(validation['median_error'])}, largest {points(validation['max_error'])}; "
            f"the rankings agree with Kendall's tau {number(validation['tau'])}."
        ),
        "forced": forced_note(validation["machine"]),
        "pictures": [embedded(picture) for picture in pictures],
        "header": (
            "controller",
            "predicted tokens/s",
            "measured tokens/s",
            "error",
            "error of one reply (median)",
            "rounds unlike the replay",
            "with the wall clock",
            "replies as recorded",
            "joules per token",
            "why",
        ),
        "rows": [_check_row(check, validation) for check in checks],
        "note": (
            "Rounds unlike the replay: another number drafted or accepted, when the controller is "
            "told the modelled seconds of each round; with the wall clock: the same in the timed "
            "runs, all repeats, where a controller that reads the clock may decide otherwise."
        ),
        "budget": (
            f"The machine ran {points(abs(factor - 1))} {'slower' if factor >= 1 else 'faster'} "
            "than its timing says; with that one factor removed the median error is "
            f"{points(validation['median_error_scaled'])}, the largest "
            f"{points(validation['max_error_scaled'])}. Fitted to the rounds below, the model "
            f"misses {1e6 * fit['round_s']:+.0f} µs per round, {1e6 * fit['draft_s']:+.0f} µs per "
            f"drafted token and {1e6 * fit['signal_s']:+.0f} µs per token whose signals are read."
        ),
        "cells": [
            [
                "yes" if cell["signals"] else "no",
                cell["drafted"],
                cell["rounds"],
                number(1000 * cell["priced_s"], 3),
                number(1000 * cell["measured_s"], 3),
                f"{1000 * cell['residual_s']:+.3f}",
            ]
            for cell in validation["cells"]
            if cell["rounds"] * 100 >= total  # rarer kinds of round are left out
        ],
    }


def _check_row(check: Json, validation: Json) -> list[str]:
    exact = check["exact"]
    equal = check["replies_equal"]
    return [
        check["policy"],
        number(check["predicted_tokens_per_s"], 1),
        number(check["measured_tokens_per_s"], 1),
        f"{100 * check['error']:+.1f} %",
        percent(check["request_error"], 1),
        f"{exact['differing']} of {exact['rounds']}" if exact else "-",
        f"{check['clock_rounds']} of {check['timed_rounds']}" if exact else "-",
        "-" if equal is None else f"{equal} of {validation['requests']}",
        number(check["joules_per_token"], 3),
        validation["reasons"][check["policy"]],
    ]


def provenance_view(compared: Json, validation: Json | None) -> list[dict[str, Any]]:
    """Where every number comes from, as groups of facts."""
    groups = []
    for part in compared["comparisons"]:
        facts = {"file": part["trace"], "content sha256": part["trace_sha256"]}
        facts |= {"requests": part["requests"], "positions": part["positions"]}
        groups.append({"title": "Trace", "facts": _facts(facts | part["trace_meta"])})
        timing = {"file": part["timing"]} | part["timing_meta"]
        groups.append({"title": "Timing", "facts": _facts(timing)})
    simulated = compared["versions"] | {"command": compared["command"]}
    groups.append({"title": "Comparison", "facts": _facts(simulated)})
    if validation:
        machine = validation["machine"] | {"command": validation["command"]}
        groups.append({"title": "Validation", "facts": _facts(machine)})
    return groups


def _facts(raw: Json) -> list[tuple[str, str]]:
    facts = []
    for key, value in raw.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {item}" for name, item in value.items())
        facts.append((key.replace("_", " "), "-" if value in ("", None) else str(value)))
    return facts
