"""A comparison as text tables and one sentence, and as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.censoring.intervals_text import open_table, open_task_table
from experiments.common.results import jsonable
from experiments.common.statistics import FEW, SAME, TIE, VERDICTS
from experiments.common.text_table import fill, number, percent, table, with_interval
from experiments.comparison.certainty_text import certainty, stale
from experiments.comparison.result import ROLES, Comparison, Row
from policies.registry import file_name, title
from traces.roundlog import write_roundlog
from traces.schema import EXACTNESS

HEADER = (
    "policy",
    "speed-up\n95 %",
    "vs tuned fixed\n95 %",
    "free",
    "shuf-\nfled",
    "verdict",
    "head-\nroom",
    "per\nround",
    "mean\ndraft",
    "tok/s",
)

NOTES = f"""\
speed-up   tokens/s over never drafting, token-weighted, with its 95 % bootstrap interval
vs tuned   tokens/s over the best fixed gamma of the training half; interval of the row alone
free       the same if no rule paid for its own arithmetic
shuffled   the same in other orders of the replies, mean
verdict    of a controller: corrected for their number (max-t over the same resamples, p < 0.05);
           of any other row: by its interval, not corrected
           {SAME}: {VERDICTS[SAME]}, at the same cost
           {TIE}: {VERDICTS[TIE]}
           {FEW}: {VERDICTS[FEW]}
headroom   (t_fixed - t) / (t_fixed - t_clairvoyant), t in seconds; negative: slower than fixed
per round  tokens emitted; draft: tokens drafted per round"""


STAND_IN = (
    "halves tuned and logs written on one imputation of them; the tables give what all of them say"
)


def _cells(row: Row) -> list[str]:
    fixed = row.role == "tuned"
    return [
        title(row.name),
        with_interval(row.speedup),
        "1.000" if fixed else with_interval(row.vs_fixed, 3),
        number(row.uncharged, 3),
        "" if row.orders is None else number(row.orders.value, 3),
        "-" if fixed else row.verdict,
        percent(row.headroom.value),
        number(row.tokens_per_round),
        number(row.mean_drafted, 1),
        number(row.tokens_per_s, 0),
    ]


def _groups(
    comparison: Comparison, cells: Any, roles: Sequence[str] = tuple(ROLES)
) -> list[tuple[str, list[list[str]]]]:
    groups = []
    for role in roles:
        heading = ROLES[role]
        if role == "hindsight":
            heading += f" (gamma = {comparison.hindsight_gamma})"
        groups.append((heading, [cells(row) for row in comparison.rows if row.role == role]))
    return groups


def policy_table(comparison: Comparison) -> str:
    """All rows, with the meaning of the columns below."""
    same = twin_line(comparison)
    return "\n\n".join([table(HEADER, _groups(comparison, _cells)), *same, NOTES])


def twin_line(comparison: Comparison) -> list[str]:
    """One line on the controllers that are another row under a second name; none without any."""
    pairs = [(row.name, row.twin) for row in comparison.rows if row.role == "policy" and row.twin]
    if not pairs:
        return []
    said = "; ".join(f"{title(name)} = {title(twin)}" for name, twin in pairs)
    return [fill(f"the same rounds at the same cost: {said}")]


def task_table(comparison: Comparison) -> str:
    """Speed-up over never drafting by task and over all, in both conventions."""

    def cells(row: Row) -> list[str]:
        by_task = (number(row.tasks[task].value) for task in comparison.tasks)
        return [
            title(row.name),
            *by_task,
            number(row.speedup.value),
            number(row.speedup_by_question),
        ]

    header = ("speed-up", *map(_two_lines, comparison.tasks), "all,\nby token", "all, by\nquestion")
    notes = (
        "by token: all tokens over all seconds, as in every task column; by question: the way of\n"
        "Spec-Bench, mean tokens/s of the questions over the baseline's mean"
    )
    return table(header, _groups(comparison, cells)) + "\n\n" + notes


def _two_lines(task: str) -> str:
    return task.replace("_", "\n", 1)


def basis_lines(comparison: Comparison, trace_name: str) -> str:
    """What the numbers rest on: requests, exactness, censored positions, seed."""
    tokens = int(comparison.logs["never"].emitted.sum())
    lines = [
        f"trace {trace_name}, {comparison.exactness}",
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


def text_of(comparison: Comparison, trace_name: str) -> str:
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
    raw["certainty"] = certainty(comparison)
    raw["stale"] = stale(comparison)
    raw["sensitivity"]["settled"] = comparison.sensitivity.settled
    raw["log_files"] = {name: f"{file_name(name)}.parquet" for name in comparison.logs}
    return raw


def write_logs(comparison: Comparison, folder: Path) -> None:
    """The simulated rounds of every row, one Parquet file each."""
    for name, log in comparison.logs.items():
        write_roundlog(log, folder / f"{file_name(name)}.parquet", overwrite=True)
