"""Several leaderboards as one table and one figure: one rule of ours in every world of an exam.

Reads what `gammalab sweep leaderboard --information` wrote: its comparisons, and the rows that say
which published rule was fastest in tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.common.frames import (
    Column,
    Row,
    csv_of,
    figure,
    frame_of,
    share,
    text_of,
    words,
)
from experiments.common.plots import write_pictures
from experiments.common.results import read_result
from experiments.common.text_table import fill, number, table, with_interval
from experiments.studies import WorldsOptions
from experiments.sweep.figures import information_figure
from experiments.sweep.information import AFTER, SEES
from experiments.sweep.jobs import read_rows
from policies.registry import FAMILIES, title
from real_backend.command_line import Result
from traces.errors import InputError

GAIN, OVER_PUBLISHED, SLOWER = 0.08, 0.03, 0.02  # docs/decisions/exam.md
WORLDS, WORLDS_PUBLISHED = 4, 3


def _over_fixed(row: Row) -> str:
    return with_interval([row["vs_fixed"], row["low"], row["high"]], 3)


COLUMNS = (
    words("world", "world", "World", "recording that was tuned on, and its cost"),
    words("tuned", "fixed", "Fixed", "the length that was fastest in tuning"),
    figure("speedup", "over\nplain", "Over plain", "tokens/s of the rule over plain decoding", 3),
    Column(
        "vs_fixed", "over fixed\n95 %", "Over fixed (95 %)", "",
        "tokens/s of the rule over the tuned fixed length", ("vs_fixed", "low", "high"),
        _over_fixed,
    ),
    figure("shuffled", "shuf-\nfled", "Shuffled", "the same in other orders of the replies", 3),
    words("verdict", "verdict", "Verdict", "corrected for the number of controllers"),
    words("published", "published", "Published", "the published rule that was fastest in tuning"),
    figure("published_vs_fixed", "over\nfixed", "Over fixed", "of that rule", 3),
    figure("vs_published", "rule over\npublished", "Rule over it", "tokens/s", 3),
    *(figure(level, level, level.capitalize(), meaning, 3) for level, meaning in SEES.items()),
    figure("clairvoyant", "clair-\nvoyant", "Clairvoyant", "the schedule that knows the future", 3),
    share("share", "share of\nafter", "Share", "of the gain that the signals allow"),
)  # fmt: skip


def world_row(part: dict[str, Any], tried: Sequence[dict[str, Any]], rule: str) -> dict[str, Any]:
    """A row of the table: one comparison of a leaderboard, and all settings that were tried in it.

    Raises InputError without the rule, or without ceilings of information.
    """
    rows = {row["name"]: row for row in part["rows"]}
    world = part["trace"].removesuffix(".parquet")
    if rule not in rows or not part.get("information_s"):
        missing = f"has no {rule!r}" if rule not in rows else "was swept without --information"
        raise InputError(f"{world}: its leaderboard {missing}")
    house = {cls.name for family in ("ours", "lengths") for cls in FAMILIES[family]}
    theirs = [row for row in tried if row["policy"] not in house]
    published = rows[min(theirs, key=lambda row: float(row["train_s"]))["label"]]
    ours, by_role = rows[rule], {row["role"]: row for row in part["rows"]}
    tuned = by_role["tuned"]
    fixed_s = int(tried[0]["test_tokens"]) / tuned["tokens_per_s"]
    ceilings = {level: fixed_s / spent for level, spent in part["information_s"].items()}
    gain = 1.0 - 1.0 / ours["vs_fixed"]["value"]
    allowed = 1.0 - 1.0 / ceilings[AFTER]
    return {
        "world": world,
        "tuned": title(tuned["name"]),
        "speedup": ours["speedup"]["value"],
        "vs_fixed": ours["vs_fixed"]["value"],
        "low": ours["vs_fixed"]["low"],
        "high": ours["vs_fixed"]["high"],
        "shuffled": ours["orders"]["value"],
        "verdict": ours["verdict"],
        "published": title(published["name"]),
        "published_vs_fixed": published["vs_fixed"]["value"],
        "vs_published": ours["vs_fixed"]["value"] / published["vs_fixed"]["value"],
        **ceilings,
        "clairvoyant": by_role["clairvoyant"]["vs_fixed"]["value"],
        "share": gain / allowed if allowed > 0.002 else None,
    }


def entrants_table(parts: Sequence[dict[str, Any]]) -> str:
    """Every controller's tokens/s over the tuned fixed length by world, the best mean first; a
    controller that a world could not play is left out there.
    """
    worlds = [part["trace"].removesuffix(".parquet") for part in parts]
    found: dict[str, dict[str, float]] = {}
    for world, part in zip(worlds, parts, strict=True):
        for row in part["rows"]:
            if row["role"] in ("policy", "never"):
                name = row["name"].partition(":")[0]
                found.setdefault(name, {}).setdefault(world, row["vs_fixed"]["value"])
    means = {name: sum(by.values()) / len(by) for name, by in found.items()}
    rows = [
        [name, *(number(found[name].get(world), 3) for world in worlds), number(means[name], 3)]
        for name in sorted(means, key=lambda name: -means[name])
    ]
    heads = [world.removesuffix("-measured").replace("-", "\n", 1) for world in worlds]
    return table(["policy", *heads, "mean"], [("", rows)])


def verdict_lines(frame: pd.DataFrame, rule: str) -> list[str]:
    """The criterion of docs/decisions/exam.md, counted."""
    gains = int((frame["vs_fixed"] >= 1.0 + GAIN).sum())
    ahead = int((frame["vs_published"] >= 1.0 + OVER_PUBLISHED).sum())
    worst = float(frame["speedup"].min())
    lines = [
        f"- {title(rule)} is at least {GAIN:.0%} over the tuned fixed length in {gains} of "
        f"{len(frame)} worlds (a win: {WORLDS}), and at least {OVER_PUBLISHED:.0%} over the best "
        f"published rule, as tuning chose it, in {ahead} (a win: {WORLDS_PUBLISHED})",
        f"- its slowest world: {worst:.3f} times plain decoding (safe: {1.0 - SLOWER:.2f})",
    ]
    return [fill(line) for line in lines]


def run(options: WorldsOptions) -> Result:
    """`gammalab studies worlds`."""
    found, parts = [], []
    for folder in options.folder:
        board = read_result("leaderboard", folder / "leaderboard.json")
        rows = read_rows(folder / "rows.parquet")
        for part in board["comparisons"]:
            name, cost = part["trace"].removesuffix(".parquet"), part["timing"]
            tried = [r for r in rows if name.startswith(r["trace"]) and r["cost"] == cost]
            found.append(world_row(part, tried, options.rule))
            parts.append(part)
    frame = frame_of(found)
    if options.out is not None:
        write_pictures([information_figure(frame, options.rule, OVER_PUBLISHED)], Path(options.out))
    text = text_of(COLUMNS, [("", frame)])
    text = "\n".join([text, "", *verdict_lines(frame, options.rule)])
    if options.entrants:
        text = f"{text}\n\n\n{entrants_table(parts)}"
    return Result(text, found, csv_of(COLUMNS, frame))
