"""The serving simulator: what always holds, whatever is served."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.confidence.thresholds import TailPruning
from policies.counts.gammatune import GammaTune
from simulator.serving.draft_budget import ALLOTMENTS
from simulator.serving.queue import blocks_of
from simulator.serving.result import ServingResult
from simulator.serving.server import serve
from tests.simulator.serving.small_servers import (
    COSTS,
    EXAMPLES,
    BySlot,
    anything,
    by_hand,
    iterations,
    make_trace,
    open_loop,
    rounds_of,
)
from traces.costs.affine import Affine
from traces.schema import Trace
from traces.workload.arrivals import Demand

pytestmark = pytest.mark.long


class Case(NamedTuple):
    trace: Trace
    wanted: Demand
    served: ServingResult


def serve_anything(data: Any, **fixed: Any) -> Case:
    """A run of a random server under a random workload. One in eight is of gammatune, as plain
    Python but where test_compiled_is_plain compiles the same loop: three would be for this alone.
    """
    policies = (*(TailPruning(),) * 7, GammaTune())
    policy, trace, wanted, server = anything(data, policies, **fixed)
    gammatunes = server.replicas > 1 and not server.pipelined
    compiled = isinstance(policy, TailPruning) or gammatunes
    served = serve(policy, trace, wanted, COSTS, server, seed=1, log=True, compiled=compiled)
    return Case(trace, wanted, served)


@EXAMPLES
@given(data=st.data())
def test_nothing_is_lost(data: Any) -> None:
    trace, wanted, served = serve_anything(data)
    log, totals = rounds_of(served), served.totals
    assert served.tokens.tolist() == trace.reply_tokens[wanted.row].tolist()
    assert totals["emitted"] == int(served.tokens.sum()) == int(log.emitted.sum())
    assert 0 <= totals["accepted"] <= totals["verified"] <= totals["drafted"]
    assert totals["drafted"] == int(served.drafted.sum()) == int(log.drafted.sum())
    assert totals["accepted"] == int(served.accepted.sum()) == int(log.accepted.sum())
    assert totals["preemptions"] == int(served.preempted.sum())
    assert served.rounds.tolist() == np.bincount(log.request, minlength=14).tolist()
    assert int(served.gaps.sum()) == len(log) - 14
    assert int(served.bins.emitted.sum()) == totals["emitted"]
    assert served.bins.busy_s.sum(axis=1).tolist() == pytest.approx(served.busy_s.tolist())
    assert (log.accepted <= log.drafted).all() and (log.drafted <= log.gamma).all()
    assert (log.emitted <= log.accepted + 1).all()
    for q in range(14):
        mine = log.request == q
        context = served.prompt_tokens[q] + np.cumsum(log.emitted[mine]) - log.emitted[mine]
        assert log.context_tokens[mine].tolist() == context.tolist()


@EXAMPLES
@given(data=st.data())
def test_time_goes_forward(data: Any) -> None:
    _, wanted, served = serve_anything(data)
    known = np.isfinite(wanted.arrival_s)
    assert served.arrival_s[known].tolist() == wanted.arrival_s[known].tolist()
    assert (served.arrival_s <= served.admitted_s).all()
    assert (served.admitted_s < served.first_s).all()
    assert (served.first_s <= served.finish_s).all()
    assert served.end_s == served.finish_s.max()
    log = rounds_of(served)
    ends: dict[int, float] = {}
    for replica, rows in iterations(served):
        start_s, elapsed_s = log.start_s[rows[0]], log.elapsed_s[rows[0]]
        assert (log.elapsed_s[rows] == elapsed_s).all() and elapsed_s > 0.0
        assert start_s >= ends.get(replica, 0.0)
        ends[replica] = start_s + elapsed_s
        assert len(rows) == log.batch_size[rows[0]] <= served.server.slots
        assert len(set(log.slot[rows].tolist())) == len(rows)
    for q in range(14):
        mine = np.flatnonzero(log.request == q)
        assert served.first_s[q] == log.start_s[mine[0]] + log.elapsed_s[mine[0]]
        assert served.finish_s[q] == log.start_s[mine[-1]] + log.elapsed_s[mine[-1]]
        assert (log.slot[mine] // served.server.slots == served.replica[q]).all()


@EXAMPLES
@given(data=st.data())
def test_first_come_is_first_admitted(data: Any) -> None:
    served = serve_anything(data, order="first-come").served
    assert np.isfinite(served.finish_s).all()  # nobody starves
    for replica in range(served.server.replicas):
        mine = np.flatnonzero(served.replica == replica)
        order = mine[np.argsort(served.arrival_s[mine], kind="stable")]
        assert (np.diff(served.admitted_s[order]) >= 0.0).all()


def memory_is_kept(served: ServingResult) -> None:
    """Running rows hold gamma + 1 tokens more than their context, all in the replica's blocks."""
    log, server = rounds_of(served), served.server
    assert served.totals["peak_blocks"] <= server.blocks
    for _, rows in iterations(served):
        tokens = log.context_tokens[rows] + log.gamma[rows] + 1
        assert sum(blocks_of(int(t), server.block_tokens) for t in tokens) <= server.blocks


@EXAMPLES
@given(data=st.data())
def test_memory_is_kept(data: Any) -> None:
    names = [name for name in ALLOTMENTS if name not in ("mean", "longest")]
    memory_is_kept(
        serve_anything(data, tight=1, allotment=data.draw(st.sampled_from(names))).served
    )


@pytest.mark.parametrize("allotment", ["mean", "longest"])
def test_memory_is_kept_where_caps_rise(allotment: str) -> None:
    """The rows wish 0 and 3 at context 1. Their own wishes, 2 + 5 tokens, one per block, would fill
    7 blocks; what they get, the mean 2, takes 4 + 4, the longest 5 + 5.
    """
    trace = make_trace([[0] * 2, [0] * 2], [1, 1])
    served = by_hand(
        BySlot(30), trace, open_loop([0, 0]), Affine(), slots=2, allotment=allotment,
        block_tokens=1, blocks=7, max_gamma=3,
    )  # fmt: skip
    memory_is_kept(served)
