"""Several replicas: one loop is simpy processes, and routers by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.counts.gammatune import GammaTune
from policies.fixed import Fixed
from simulator.serving.options import Server
from simulator.serving.server import serve
from tests.simulator.serving.small_servers import (
    COSTS,
    anything,
    by_hand,
    closed_loop,
    make_trace,
    open_loop,
    same,
    serve_some,
)
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate
from traces.workload.arrivals import demand
from traces.workload.workload import Workload

# --- several replicas: one loop is simpy processes

TIED = tabulate(Affine(target_fixed=0.1, draft_fixed=0.1), range(1, 5), width=9, bucket_tokens=16)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.long
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_one_loop_over_replicas_is_simpy_processes(compiled: bool, data: Any) -> None:
    """TIED: many iterations end together, up to the rounding of sums."""
    replicas = data.draw(st.integers(2, 4))
    policy, trace, wanted, server = anything(data, replicas=replicas)
    costs = data.draw(st.sampled_from([COSTS, TIED]))
    until_s = data.draw(st.sampled_from([math.inf, 0.0, 0.35]))
    loop, processes = (
        serve(
            policy, trace, wanted, costs, server, seed=1, until_s=until_s, log=True, events=events,
            compiled=compiled,
        )
        for events in (False, True)
    )  # fmt: skip
    assert same(loop, processes)


def test_the_plain_loop_is_simpy_processes() -> None:
    loop, processes = (
        serve_some(
            GammaTune(), replicas=3, router="shortest-queue", events=events,
            workload=Workload(24, "closed", users=9, think_s=0.03),
        )
        for events in (False, True)
    )  # fmt: skip
    assert same(loop, processes) and np.isfinite(loop.finish_s).all()


# --- routers


def test_round_robin_alternates() -> None:
    served = serve_some(Fixed(1), replicas=3)
    assert served.replica.tolist() == [q % 3 for q in range(12)]


@pytest.mark.parametrize("router", ["least-outstanding", "shortest-queue"])
def test_a_router_that_looks_beats_one_that_does_not(router: str) -> None:
    """One reply in twenty is a hundred times as long; four replicas at load 0.7; paired by seed."""
    trace = make_trace([[0] * 2, [0] * 200], [0, 0], depth=1, max_new_tokens=200)
    trace = dataclasses.replace(trace, category=("short", "long"))
    costs = tabulate(Affine(target_fixed=0.01), max_context=0, width=3)
    mean_s = 0.01 * (0.95 * 2 + 0.05 * 200)
    mix = Workload(
        800, "poisson", rate_per_s=4 * 0.7 / mean_s, weights=(("short", 19.0), ("long", 1.0))
    )
    gains = []
    for seed in range(6):
        wanted = demand(mix, trace.category, seed)
        blind, looking = (
            serve(Fixed(0), trace, wanted, costs, Server(slots=1, replicas=4, router=name))
            for name in ("round-robin", router)
        )
        for served in (blind, looking):
            assert np.isfinite(served.finish_s).all()
            assert set(served.replica.tolist()) == {0, 1, 2, 3}
        gains.append(float((blind.finish_s - looking.finish_s).mean()))
    assert np.mean(gains) > 4 * np.std(gains, ddof=1) / math.sqrt(len(gains))


def test_routers_by_hand() -> None:
    # One slot each, 100 s a token. 0 (5 tokens) and 1 (1 token) go to replicas 0 and 1; 2 comes at
    # 150, when replica 1 is idle.
    trace = make_trace([[0] * 5, [0], [0]], [0, 0, 0])
    for router, chosen, finish_s in (
        ("round-robin", 0, 600), ("least-outstanding", 1, 250), ("shortest-queue", 1, 250),
    ):  # fmt: skip
        served = by_hand(
            Fixed(0), trace, open_loop([0, 0, 150]), Affine(target_fixed=100), slots=1,
            replicas=2, router=router,
        )  # fmt: skip
        assert served.replica.tolist() == [0, 1, chosen]
        assert served.finish_s.tolist() == [500, 100, finish_s]


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize(("seed", "rate_per_s"), [(9, 5.0), (17, 200.0)])
def test_replicas_keep_exact_time(seed: int, rate_per_s: float, replicas: int) -> None:
    """With several replicas simpy adds env.now + (come_s - env.now),
    which need not be come_s, and the replica's clock follows env.now: one unit in the last place
    early, a request is admitted before it came; late, the run ends after its last reply.
    """
    trace = make_trace([[0] * 7] * 14, [5] * 14)
    workload = Workload(14, "poisson", rate_per_s=rate_per_s, order="recorded")
    model = Affine(draft_fixed=0.0013, target_fixed=0.0107)
    wanted = demand(workload, trace.category, seed)
    served = by_hand(Fixed(1), trace, wanted, model, slots=1, replicas=replicas)
    assert (served.admitted_s >= served.arrival_s).all()
    assert served.end_s == served.finish_s.max()


def test_users_of_a_routed_closed_loop_begin_together() -> None:
    """One replica with as many slots admits all of them at 0, so several should, too."""
    trace = make_trace([[0] * 5] * 4, [0] * 4)
    served = by_hand(
        Fixed(0), trace, closed_loop(4, 4), Affine(target_fixed=10), slots=2, replicas=2
    )
    assert served.replica.tolist() == [0, 1, 0, 1]
    assert served.admitted_s.tolist() == [0, 0, 0, 0]
    assert served.finish_s.tolist() == [50, 50, 50, 50]


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_user_who_does_not_think_meets_the_next_iteration(replicas: int) -> None:
    """The request is there before the next iteration begins."""
    # 0 ends at 10 and its user sends the last request at once, into a slot that is free; round
    # robin's next turn is replica 0's.
    lengths = [1, 5] if replicas == 1 else [1, 5, 5, 5]
    trace = make_trace([[0] * n for n in [*lengths, 2]], [0] * (len(lengths) + 1))
    wanted = closed_loop(len(lengths) + 1, len(lengths))
    served = by_hand(Fixed(0), trace, wanted, Affine(target_fixed=10), slots=2, replicas=replicas)
    assert served.replica[-1] == 0 and served.arrival_s[-1] == 10
    assert served.admitted_s[-1] == 10
