"""The report's tables: result files turned into rows of text for the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import pandas as pd

from experiments.common.frames import (
    Column,
    Group,
    figure,
    frame_of,
    interval,
    page_meanings,
    page_of,
)
from experiments.common.plots import Json, Picture
from experiments.common.results import random_weights_note, replayed_note, under_tree
from experiments.common.statistics import VERDICTS
from experiments.comparison.columns import COLUMNS, SHORT, left_open
from experiments.comparison.result import ROLES
from experiments.report.figures import by_role, featured_rows, fixed_rows, is_twin
from experiments.validation.columns import CELLS, RATIOS, SPEEDS, cells_of, checks_of
from experiments.validation.validate_tables import fitted
from policies.registry import title
from traces.schema import EXACTNESS


def comparison_view(part: Json, pictures: list[Picture]) -> dict[str, Any]:
    """A comparison for the template."""
    known = {row["name"]: row for row in (part.get("censoring") or {"rows": []})["rows"]}
    columns, groups = left_open() if known else COLUMNS, _groups(part, known)
    names = [row["name"] for row in (*featured_rows(part), *fixed_rows(part))]
    best = [(heading, rows[rows["first"].isin(names)]) for heading, rows in groups]
    short = [column for column in columns if column.name in SHORT]
    tokens = by_role(part, "never")["rounds"]  # plain decoding: one token a round
    censored = part["censored_positions"]
    return {
        "trace": part["trace"],
        "basis": (
            f"{part['questions']} held-out questions, {len(part['test_rows'])} replies, {tokens} "
            f"tokens. Trace: {part['exactness']} ({EXACTNESS[part['exactness']]})"
            f"{under_tree(part['trace_meta'].get('shape', ''))}; "
            f"{censored} positions are censored." + (OPEN if known else "")
        ),
        "whose": random_weights_note(part["timing_meta"], part["trace_meta"]["pair"]),
        "tables": [
            page_of(short, best) | {"summary": ""},
            page_of(columns, groups) | {"summary": _summary(groups)},
        ],
        "meanings": page_meanings(columns),
        "recommended": title(part["recommended"]),
        "resamples": part["resamples"],
        "orders": part["orders"],
        "timing_draws": part["timing_draws"],
        "verdicts": STEADILY if known else CORRECTED,
        "words": "; ".join(f"{word}: {VERDICTS[word]}" for word in VERDICTS),
        "certainty": part["certainty"],
        "depth": part["trace_meta"]["depth"],
        "by_task": page_of(task_columns(part, known), [("", pd.concat(f for _, f in groups))]),
        "pictures": [embedded(picture) for picture in pictures],
    }


def _groups(part: Json, known: Json) -> list[Group]:
    """All rows by role; a controller that is another one under a second name stands beside it.

    first: of the frames, the name of a row without its twins'.
    """
    shown = {row["name"] for row in part["rows"] if not is_twin(row, part)}
    twins: dict[str, list[str]] = {}
    for row in part["rows"]:
        if row["name"] not in shown:
            twins.setdefault(row["twin"], []).append(row["name"])
    rows = [
        (row | _open(known[row["name"]]) if known else row)
        | {"first": row["name"], "name": " = ".join([row["name"], *twins.get(row["name"], [])])}
        for row in part["rows"]
        if row["name"] in shown
    ]
    frame, groups = frame_of(rows), []
    for role, heading in ROLES.items():
        if role == "hindsight":
            heading += f" (gamma = {part['hindsight_gamma']})"
        groups.append((heading, frame[frame["role"] == role]))
    return groups


def _open(known: Json) -> Json:
    """Intervals over imputations, in the place of a row's points."""
    return {
        "speedup": known["speedup_others"],
        "vs_fixed": known["vs_fixed_others"],
        "verdict": known["verdict"],
        "tokens_per_round": known["tokens_per_round"],
        "tokens_per_s": known["tokens_per_s"],
        "tasks": known["tasks"],
        "speedup_by_question": None,
        "adjusted_p": None,
    }


def _summary(groups: list[Group]) -> str:
    """The title of the folded table."""
    count = sum(len(rows) for _, rows in groups)
    return f"All {count} schedules, with their p-values, uncharged and in other orders"


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


def task_columns(part: Json, known: Json) -> list[Column]:
    """The speed-up of every task; intervals over imputations where acceptance is open."""
    return [COLUMNS[0]] + [
        interval(f"tasks.{task}", None, said, "")
        if known
        else figure(f"tasks.{task}.value", None, said, "")
        for task, said in ((task, task.replace("_", " ")) for task in part["tasks"])
    ]


def embedded(picture: Picture) -> dict[str, str]:
    """A picture for the template, its PNG as base64."""
    data = base64.b64encode(picture.png).decode()
    return {"title": picture.title, "caption": picture.caption, "data": data}


def validation_view(validation: Json, pictures: list[Picture]) -> dict[str, Any]:
    """A validation for the template."""
    frame = checks_of(validation)
    return {
        "summary": validation["basis"] + ".",
        "replayed": replayed_note(validation["machine"]),
        "claims": [*validation["lines"]["claims"], *validation["lines"]["machine"]],
        "pictures": [embedded(picture) for picture in pictures],
        "tables": [
            _table(f"Ratios to {validation['baseline']}", RATIOS, frame),
            _table("Tokens per second, and the rounds behind them", SPEEDS, frame),
            _table("Where the error comes from", CELLS, cells_of(validation))
            | {"note": fitted(validation["residual"]).capitalize() + "."},
        ],
    }


def _table(title: str, columns: Sequence[Column], frame: pd.DataFrame) -> dict[str, Any]:
    """A table without groups, and what its columns mean."""
    shown = page_of(columns, [("", frame)])
    return shown | {"title": title, "note": ". ".join(page_meanings(columns)) + "."}
