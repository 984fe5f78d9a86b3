"""Replay a trace under a policy, one request after another: what the controller would have cost.

`replay` compiles the policy's own hooks, `replay_interpreted` runs them as plain Python. Both play
the same loop (simulator.replay.rounds.play) and return the same log, bit for bit.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from policies.base import Policy, State, drops_tokens, uses_signals
from policies.overhead import charged
from policies.registry import label
from policies.round import Limits
from simulator.replay import rounds
from simulator.replay.kernels import run_policy
from simulator.replay.rounds import Recorder, Tape, write_row
from traces.costs.pricing import StepCosts, read_only
from traces.errors import InputError
from traces.roundlog import ROUND, RoundLog, log_of
from traces.schema import Trace
from traces.shapes.menu import with_trees
from traces.shapes.shape import parse_draft

Play = Callable[..., int]


def replay(
    policy: Policy,
    trace: Trace,
    costs: StepCosts,
    *,
    seed: int = 0,
    max_gamma: int | None = None,
    believed: StepCosts | None = None,
) -> RoundLog:
    """The rounds of `policy` on `trace` at these costs, compiled.

    costs: tabulated at batch 1, wider than max_gamma + 1. max_gamma: the most tokens a round may
    draft (default and upper bound: the trace's depth). seed: key of the hooks' randomness.
    believed: the step costs that the policy is shown and that price its rounds (View, priced_s),
    where they are not those that it is clocked and paid by (elapsed_s, the log).

    Raises InputError if the trace or the costs do not fit. `prefill_s` and `start_s` are simulated
    too.
    """
    limits = check_inputs(policy, trace, costs, max_gamma, believed)
    return run(policy, run_policy, policy.new_state(1), trace, costs, limits, seed, believed)


def replay_interpreted(
    policy: Policy,
    trace: Trace,
    costs: StepCosts,
    *,
    seed: int = 0,
    max_gamma: int | None = None,
    believed: StepCosts | None = None,
) -> RoundLog:
    """`replay` as plain Python: the slow reference, and the way to debug a policy."""
    limits = check_inputs(policy, trace, costs, max_gamma, believed)
    return run(policy, run_interpreted, policy.new_state(1), trace, costs, limits, seed, believed)


def run_interpreted(policy: Policy, recorder: Recorder, *arguments: Any) -> int:
    """`simulator.replay.kernels.run_policy` as plain Python."""
    names = vars(rounds) | rounds.bindings(type(policy), recorder)
    play: Play = types.FunctionType(rounds.play.__code__, names)
    return play(policy, *arguments)


def check_inputs(
    policy: Policy,
    trace: Trace,
    costs: StepCosts,
    max_gamma: int | None = None,
    believed: StepCosts | None = None,
    entries: int = 1,
) -> Limits:
    """The limits of a replay; raises InputError if policy, trace and costs do not fit. entries: of
    a menu, each with a row of the costs.
    """
    cap = trace.meta.depth if max_gamma is None else max_gamma
    if not 0 <= cap <= trace.meta.depth:
        raise InputError(f"max_gamma is {cap}; this trace can replay 0..{trace.meta.depth}")
    if uses_signals(policy) and not trace.has_signals:
        raise InputError(
            f"policy {label(policy)!r} reads the draft's signals, but the trace has no top1_prob "
            "and entropy; capture it again, or choose a per-round policy"
        )
    if trace.meta.shape and drops_tokens(type(policy)):
        raise InputError(
            f"policy {label(policy)!r} drops drafted tokens; a recording under a tree has levels"
        )
    if costs.draft_s.shape[0] != entries or costs.sizes not in ([], [1] * entries):
        raise InputError(f"a replay is one request at a time; the costs are at batch {costs.sizes}")
    if costs.width < cap + 2:
        raise InputError(
            f"the costs cover steps of up to {costs.width - 1} tokens, a round of gamma {cap} "
            f"needs {cap + 1}: tabulate them with width={cap + 2} or lower max_gamma"
        )
    if believed is not None and layout(believed) != layout(costs):
        raise InputError(
            "the believed costs are not laid out as the costs; tabulate both with one batch, "
            "max_context, width and bucket_tokens"
        )
    return Limits(cap, trace.meta.max_new_tokens, trace.meta.max_context)


def layout(costs: StepCosts) -> tuple[Any, ...]:
    """The layout that two tables must share for a row of one to be that row of the other."""
    return costs.bucket_tokens, costs.draft_s.shape


def run(
    policy: Policy,
    play: Play,
    state: State,
    trace: Trace,
    costs: StepCosts,
    limits: Limits,
    seed: int,
    believed: StepCosts | None = None,
) -> RoundLog:
    """Play the trace, compiled or not, and return its log."""
    tape, paid = tape_of(trace, uses_signals(policy)), charged(policy, costs)
    shown = paid if believed is None else charged(policy, believed)
    rows = np.zeros(trace.positions, dtype=ROUND).view(np.recarray)
    count = play(policy, write_row, state, tape, paid, shown, limits, low_bits(seed), rows)
    log = finished(rows[:count], policy, trace, costs, limits, seed)
    if not trace.meta.shape:
        return log
    return with_trees(log, [parse_draft(trace.meta.shape)], np.zeros(count, dtype=np.int64))


def finished(
    rows: npt.NDArray[np.void],
    policy: Policy,
    trace: Trace,
    costs: StepCosts,
    limits: Limits,
    seed: int,
) -> RoundLog:
    """The log of these rounds, and what they were replayed from."""
    buckets = np.minimum(trace.prompt_tokens // costs.bucket_tokens, costs.buckets - 1)
    return log_of(
        rows,
        costs.prefill_s[buckets].astype(np.float64),
        {
            "policy": label(policy),
            "clock": "simulated",
            "seed": seed,
            "max_gamma": limits.max_gamma,
            "pair": trace.meta.pair,
        },
    )


def low_bits(seed: int) -> int:
    """The bits of a seed that enter the key of a round: so masked, any Python integer will do."""
    return seed & 0xFFFFFFFF


def tape_of(trace: Trace, signals: bool) -> Tape:
    """The arrays of a trace that a compiled replay reads. signals: the draft's, too."""
    empty = np.zeros((0, 0), dtype=np.float32)
    return Tape(
        read_only(trace.offsets, np.int64),
        read_only(trace.prompt_tokens, np.int32),
        read_only(trace.accept_len, np.int16),
        read_only(trace.offered, np.int16),
        read_only(trace.top1_prob if signals else empty, np.float32),
        read_only(trace.entropy if signals else empty, np.float32),
        read_only(np.array([trace.meta.depth]), np.int64),
    )
