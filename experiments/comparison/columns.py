"""The columns of a comparison, for terminal, page, JSON and CSV alike."""

from __future__ import annotations

from experiments.common.frames import Column, Row, figure, interval, share
from experiments.common.text_table import with_interval
from policies.registry import title

TUNED = "tuned"  # the role of the row that ratios are over


def _name(row: Row) -> str:
    return " = ".join(map(title, str(row["name"]).split(" = ")))


def _over_tuned(row: Row) -> str:
    if row["role"] == TUNED:
        return "1.000"
    return with_interval([row[f"vs_fixed.{part}"] for part in ("value", "low", "high")], 3)


def _verdict(row: Row) -> str:
    return "-" if row["role"] == TUNED else str(row["verdict"] or "")


COLUMNS = (
    Column("name", "policy", "controller", "", "", ("name",), _name),
    interval(
        "speedup",
        "speed-up\n95 %",
        "speed-up (95 %)",
        "tokens/s over never drafting, token-weighted, with its 95 % bootstrap interval",
    ),
    Column(
        "vs_fixed",
        "vs tuned fixed\n95 %",
        "against tuned fixed (95 %)",
        "",
        "tokens/s over the fixed gamma that was best in tuning; interval of the row alone",
        ("vs_fixed.value", "vs_fixed.low", "vs_fixed.high"),
        _over_tuned,
    ),
    figure("uncharged", "free", "nobody charged", "the same if no rule paid for its arithmetic", 3),
    figure(
        "orders.value",
        "shuf-\nfled",
        "other orders",
        "the same in other orders of the replies, mean; - for a ceiling",
        3,
    ),
    Column(
        "verdict",
        "verdict",
        "verdict",
        "",
        "of a controller: corrected for their number (max-t over the same resamples, p < 0.05); of "
        "any other row: by its interval, not corrected",
        ("verdict",),
        _verdict,
    ),
    share(
        "headroom.value",
        "head-\nroom",
        "headroom",
        "(t_fixed - t) / (t_fixed - t_clairvoyant), t in seconds; negative: slower than fixed",
    ),
    figure("tokens_per_round", "per\nround", "tokens per round", "tokens emitted per round"),
    figure("mean_drafted", "mean\ndraft", "mean draft", "tokens drafted per round", 1),
    figure("tokens_per_s", "tok/s", "tokens/s", "simulated, prefill left out", 0, unit="1/s"),
    figure(
        "speedup_by_question",
        None,
        "by question",
        "speed-up as Spec-Bench has it: mean tokens/s of the questions over the baseline's mean",
    ),
    figure("adjusted_p", None, "p, corrected", "of vs_fixed among all controllers", 4),
)
SHORT = ("name", "speedup", "vs_fixed", "verdict", "headroom.value", "tokens_per_round",
         "mean_drafted", "tokens_per_s")  # fmt: skip
"""Names of the columns of the page's first table."""
RANKING = ("name", "speedup", "vs_fixed", "uncharged", "orders.value", "verdict", "headroom.value")
"""And of a leaderboard's."""


def chosen(names: tuple[str, ...]) -> tuple[Column, ...]:
    """The columns of these names, in the order of COLUMNS."""
    return tuple(column for column in COLUMNS if column.name in names)


def left_open() -> tuple[Column, ...]:
    """The columns of a censored trace: intervals over imputations where points would stand."""
    digits = {"tokens_per_round": 2, "tokens_per_s": 1}
    return tuple(
        interval(c.name, c.header, c.title, c.meaning, digits[c.name], unit=c.unit)
        if c.name in digits
        else c
        for c in COLUMNS
    )
