"""The honest comparison: every controller on the same held-out requests, with its uncertainty.

The questions of a trace are split task by task. The training half chooses the best fixed gamma and
the controller to recommend; everything printed is about the held-out half, where nothing was tuned.
Speeds are decode speeds: seconds of the rounds, prefill left out, since no controller changes it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.censoring.intervals import (
    Censoring,
    Completed,
    Schedule,
    complete,
    left_open,
    select,
)
from experiments.common.statistics import (
    RESAMPLES,
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
from experiments.comparison.robust import (
    ORDERS,
    Orders,
    Player,
    Plays,
    orders_of,
    ratio_over_timings,
    runner_up,
    simplest,
    timing_error,
    twins,
)
from experiments.comparison.sensitivity import Sensitivity, sensitivity
from policies.base import Policy, uses_signals
from policies.fixed import Fixed, Never
from policies.overhead import is_known
from policies.registry import SHELF, label
from simulator.replay.hindsight import best_fixed, clairvoyant
from simulator.replay.metrics import PerRequest, per_request, summarize
from simulator.replay.replay import replay
from traces.costs.pricing import StepCosts, tabulate
from traces.costs.table import Table
from traces.roundlog import RoundLog
from traces.schema import Trace
from traces.split import question_of, split_rows
from traces.timing import Timing

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

    speedup: tokens/s over never drafting, token-weighted (all tokens over all seconds); its
    interval and that of vs_fixed are over other questions and other timings. speedup_by_question:
    the convention of Spec-Bench, mean tokens/s of the questions over the baseline's mean. vs_fixed:
    tokens/s over the tuned fixed gamma's, with the interval of this row alone. adjusted_p: of
    vs_fixed among all controllers; a controller's verdict follows it, any other row's its own
    interval; see experiments.common.statistics.VERDICTS. detectable_percent: the difference to the
    tuned fixed gamma that a test of this controller alone would have found 8 times in 10, NaN
    without spread. Both are NaN for what is not a controller, adjusted_p also where too few
    questions differ. headroom: share of the seconds between the tuned fixed gamma and the
    clairvoyant schedule that it saves; saving: the same, counted from never drafting. regret_s:
    decode seconds above the clairvoyant schedule. uncharged: vs_fixed where no policy pays for its
    own arithmetic. orders: vs_fixed in shuffled orders of the replies; None for a ceiling.
    timing_error: standard error of log vs_fixed from the timing alone, NaN if not known. twin: the
    first row of the comparison that takes the same rounds at the same cost; None if it is this one.
    """

    name: str
    role: str
    speedup: Estimate
    speedup_by_question: float
    vs_fixed: Estimate
    adjusted_p: float
    verdict: str
    detectable_percent: float
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
    uncharged: float
    orders: Orders | None
    timing_error: float
    twin: str | None


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Rows, and what they rest on. logs: simulated rounds by row name.

    tuning_first: the row with the fewest seconds on the training half, ceilings left out: the mean
    over its recorded order and `orders` shuffled ones. recommended: the same, but never drafting if
    it is not faster than that on the held-out half. runner_up: the next one that takes other rounds
    (recommended itself if there is none). simplest: the simplest row that cannot be told from the
    recommended one on the held-out half. timing_draws: resampled timings in the intervals; 0: its
    spread is not known.
    censoring: of a censored trace, what it leaves open; rows and logs are then about one of its
    imputations. None for every other trace.
    fixed_curve: speed-up of every fixed gamma 0, 1, ... on the held-out half.
    detectable_percent: median over the controllers of the difference to the tuned fixed gamma that
    would have been found 8 times in 10; detectable_among_percent: the same where their number is
    corrected for. sensitivity: of the ranking to the costs.
    unpriced: controllers whose own arithmetic the costs do not know, and which paid nothing.
    """

    rows: tuple[Row, ...]
    detectable_percent: float
    detectable_among_percent: float
    sensitivity: Sensitivity
    tuning_first: str
    recommended: str
    runner_up: str
    simplest: str
    orders: int
    timing_draws: int
    tuned_gamma: int
    hindsight_gamma: int
    fixed_curve: tuple[float, ...]
    train_rows: tuple[int, ...]
    test_rows: tuple[int, ...]
    test_categories: tuple[str, ...]
    test_requests: tuple[str, ...]
    questions: int
    tasks: tuple[str, ...]
    exactness: str
    censored_positions: int
    seed: int
    resamples: int
    logs: dict[str, RoundLog]
    unpriced: tuple[str, ...]
    censoring: Censoring | None = None

    def row(self, name: str) -> Row:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)


@dataclasses.dataclass(frozen=True, eq=False)
class _Held:
    """What every row is measured against: sums by request of the references, bootstrap weights;
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
        """See Row."""
        return timing_error(self.plays[self.tuned].drawn, self.plays[name].drawn)


def step_costs(timing: Timing, trace: Trace) -> StepCosts:
    """The measured costs at batch 1, as wide and as long as the trace needs, on the clock that
    Timing.on chose or else the timing's default one (traces.costs.Table).
    """
    longest = int((trace.prompt_tokens + trace.reply_tokens).max())
    return tabulate(Table(timing), max_context=longest + 32, width=trace.meta.depth + 2)


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
    costs: StepCosts,
    policies: Sequence[Policy],
    *,
    control_s: float = 0.0,
    redrawn: Sequence[StepCosts] = (),
    orders: int = ORDERS,
    seed: int = 0,
    resamples: int = RESAMPLES,
    step: Step = lambda: None,
) -> Comparison:
    """Compare policies on the held-out half of a trace; see the module docstring.

    control_s: the part of costs.verify_s that is the engine's fixed seconds per round, 0 if not
    known; only the sensitivity asks. redrawn: the costs by resampled timings, shaped like `costs`;
    none: the timing's spread is left out. orders: shuffled orders of the replies, at least 1. step
    is called once per policy, never drafting and the tuned fixed gamma included, for a progress
    bar.
    Raises InputError if the trace cannot be split or a policy cannot be replayed on it.
    """
    train_rows, test_rows = split_rows(trace, seed=seed)
    completed = None if trace.censored is None else complete(trace, seed=seed)
    played = trace if completed is None else completed.first_draw
    train, test = played.select(train_rows), played.select(test_rows)
    tuned_gamma, _ = best_fixed(train, costs)
    curve = fixed_logs(test, costs, seed)
    hindsight_gamma = fastest(curve)

    tuned_name = label(Fixed(tuned_gamma))
    entrants: dict[str, Policy] = {"never": Never(), tuned_name: Fixed(tuned_gamma)}
    roles = {"never": "never", tuned_name: "tuned"}
    for policy in policies:
        entrants.setdefault(label(policy), policy)
    player = Player(train, test, costs, redrawn, orders, seed)
    plays = {}
    for name, policy in entrants.items():
        plays[name] = player.play(policy)
        roles.setdefault(name, "policy")
        step()
    ranked = _ranked(plays)
    plays["best fixed"] = player.ceiling(
        lambda at: replay(Fixed(hindsight_gamma), test, at, seed=seed)
    )
    plays["clairvoyant"] = player.ceiling(lambda at: clairvoyant(test, at))
    roles |= {"best fixed": "hindsight", "clairvoyant": "clairvoyant"}

    censoring = None
    if completed is not None:
        chosen = entrants | {"best fixed": Fixed(hindsight_gamma)}
        held_out = select(completed, test_rows, trace)
        judged = [name for name in entrants if roles[name] == "policy"]
        censoring = _left_open(held_out, chosen, costs, tuned_name, judged, resamples)
    held = _held(test, plays, tuned_name, seed, resamples)
    rows, family = _rows(plays, roles, held)
    return Comparison(
        rows=rows,
        detectable_percent=_median(family.detectable_percent()),
        detectable_among_percent=_median(family.detectable_percent(family.critical)),
        sensitivity=sensitivity(
            entrants,
            test,
            costs,
            {row.name: row.verdict for row in rows if row.name in entrants},
            reference=tuned_name,
            control_s=control_s,
            seed=seed,
        ),
        tuning_first=min(entrants, key=lambda name: plays[name].train_s),
        recommended=ranked[0],
        runner_up=runner_up(ranked, plays),
        simplest=simplest(ranked[0], entrants, plays, held.weights),
        orders=orders,
        timing_draws=len(redrawn),
        tuned_gamma=tuned_gamma,
        hindsight_gamma=hindsight_gamma,
        fixed_curve=tuple(plays["never"].decode_s / float(log.elapsed_s.sum()) for log in curve),
        train_rows=tuple(train_rows),
        test_rows=tuple(test_rows),
        test_categories=test.category,
        test_requests=test.request_id,
        questions=len(set(held.question_index.tolist())),
        tasks=tuple(held.tasks),
        exactness=trace.meta.exactness,
        censored_positions=censored_positions(trace),
        seed=seed,
        resamples=resamples,
        logs={name: one.log for name, one in plays.items()},
        unpriced=tuple(
            name
            for name, policy in entrants.items()
            if roles[name] == "policy" and not is_known(policy, costs.own_s)
        ),
        censoring=censoring,
    )


def _ranked(plays: Mapping[str, Plays]) -> list[str]:
    """By seconds on the training half; never drafting goes first if the first is no faster on the
    held-out half.
    """
    ranked = sorted(plays, key=lambda name: plays[name].train_s)
    never, first = plays["never"], plays[ranked[0]]
    if never.decode_s <= first.decode_s or twins(never, first):
        ranked.sort(key=lambda name: name != "never")
    return ranked


def _left_open(
    completed: Completed,
    chosen: Mapping[str, Policy],
    costs: StepCosts,
    reference: str,
    judged: Sequence[str],
    resamples: int,
) -> Censoring:
    """What censoring leaves open about these policies and the clairvoyant schedule."""
    schedules: dict[str, Schedule] = {
        name: functools.partial(replay, policy, costs=costs) for name, policy in chosen.items()
    }
    schedules["clairvoyant"] = lambda trace, *, seed: clairvoyant(trace, costs)
    return left_open(
        completed, schedules, reference=reference, controllers=judged, resamples=resamples
    )


def _median(percents: FloatArray) -> float:
    """Over the rows that have a spread; NaN without any."""
    known = percents[~np.isnan(percents)]
    return float(np.median(known)) if len(known) else float("nan")


def _held(test: Trace, plays: Mapping[str, Plays], tuned: str, seed: int, resamples: int) -> _Held:
    questions = [question_of(request_id) for request_id in test.request_id]
    category = np.asarray(test.category)
    return _Held(
        weights=bootstrap_weights(questions, seed=seed, resamples=resamples),
        tuned=tuned,
        plays=plays,
        never=per_request(plays["never"].log),
        fixed=per_request(plays[tuned].log),
        best=per_request(plays["clairvoyant"].log),
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


def _rows(
    plays: Mapping[str, Plays], roles: Mapping[str, str], held: _Held
) -> tuple[tuple[Row, ...], Family]:
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


def _row(name: str, role: str, held: _Held, adjusted_p: float, detectable_percent: float) -> Row:
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
    return Row(
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
