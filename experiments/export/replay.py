"""The price of an exported setting: the replay of an engine that follows it.

Every setting is a controller of the registry, but for a batch in which all requests get the same
draft length.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from experiments.comparison.compare import fixed_logs
from experiments.export.engines import EngineSetting, Range, ServingEngine
from policies.base import Policy
from policies.confidence.roc import HFRocConfidence
from policies.confidence.thresholds import HFConfidence, LlamaPMin
from policies.counts.heuristic import HFHeuristic
from policies.fixed import Fixed
from policies.overhead import charged
from simulator.replay.replay import replay
from traces.costs.log_prices import price_log
from traces.costs.model import CostModel
from traces.costs.pricing import StepCosts, tabulate
from traces.costs.table import Table
from traces.schema import Trace
from traces.timing import Timing

FloatArray = npt.NDArray[np.float64]


def stand_in(setting: EngineSetting, engine: ServingEngine) -> Policy:
    """The controller that does what a setting of an engine says for one request."""
    if setting.schedule != "constant":
        return HFHeuristic(setting.gamma, transient=setting.schedule == "heuristic_transient")
    if setting.threshold > 0 and setting.moving:
        return HFRocConfidence(setting.gamma, threshold0=setting.threshold)
    if setting.threshold > 0:
        stop = LlamaPMin if engine.discards else HFConfidence
        return stop(setting.gamma, setting.threshold)
    return Fixed(setting.at(1))


def tabulate_like(costs: StepCosts, model: CostModel, sizes: Sequence[int]) -> StepCosts:
    """A model's step costs at these batch sizes, over the contexts and widths of `costs`."""
    return tabulate(
        model,
        sizes,
        max_context=(costs.buckets - 1) * costs.bucket_tokens,
        width=costs.width,
        bucket_tokens=costs.bucket_tokens,
    )


def setting_seconds(
    setting: EngineSetting, engine: ServingEngine, trace: Trace, costs: StepCosts
) -> float:
    """Decode seconds of a whole trace, one request at a time, under a setting."""
    return float(replay(stand_in(setting, engine), trace, costs).elapsed_s.sum())


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """A lock-step batch of equal requests, by size and fixed draft length.

    seconds [S, G+1]: decode seconds of a trace if sizes[s] copies of every request ran side by side
    with gamma = index. idle [S]: seconds of one draft forward in every round of gamma 0. tokens:
    emitted by one copy.
    """

    sizes: tuple[int, ...]
    seconds: FloatArray
    idle: FloatArray
    tokens: int

    def priced(self, idle_draft: bool) -> FloatArray:
        """seconds [S, G+1], gamma 0 with the idle draft forward or without."""
        if not idle_draft:
            return self.seconds
        return np.hstack([self.seconds[:, :1] + self.idle[:, None], self.seconds[:, 1:]])

    def tokens_per_s(self, batch: int, gamma: int, *, idle_draft: bool = False) -> float:
        """Tokens per second of one request at a measured size; gamma above G counts as G."""
        row, column = self.sizes.index(batch), min(gamma, self.seconds.shape[1] - 1)
        return self.tokens / float(self.priced(idle_draft)[row, column])


def measured_sizes(timing: Timing) -> tuple[int, ...]:
    """The batch sizes at which verifies were timed, and 1."""
    return tuple(sorted({1, *(int(size) for size in timing.grid("verify").batch)}))


def run_batches(trace: Trace, timing: Timing, costs: StepCosts, sizes: Sequence[int]) -> Batches:
    """Price every fixed gamma at every batch size; accepted lengths are those of the trace.

    A round of the batch costs what traces.costs.log_prices.price_log says at that size: its draft
    steps and one verify, at the context of the request. costs: those at batch 1, whose extent is
    kept.
    """
    logs, at_sizes = fixed_logs(trace, costs, seed=0), tabulate_like(costs, Table(timing), sizes)
    seconds = np.empty((len(sizes), len(logs)))
    for gamma, log in enumerate(logs):
        paid = charged(Fixed(gamma), at_sizes)
        seconds[:, gamma] = [price_log(log, paid, row).sum() for row in range(len(sizes))]
    buckets = np.minimum(logs[0].context_tokens // at_sizes.bucket_tokens, at_sizes.buckets - 1)
    idle = at_sizes.draft_s[:, buckets, 1].sum(axis=1)
    return Batches(tuple(sizes), seconds, idle, int(logs[0].emitted.sum()))


def best_ranges(sizes: Sequence[int], seconds: FloatArray, highest: int) -> tuple[Range, ...]:
    """The draft length with the fewest seconds for every batch size up to the largest measured.

    seconds [S, G+1] at the measured sizes; between them they are linear in the batch size, as
    traces.costs.table.Table interpolates. highest: the largest length allowed. Ties go to the
    shorter.
    """
    everywhere = np.arange(1, sizes[-1] + 1)
    columns = [np.interp(everywhere, sizes, seconds[:, g]) for g in range(highest + 1)]
    best = np.argmin(np.stack(columns), axis=0).tolist()
    ranges, first = [], 1
    for gamma, same in itertools.groupby(best):
        last = first + len(list(same)) - 1
        ranges.append((first, last, gamma))
        first = last + 1
    return tuple(ranges)
