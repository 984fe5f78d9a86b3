"""What an exported setting would cost: the replay of what an engine does with it.

Most settings are a controller of the shelf. Two things are not: a batch in which all requests get
the same draft length, and llama.cpp's stop, which drops the doubtful token unverified.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from experiments.comparison.compare import fixed_logs
from experiments.export.engines import Engine, Range, Setting
from policies.base import Policy
from policies.confidence.roc import HFRocConfidence
from policies.confidence.thresholds import HFConfidence
from policies.counts.heuristic import HFHeuristic
from policies.fixed import Fixed
from policies.overhead import charged
from simulator.replay.replay import check_inputs, replay, tape_of
from simulator.replay.rounds import room_at
from traces.costs import (
    CostModel,
    Table,
    bucket_of,
    lag_after,
    price_log,
    prices_of,
    round_seconds,
    tabulate,
)
from traces.schema import Trace
from traces.timing import StepCosts, Timing

FloatArray = npt.NDArray[np.float64]


def stand_in(setting: Setting) -> Policy:
    """The controller that does what a setting says for one request."""
    if setting.schedule != "constant":
        return HFHeuristic(setting.gamma, transient=setting.schedule == "heuristic_transient")
    if setting.threshold > 0 and setting.moving:
        return HFRocConfidence(setting.gamma, threshold0=setting.threshold)
    if setting.threshold > 0:
        return HFConfidence(setting.gamma, setting.threshold)
    return Fixed(setting.at(1))


class SingleCosts(NamedTuple):
    """Costs of one request alone. steps: at batch 1. first_s [C]: what the first draft step of a
    round costs beyond a further one, which `steps` holds inside its verifies of several tokens.
    """

    steps: StepCosts
    first_s: FloatArray


def single_costs(timing: Timing, steps: StepCosts) -> SingleCosts:
    """Tell the first draft step's excess apart: tabulate again as if there were none."""
    timing = timing.settled()
    further = {(c.batch, c.context): c.median_s for c in timing.cells if c.operation == "draft"}
    cells = [
        dataclasses.replace(cell, median_s=further.get((cell.batch, cell.context), cell.median_s))
        if cell.operation == "first"
        else cell
        for cell in timing.cells
    ]
    level = tabulate_like(steps, Table(dataclasses.replace(timing, cells=tuple(cells))), 1)
    return SingleCosts(steps, steps.verify_s[:, 2] - level.verify_s[:, 2])


def tabulate_like(costs: StepCosts, model: CostModel, batch: int) -> StepCosts:
    """A model's step costs at a batch size, over the contexts and widths of `costs`."""
    return tabulate(
        model,
        batch,
        max_context=(len(costs.prefill_s) - 1) * costs.bucket_tokens,
        width=costs.draft_s.shape[1],
        bucket_tokens=costs.bucket_tokens,
    )


def setting_seconds(setting: Setting, engine: Engine, trace: Trace, costs: SingleCosts) -> float:
    """Decode seconds of a whole trace, one request at a time, under a setting."""
    if engine.discards and setting.threshold > 0:
        return discarding_seconds(trace, costs, setting.gamma, setting.threshold)
    return float(replay(stand_in(setting), trace, costs.steps).elapsed_s.sum())


def discarding_seconds(trace: Trace, costs: SingleCosts, cap: int, p_min: float) -> float:
    """Decode seconds of a trace under llama.cpp's stop: draft up to `cap` tokens, and drop the
    first whose top-1 probability is below p_min together with the rest.

    The dropped token has cost its draft step and the reading of its signals, but is not verified
    (ggml-org/llama.cpp, common/speculative.cpp, since PR #22506). No policy can do that: what a
    policy drafts is verified.
    """
    rule = HFConfidence(cap, p_min)
    limits = check_inputs(rule, trace, costs.steps)
    prices = prices_of(charged(rule, costs.steps), signals=True)
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
            bucket = bucket_of(prices, prompt + at - begin)
            room = min(cap, room_at(limits, prompt, at - begin))
            sure = min(sure_from[at], room)
            drafted = min(sure + 1, room)
            seconds += round_seconds(prices, bucket, drafted, lag)
            if sure < drafted:
                verify_s = prices.verify_s[bucket]
                seconds += float(verify_s[sure + 1] - verify_s[drafted + 1])
                seconds += float(costs.first_s[bucket]) if sure == 0 else 0.0
            accepted = min(sure, runs[at])
            # The dropped token was never fed back, so a round that stopped leaves no lag.
            lag = lag_after(lag, drafted, accepted)
            at += accepted + 1
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

    A round of the batch costs what traces.costs.price_log says at that size: its draft steps and
    one verify, at the context of the request. costs: those at batch 1, whose extent is kept.
    """
    logs, table = fixed_logs(trace, costs, seed=0), Table(timing)
    seconds, idle = np.empty((len(sizes), len(logs))), np.empty(len(sizes))
    for row, size in enumerate(sizes):
        at_size = tabulate_like(costs, table, size)
        paid = [charged(Fixed(gamma), at_size) for gamma in range(len(logs))]
        seconds[row] = [
            price_log(log, own, signals=False).sum() for log, own in zip(logs, paid, strict=True)
        ]
        buckets = logs[0].context_tokens // at_size.bucket_tokens
        idle[row] = at_size.draft_s[np.minimum(buckets, len(at_size.draft_s) - 1), 1].sum()
    return Batches(tuple(sizes), seconds, idle, int(logs[0].emitted.sum()))


def best_ranges(sizes: Sequence[int], seconds: FloatArray, highest: int) -> tuple[Range, ...]:
    """The draft length with the fewest seconds for every batch size up to the largest measured.

    seconds [S, G+1] at the measured sizes; between them they are linear in the batch size, as
    traces.costs.Table interpolates. highest: the largest length allowed. Ties go to the shorter.
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
