"""The experiment of the GammaTune paper (arXiv 2504.00030): twelve initial lengths.

Its figures, as secondary sources give them: GammaTune 1.15 +- 0.05, GammaTune+ 1.16 +- 0.03 over
fixed lengths. Our reading: the speed of the controller begun at gamma0 over that of the fixed
length gamma0, averaged over tasks and gamma0 (and pairs, of which there is one here); the
spread is over gamma0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.common.plots import Picture
from experiments.common.text_table import number, table
from experiments.sweep.figures import initial_length_figure
from experiments.sweep.jobs import Condition, rows_of
from experiments.sweep.suites import PAPER_GAMMAS, PAPER_RULES, PAPER_VARIANTS
from policies.fixed import Never
from policies.registry import label, parse_policy
from simulator.replay.totals import tally

FloatArray = npt.NDArray[np.float64]

NOTES = """\
ratio: speed begun at gamma0 over that of the fixed length gamma0, mean of the tasks' ratios.
mean, spread: over the twelve initial lengths (spread: their standard deviation).
of the best: mean ratio to the best of the twelve fixed lengths of each task, known in hindsight;
the other ratios count it as a gain that gamma0 was a bad fixed length.
what is not published: clip_expansion=false lets gamma grow past gamma_max after full acceptance;
early_stop: a stop with all drafts accepted counts as full (0, the default), as a shortfall of the
intended gamma (1), or not at all (2).
No draft is longer than {depth} tokens, the depth of the recording."""
PUBLISHED = {"gammatune": "1.15 +- 0.05", "gammatune+": "1.16 +- 0.03"}


def seconds(
    rows: Sequence[dict[str, Any]], condition: Condition, rules: Sequence[str] = PAPER_RULES
) -> dict[str, FloatArray]:
    """Held-out decode seconds [gamma0, task] of every rule, by its spec without gamma0."""
    found = {row["label"]: row for row in rows_of(rows, condition)}
    result: dict[str, FloatArray] = {}
    for rule in rules:
        policies = [parse_policy(f"{rule}={gamma}") for gamma in PAPER_GAMMAS]
        by_task = [json.loads(found[label(policy)]["test_task_s"]) for policy in policies]
        result[spec_of(rule)] = np.array([list(part.values()) for part in by_task])
    return result


def spec_of(rule: str) -> str:
    """A rule of suites.PAPER_RULES without the field that the experiment varies."""
    name, _, fields = rule.partition(":")
    kept, _, _ = fields.rpartition(",")
    return f"{name}:{kept}" if kept else name


def paper_figure(conditions: Sequence[Condition], rows: Sequence[dict[str, Any]]) -> Picture:
    """Speed-up over plain decoding, mean of the tasks, by initial length, world and rule."""
    panels = {}
    for condition in conditions:
        never = tally(Never(), condition.test, condition.costs, seed=condition.seed).decode_s
        tasks = np.asarray(condition.test.category)
        plain = np.array([never[tasks == task].sum() for task in sorted(set(tasks.tolist()))])
        spent = seconds(rows, condition)
        panels[condition.name] = {rule: (plain / s).mean(axis=1) for rule, s in spent.items()}
    return initial_length_figure(panels, PAPER_GAMMAS)


def variants_text(fixed: FloatArray, spent: dict[str, FloatArray]) -> str:
    """A line per variant of GammaTune and GammaTune+, the defaults first of their kind.

    fixed, spent: seconds [gamma0, task].
    """
    kinds = [name for name in spent if name.startswith("gammatune")]
    lines = []
    for name in sorted(kinds, key=lambda name: name.partition(":")[0]):
        ratio = (fixed / spent[name]).mean(axis=1)
        best = (fixed.min(axis=0) / spent[name]).mean()
        lines.append([name, number(ratio.mean(), 3), number(ratio.std(ddof=1), 3), number(best, 3)])
    header = ("what is not published", "mean ratio", "spread", "of the best")
    return table(header, [("", lines)])


def paper_text(conditions: Sequence[Condition], rows: Sequence[dict[str, Any]]) -> str:
    """One table by initial length per world, and the averages beside the published ones."""
    parts = []
    for condition in conditions:
        spent = seconds(rows, condition)
        fixed = spent.pop("fixed")
        ratios = {name: (fixed / s).mean(axis=1) for name, s in spent.items()}  # [gamma0]
        best = {name: (fixed.min(axis=0) / s).mean() for name, s in spent.items()}
        header = ("gamma0", "fixed tok/s", *(f"{name} / fixed" for name in ratios))
        speed = condition.test.positions / fixed.sum(axis=1)
        cells = [
            [str(gamma), number(speed[k], 0), *(number(r[k], 3) for r in ratios.values())]
            for k, gamma in enumerate(PAPER_GAMMAS)
        ]
        foot = [
            ["mean", "", *(number(r.mean(), 3) for r in ratios.values())],
            ["spread", "", *(number(r.std(ddof=1), 3) for r in ratios.values())],
            ["published", "", *(PUBLISHED.get(name, "-") for name in ratios)],
            ["of the best", "", *(number(b, 3) for b in best.values())],
        ]
        parts.append(
            f"{condition.trace}, cost {condition.cost}: {condition.test.requests} held-out "
            f"replies, {fixed.shape[1]} tasks\n" + table(header, [("", cells), ("", foot)])
        )
        parts.append(variants_text(fixed, spent | seconds(rows, condition, PAPER_VARIANTS)))
    return "\n\n".join([*parts, NOTES.format(depth=conditions[0].test.meta.depth)])
