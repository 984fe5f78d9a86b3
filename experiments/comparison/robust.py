"""Other chances in a ratio than the questions: the order of the replies, and the timing's chance.

Letters: R requests, B resamples of the questions, D timings: the one at hand, then resampled ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from experiments.common.statistics import SMALLEST, Estimate, divide, estimate
from policies.base import NoState, Policy, field_values
from policies.fixed import Fixed, Never
from policies.overhead import uncharged
from simulator.replay.metrics import per_request, same_rounds
from simulator.replay.replay import replay
from traces.costs.pricing import StepCosts
from traces.roundlog import RoundLog
from traces.schema import Trace
from traces.split import named_generator
from traces.timing import Timing

FloatArray = npt.NDArray[np.float64]

ORDERS = 8
TIMING_DRAWS = 24


@dataclasses.dataclass(frozen=True)
class Orders:
    """A ratio over shuffled orders of the same replies: mean, least and largest; recorded: in the
    trace's own order.
    """

    value: float
    low: float
    high: float
    recorded: float


@dataclasses.dataclass(frozen=True, eq=False)
class Plays:
    """One schedule in all the ways that a comparison asks for; seconds are decode seconds.

    log: on the held-out half as recorded. drawn [D, R]: by request, at every timing. free_s:
    nobody charged. mixed_s: held-out half in every shuffled order; train_s: the training half, the
    sum over its own order and the shuffled ones; both empty for a ceiling.
    """

    log: RoundLog
    drawn: FloatArray
    free_s: float
    mixed_s: tuple[float, ...] = ()
    train_s: float = float("nan")

    @property
    def decode_s(self) -> float:
        """Of the log."""
        return float(self.log.elapsed_s.sum())


class Player:
    """Plays schedules on both halves of a trace, at costs and at those of resampled timings, in
    `orders` shuffled orders.
    """

    def __init__(
        self,
        train: Trace,
        test: Trace,
        costs: StepCosts,
        redrawn: Sequence[StepCosts],
        orders: int,
        seed: int,
    ) -> None:
        self.test, self.timings, self.seed = test, (costs, *redrawn), seed
        self.free = uncharged(costs)
        self.mixed = shuffled(test, orders, seed)
        self.trains = [train, *shuffled(train, orders, seed + 1)]

    def _log(self, policy: Policy, trace: Trace, costs: StepCosts) -> RoundLog:
        return replay(policy, trace, costs, seed=self.seed)

    def play(self, policy: Policy) -> Plays:
        """A policy."""

        def seconds(trace: Trace) -> float:
            return float(self._log(policy, trace, self.timings[0]).elapsed_s.sum())

        found = self.ceiling(lambda costs: self._log(policy, self.test, costs))
        return dataclasses.replace(
            found,
            mixed_s=tuple(map(seconds, self.mixed)),
            train_s=sum(map(seconds, self.trains)),
        )

    def ceiling(self, schedule: Callable[[StepCosts], RoundLog]) -> Plays:
        """A schedule that cannot be used, on the held-out half alone."""
        logs = [schedule(costs) for costs in self.timings]
        drawn = np.stack([per_request(log).decode_s for log in logs])
        return Plays(logs[0], drawn, float(schedule(self.free).elapsed_s.sum()))


def shuffled(trace: Trace, count: int, seed: int) -> list[Trace]:
    """The same replies in `count` random orders."""
    generator = named_generator(seed, "order of replies")
    return [trace.select(generator.permutation(trace.requests).tolist()) for _ in range(count)]


def orders_of(ours: Plays, reference: Plays) -> Orders:
    """The speed of one schedule over another in every order."""
    found = np.asarray(reference.mixed_s) / np.asarray(ours.mixed_s)
    recorded = reference.decode_s / ours.decode_s
    return Orders(float(found.mean()), float(found.min()), float(found.max()), recorded)


def redrawn(timing: Timing, draws: int, seed: int) -> list[Timing]:
    """The timing as it would be if it were measured again, `draws` times; none where its sweeps are
    not known one by one.
    """
    if timing.sweeps < 2:
        return []
    generator = named_generator(seed, "timing")
    return [timing.resampled(generator) for _ in range(draws)]


def ratio_over_timings(above: FloatArray, below: FloatArray, weights: FloatArray) -> Estimate:
    """Sum of `above` over sum of `below`, seconds [D, R], at the timing at hand; the interval is
    over resampled questions [B, R], each at one of the resampled timings.
    """
    value = float(divide(above[0].sum(), below[0].sum()))
    turn = np.zeros(len(weights), dtype=np.intp)
    if len(above) > 1:
        turn = 1 + np.arange(len(weights)) % (len(above) - 1)
    tops, bottoms = ((weights * seconds[turn]).sum(axis=1) for seconds in (above, below))
    return estimate(value, divide(tops, bottoms))


def timing_error(above: FloatArray, below: FloatArray) -> float:
    """Standard error of the log ratio that the timing alone gives it; NaN without resampled ones.
    Seconds [D, R].
    """
    if len(above) < 3:
        return float("nan")
    return float(np.std(np.log(above[1:].sum(axis=1) / below[1:].sum(axis=1)), ddof=1))


def twins(ours: Plays, theirs: Plays) -> bool:
    """They take the same rounds, and their own arithmetic costs about as much."""
    close = abs(theirs.decode_s / ours.decode_s - 1.0) < SMALLEST
    return close and same_rounds(ours.log, theirs.log)


def runner_up(ranked: Sequence[str], plays: Mapping[str, Plays]) -> str:
    """The best behind ranked[0] that takes other rounds than it: a twin under another name is no
    rival. ranked[0] itself if there is none.
    """
    first = plays[ranked[0]].log
    for name in ranked[1:]:
        if not same_rounds(plays[name].log, first):
            return name
    return ranked[0]


def simplicity(policy: Policy) -> tuple[int, int]:
    """Smaller is simpler: plain decoding, a constant, no memory, memory; then fields."""
    if isinstance(policy, Never):
        return 0, 0
    if isinstance(policy, Fixed):
        return 1, 0
    kind = 2 if isinstance(policy.new_state(1), NoState) else 3
    return kind, len(field_values(policy))


def simplest(
    first: str,
    entrants: Mapping[str, Policy],
    plays: Mapping[str, Plays],
    weights: FloatArray,
) -> str:
    """The simplest policy that cannot be told from `first`: the 95 % interval of its ratio to it
    reaches 1. `first` if none is simpler, else of equally simple ones the fastest.
    """
    equals = [
        name
        for name in entrants
        if name == first
        or ratio_over_timings(plays[first].drawn, plays[name].drawn, weights).high >= 1.0
    ]
    return min(
        equals,
        key=lambda name: (simplicity(entrants[name]), name != first, plays[name].decode_s),
    )
