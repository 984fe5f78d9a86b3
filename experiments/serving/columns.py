"""The columns of a serving run's table, for terminal, JSON and CSV alike."""

from __future__ import annotations

from experiments.common.frames import Column, Row, one_line
from experiments.common.text_table import number, percent
from policies.registry import title


def _cell(row: Row, name: str, digits: int, times: float = 1.0) -> str:
    value = row[f"intervals.{name}.mean"]
    return number(None if value is None else times * value, digits)


def _over_first(row: Row) -> str:
    text = number(row["tokens_ratio.mean"], 3)
    low, high = row["tokens_ratio.low"], row["tokens_ratio.high"]
    return text if low is None else f"{text} {number(low)}-{number(high)}"


def _one(
    name: str, header: str, meaning: str, digits: int, unit: str, times: float = 1.0
) -> Column:
    return Column(
        name, header, one_line(header), unit, meaning, (f"intervals.{name}.mean",),
        lambda row: _cell(row, name, digits, times),
    )  # fmt: skip


def _two(
    name: str, header: str, meaning: str, parts: tuple[str, str], digits: int, unit: str,
    times: float = 1.0,
) -> Column:  # fmt: skip
    return Column(
        name, header, one_line(header), unit, meaning,
        tuple(f"intervals.{part}.mean" for part in parts),
        lambda row: "/".join(_cell(row, part, digits, times) for part in parts),
    )  # fmt: skip


POLICY = Column("policy", "policy", "policy", "", "", ("policy",), lambda row: title(row["policy"]))
COLUMNS = (
    POLICY,
    _one("tokens_per_s", "tokens\n/s", "of finished requests", 0, "1/s"),
    Column(
        "tokens_ratio", "over first\n95 %", "over first, 95 %", "",
        "tokens/s over the first policy's, seed by seed, with its 95 % interval if several",
        ("tokens_ratio.mean", "tokens_ratio.low", "tokens_ratio.high"), _over_first,
    ),
    _one("goodput_per_s", "good-\nput/s", "requests/s within the objective", 2, "1/s"),
    Column(
        "goodput_share", "kept", "kept", "1", "their share", ("intervals.goodput_share.mean",),
        lambda row: percent(row["intervals.goodput_share.mean"]),
    ),
    _two("ttft", "TTFT s\np50/p99", "time to first token", ("ttft.p50", "ttft.p99"), 2, "s"),
    _two("tpot", "TPOT ms\np50/p99", "time per token behind it", ("tpot.p50", "tpot.p99"), 1, "s",
         1e3),
    _one("gap_p99_s", "gap ms\np99", "between two emissions of a request", 1, "s", 1e3),
    _two("load", "batch/\nqueue",
         "mean requests that decode, and wait, while the machine works (idle time left out)",
         ("mean_running", "mean_waiting"), 1, "requests"),
    _one("wasted_drafts", "in\nvain", "tokens drafted in vain per token", 2, ""),
)  # fmt: skip
