"""Replay a recording under a policy that chooses among draft trees, round by round."""

from __future__ import annotations

import numpy as np

from policies.base import Policy, uses_signals
from policies.overhead import charged
from simulator.replay.kernels import run_policy
from simulator.replay.replay import (
    Play,
    check_inputs,
    finished,
    low_bits,
    run,
    run_interpreted,
    tape_of,
)
from simulator.replay.rounds import MenuSink, Tape, write_entry
from traces.costs.pricing import StepCosts, read_only
from traces.errors import InputError
from traces.roundlog import ROUND, RoundLog
from traces.shapes.menu import Menu, with_trees


def replay_menu(policy: Policy, menu: Menu, costs: StepCosts, *, seed: int = 0) -> RoundLog:
    """The rounds of `policy`, whose hook `shape` chooses the entry of each, compiled; with `nodes`
    and `shape`. A policy without one drafts the first entry.

    costs: of traces.costs.of_trace.prices_of_menu. Raises InputError if menu or costs do not fit.
    """
    return _run(policy, run_policy, menu, costs, seed)


def replay_menu_interpreted(
    policy: Policy, menu: Menu, costs: StepCosts, *, seed: int = 0
) -> RoundLog:
    """`replay_menu` as plain Python."""
    return _run(policy, run_interpreted, menu, costs, seed)


def _run(policy: Policy, play: Play, menu: Menu, costs: StepCosts, seed: int) -> RoundLog:
    deepest = menu.traces[int(menu.levels.argmax())]
    limits = check_inputs(policy, deepest, costs, entries=len(menu.traces))
    if uses_signals(policy) and not all(trace.has_signals for trace in menu.traces):
        raise InputError("the policy reads the draft's signals, which an entry of the menu lacks")
    if len(menu.traces) == 1:  # nothing to choose, so nobody is asked
        return run(policy, play, policy.new_state(1), deepest, costs, limits, seed)
    paid, rows = charged(policy, costs), np.zeros(deepest.positions, dtype=ROUND).view(np.recarray)
    sink = MenuSink(rows, np.zeros(deepest.positions, dtype=np.int64))
    tape, state = tape_of_menu(menu, uses_signals(policy)), policy.new_state(1)
    count = play(policy, write_entry, state, tape, paid, paid, limits, low_bits(seed), sink)
    log = finished(rows[:count], policy, deepest, costs, limits, seed)
    return with_trees(log, menu.shapes, sink.entries[:count])


def tape_of_menu(menu: Menu, signals: bool) -> Tape:
    """The arrays that a compiled replay reads, the entries' one behind the other."""
    tapes = [tape_of(trace, signals) for trace in menu.traces]
    depth = int(menu.levels.max())
    offered = [
        np.minimum(tape.draft_len, levels) for tape, levels in zip(tapes, menu.levels, strict=True)
    ]
    wide = [
        [np.pad(table, ((0, 0), (0, depth - table.shape[1]))) for table in pair]
        for pair in ([tape.top1_prob, tape.entropy] for tape in tapes)
    ]
    top1, entropy = zip(*wide, strict=True) if signals else ([t.top1_prob for t in tapes],) * 2
    return tapes[0]._replace(
        accept_len=read_only(np.concatenate([tape.accept_len for tape in tapes]), np.int16),
        draft_len=read_only(np.concatenate(offered), np.int16),
        top1_prob=read_only(np.concatenate(top1), np.float32),
        entropy=read_only(np.concatenate(entropy), np.float32),
        levels=read_only(menu.levels, np.int64),
    )
