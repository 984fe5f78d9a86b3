"""From the rows of a sweep to answers: every policy tuned on one half, compared on the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from experiments.common.frames import frame_of, text_of
from experiments.common.plots import Picture
from experiments.common.results import (
    command_line,
    describe_inputs,
    versions,
    withdraw,
    write_result,
)
from experiments.common.statistics import bootstrap_weights, ratio_of_sums
from experiments.common.text_table import fill, with_interval
from experiments.comparison.certainty import certainty
from experiments.comparison.columns import RANKING, chosen
from experiments.comparison.compare import compare
from experiments.comparison.compare_text import to_dict, unpriced_lines, write_logs
from experiments.comparison.result import Comparison
from experiments.comparison.robust import TIMING_DRAWS, redrawn
from experiments.sweep.figures import cost_ratio_figure
from experiments.sweep.information import AFTER, SEES, information
from experiments.sweep.jobs import Condition, costs_of, rows_of, tuned
from experiments.sweep.suites import MEASURED
from policies.base import Policy
from policies.registry import FAMILIES, label, title, write_policies
from simulator.replay.hindsight import Ceiling, ceilings
from simulator.replay.metrics import per_request
from traces.schema import Trace
from traces.split import question_of
from traces.timing import Timing

HEADINGS = {
    "policy": "",
    "never": "plain decoding",
    "tuned": "the best fixed length in tuning",
    "clairvoyant": "bound: knows what will be accepted",
}
BOUNDS = "bounds: the setting chosen on the very replies that are judged"


def compare_worlds(
    conditions: Sequence[Condition],
    rows: Sequence[dict[str, Any]],
    traces: Mapping[str, Trace],
    timing: Timing | None,
    folder: Path,
    step: Callable[[], object],
    held_out: Mapping[str, Trace] = MappingProxyType({}),
    *,
    ceilings_of_information: bool = False,
) -> tuple[str, list[Comparison]]:
    """Compare the tuned policies of every world; returns the tables, and the comparisons by world.
    step: once per world. held_out: as in jobs.conditions_of. ceilings_of_information: see
    experiments.sweep.information.

    Writes folder/tuned/WORLD.json (policy files), folder/leaderboard.json and the simulated rounds
    in folder/leaderboard, so that `gammalab report` makes a page of them.
    """
    result_file = folder / "leaderboard.json"
    withdraw(result_file)
    texts, entries, found = [], [], list[Comparison]()
    for condition in conditions:
        chosen = tuned(rows, condition)
        about: dict[str, Any] = {
            "trace": condition.trace,
            "cost": condition.cost,
            "seed": condition.seed,
        }
        part = "the whole trace" if condition.trace in held_out else "the training half"
        about["tuned_on"] = f"{condition.train.requests} replies of {part}"
        write_policies(chosen, folder / "tuned" / f"{condition.name}.json", about, overwrite=True)
        trace = traces[condition.trace]
        other = held_out.get(condition.trace)
        comparison = _compared(condition, chosen, trace, other, timing)
        found.append(comparison)
        bounds = ceilings(condition.test, condition.costs)
        tried = rows_of(rows, condition)
        text = world_text(condition, len(tried), comparison, bounds)
        lines = [text, *duel_lines(tried, comparison)]
        allowed: dict[str, float] = {}
        if ceilings_of_information:
            judged = trace if other is None else other
            for one in information(judged, condition.costs, comparison.test_rows, condition.seed):
                allowed[one.sees] = one.decode_s
            lines += information_lines(comparison, allowed)
        texts.append("\n".join(lines))
        costs: Timing | dict[str, str] = {"device_name": f"none: {condition.cost}"}
        if condition.cost == MEASURED and timing is not None:
            costs = timing
        entry = describe_inputs(trace, f"{condition.name}.parquet", costs) | to_dict(comparison)
        entry |= {"timing": condition.cost, "logs": f"leaderboard/{condition.name}"}
        entries.append(entry | {"information_s": allowed})
        write_logs(comparison, folder / "leaderboard" / condition.name)
        step()
    result = {"command": command_line(), "versions": versions(), "comparisons": entries}
    write_result("leaderboard", result, result_file, overwrite=True)
    return "\n\n\n".join(texts), found


def _compared(
    condition: Condition,
    chosen: Sequence[Policy],
    trace: Trace,
    other: Trace | None,
    timing: Timing | None,
) -> Comparison:
    """The tuned policies of a world compared; other: the recording that judges in the place of the
    held-out half.
    """
    longest = max(condition.train, condition.test, trace, key=lambda one: one.longest_context)
    again = redrawn(timing, TIMING_DRAWS, condition.seed) if timing else []
    return compare(
        trace,
        condition.costs,
        chosen,
        held_out=other,
        redrawn=[costs_of(condition.cost, one, longest) for one in again],
        seed=condition.seed,
    )


def world_text(
    condition: Condition, settings: int, comparison: Comparison, bounds: Sequence[Ceiling]
) -> str:
    """The leaderboard of one world: controllers, baselines, bounds, and the settings chosen."""
    frame = frame_of(comparison.rows)
    groups = [(heading, frame[frame["role"] == role]) for role, heading in HEADINGS.items()]
    tuned = next(row.name for row in comparison.rows if row.role == "tuned")
    never_s, fixed_s, best_s = (
        float(comparison.logs[name].elapsed_s.sum()) for name in ("never", tuned, "clairvoyant")
    )
    known = [
        {
            "name": bound.name,
            "speedup": {"value": never_s / bound.decode_s},
            "vs_fixed": {"value": fixed_s / bound.decode_s},
            "headroom": {"value": (fixed_s - bound.decode_s) / (fixed_s - best_s)},
        }
        for bound in bounds
    ]
    groups.append((BOUNDS, frame_of(known).reindex(columns=frame.columns, fill_value=None)))
    lines = [
        f"{condition.trace}, cost {condition.cost}, seed {condition.seed}: {settings} settings "
        f"tried on {condition.train.requests} replies, judged on {condition.test.requests} others "
        f"({comparison.exactness})",
        text_of(chosen(RANKING), groups),
        "",
        *unpriced_lines(comparison),
        *(fill(f"- {line}") for line in certainty(comparison)),
        f"- first in tuning, over all orders: {title(comparison.tuning_first)}"
        f"{_but(comparison)}; then "
        f"{title(comparison.runner_up)}; the simplest whose interval reaches the first's: "
        f"{title(comparison.simplest)}",
    ]
    return "\n".join(lines)


def information_lines(comparison: Comparison, allowed: Mapping[str, float]) -> list[str]:
    """The ceilings of information, and the share of them that the entrants have; allowed: seconds
    by level.
    """
    spent = {row.name: float(comparison.logs[row.name].elapsed_s.sum()) for row in comparison.rows}
    fixed_s = spent[next(row.name for row in comparison.rows if row.role == "tuned")]
    seen = "; ".join(f"{SEES[level]} {fixed_s / s:.3f}" for level, s in allowed.items())
    lines = [f"- any rule, over the tuned fixed length, by what it sees (estimated): {seen}"]
    gain_s = fixed_s - allowed[AFTER]
    if gain_s > 0.0:
        names = [row.name for row in comparison.rows if row.role == "policy"]
        best = sorted(names, key=spent.__getitem__)[:8]
        shares = ", ".join(f"{title(n)} {(fixed_s - spent[n]) / gain_s:.0%}" for n in best)
        lines.append(f"- share of what the signals allow: {shares}")
    return [fill(line) for line in lines]


def _but(comparison: Comparison) -> str:
    if comparison.recommended == comparison.tuning_first:
        return ""
    speed = comparison.row(comparison.tuning_first).speedup.value
    return f", but {speed:.2f} times as fast as plain decoding where it was judged: do not draft"


def duel_lines(tried: Sequence[dict[str, Any]], comparison: Comparison) -> list[str]:
    """Our best controller against the best published one, both by the training half, all over and
    by task: ratio of tokens/s on the held-out half with its 95 % interval.
    """
    first, second = _first(tried, ours=True), _first(tried, ours=False)
    if first is None or second is None:
        return []
    ours, theirs = (per_request(comparison.logs[name]).decode_s for name in (first, second))
    questions = [question_of(name) for name in comparison.test_requests]
    weights = bootstrap_weights(questions, seed=comparison.seed, resamples=comparison.resamples)
    category = np.asarray(comparison.test_categories)
    parts = {"all": np.arange(len(category))}
    parts |= {task: np.flatnonzero(category == task) for task in comparison.tasks}
    ratios = (
        f"{name} {with_interval(ratio_of_sums(theirs[keep], ours[keep], weights[:, keep]), 3)}"
        for name, keep in parts.items()
    )
    head = f"- {title(first)} over {title(second)}: "
    return [fill(head + "; ".join(ratios))]


def _first(tried: Sequence[dict[str, Any]], *, ours: bool) -> str | None:
    """The label that was fastest on the training half, of our controllers or of all others."""
    names = {cls.name for cls in FAMILIES["ours"]}
    rows = [row for row in tried if (row["policy"] in names) == ours]
    return str(min(rows, key=lambda row: float(row["train_s"]))["label"]) if rows else None


def ratio_figure(
    conditions: Sequence[Condition], comparisons: Sequence[Comparison]
) -> Picture | None:
    """Gain over the tuned fixed length by cost ratio, on the first trace and seed; None with fewer
    than three ratios.
    """
    first = conditions[0]
    chosen = {
        float(condition.cost.removeprefix("c=")): comparison
        for condition, comparison in zip(conditions, comparisons, strict=True)
        if condition.cost != MEASURED
        and (condition.trace, condition.seed) == (first.trace, first.seed)
    }
    if len(chosen) < 3:
        return None
    lines: dict[str, list[float]] = {}
    for comparison in chosen.values():
        names = [row.name.partition(":")[0] for row in comparison.rows]
        for row, name in zip(comparison.rows, names, strict=True):
            if row.role == "policy":  # settings differ from ratio to ratio, unless given
                key = name if names.count(name) == 1 else row.name
                lines.setdefault(key, []).append(row.vs_fixed.value)
    whole = [name for name in lines if len(lines[name]) == len(chosen)]
    best = sorted(whole, key=lambda name: -sum(lines[name]))[:4]
    ceiling = [comparison.row("clairvoyant").vs_fixed.value for comparison in chosen.values()]
    gains = {name: np.asarray(lines[name]) for name in best}
    return cost_ratio_figure(list(chosen), gains, np.asarray(ceiling))


def best_settings(
    conditions: Sequence[Condition], rows: Sequence[dict[str, Any]]
) -> dict[str, list[str]]:
    """The specs of the tuned policies by world, for a program."""
    return {
        condition.name: [label(policy) for policy in tuned(rows, condition)]
        for condition in conditions
    }
