"""What the report's tables say: result files turned into rows of text for the page."""

from __future__ import annotations

import base64
from typing import Any

from experiments.common.plots import Json, Picture
from experiments.common.results import forced_note, random_weights_note
from experiments.common.statistics import VERDICTS
from experiments.common.text_table import number, percent, with_interval
from experiments.comparison.result import ROLES
from experiments.report.figures import by_role, featured_rows, fixed_rows, is_twin
from traces.schema import EXACTNESS

HEADER = (
    "schedule",
    "speed-up (95 %)",
    "against tuned fixed (95 %)",
    "verdict",
    "headroom",
    "tokens per round",
    "mean draft",
    "tokens/s",
    "by question",
    "p, corrected",
    "nobody charged",
    "other orders",
)
SHOWN = 8  # columns of the short table


def interval(estimate: Json, digits: int = 2) -> str:
    """Value and interval of an estimate."""
    return with_interval([estimate[k] for k in ("value", "low", "high")], digits)


def comparison_view(part: Json, pictures: list[Picture]) -> dict[str, Any]:
    """What the template shows of one comparison."""
    known = {row["name"]: row for row in (part.get("censoring") or {"rows": []})["rows"]}
    groups = _groups(part, known)
    names = {row["name"] for row in (*featured_rows(part), *fixed_rows(part))}
    best = [
        group | {"rows": [row[:SHOWN] for row in group["rows"] if row[0].split(" = ")[0] in names]}
        for group in groups
    ]
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
        "tables": [
            {"header": HEADER[:SHOWN], "groups": best, "summary": ""},
            {"header": HEADER, "groups": groups, "summary": _summary(groups)},
        ],
        "recommended": part["recommended"],
        "resamples": part["resamples"],
        "orders": part["orders"],
        "timing_draws": part["timing_draws"],
        "verdicts": STEADILY if known else CORRECTED,
        "words": "; ".join(f"{word}: {VERDICTS[word]}" for word in VERDICTS),
        "certainty": part["certainty"],
        "depth": part["trace_meta"]["depth"],
        "tasks": [task.replace("_", " ") for task in part["tasks"]],
        "task_rows": [
            [row["name"], *(_task(row, known, task) for task in part["tasks"])]
            for row in part["rows"]
            if not is_twin(row, part)
        ],
        "pictures": [embedded(picture) for picture in pictures],
    }


def _groups(part: Json, known: Json) -> list[dict[str, Any]]:
    """All rows by role; a controller that is another one under a second name stands beside it."""
    shown = {row["name"] for row in part["rows"] if not is_twin(row, part)}
    twins: dict[str, list[str]] = {}
    for row in part["rows"]:
        if row["name"] not in shown:
            twins.setdefault(row["twin"], []).append(row["name"])
    groups = []
    for role, title in ROLES.items():
        if role == "hindsight":
            title += f" (gamma = {part['hindsight_gamma']})"
        rows = [
            _open_row(row, known[row["name"]]) if known else _row(row)
            for row in part["rows"]
            if row["role"] == role and row["name"] in shown
        ]
        for row in rows:
            row[0] = " = ".join([row[0], *twins.get(row[0], [])])
        if rows:
            groups.append({"title": title, "rows": rows})
    return groups


def _summary(groups: list[dict[str, Any]]) -> str:
    """What the folded table holds."""
    count = sum(len(group["rows"]) for group in groups)
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


def _open_row(row: Json, known: Json) -> list[str]:
    """A row of a censored trace: intervals where points would stand."""
    cells = _row(row | {"speedup": known["speedup_others"], "vs_fixed": known["vs_fixed_others"]})
    cells[HEADER.index("by question")] = cells[HEADER.index("p, corrected")] = "-"
    said = HEADER.index("verdict")
    cells[said] = cells[said] and known["verdict"]
    cells[HEADER.index("tokens per round")] = interval(known["tokens_per_round"])
    cells[HEADER.index("tokens/s")] = interval(known["tokens_per_s"], 1)
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
        "1" if fixed else interval(row["vs_fixed"], 3),
        "" if fixed else row["verdict"],
        percent(row["headroom"]["value"]),
        number(row["tokens_per_round"]),
        number(row["mean_drafted"], 1),
        number(row["tokens_per_s"], 0),
        number(row["speedup_by_question"]),
        number(row["adjusted_p"], 4),
        number(row["uncharged"], 3),
        "-" if row["orders"] is None else number(row["orders"]["value"], 3),
    ]


def embedded(picture: Picture) -> dict[str, str]:
    """A picture for the template, its PNG as base64."""
    data = base64.b64encode(picture.png).decode()
    return {"title": picture.title, "caption": picture.caption, "data": data}


def validation_view(validation: Json, pictures: list[Picture]) -> dict[str, Any]:
    """What the template shows of a validation."""
    return {
        "summary": validation["basis"] + ".",
        "forced": forced_note(validation["machine"]),
        "claims": [*validation["lines"]["claims"], *validation["lines"]["machine"]],
        "pictures": [embedded(picture) for picture in pictures],
        "tables": [_ratios(validation), _speeds(validation), _missed(validation)],
    }


def _ratios(validation: Json) -> dict[str, Any]:
    base = {check["policy"]: check["recalibrated_tokens_per_s"] for check in validation["checks"]}
    rows = []
    for check in _by_speed(validation):
        ratio = check["ratio"]
        if ratio is None:
            rows.append([check["policy"], "1", "", "1", "", "", "", "baseline"])
            continue
        again, ours = check["recalibrated_tokens_per_s"], base[validation["baseline"]]
        rows.append(
            [
                check["policy"],
                number(ratio["predicted"], 3),
                number(ratio["timing_error"], 3),
                interval(ratio["time"], 3),
                f"{number(ratio['others']['low'], 3)}-{number(ratio['others']['high'], 3)}",
                number(ratio["detectable_percent"], 1),
                "-" if again is None or ours is None else number(again / ours, 3),
                ratio["word"],
            ]
        )
    return {
        "title": f"Ratios to {validation['baseline']}",
        "header": (
            "controller",
            "predicted",
            "error of its logarithm from the timing's repeats",
            "measured (95 %, these replies)",
            "95 %, other questions",
            "smallest gain it could find, %",
            "predicted with the anchors' step times",
            "",
        ),
        "rows": rows,
        "note": (
            "Tokens/s over tokens/s. Contradicted: the prediction lies outside the interval of "
            "these replies, the timing's error added. Confirmed: inside, and the interval over "
            "other questions excludes 1 on the predicted side. The anchors are steps of the "
            "timing that were measured again during the sitting: where they explain a "
            "contradiction, the timing was stale."
        ),
    }


def _speeds(validation: Json) -> dict[str, Any]:
    return {
        "title": "Tokens per second, and the rounds behind them",
        "header": (
            "controller",
            "predicted tokens/s",
            "measured tokens/s",
            "by the wall's clock",
            "error",
            "one reply's error, median",
            "rounds unlike the replay",
            "replies as recorded",
            "joules per token",
            "why",
        ),
        "rows": [_speed_row(check, validation) for check in _by_speed(validation)],
        "note": (
            "Tokens/s and error: all tokens over all seconds of all repeats. "
            "Rounds unlike the replay: another number drafted or accepted than in the replay of "
            "the same replies. A controller that reads the clock may decide otherwise here."
        ),
    }


def _speed_row(check: Json, validation: Json) -> list[str]:
    agreement, equal = check["agreement"], check["replies_equal"]
    return [
        check["policy"],
        number(check["predicted_tokens_per_s"], 1),
        number(check["measured_tokens_per_s"], 1),
        number(check["wall_tokens_per_s"], 1),
        f"{100 * check['error']:+.1f} %",
        percent(check["request_error"], 1),
        f"{agreement['differing']} of {agreement['rounds']}" if agreement else "-",
        "-" if equal is None else f"{equal} of {validation['requests']}",
        number(check["joules_per_token"], 3),
        validation["reasons"][check["policy"]],
    ]


def _missed(validation: Json) -> dict[str, Any]:
    fit = validation["residual"]
    total = sum(cell["rounds"] for cell in validation["cells"])
    return {
        "title": "Where the error comes from",
        "header": (
            "signals read",
            "tokens drafted",
            "rounds",
            "model, ms",
            "measured, ms",
            "missed, ms",
        ),
        "rows": [
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
        "note": (
            "Of one round, medians; missed: their difference. "
            f"Fitted to these rounds, the model misses {1e6 * fit['round_s']:+.0f} µs per round, "
            f"{1e6 * fit['draft_s']:+.0f} µs per drafted token and {1e6 * fit['signal_s']:+.0f} µs "
            "per token whose signals are read."
        ),
    }


def _by_speed(validation: Json) -> list[Json]:
    return sorted(validation["checks"], key=lambda check: -float(check["measured_tokens_per_s"]))
