"""The task of a network: on which requests and costs, and how it is judged on the way.

The questions of every trace are split as in `gammalab compare`; of the tuning half a quarter is
kept to decide when to stop, the rest is trained on. The held-out half has no part in it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from policies.base import Policy
from policies.fixed import Fixed
from policies.learned.neural import neural_policy, quantise
from simulator.envs.dataset import Cost, Pool
from simulator.envs.kernel import RHO
from simulator.envs.vector import LaneVectorEnv, RoundVectorEnv, TokenVectorEnv
from simulator.replay.totals import tally
from traces.costs.pricing import StepCosts
from traces.errors import InputError
from traces.schema import Trace
from traces.split import split_rows
from traces.timing import Timing

UNITS: dict[str, type[LaneVectorEnv]] = {"round": RoundVectorEnv, "token": TokenVectorEnv}
VALIDATION = 0.25  # of the tuning half's questions


@dataclasses.dataclass(frozen=True)
class Half:
    """Requests of every trace at every cost: what a policy is judged on."""

    traces: tuple[Trace, ...]
    costs: tuple[StepCosts, ...]

    @functools.cached_property
    def fixed(self) -> list[tuple[int, float]]:
        """By cost table: the best fixed length, and its seconds on all traces."""
        best = []
        for costs in self.costs:
            seconds = [self.seconds(Fixed(g), costs) for g in range(self.traces[0].meta.depth + 1)]
            best.append((int(np.argmin(seconds)), min(seconds)))
        return best

    def seconds(self, policy: Policy, costs: StepCosts) -> float:
        """Decode seconds of all requests."""
        return sum(float(tally(policy, trace, costs).decode_s.sum()) for trace in self.traces)

    def score(self, policy: Policy) -> float:
        """Tokens per second over those of the best fixed length, the mean over costs."""
        pairs = zip(self.costs, self.fixed, strict=True)
        return float(np.mean([fixed_s / self.seconds(policy, c) for c, (_, fixed_s) in pairs]))


@dataclasses.dataclass(frozen=True)
class Task:
    """The task: a decision per `unit`, on these requests and costs. ratios: of the
    costs, 0 for the measured ones.
    """

    unit: str
    fit: Half
    validation: Half
    ratios: tuple[float, ...]
    timing: Timing

    def env(self, lanes: int, mode: str = "SameStep") -> LaneVectorEnv:
        """Lanes that play the requests to fit, with the reward of the average-reward form at the
        speed of each cost table's best fixed length: its return is 0 where nothing is gained.
        """
        env = UNITS[self.unit](
            lanes, self.fit.traces, self.timing, autoreset_mode=mode, copy=False, reward="average"
        )
        env.reset(seed=0, options={"cost_ratios": list(self.ratios)})
        tokens = sum(int(trace.reply_tokens.sum()) for trace in self.fit.traces)
        tables = env.stage.pool.costs_of([Cost(c) for c in self.ratios])
        for table, (_, seconds) in zip(tables, self.fit.fixed, strict=True):
            env.stage.arrays.rates[table, RHO] = tokens / seconds
        return env


def make_task(
    traces: Sequence[Trace],
    timing: Timing,
    *,
    unit: str,
    ratios: Sequence[float] = (0.0,),
    seed: int = 0,
) -> Task:
    """The task of these traces at these costs (ratio 0: the measured one), halves split by seed.

    Raises InputError if a trace cannot be split or played.
    """
    if unit not in UNITS:
        raise InputError(f"--unit is {unit!r}; known: {', '.join(UNITS)}")
    tuning = [trace.select(split_rows(trace, seed=seed)[0]) for trace in traces]
    parts = [split_rows(trace, fraction=1.0 - VALIDATION, seed=seed + 1) for trace in tuning]
    fit = tuple(trace.select(rows) for trace, (rows, _) in zip(tuning, parts, strict=True))
    kept = tuple(trace.select(rows) for trace, (_, rows) in zip(tuning, parts, strict=True))
    pool = Pool(traces, timing, signals=unit == "token", max_gamma=None)
    pool.costs_of([Cost(c) for c in ratios])
    costs = tuple(pool.tables[Cost(ratio)] for ratio in ratios)
    return Task(unit, Half(fit, costs), Half(kept, costs), tuple(ratios), timing)


@dataclasses.dataclass
class TrainingMemory:
    """A run's memory: rows of the curve, and the best weights so far by validation."""

    curve: list[dict[str, float]] = dataclasses.field(default_factory=list)
    best: list[Any] = dataclasses.field(default_factory=list)
    best_score: float = -1.0
    checks_since: int = 0


def note(
    run: TrainingMemory,
    task: Task,
    weights: list[Any],
    *,
    steps: int,
    seconds: float,
    reward: float,
) -> None:
    """Judge the present weights and add a row to the curve; raises InputError if they are NaN."""
    if not all(np.isfinite(part).all() for part in weights):
        raise InputError(
            f"the weights are NaN after {steps} steps; pass a smaller --rate, with --force"
        )
    policy = neural_policy(quantise(*weights))
    score = task.validation.score(policy)
    run.curve.append(
        {
            "steps": steps,
            "seconds": seconds,
            "reward": reward,
            "fit": task.fit.score(policy),
            "validation": score,
        }
    )
    run.checks_since += 1
    if score > run.best_score:
        run.best, run.best_score, run.checks_since = weights, score, 0
