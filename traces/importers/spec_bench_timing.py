"""A Timing fitted to the wall times of Spec-Bench answer files: seconds per round and per draft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import InputError
from traces.importers.common import NOT_RECORDED, Options
from traces.importers.spec_bench import AnswerFile, about_model, read_run, read_runs
from traces.split import question_of
from traces.timing import Cell, Timing

_LEAST_SPREAD = 0.02  # of drafted tokens per round; below it the two costs look the same

FloatArray = npt.NDArray[np.float64]


def fit_timing(path: Path, options: Options) -> Timing:
    """Costs of a round from the wall times of replies, by least squares over all replies.

    wall = start + rounds * round + drafted * step. The Timing charges `start` as prefill, `step`
    for each drafted token and `round` for a verify of two or more tokens. A verify of one token
    costs what a token costs in options.vanilla (there: wall = start + tokens * token), without that
    file a round. meta["fitted"] tells the fit's errors and, with a vanilla file, speed-ups.
    Raises InputError if wall times or the schedule are missing, or the costs cannot be told apart.
    """
    run = read_runs(path, options)[0]
    if run.schedule is None:
        raise InputError("a timing needs --schedule: the file does not say what was drafted")
    wall = _wall(run)
    rounds = np.array([len(turn.emitted) for turn in run.turns], dtype=np.float64)
    drafted = np.array([sum(run.drafted(turn)) for turn in run.turns], dtype=np.float64)
    if len(wall) < 3 or float(np.std(drafted / rounds)) < _LEAST_SPREAD:
        raise InputError(
            f"{path}: all replies drafted about the same per round, so the costs of rounds and of "
            "drafted tokens cannot be told apart; take a run whose gamma varies"
        )
    costs, predicted, fit = _fit({"drafted_token": drafted, "round": rounds}, wall, run)
    fitted: dict[str, Any] = {"replies": len(wall), **fit}
    token_s = costs["round"]
    if options.vanilla is not None:
        token_s, facts = _vanilla(options.vanilla, options, run, wall, predicted)
        fitted |= facts
    about: dict[str, Any] = dict.fromkeys(("pair", "target", "draft", "dtype"), NOT_RECORDED)
    about |= {k: v for k, v in about_model(run.model_id).items() if k in about}
    meta = about | {
        "weights": "loaded",
        "device": NOT_RECORDED,
        "device_name": NOT_RECORDED,
        "engine": f"Spec-Bench, fitted to {path.name}",
        "fitted": fitted,
    }
    return Timing(meta, _cells(costs, token_s, len(wall)), signal_s=0.0, control_s=0.0)


def _cells(costs: dict[str, float], token_s: float, replies: int) -> tuple[Cell, ...]:
    """Cells of which the cost table makes start, round + drafted * step, and token_s for one."""

    def cell(operation: str, tokens: int, seconds: float) -> Cell:
        return Cell(operation, 1, tokens, 0, seconds, seconds, seconds, replies)

    step, whole = costs["drafted_token"], costs["round"]
    return (
        cell("prefill", 1, costs["start"]),
        cell("first", 1, step),
        cell("draft", 1, step),
        cell("verify", 1, token_s),
        cell("verify", 2, whole),
        cell("verify", 3, whole),  # as much as two: behind the last cell the slope goes on
    )


def _wall(run: AnswerFile) -> FloatArray:
    """[turns] seconds; raises InputError if one is missing or not positive."""
    wall = np.array([turn.wall_s for turn in run.turns], dtype=np.float64)
    bad = np.flatnonzero(~(np.isfinite(wall) & (wall > 0)))
    if len(bad):
        name = run.turns[int(bad[0])].request_id
        raise InputError(f"{run.path}: reply {name} has no wall_time above 0, which a timing needs")
    return wall


def _fit(
    columns: dict[str, FloatArray], wall: FloatArray, run: AnswerFile
) -> tuple[dict[str, float], FloatArray, dict[str, Any]]:
    """Costs by name with "start", predicted seconds, and facts for the meta.

    A negative start is set to 0. Raises InputError if another cost is negative.
    """
    names = [*columns, "start"]
    design = np.column_stack([*columns.values(), np.ones_like(wall)])
    values = np.linalg.lstsq(design, wall)[0]
    if values[-1] < 0:
        values = np.append(np.linalg.lstsq(design[:, :-1], wall)[0], 0.0)
    costs = dict(zip(names, values.tolist(), strict=True))
    for name, seconds in costs.items():
        if seconds < 0:
            raise InputError(f"{run.path}: wall times give {seconds:.2g} s per {name}; no fit")
    predicted = design @ values
    owner = question_numbers(run)
    errors = np.abs(np.bincount(owner, predicted) / np.bincount(owner, wall) - 1)
    off = wall - predicted
    facts: dict[str, Any] = {f"{name}_s": seconds for name, seconds in costs.items()}
    facts["r2"] = float(1 - off @ off / ((wall - wall.mean()) ** 2).sum())
    facts["median_error_per_question"] = float(np.median(errors))
    facts["max_error_per_question"] = float(errors.max())
    return costs, predicted, facts


def question_numbers(run: AnswerFile) -> npt.NDArray[np.intp]:
    """[turns] the question of each turn, numbered in order of first appearance."""
    numbers: dict[str, int] = {}
    owners = [question_of(turn.request_id) for turn in run.turns]
    return np.array([numbers.setdefault(owner, len(numbers)) for owner in owners])


def _vanilla(
    path: Path, options: Options, run: AnswerFile, wall: FloatArray, predicted: FloatArray
) -> tuple[float, dict[str, Any]]:
    """Seconds per token without a draft, and the facts of both files side by side.

    Speed-ups are of tokens per second: token-weighted over all, and the mean over questions that
    both files have; predicted, both sides as fitted (a fit with a start keeps the total seconds, so
    predicted token-weighted speed-ups say nothing new; those of questions do).
    """
    plain = read_run(path, options)
    seconds = _wall(plain)
    tokens = np.array([turn.tokens for turn in plain.turns], dtype=np.float64)
    costs, fitted, fit = _fit({"token": tokens}, seconds, plain)
    ours, theirs = _totals(run, wall, predicted), _totals(plain, seconds, fitted)
    both = [question for question in ours if question in theirs]
    if not both:
        raise InputError(f"{path} has none of the questions of {run.path}")
    a, b = np.array([ours[q] for q in both]), np.array([theirs[q] for q in both])
    speedup: dict[str, Any] = {"questions": len(both)}
    for column, name in ((1, "measured"), (2, "predicted")):
        all_tokens = a[:, 0].sum() / a[:, column].sum() / (b[:, 0].sum() / b[:, column].sum())
        each = a[:, 0] / a[:, column] / (b[:, 0] / b[:, column])
        speedup[name] = {
            "token_weighted": float(all_tokens),
            "mean_of_questions": float(each.mean()),
        }
    return costs["token"], {"vanilla": {"file": path.name, **fit}, "speedup": speedup}


def _totals(run: AnswerFile, wall: FloatArray, predicted: FloatArray) -> dict[str, FloatArray]:
    """[tokens, seconds, predicted seconds] of every question."""
    totals: dict[str, FloatArray] = {}
    for turn, seconds, guess in zip(run.turns, wall, predicted, strict=True):
        question = question_of(turn.request_id)
        row = np.array([turn.tokens, seconds, guess])
        totals[question] = totals.get(question, np.zeros(3)) + row
    return totals
