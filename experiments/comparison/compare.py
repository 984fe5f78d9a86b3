"""The honest comparison: every controller on the same held-out requests, with its uncertainty.

The questions of a trace are split task by task. The training half chooses the best fixed gamma and
the controller to recommend; everything printed is about the held-out half, where nothing was tuned.
Speeds are decode speeds: seconds of the rounds, prefill left out, since no controller changes it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from experiments.censoring.intervals import (
    Censoring,
    Completed,
    PricedPolicy,
    complete,
    left_open,
    select,
)
from experiments.common.results import fits
from experiments.common.statistics import RESAMPLES, Family
from experiments.comparison.result import Comparison
from experiments.comparison.robust import ORDERS, Player, Plays, runner_up, simplest, twins
from experiments.comparison.rows import Held, held_of, rows_of
from experiments.comparison.sensitivity import sensitivity
from policies.base import Policy
from policies.fixed import Fixed, Never
from policies.overhead import is_known
from policies.registry import REGISTRY, label
from simulator.replay.hindsight import best_fixed, clairvoyant
from simulator.replay.replay import replay
from traces.costs.pricing import StepCosts
from traces.roundlog import RoundLog
from traces.schema import Trace
from traces.split import split_rows

FloatArray = npt.NDArray[np.float64]
Step = Callable[[], object]


def censored_positions(trace: Trace) -> int:
    """Positions whose accept_len is only a lower bound."""
    return 0 if trace.censored is None else int(trace.censored.sum())


def default_policies(trace: Trace) -> tuple[list[Policy], list[str]]:
    """The whole registry with its defaults, and the names this trace cannot replay (no signals)."""
    registered = [cls() for cls in REGISTRY.values()]
    usable = [p for p in registered if fits(p, trace)]
    return usable, [p.name for p in registered if p not in usable]


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
    held_out: Trace | None = None,
    control_s: float = 0.0,
    redrawn: Sequence[StepCosts] = (),
    orders: int = ORDERS,
    seed: int = 0,
    resamples: int = RESAMPLES,
    step: Step = lambda: None,
) -> Comparison:
    """Compare policies on the held-out half of a trace, or, tuned on all of it, on `held_out`.

    control_s: the part of costs.verify_s that is the engine's fixed seconds per round, 0 if not
    known; only the sensitivity asks. redrawn: the costs by resampled timings, shaped like `costs`;
    none: the timing's spread is left out. orders: shuffled orders of the replies, at least 1. step:
    called once per policy, never drafting and the tuned fixed gamma included.
    Raises InputError if the trace cannot be split or a policy cannot be replayed on it.
    """
    halves = _halves(trace, held_out, seed)
    train, test = halves.train, halves.test
    tuned_gamma, _ = best_fixed(train, costs)
    curve = fixed_logs(test, costs, seed)
    hindsight_gamma, tuned = fastest(curve), label(Fixed(tuned_gamma))
    entrants: dict[str, Policy] = {"never": Never(), tuned: Fixed(tuned_gamma)}
    for policy in policies:
        entrants.setdefault(label(policy), policy)
    judged = [name for name in entrants if name not in ("never", tuned)]
    player, best = Player(train, test, costs, redrawn, orders, seed), Fixed(hindsight_gamma)
    chosen = entrants | {"best fixed": best}
    plays, ranked = _play_all(player, entrants, best, test, seed, step)
    roles = dict.fromkeys(entrants, "policy") | {"never": "never", tuned: "tuned"}
    roles |= {"best fixed": "hindsight", "clairvoyant": "clairvoyant"}
    held = held_of(test, plays, tuned, seed, resamples)
    rows, family = rows_of(plays, roles, held)
    verdicts = {row.name: row.verdict for row in rows if row.name in entrants}
    return Comparison(
        rows=rows,
        sensitivity=sensitivity(
            entrants, test, costs, verdicts, reference=tuned, control_s=control_s, seed=seed
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
        seed=seed,
        resamples=resamples,
        logs={name: one.log for name, one in plays.items()},
        unpriced=tuple(name for name in judged if not is_known(entrants[name], costs.own_s)),
        censoring=_left_open(halves, trace, chosen, costs, tuned, judged, resamples),
        **_detectable(family),
        **_basis(trace, halves, held),
    )


def _play_all(
    player: Player,
    entrants: Mapping[str, Policy],
    best: Policy,
    test: Trace,
    seed: int,
    step: Step,
) -> tuple[dict[str, Plays], list[str]]:
    """The plays of all entrants and of the two ceilings, and the entrants as they are ranked."""
    plays = {}
    for name, policy in entrants.items():
        plays[name] = player.play(policy)
        step()
    ranked = _ranked(plays)
    plays["best fixed"] = player.ceiling(lambda at: replay(best, test, at, seed=seed))
    plays["clairvoyant"] = player.ceiling(lambda at: clairvoyant(test, at))
    return plays, ranked


class _Halves(NamedTuple):
    """The halves of a trace, and which rows of it they are. completed: of a censored trace all
    imputations, of which the halves are the first; else None.
    """

    train: Trace
    test: Trace
    train_rows: list[int]
    test_rows: list[int]
    completed: Completed | None


def _halves(trace: Trace, held_out: Trace | None, seed: int) -> _Halves:
    if held_out is not None:
        tuned_on, judged_on = (list(range(one.requests)) for one in (trace, held_out))
        return _Halves(trace, held_out, tuned_on, judged_on, None)
    train_rows, test_rows = split_rows(trace, seed=seed)
    completed = None if trace.censored is None else complete(trace, seed=seed)
    played = trace if completed is None else completed.first_draw
    return _Halves(
        played.select(train_rows), played.select(test_rows), train_rows, test_rows, completed
    )


def _basis(trace: Trace, halves: _Halves, held: Held) -> dict[str, Any]:
    """The basis of a Comparison's rows."""
    return {
        "train_rows": tuple(halves.train_rows),
        "test_rows": tuple(halves.test_rows),
        "test_categories": halves.test.category,
        "test_requests": halves.test.request_id,
        "questions": len(set(held.question_index.tolist())),
        "tasks": tuple(held.tasks),
        "exactness": trace.meta.exactness,
        "shape": trace.meta.shape,
        "censored_positions": censored_positions(trace),
    }


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
    halves: _Halves,
    trace: Trace,
    chosen: Mapping[str, Policy],
    costs: StepCosts,
    reference: str,
    judged: Sequence[str],
    resamples: int,
) -> Censoring | None:
    """The intervals that censoring leaves for these policies and the clairvoyant, if any."""
    if halves.completed is None:
        return None
    held_out = select(halves.completed, halves.test_rows, trace)
    schedules: dict[str, PricedPolicy] = {
        name: functools.partial(replay, policy, costs=costs) for name, policy in chosen.items()
    }
    schedules["clairvoyant"] = lambda trace, *, seed: clairvoyant(trace, costs)
    return left_open(
        held_out, schedules, reference=reference, controllers=judged, resamples=resamples
    )


def _detectable(family: Family) -> dict[str, Any]:
    """The differences that would have been found 8 times in 10: of one controller alone, and among
    all of them.
    """
    return {
        "detectable_percent": _median(family.detectable_percent()),
        "detectable_among_percent": _median(family.detectable_percent(family.critical)),
    }


def _median(percents: FloatArray) -> float:
    """Over the rows that have a spread; NaN without any."""
    known = percents[~np.isnan(percents)]
    return float(np.median(known)) if len(known) else float("nan")
