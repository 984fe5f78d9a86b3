"""A comparison as text tables and one sentence, and as files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.censoring.intervals_text import open_table, open_task_table
from experiments.common.frames import Group, described, figure, frame_of, meanings, text_of
from experiments.common.results import under_tree
from experiments.common.statistics import FEW, SAME, TIE, VERDICTS
from experiments.common.text_table import fill
from experiments.comparison.certainty import certainty, stale
from experiments.comparison.columns import COLUMNS
from experiments.comparison.result import ROLES, Comparison
from policies.registry import file_name, title
from traces.json_text import jsonable
from traces.roundlog import write_roundlog
from traces.schema import EXACTNESS

VERDICT_WORDS = "\n".join(f"{word}: {VERDICTS[word]}" for word in (SAME, TIE, FEW))


STAND_IN = (
    "halves tuned and logs written on one imputation of them; the tables give what all of them say"
)


def groups_of(comparison: Comparison, frame: pd.DataFrame) -> list[Group]:
    """The rows of a frame by role, under their headings."""
    groups = []
    for role, heading in ROLES.items():
        if role == "hindsight":
            heading += f" (gamma = {comparison.hindsight_gamma})"
        groups.append((heading, frame[frame["role"] == role]))
    return groups


def policy_table(comparison: Comparison) -> str:
    """All rows, with the meaning of the columns below."""
    frame = frame_of(comparison.rows)
    shown = text_of(COLUMNS, groups_of(comparison, frame))
    said = f"{meanings(COLUMNS)}\n{VERDICT_WORDS}"
    return "\n\n".join([shown, *twin_line(comparison), said])


def twin_line(comparison: Comparison) -> list[str]:
    """One line on the controllers that are another row under a second name; none without any."""
    pairs = [(row.name, row.twin) for row in comparison.rows if row.role == "policy" and row.twin]
    if not pairs:
        return []
    said = "; ".join(f"{title(name)} = {title(twin)}" for name, twin in pairs)
    return [fill(f"the same rounds at the same cost: {said}")]


def task_table(comparison: Comparison) -> str:
    """Speed-up over never drafting by task and over all, in both conventions."""

    columns = [
        COLUMNS[0],
        *(figure(f"tasks.{task}.value", _two_lines(task), task, "") for task in comparison.tasks),
        figure("speedup.value", "all,\nby token", None, ""),
        figure("speedup_by_question", "all, by\nquestion", None, ""),
    ]
    columns[0] = dataclasses.replace(columns[0], header="speed-up")
    notes = (
        "by token: all tokens over all seconds, as in every task column; by question: the way of\n"
        "Spec-Bench, mean tokens/s of the questions over the baseline's mean"
    )
    groups = groups_of(comparison, frame_of(comparison.rows))
    return text_of(columns, groups) + "\n\n" + notes


def _two_lines(task: str) -> str:
    return task.replace("_", "\n", 1)


def basis_lines(comparison: Comparison, trace_name: str) -> str:
    """The basis of the numbers: requests, exactness, censored positions, seed."""
    tokens = int(comparison.logs["never"].emitted.sum())
    lines = [
        f"trace {trace_name}, {comparison.exactness}{under_tree(comparison.shape)}",
        f"  {EXACTNESS[comparison.exactness]}",
        f"held out: {comparison.questions} questions, {len(comparison.test_rows)} replies, "
        f"{tokens} tokens; tuned on {len(comparison.train_rows)} other replies",
        f"censored positions: {comparison.censored_positions}"
        + ("; accepted lengths there are lower bounds" if comparison.censored_positions else ""),
        *([STAND_IN] if comparison.censoring else []),
        *unpriced_lines(comparison),
        f"seed {comparison.seed}, {comparison.resamples} bootstrap resamples; "
        + _corrected(comparison),
        f"no controller may draft more than {len(comparison.fixed_curve) - 1} tokens, the depth of "
        "the recording; prefill left out",
    ]
    return "\n".join(lines)


def _corrected(comparison: Comparison) -> str:
    count = sum(row.role == "policy" for row in comparison.rows)
    return f"verdicts are corrected for {count} controllers, intervals are not"


def unpriced_lines(comparison: Comparison) -> list[str]:
    """One line on the controllers that paid nothing for want of a measurement; none if all paid."""
    names = comparison.unpriced
    if not names:
        return []
    count = sum(row.role == "policy" for row in comparison.rows)
    said = "any controller" if len(names) == count else ", ".join(map(title, names))
    return [f"own arithmetic not known, so not charged: {said}"]


def percent_change(ratio: float) -> str:
    """1.043 -> "4.3 % faster"; 0.98 -> "2.0 % slower"."""
    return f"{abs(ratio - 1) * 100:.1f} % {'faster' if ratio >= 1 else 'slower'}"


def comparison_text(comparison: Comparison, trace_name: str) -> str:
    """Everything `gammalab compare` prints for one trace."""
    found = comparison.censoring
    parts = [
        basis_lines(comparison, trace_name),
        policy_table(comparison) if found is None else open_table(found),
        task_table(comparison) if found is None else open_task_table(found),
        "\n".join(fill(line) for line in certainty(comparison)),
    ]
    return "\n\n".join(parts)


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """JSON-ready; the logs are named, not held."""
    raw = {
        field: jsonable(getattr(comparison, field))
        for field in comparison.__dataclass_fields__
        if field != "logs"
    }
    raw["columns"] = described(COLUMNS)
    raw["certainty"] = certainty(comparison)
    raw["stale"] = stale(comparison)
    raw["sensitivity"]["settled"] = comparison.sensitivity.settled
    raw["log_files"] = {name: f"{file_name(name)}.parquet" for name in comparison.logs}
    return raw


def write_logs(comparison: Comparison, folder: Path) -> None:
    """The simulated rounds of every row, one Parquet file each."""
    for name, log in comparison.logs.items():
        write_roundlog(log, folder / f"{file_name(name)}.parquet", overwrite=True)
