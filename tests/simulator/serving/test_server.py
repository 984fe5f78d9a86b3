"""The serving simulator: one slot is a replay, compiled is plain, common random numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from policies.bandits.exp3 import Exp3
from policies.base import Policy
from policies.confidence.thresholds import TailPruning
from policies.counts.gammatune import GammaTune, GammaTunePlus
from policies.fixed import Fixed
from policies.registry import REGISTRY
from simulator.replay.replay import replay_interpreted
from simulator.serving import server as server_module
from simulator.serving.costs import verify_seconds
from simulator.serving.draft_budget import ALLOTMENTS
from simulator.serving.options import ROUTERS, Server
from simulator.serving.server import serve
from tests.simulator.serving.small_servers import (
    MODEL,
    QUEUED,
    ByRound,
    closed_loop,
    mixed_trace,
    rounds_of,
    same,
    serve_some,
)
from tests.specimens import few_or_slow, random_costs, random_trace
from traces import synthetic
from traces.costs.pricing import tabulate
from traces.errors import InputError
from traces.schema import Trace
from traces.workload.arrivals import demand
from traces.workload.workload import Workload

# --- one slot is a replay


def small_trace() -> Trace:
    return synthetic.bursty(
        0.9, 0.4, np.random.default_rng(3), switch=0.2, requests=3, reply_tokens=20, depth=8,
        signals=True, prompt_tokens=25,
    )  # fmt: skip


@pytest.mark.parametrize("name", REGISTRY)
def test_one_slot_without_a_queue_is_a_replay(name: str) -> None:
    trace, policy = small_trace(), REGISTRY[name]()
    costs = tabulate(MODEL, bucket_tokens=32)
    alone = tabulate(MODEL, bucket_tokens=32)
    served = serve(
        policy, trace, closed_loop(3, 1), costs, Server(slots=1), seed=5, log=True, compiled=False
    )
    assert rounds_of(served).same_rounds(replay_interpreted(policy, trace, alone, seed=5))
    assert served.totals["emitted"] == 60


@pytest.mark.parametrize(
    "policy", few_or_slow([Fixed(3), GammaTune(), TailPruning()], [TailPruning()])
)
def test_one_slot_without_a_queue_is_a_replay_compiled(policy: Policy) -> None:
    trace = synthetic.bursty(
        0.95, 0.3, np.random.default_rng(4), requests=30, depth=16, signals=True
    )
    costs = tabulate(MODEL, bucket_tokens=32, width=34)
    alone = tabulate(MODEL, bucket_tokens=32)
    served = serve(policy, trace, closed_loop(30, 1), costs, Server(slots=1), seed=5, log=True)
    assert rounds_of(served).same_rounds(replay_interpreted(policy, trace, alone, seed=5))
    # All at once in front of one slot: the same rounds, for these policies ignore who waits.
    queued = serve(policy, trace, closed_loop(30, 30), costs, Server(slots=1), seed=5, log=True)
    assert rounds_of(queued).same_rounds(rounds_of(served))


def test_the_last_column_of_a_table_is_read_as_it_is() -> None:
    """Not base + 1.0 * (last - base), which need not be `last`; 18 is the width of depth 16."""
    for row in np.random.default_rng(0).exponential(1.0, (50, 18)):
        assert [verify_seconds(row, float(n)) for n in range(1, 18)] == row[1:].tolist()


@pytest.mark.parametrize("seed", range(12))
def test_any_costs_of_one_row_are_those_of_a_replay(seed: int) -> None:
    """Fails where the test above does: with tables no wider than gamma needs, or after rounds
    without a draft (lag).
    """
    generator = np.random.default_rng(seed)
    trace, alone = random_trace(generator, 4, 6), random_costs(generator, 6)
    for policy in (Fixed(6), GammaTunePlus(), ByRound(60000000000)):
        served = serve(
            policy, trace, closed_loop(4, 1), alone, Server(slots=1), log=True, compiled=False
        )
        assert rounds_of(served).same_rounds(replay_interpreted(policy, trace, alone))


APART = {"apart": True, "hop_s": 1e-3, "jitter_s": 5e-4, "token_hop_s": 1e-5}
SCENES: dict[str, tuple[dict[str, Any], Workload]] = {
    "padded": ({"padded": True}, QUEUED),
    "longest context": ({"longest": True}, QUEUED),
    "chunks": ({"chunk_tokens": 20}, QUEUED),
    "preemption": ({"blocks": 16, "block_tokens": 7}, QUEUED),
    "chunks and preemption": ({"blocks": 16, "block_tokens": 7, "chunk_tokens": 30}, QUEUED),
    "shortest prompt": ({"order": "shortest"}, QUEUED),
    "priority": (
        {"order": "priority"}, dataclasses.replace(QUEUED, priorities=(("c", 2),)),
    ),
    "apart": (APART, QUEUED),
    "pipelined": (APART | {"pipelined": True, "reentry_s": 2e-3}, QUEUED),
    "closed": ({}, Workload(12, "closed", users=5, think_s=0.02)),
    **{f"router {r}": ({"replicas": 2, "router": r, "slots": 2}, QUEUED) for r in ROUTERS},
    "routed, closed": (
        {"replicas": 2, "slots": 2}, Workload(12, "closed", users=5, think_s=0.02),
    ),
    **{
        f"allotment {a}": ({"allotment": a, "budget_tokens": 7}, QUEUED)
        for a in ALLOTMENTS if a != "each"
    },
}  # fmt: skip


# Loops of two policies are compiled for every kind of scene: the suite asks one of each kind.
ROUTED = [scene for scene, (changes, _) in SCENES.items() if "replicas" in changes]
ASKED = {(scene, "tail-pruning") for scene in SCENES if scene not in ROUTED}
ASKED.add((ROUTED[0], "gammatune"))


@pytest.mark.parametrize(
    ("scene", "policy"),
    [
        pytest.param(
            scene,
            policy,
            id=f"{scene}-{policy.name}",
            marks=() if (scene, policy.name) in ASKED else pytest.mark.slow,
        )
        for scene in SCENES
        for policy in (GammaTune(), TailPruning())
    ],
)
def test_compiled_is_plain(scene: str, policy: Policy) -> None:
    changes, workload = SCENES[scene]
    confident = ALLOTMENTS[changes.get("allotment", "each")] >= ALLOTMENTS["tetris"]
    if confident and not isinstance(policy, TailPruning):
        policy = Fixed(3)  # one class less to compile
    trace, server = mixed_trace(), Server(**({"slots": 3} | changes))
    wanted = demand(workload, trace.category, 2)
    costs = tabulate(MODEL, range(1, server.slots + 1), width=9, bucket_tokens=16)
    fast, slow = (
        serve(policy, trace, wanted, costs, server, seed=9, log=True, compiled=compiled)
        for compiled in (True, False)
    )
    assert same(fast, slow)
    assert np.isfinite(fast.finish_s).all()
    assert (fast.totals["preemptions"] > 0) == ("preemption" in scene)
    assert rounds_of(fast).batch_size.max() == server.slots


def test_two_policies_meet_the_same_requests() -> None:
    one, two = serve_some(Fixed(1)), serve_some(GammaTunePlus())
    assert one.arrival_s.tobytes() == two.arrival_s.tobytes() and not same(one, two)
    assert one.row.tobytes() == two.row.tobytes()


def test_the_seed_decides() -> None:
    first, again, other = (serve_some(Exp3(), seed=seed) for seed in (1, 1, 2))
    assert same(first, again) and not same(first, other)
    assert other.arrival_s.tobytes() == first.arrival_s.tobytes()
    shaken = [serve_some(Fixed(2), seed=seed, apart=True, jitter_s=1e-3) for seed in (1, 1, 2)]
    assert same(shaken[0], shaken[1]) and not same(shaken[0], shaken[2])


@pytest.mark.parametrize(
    ("policy", "changes"),
    [
        (GammaTune(), {"apart": True}),
        (GammaTune(), {"allotment": "budget", "budget_tokens": 1000}),
        (GammaTune(), {"max_gamma": 6}),
        (GammaTune(), {"router": "least-outstanding"}),
        (TailPruning(), {"allotment": "tetris", "budget_tokens": 1000}),
        *((Fixed(2), {"allotment": name}) for name in ("mean", "shortest", "longest")),
    ],
)
def test_neutral_settings_change_nothing(policy: Policy, changes: dict[str, Any]) -> None:
    # Signals above 0 everywhere, and room for any draft.
    trace = synthetic.constant(
        0.7, np.random.default_rng(0), requests=8, reply_tokens=12, depth=6, signals=True
    )
    trace = dataclasses.replace(trace, meta=dataclasses.replace(trace.meta, max_new_tokens=99))
    assert same(serve_some(policy, trace), serve_some(policy, trace, **changes))


def test_endless_memory_changes_only_its_own_books() -> None:
    without, plenty = serve_some(GammaTune()), serve_some(GammaTune(), blocks=1000)
    assert same(without, plenty, leave_out=("block_s", "peak_blocks"))
    assert 0 < plenty.totals["peak_blocks"] < 1000 and without.totals["peak_blocks"] == 0
    assert float(plenty.bins.block_s.sum()) > 0.0 == float(without.bins.block_s.sum())


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_log_changes_nothing(replicas: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = serve_some(GammaTune(), replicas=replicas)
    assert same(whole, serve_some(GammaTune(), replicas=replicas, log=False))
    monkeypatch.setattr(server_module, "LOG_ROWS", 4)  # it comes in many pieces
    assert same(whole, serve_some(GammaTune(), replicas=replicas))


@pytest.mark.parametrize("replicas", [1, 2])
def test_until_cuts_off(replicas: int) -> None:
    whole = serve_some(GammaTune(), replicas=replicas)
    until_s = float(np.sort(whole.finish_s)[6])
    part = serve_some(GammaTune(), replicas=replicas, until=until_s)
    ended = np.isfinite(part.finish_s)
    assert 5 < ended.sum() < 12
    assert part.finish_s[ended].tobytes() == whole.finish_s[ended].tobytes()
    before, log = rounds_of(whole), rounds_of(part)
    begun = before.start_s < until_s
    assert log.start_s.tobytes() == before.start_s[begun].tobytes()
    assert (part.tokens[ended] == whole.tokens[ended]).all() and not same(whole, part)
    assert (part.tokens[~ended] < whole.tokens[~ended]).all()
    nothing = serve_some(GammaTune(), replicas=replicas, until=0.0)
    assert not np.isfinite(nothing.admitted_s).any() and len(rounds_of(nothing)) == 0


def test_only_a_model_drafts_ahead() -> None:
    trace = synthetic.constant(0.5, np.random.default_rng(0), requests=2, reply_tokens=8)
    meta = dataclasses.replace(trace.meta, drafter="lookup")
    looked_up = dataclasses.replace(trace, meta=meta, draft_len=trace.accept_len)
    server = Server(slots=1, apart=True, pipelined=True)
    costs = random_costs(np.random.default_rng(1), trace.meta.depth)
    with pytest.raises(InputError, match="only a model drafts ahead"):
        serve(Fixed(3), looked_up, closed_loop(2, 1), costs, server)
