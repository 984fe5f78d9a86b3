"""The price of an exported setting: the replay of an engine that follows it.

Most settings are a controller of the registry. Two things are not: a batch in which all requests
get the same draft length, and llama.cpp's stop, which drops the doubtful token unverified.
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
from policies.confidence.thresholds import HFConfidence
from policies.counts.heuristic import HFHeuristic
from policies.fixed import Fixed
from policies.overhead import charged
from policies.round import room_at, settle
from simulator.replay.replay import check_inputs, replay, tape_of
from traces.costs.model import CostModel
from traces.costs.pricing import (
    StepCosts,
    bucket_of,
    lag_after,
    price_log,
    round_seconds,
    tabulate,
)
from traces.costs.table import Table
from traces.schema import Trace
from traces.timing import Timing

FloatArray = npt.NDArray[np.float64]


def stand_in(setting: EngineSetting) -> Policy:
    """The controller that does what a setting says for one request."""
    if setting.schedule != "constant":
        return HFHeuristic(setting.gamma, transient=setting.schedule == "heuristic_transient")
    if setting.threshold > 0 and setting.moving:
        return HFRocConfidence(setting.gamma, threshold0=setting.threshold)
    if setting.threshold > 0:
        return HFConfidence(setting.gamma, setting.threshold)
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
    if engine.discards and setting.threshold > 0:
        return discarding_seconds(trace, costs, setting.gamma, setting.threshold)
    return float(replay(stand_in(setting), trace, costs).elapsed_s.sum())


def discarding_seconds(trace: Trace, costs: StepCosts, cap: int, p_min: float) -> float:
    """Decode seconds of a trace under llama.cpp's stop: draft up to `cap` tokens, and drop the
    first whose top-1 probability is below p_min together with the rest.

    The dropped token has cost its draft step and the reading of its signals, but is not verified
    (ggml-org/llama.cpp, common/speculative.cpp, since PR #22506). No policy can do that: what a
    policy drafts is verified.
    """
    rule = HFConfidence(cap, p_min)
    limits = check_inputs(rule, trace, costs)
    paid = charged(rule, costs, starts=True)
    assert paid.start_s is not None
    starts = paid.start_s[0]
    tape = tape_of(trace, signals=True)
    # How many tokens the draft is sure of from each position, whatever the room.
    doubtful = tape.top1_prob.astype(np.float64) < p_min
    sure_from = np.where(doubtful.any(axis=1), doubtful.argmax(axis=1), doubtful.shape[1]).tolist()
    runs, seconds = tape.accept_len.tolist(), 0.0
    for request in range(trace.requests):
        prompt = int(tape.prompt_tokens[request])
        begin, end = int(tape.offsets[request]), int(tape.offsets[request + 1])
        at, lag = begin, 1
        while at < end:
            bucket = bucket_of(paid, prompt + at - begin)
            room = min(cap, room_at(limits, prompt, at - begin, int(tape.draft_len[at])))
            sure = min(sure_from[at], room)
            drafted = min(sure + 1, room)
            seconds += round_seconds(paid, 0, bucket, drafted, lag)
            if sure < drafted:
                verify_s = paid.verify_s[0, bucket]
                seconds += float(verify_s[sure + 1] - verify_s[drafted + 1])
                seconds += float(starts[bucket]) if sure == 0 else 0.0
            accepted, emitted, _ = settle(sure, runs[at], end - at)
            # The dropped token was never fed back, so a round that stopped leaves no lag.
            lag = lag_after(lag, drafted, accepted, paid.reads_states)
            at += emitted
    return seconds


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

    A round of the batch costs what traces.costs.pricing.price_log says at that size: its draft
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
