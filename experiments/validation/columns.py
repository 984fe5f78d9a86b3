"""The columns of a validation's tables, for terminal, page, JSON and CSV alike."""

from __future__ import annotations

from typing import Any

import pandas as pd

from experiments.common.frames import Column, Row, figure, frame_of, share, words
from experiments.common.text_table import number, with_interval


def checks_of(found: dict[str, Any]) -> pd.DataFrame:
    """The policies of a validate.json, fastest first.

    anchored: the predicted ratio with the anchors' step times; missed_s: measured less predicted
    seconds; rounds, replies: how many of how many; why: the reason of an error.
    """
    base = {check["policy"]: check["recalibrated_tokens_per_s"] for check in found["checks"]}
    ours, rows = base[found["baseline"]], []
    for check in sorted(found["checks"], key=lambda check: -check["measured_tokens_per_s"]):
        again, agreement, equal = base[check["policy"]], check["agreement"], check["replies_equal"]
        more = {
            "anchored": None if again is None or ours is None else again / ours,
            "missed_s": check["measured_s"] - check["predicted_s"],
            "unlike": f"{agreement['differing']} of {agreement['rounds']}" if agreement else "-",
            "replies": "-" if equal is None else f"{equal} of {found['requests']}",
            "why": found["reasons"][check["policy"]],
        }
        rows.append(check | more)
    return frame_of(rows)


def cells_of(found: dict[str, Any]) -> pd.DataFrame:
    """The kinds of round of a validate.json that make up at least one in a hundred."""
    total = sum(cell["rounds"] for cell in found["cells"])
    return frame_of(cell for cell in found["cells"] if cell["rounds"] * 100 >= total)


def is_baseline(row: Row) -> bool:
    """Nothing is its ratio over."""
    return row["ratio.word"] is None


def _predicted(row: Row) -> str:
    error = row["ratio.timing_error"]
    value = number(row["ratio.predicted"], 3)
    if is_baseline(row) or error is None:
        return "1" if is_baseline(row) else value
    return f"{value} -+ {row['ratio.predicted'] * error:.3f}"


def _measured(row: Row) -> str:
    if is_baseline(row):
        return "1"
    return with_interval([row[f"ratio.time.{part}"] for part in ("value", "low", "high")], 3)


def _others(row: Row) -> str:
    if is_baseline(row):
        return ""
    low, high = (number(row[f"ratio.others.{part}"], 3) for part in ("low", "high"))
    return low if low == number(None) else f"{low}-{high}"


def _unless_baseline(name: str, digits: int) -> Any:
    return lambda row: "" if is_baseline(row) else number(row[name], digits)


def _signed(row: Row) -> str:
    return f"{100 * row['error']:+.1f}%"


def _milliseconds(name: str, digits: int = 0) -> Any:
    return lambda row: f"{1000 * row[name]:+.{digits}f}"


def _of_a_round(name: str, header: str, title: str, meaning: str) -> Column:
    return Column(
        name, header, title, "s", meaning, (name,), lambda row: number(1000 * row[name], 3)
    )


def _mebibytes(row: Row) -> str:
    peak = row["peak_memory_bytes"]
    return number(None if peak is None else peak / 2**20, 0)


POLICY = words("policy", "controller", "controller", "")
RATIOS = (
    POLICY,
    Column(
        "predicted",
        "predicted",
        "predicted",
        "",
        "ratio of tokens/s over the baseline's, -+ the standard error that the timing's repeats "
        "give it",
        ("ratio.predicted", "ratio.timing_error"),
        _predicted,
    ),
    Column(
        "measured",
        "measured\n95 %, these replies",
        "measured (95 %, these replies)",
        "",
        "contradicted: the prediction lies outside of it, the timing's error added",
        ("ratio.time.value", "ratio.time.low", "ratio.time.high"),
        _measured,
    ),
    Column(
        "others",
        "95 %, other\nquestions",
        "95 %, other questions",
        "",
        "confirmed: the prediction is inside the other, and this one excludes 1 on its side",
        ("ratio.others.low", "ratio.others.high"),
        _others,
    ),
    Column(
        "detectable",
        None,
        "smallest gain it could find, %",
        "%",
        "found 8 times in 10",
        ("ratio.detectable_percent",),
        _unless_baseline("ratio.detectable_percent", 1),
    ),
    Column(
        "anchored",
        "by the\nanchors",
        "predicted with the anchors' step times",
        "",
        "the prediction with step times measured again during the sitting: where they explain a "
        "contradiction, the timing was stale",
        ("anchored",),
        _unless_baseline("anchored", 3),
    ),
    Column(
        "word", "", "", "", "", ("ratio.word",), lambda row: str(row["ratio.word"] or "baseline")
    ),
)
SPEEDS = (
    POLICY,
    figure("predicted_tokens_per_s", "predicted", "predicted tokens/s",
           "all tokens over all seconds of all repeats, without prefill", 1, unit="1/s"),
    figure("measured_tokens_per_s", "measured", "measured tokens/s", "the same, measured", 1,
           unit="1/s"),
    figure("wall_tokens_per_s", "wall clock", "by the wall's clock", "the same, by the wall", 1,
           unit="1/s"),
    Column("error", "error", "error", "1", "predicted over measured, less 1", ("error",), _signed),
    share("request_error", "one reply", "one reply's error, median",
          "the median of the replies' absolute errors, each alone", 1),
    Column("missed_s", "missed ms", None, "s", "measured - predicted, of which", ("missed_s",),
           _milliseconds("missed_s")),
    Column("costs_s", "by costs", None, "s", "the rounds that ran cost more than the model says",
           ("costs_s",), _milliseconds("costs_s")),
    Column("decisions_s", "by rounds", None, "s", "other rounds ran", ("decisions_s",),
           _milliseconds("decisions_s")),
    words("unlike", None, "rounds unlike the replay",
          "another number drafted or accepted than in the replay of the same replies"),
    words("replies", None, "replies as recorded", "whose tokens are the trace's"),
    figure("joules_per_token", None, "joules per token", "prompts included", 3, unit="J"),
    words("why", None, "why", "a rule that reads the clock may decide otherwise here"),
)  # fmt: skip
ROUNDS = (
    POLICY,
    figure("agreement.rounds", "rounds", None, "of the first time", 0),
    figure("agreement.differing", "differ", None,
           "in (drafted, accepted, emitted) from the replay of the same replies", 0),
    words("replies", "replies=trace", None, ""),
    words("why", "why", None, ""),
)  # fmt: skip
DRIFT = (
    Column("step", "step, tokens", None, "", "", ("operation", "tokens"),
           lambda row: f"{row['operation']} {row['tokens']}"),
    figure("factor", "of timing", None,
           "seconds of the step during the sitting over those of the timing, median", 3),
    figure("begin", "first third", None, "", 3),
    figure("end", "last third", None, "", 3),
    Column("blocks", "blocks", None, "", "how often it was measured again", ("points",),
           lambda row: str(len(row["points"]))),
)  # fmt: skip
ENERGY = (
    POLICY,
    figure("joules_per_token", "J/token", None, "of the whole board, prompts included", 3,
           unit="J"),
    Column("peak_memory_bytes", "peak MiB", None, "byte", "what torch held at most",
           ("peak_memory_bytes",), _mebibytes),
)  # fmt: skip
CELLS = (
    Column("signals", "signals read", "signals read", "", "", ("signals",),
           lambda row: "yes" if row["signals"] else "no"),
    figure("drafted", "drafted", "tokens drafted", "", 0),
    figure("rounds", "rounds", "rounds", "", 0),
    _of_a_round("priced_s", "model ms", "model, ms", "of one round, median"),
    _of_a_round("measured_s", "measured ms", "measured, ms", "the same, measured"),
    Column("residual_s", "missed ms", "missed, ms", "s", "their difference", ("residual_s",),
           _milliseconds("residual_s", 3)),
)  # fmt: skip
