"""The honest comparison: every controller on the same held-out requests, with its uncertainty.

The questions of a trace are split task by task. The training half chooses the best fixed gamma and
the controller to recommend; everything printed is about the held-out half, where nothing was tuned.
Speeds are decode speeds: seconds of the rounds, prefill left out, since no controller changes it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.censored import Censoring, complete, left_open, select
from experiments.statistics import (
    RESAMPLES,
    Estimate,
    bootstrap_weights,
    divide,
    ratio_of_sums,
    share_of_gap,
    verdict,
)
from policies.base import Policy, uses_signals
from policies.fixed import Fixed, Never
from policies.shelf import SHELF, label
from simulator.hindsight import best_fixed, clairvoyant
from simulator.metrics import PerRequest, per_request, summarize
from simulator.replay import replay
from traces.costs import Table, tabulate
from traces.roundlog import RoundLog
from traces.schema import Trace
from traces.split import question_of, split_rows
from traces.timing import StepCosts, Timing

FloatArray = npt.NDArray[np.float64]
Step = Callable[[], object]

ROLES = {
    "never": "baseline: plain autoregressive decoding",
    "tuned": "best fixed gamma, chosen on the training half",
    "policy": "controllers",
    "hindsight": "ceiling: best fixed gamma, chosen on the held-out half itself",
    "clairvoyant": "ceiling: knows how many tokens will be accepted",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One schedule on the held-out requests.

    speedup: tokens/s over never drafting, token-weighted (all tokens over all seconds).
    speedup_by_question: the convention of Spec-Bench, mean tokens/s of the questions over the
    baseline's mean. vs_fixed: tokens/s over the tuned fixed gamma's. headroom: share of the seconds
    between the tuned fixed gamma and the clairvoyant schedule that it saves; saving: the same,
    counted from never drafting. regret_s: decode seconds above the clairvoyant schedule.
    """

    name: str
    role: str
    speedup: Estimate
    speedup_by_question: float
    vs_fixed: Estimate
    verdict: str
    headroom: Estimate
    saving: Estimate
    regret_s: float
    tokens_per_s: float
    tokens_per_round: float
    mean_gamma: float
    mean_drafted: float
    acceptance: float
    ttft_s: float
    tpot_s: float
    rounds: int
    tasks: dict[str, Estimate]


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Rows, and what they rest on. logs: simulated rounds by row name.

    recommended: the row with the fewest seconds on the training half, ceilings left out.
    censoring: of a censored trace, what it leaves open; rows and logs are then about one of its
    imputations. None for every other trace.
    fixed_curve: speed-up of every fixed gamma 0, 1, ... on the held-out half.
    """

    rows: tuple[Row, ...]
    recommended: str
    tuned_gamma: int
    hindsight_gamma: int
    fixed_curve: tuple[float, ...]
    train_rows: tuple[int, ...]
    test_rows: tuple[int, ...]
    test_categories: tuple[str, ...]
    questions: int
    tasks: tuple[str, ...]
    exactness: str
    censored_positions: int
    seed: int
    resamples: int
    logs: dict[str, RoundLog]
    censoring: Censoring | None = None

    def row(self, name: str) -> Row:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)


@dataclasses.dataclass(frozen=True, eq=False)
class _Held:
    """What every row is measured against: sums by request of the references, bootstrap weights."""

    weights: FloatArray
    never: PerRequest
    fixed: PerRequest
    best: PerRequest
    question_index: npt.NDArray[np.intp]
    tasks: dict[str, npt.NDArray[np.intp]]


def step_costs(timing: Timing, trace: Trace) -> StepCosts:
    """The measured costs at batch 1, as wide and as long as the trace needs."""
    longest = int((trace.prompt_tokens + trace.reply_tokens).max())
    return tabulate(Table(timing), 1, max_context=longest + 32, width=trace.meta.depth + 2)


def censored_positions(trace: Trace) -> int:
    """Positions whose accept_len is only a lower bound."""
    return 0 if trace.censored is None else int(trace.censored.sum())


def default_policies(trace: Trace) -> tuple[list[Policy], list[str]]:
    """The whole shelf with its defaults, and the names this trace cannot replay (no signals)."""
    shelf = [cls() for cls in SHELF.values()]
    usable = [p for p in shelf if trace.has_signals or not uses_signals(p)]
    return usable, [p.name for p in shelf if p not in usable]


def fixed_logs(trace: Trace, costs: StepCosts, seed: int) -> list[RoundLog]:
    """The rounds of every fixed gamma 0..depth, by gamma."""
    return [replay(Fixed(gamma), trace, costs, seed=seed) for gamma in range(trace.meta.depth + 1)]


def fastest(logs: Sequence[RoundLog]) -> int:
    """The index with the fewest decode seconds; ties to the first."""
    return int(np.argmin([float(log.elapsed_s.sum()) for log in logs]))


def compare(
    trace: Trace,
    timing: Timing,
    policies: Sequence[Policy],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    step: Step = lambda: None,
) -> Comparison:
    """Compare policies on the held-out half of a trace; see the module docstring.

    step is called once per replayed policy, for a progress bar. Raises InputError if the trace
    cannot be split or a policy cannot be replayed on it.
    """
    costs = step_costs(timing, trace)
    train_rows, test_rows = split_rows(trace, seed=seed)
    completed = None if trace.censored is None else complete(trace, seed=seed)
    played = trace if completed is None else completed.first_draw
    train, test = played.select(train_rows), played.select(test_rows)
    tuned_gamma, tuned_on_train = best_fixed(train, costs)
    curve = fixed_logs(test, costs, seed)
    hindsight_gamma = fastest(curve)

    tuned_name = label(Fixed(tuned_gamma))
    logs = {"never": replay(Never(), test, costs, seed=seed), tuned_name: curve[tuned_gamma]}
    roles = {"never": "never", tuned_name: "tuned"}
    train_s = {
        "never": float(replay(Never(), train, costs, seed=seed).elapsed_s.sum()),
        tuned_name: float(tuned_on_train.elapsed_s.sum()),
    }
    for policy in policies:
        name = label(policy)
        if name not in logs:
            roles[name] = "policy"
            logs[name] = replay(policy, test, costs, seed=seed)
            train_s[name] = float(replay(policy, train, costs, seed=seed).elapsed_s.sum())
        step()
    recommended = min(train_s, key=lambda name: train_s[name])
    ceilings = {"best fixed": curve[hindsight_gamma], "clairvoyant": clairvoyant(test, costs)}
    logs |= ceilings
    roles |= {"best fixed": "hindsight", "clairvoyant": "clairvoyant"}

    censoring = None
    if completed is not None:
        chosen = dict(zip(map(label, policies), policies, strict=True))
        chosen |= {tuned_name: Fixed(tuned_gamma), "never": Never()}
        schedules = {
            name: functools.partial(replay, policy, costs=costs, seed=seed)
            for name, policy in (chosen | {"best fixed": Fixed(hindsight_gamma)}).items()
        }
        schedules["clairvoyant"] = functools.partial(clairvoyant, costs=costs)
        held_out = select(completed, test_rows, trace)
        censoring = left_open(held_out, schedules, reference=tuned_name, resamples=resamples)
    held = _held(test, logs["never"], logs[tuned_name], logs["clairvoyant"], seed, resamples)
    rows = [_row(name, roles[name], log, held) for name, log in logs.items()]
    order = list(ROLES)
    rows.sort(key=lambda row: (order.index(row.role), -row.speedup.value))
    never_s = float(logs["never"].elapsed_s.sum())
    return Comparison(
        rows=tuple(rows),
        recommended=recommended,
        tuned_gamma=tuned_gamma,
        hindsight_gamma=hindsight_gamma,
        fixed_curve=tuple(never_s / float(log.elapsed_s.sum()) for log in curve),
        train_rows=tuple(train_rows),
        test_rows=tuple(test_rows),
        test_categories=test.category,
        questions=len(set(held.question_index.tolist())),
        tasks=tuple(held.tasks),
        exactness=trace.meta.exactness,
        censored_positions=censored_positions(trace),
        seed=seed,
        resamples=resamples,
        logs=logs,
        censoring=censoring,
    )


def _held(
    test: Trace, never: RoundLog, fixed: RoundLog, best: RoundLog, seed: int, resamples: int
) -> _Held:
    questions = [question_of(request_id) for request_id in test.request_id]
    category = np.asarray(test.category)
    return _Held(
        weights=bootstrap_weights(questions, seed=seed, resamples=resamples),
        never=per_request(never),
        fixed=per_request(fixed),
        best=per_request(best),
        question_index=np.unique(np.asarray(questions), return_inverse=True)[1],
        tasks={task: np.flatnonzero(category == task) for task in dict.fromkeys(test.category)},
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


def _row(name: str, role: str, log: RoundLog, held: _Held) -> Row:
    sums, facts = per_request(log), summarize(log)
    everything = np.arange(len(sums.tokens))
    vs_fixed = _faster(sums, held.fixed, held.weights, everything)
    seconds, best_s = sums.decode_s, held.best.decode_s
    by_question = by_question_speed(sums, held.question_index)
    return Row(
        name=name,
        role=role,
        speedup=_faster(sums, held.never, held.weights, everything),
        speedup_by_question=by_question / by_question_speed(held.never, held.question_index),
        vs_fixed=vs_fixed,
        verdict="baseline" if role == "tuned" else verdict(vs_fixed),
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
    )
