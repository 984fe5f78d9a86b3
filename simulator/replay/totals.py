"""Replays that keep only sums, for sweeps: seconds by request, or steps that any cost can price.

Both play the loop of simulator.replay.rounds, compiled, with a recorder of their own. Letters: R
requests; C context buckets and W = widest step + 1 of the cost tables; M models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from policies.base import (
    FloatArray,
    IntArray,
    Outcome,
    Policy,
    reads_seconds,
    uses_signals,
)
from policies.overhead import charged
from policies.registry import label
from policies.round import Limits
from simulator.replay.kernels import run_policy
from simulator.replay.replay import check_inputs, low_bits, tape_of
from simulator.replay.rounds import Place
from traces.costs.pricing import StepCosts
from traces.errors import InputError
from traces.schema import Trace

DRAFT, VERIFY, START = range(3)  # planes of StepCounts.counts


class Tally(NamedTuple):
    """Sums over the rounds of each request, all [R]: decode_s, seconds of the rounds; rounds,
    drafted, accepted int64. Emitted are trace.reply_tokens. Bit for bit what
    simulator.replay.metrics.per_request finds in the log of `replay`: both add in the order of the
    rounds.
    """

    decode_s: FloatArray
    rounds: IntArray
    drafted: IntArray
    accepted: IntArray


def add_up(sink: Tally, place: Place, outcome: Outcome) -> None:
    """Recorder of sums."""
    sink.decode_s[place.request] += outcome.elapsed_s
    sink.rounds[place.request] += 1
    sink.drafted[place.request] += place.drafted
    sink.accepted[place.request] += outcome.accepted


def tally(
    policy: Policy,
    trace: Trace,
    costs: StepCosts,
    *,
    seed: int = 0,
    max_gamma: int | None = None,
    believed: StepCosts | None = None,
) -> Tally:
    """The sums of `simulator.replay.replay.replay` with these arguments, and its errors."""
    return tally_many([policy], trace, costs, seed=seed, max_gamma=max_gamma, believed=believed)[0]


def tally_many(
    policies: Sequence[Policy],
    trace: Trace,
    costs: StepCosts,
    *,
    seed: int = 0,
    max_gamma: int | None = None,
    believed: StepCosts | None = None,
    threads: int = 1,
) -> list[Tally]:
    """The tally of every policy, in their order, whatever the number of threads."""
    limits = [check_inputs(policy, trace, costs, max_gamma, believed) for policy in policies]
    tapes = {signals: tape_of(trace, signals) for signals in set(map(uses_signals, policies))}

    def play(policy: Policy, bounds: Limits) -> Tally:
        whole = (np.zeros(trace.requests, dtype=np.int64) for _ in range(3))
        sink = Tally(np.zeros(trace.requests), *whole)
        tape, paid = tapes[uses_signals(policy)], charged(policy, costs)
        shown, state = paid if believed is None else charged(policy, believed), policy.new_state(1)
        run_policy(policy, add_up, state, tape, paid, shown, bounds, low_bits(seed), sink)
        return sink

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(play, policies, limits))


@dataclasses.dataclass(frozen=True, eq=False)
class StepCounts:
    """How often which step ran, laid out as the tables of StepCosts.

    counts [3, C, W] int64: [DRAFT, c, n] forwards of the draft that read n tokens, one per drafted
    token; [VERIFY, c, n] target steps over n tokens, one per round; [START, c, 0] drafts of which
    nothing was verified.
    policy: whose rounds they are; it decides what is charged on top.
    """

    counts: IntArray
    bucket_tokens: int
    policy: Policy


def add_steps(sink: IntArray, place: Place, outcome: Outcome) -> None:
    """Recorder of the steps that traces.costs.pricing charges for a round."""
    sink[VERIFY, place.bucket, outcome.drafted + 1] += 1
    if place.drafted > 0:
        sink[DRAFT, place.bucket, min(place.lag, sink.shape[2] - 1)] += 1
        sink[DRAFT, place.bucket, 1] += place.drafted - 1
        if outcome.drafted == 0:
            sink[START, place.bucket, 0] += 1


def count_steps(
    policy: Policy, trace: Trace, costs: StepCosts, *, seed: int = 0, max_gamma: int | None = None
) -> StepCounts:
    """The steps of a replay at any costs; of these costs only the layout of the tables matters.

    Raises InputError for a policy that reads seconds: at other costs it might decide otherwise.
    """
    if reads_seconds(policy):
        raise InputError(
            f"policy {label(policy)!r} reads seconds, so that its rounds hang on the costs: replay "
            "it at each of them"
        )
    limits, paid = check_inputs(policy, trace, costs, max_gamma), charged(policy, costs)
    counts = np.zeros((3, costs.buckets, costs.width), dtype=np.int64)
    tape, state = tape_of(trace, uses_signals(policy)), policy.new_state(1)
    run_policy(policy, add_steps, state, tape, paid, paid, limits, low_bits(seed), counts)
    return StepCounts(counts, costs.bucket_tokens, policy)


def price_steps(steps: StepCounts, models: Sequence[StepCosts]) -> FloatArray:
    """[M] decode seconds of all rounds at the costs of each model: those of its replay up to
    rounding, by one matrix product.

    Raises InputError unless the models' tables are laid out as those that the steps were counted
    in.
    """
    used = np.flatnonzero(steps.counts)
    seconds = np.empty((len(models), used.size))
    for row, costs in enumerate(models):
        if (costs.bucket_tokens, (costs.buckets, costs.width)) != (
            steps.bucket_tokens,
            steps.counts.shape[1:],
        ):
            raise InputError(
                f"the tables of cost model {row} are not laid out as those that the steps were "
                "counted in; tabulate both with one max_context, width and bucket_tokens"
            )
        paid = charged(steps.policy, costs)
        starts = np.zeros_like(paid.verify_s[0])
        if paid.start_s is not None:
            starts[:, 0] = paid.start_s[0]
        planes = [paid.draft_s[0] + paid.signal_s, paid.verify_s[0], starts]
        seconds[row] = np.stack(planes).ravel()[used]
    return seconds @ steps.counts.ravel()[used]
