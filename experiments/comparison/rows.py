"""A schedule on the held-out requests beside never drafting, the tuned fixed gamma and the
clairvoyant schedule: its ratios, their intervals and its verdict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.common.statistics import (
    SAME,
    Estimate,
    Family,
    bootstrap_weights,
    divide,
    judge_together,
    ratio_of_sums,
    share_of_gap,
    verdict,
    verdict_among,
)
from experiments.comparison.result import ROLES, ScheduleResult
from experiments.comparison.robust import Plays, orders_of, ratio_over_timings, timing_error, twins
from simulator.replay.metrics import PerRequest, per_request, summarize
from traces.schema import Trace
from traces.split import question_of

FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """The references of every row: sums by request of the references, bootstrap weights;
    plays: all schedules by row; tuned: the name of the tuned fixed gamma.
    """

    tuned: str
    plays: Mapping[str, Plays]
    weights: FloatArray
    never: PerRequest
    fixed: PerRequest
    best: PerRequest
    question_index: npt.NDArray[np.intp]
    tasks: dict[str, npt.NDArray[np.intp]]

    def judge(self, schedules: Sequence[PerRequest], timing_errors: FloatArray) -> Family:
        """These schedules against the tuned fixed gamma."""
        _, first = np.unique(self.question_index, return_index=True)

        def by_question(sums: PerRequest) -> FloatArray:
            return np.bincount(self.question_index, weights=sums.decode_s).astype(np.float64)

        ours = np.asarray([by_question(sums) for sums in schedules]).reshape(-1, len(first))
        return judge_together(
            by_question(self.fixed), ours, self.weights[:, first], np.nan_to_num(timing_errors)
        )

    def over(self, above: str, below: str) -> Estimate:
        """Tokens/s of row `below` over that of `above`, which emit the same tokens."""
        return ratio_over_timings(self.plays[above].drawn, self.plays[below].drawn, self.weights)

    def before(self, name: str) -> list[str]:
        """The rows before that one, as they were played."""
        names = list(self.plays)
        return names[: names.index(name)]

    def timing_error(self, name: str) -> float:
        """The verdict of a row, as in Row."""
        return timing_error(self.plays[self.tuned].drawn, self.plays[name].drawn)


def held_of(test: Trace, plays: Mapping[str, Plays], tuned: str, seed: int, resamples: int) -> Held:
    """The references of these plays, with the bootstrap over the questions of `test`."""
    questions = [question_of(request_id) for request_id in test.request_id]
    category = np.asarray(test.category)
    return Held(
        weights=bootstrap_weights(questions, seed=seed, resamples=resamples),
        tuned=tuned,
        plays=plays,
        never=per_request(plays["never"].log),
        fixed=per_request(plays[tuned].log),
        best=per_request(plays["clairvoyant"].log),
        question_index=np.unique(np.asarray(questions), return_inverse=True)[1],
        tasks={task: np.flatnonzero(category == task) for task in dict.fromkeys(test.category)},
    )


def rows_of(
    plays: Mapping[str, Plays], roles: Mapping[str, str], held: Held
) -> tuple[tuple[ScheduleResult, ...], Family]:
    """The rows, by role and speed, and the controllers judged together."""
    controllers = [name for name in plays if roles[name] == "policy"]
    family = held.judge(
        [per_request(plays[name].log) for name in controllers],
        np.asarray([held.timing_error(name) for name in controllers]),
    )
    columns = (family.adjusted_p.tolist(), family.detectable_percent().tolist())
    judged = dict(zip(controllers, zip(*columns, strict=True), strict=True))
    rows = [_row(name, roles[name], held, *judged.get(name, (np.nan, np.nan))) for name in plays]
    order = list(ROLES)
    rows.sort(key=lambda row: (order.index(row.role), -row.speedup.value))
    return tuple(rows), family


def _row(
    name: str, role: str, held: Held, adjusted_p: float, detectable_percent: float
) -> ScheduleResult:
    ours, fixed = held.plays[name], held.plays[held.tuned]
    sums, facts = per_request(ours.log), summarize(ours.log)
    vs_fixed = held.over(held.tuned, name)
    if role == "tuned":
        said = "baseline"
    elif twins(ours, fixed):
        said = SAME
    elif role == "policy":
        said = verdict_among(vs_fixed.value, adjusted_p)
    else:
        said = verdict(vs_fixed, len(set(held.question_index.tolist())))
    seconds, best_s = sums.decode_s, held.best.decode_s
    by_question = by_question_speed(sums, held.question_index)
    return ScheduleResult(
        name=name,
        role=role,
        speedup=held.over("never", name),
        speedup_by_question=by_question / by_question_speed(held.never, held.question_index),
        vs_fixed=vs_fixed,
        adjusted_p=adjusted_p,
        verdict=said,
        detectable_percent=detectable_percent,
        headroom=share_of_gap(held.fixed.decode_s, seconds, best_s, held.weights),
        saving=share_of_gap(held.never.decode_s, seconds, best_s, held.weights),
        regret_s=float(seconds.sum() - best_s.sum()),
        tokens_per_s=facts.tokens_per_s,
        tokens_per_round=facts.tokens_per_round,
        mean_gamma=facts.mean_gamma,
        mean_drafted=float(divide(sums.drafted.sum(), sums.rounds.sum())),
        acceptance=facts.acceptance_rate,
        ttft_s=facts.ttft_s,
        tpot_s=facts.tpot_s,
        rounds=facts.rounds,
        tasks={
            task: _faster(sums, held.never, held.weights, rows) for task, rows in held.tasks.items()
        },
        uncharged=fixed.free_s / ours.free_s,
        orders=orders_of(ours, fixed) if ours.mixed_s else None,
        timing_error=held.timing_error(name),
        twin=next((other for other in held.before(name) if twins(ours, held.plays[other])), None),
    )


def _faster(ours: PerRequest, theirs: PerRequest, weights: FloatArray, rows: Any) -> Estimate:
    """Token-weighted tokens/s of ours over theirs on these rows. Both emit the same tokens, so it
    is the inverse ratio of their seconds.
    """
    return ratio_of_sums(theirs.decode_s[rows], ours.decode_s[rows], weights[:, rows])


def by_question_speed(sums: PerRequest, question_index: npt.NDArray[np.intp]) -> float:
    """Mean over questions of tokens per decode second, a question's turns taken together."""
    tokens = np.bincount(question_index, weights=sums.tokens)
    return float(divide(tokens, np.bincount(question_index, weights=sums.decode_s)).mean())
