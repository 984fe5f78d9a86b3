"""The serving simulator: one slot is a replay, compiled is plain, batches by hand, what always
holds, common random numbers, routers, errors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.bandits.exp3 import Exp3
from policies.base import Policy, State, View
from policies.confidence.thresholds import TailPruning
from policies.counts.gammatune import GammaTune, GammaTunePlus
from policies.fixed import Fixed
from policies.randomness import Rng
from policies.registry import SHELF
from simulator.costs import Affine
from simulator.replay.replay import replay_interpreted
from simulator.serving import server as server_module
from simulator.serving.costs import BatchCosts, tabulate_batches, verify_seconds
from simulator.serving.draft_budget import ALLOTMENTS
from simulator.serving.options import ROUTERS, Server
from simulator.serving.queue import blocks_of
from simulator.serving.result import Served
from simulator.serving.server import serve
from tests.specimens import random_costs, random_trace
from traces import synthetic
from traces.costs import tabulate
from traces.errors import InputError
from traces.schema import Trace, TraceMeta
from traces.workload.arrivals import Demand, demand
from traces.workload.workload import Workload


class Digits(NamedTuple):
    """rounds [slots]: rounds so far."""

    rounds: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class BySlot(Policy):
    """Slot k drafts digit k of `script`, lowest first (never compiled here)."""

    script: int = 0

    name = "by-slot"

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        return int(self.script // 10**slot) % 10


@dataclasses.dataclass(frozen=True)
class ByRound(Policy):
    """Round k of a request drafts digit k of `script`, lowest first (never compiled here)."""

    script: int = 0

    name = "by-round"

    def new_state(self, slots: int) -> State:
        return Digits(np.zeros(slots, dtype=np.int64))

    def admit(self, state: Digits, slot: int) -> None:
        state.rounds[slot] = 0

    def gamma(self, state: Digits, slot: int, view: View, rng: Rng) -> int:
        state.rounds[slot] += 1
        return int(self.script // 10 ** (int(state.rounds[slot]) - 1)) % 10


def make_trace(accept_len: Sequence[Sequence[int]], prompts: list[int], **meta: Any) -> Trace:
    """A trace of these replies, four tokens deep, without signals."""
    lengths = [len(reply) for reply in accept_len]
    described = {"depth": 4, "max_new_tokens": 100} | meta
    return Trace(
        meta=TraceMeta("p", "t", "d", "", "none", "none", "synthetic", **described),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompt_tokens=np.asarray(prompts, dtype=np.int32),
        request_id=tuple(f"r{r}" for r in range(len(lengths))),
        category=("c",) * len(lengths),
        accept_len=np.concatenate([np.asarray(reply) for reply in accept_len]).astype(np.int16),
    )


def open_loop(arrival_s: Sequence[float] | npt.NDArray[np.float64]) -> Demand:
    """Request q is row q of the trace."""
    count = len(arrival_s)
    zeros = np.zeros(count, dtype=np.int32)
    rows = np.arange(count, dtype=np.int32)
    return Demand(rows, np.asarray(arrival_s, dtype=np.float64), np.zeros(count), zeros, 0)


def closed_loop(requests: int, users: int, think_s: float = 0.0) -> Demand:
    workload = Workload(
        requests, "closed", users=users, think_s=think_s, think="fixed", order="recorded"
    )
    return demand(workload, ("c",) * requests, 0)


def by_hand(policy: Policy, trace: Trace, wanted: Demand, model: Affine, **server: Any) -> Served:
    """Served as plain Python with a log, context priced to the token."""
    settings = Server(**server)
    costs = tabulate_batches(model, settings.slots, max_context=64, width=6, bucket_tokens=1)
    return serve(policy, trace, wanted, costs, settings, log=True, compiled=False)


def rounds_of(served: Served) -> Any:
    assert served.round_log is not None
    return served.round_log


def same(one: Served, two: Served, leave_out: tuple[str, ...] = ()) -> bool:
    """Every number, bit for bit."""
    for field in dataclasses.fields(Served):
        first, second = getattr(one, field.name), getattr(two, field.name)
        if isinstance(first, np.ndarray):
            for name in first.dtype.names or [""]:
                a, b = (first[name], second[name]) if name else (first, second)
                if name not in leave_out and a.tobytes() != b.tobytes():
                    return False
    logs = (one.round_log, two.round_log)
    if logs[0] is not None and logs[1] is not None and not logs[0].same_rounds(logs[1]):
        return False
    totals = [{k: v for k, v in s.totals.items() if k not in leave_out} for s in (one, two)]
    return one.end_s == two.end_s and totals[0] == totals[1]


# --- one slot is a replay


def small_trace() -> Trace:
    return synthetic.bursty(
        0.9, 0.4, np.random.default_rng(3), switch=0.2, requests=3, reply_tokens=20, depth=8,
        signals=True, prompt_tokens=25,
    )  # fmt: skip


MODEL = Affine(
    draft_fixed=1.3e-3, target_fixed=10.7e-3, draft_token=1.1e-4, target_token=3.3e-4,
    prefill_fixed=5e-3, prefill_token=1.7e-5, row=2.1e-4, context_token=1.3e-6, signal=1.9e-4,
    control=4.1e-4,
)  # fmt: skip


@pytest.mark.parametrize("name", SHELF)
def test_one_slot_without_a_queue_is_a_replay(name: str) -> None:
    trace, policy = small_trace(), SHELF[name]()
    costs = tabulate_batches(MODEL, 1, bucket_tokens=32)
    alone = tabulate(MODEL, 1, bucket_tokens=32)
    served = serve(
        policy, trace, closed_loop(3, 1), costs, Server(slots=1), seed=5, log=True, compiled=False
    )
    assert rounds_of(served).same_rounds(replay_interpreted(policy, trace, alone, seed=5))
    assert served.totals["emitted"] == 60


@pytest.mark.parametrize("policy", [Fixed(3), GammaTune(), TailPruning()])
def test_one_slot_without_a_queue_is_a_replay_compiled(policy: Policy) -> None:
    trace = synthetic.bursty(
        0.95, 0.3, np.random.default_rng(4), requests=30, depth=16, signals=True
    )
    costs = tabulate_batches(MODEL, 1, bucket_tokens=32, width=34)
    alone = tabulate(MODEL, 1, bucket_tokens=32)
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
    costs = BatchCosts(
        alone.prefill_s, alone.draft_s[None], alone.verify_s[None], alone.signal_s,
        alone.bucket_tokens,
    )  # fmt: skip
    for policy in (Fixed(6), GammaTunePlus(), ByRound(60000000000)):
        served = serve(
            policy, trace, closed_loop(4, 1), costs, Server(slots=1), log=True, compiled=False
        )
        assert rounds_of(served).same_rounds(replay_interpreted(policy, trace, alone))


# --- compiled is plain

QUEUED = Workload(12, "poisson", rate_per_s=60.0)
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


def mixed_trace(seed: int = 1, requests: int = 8, depth: int = 6) -> Trace:
    return random_trace(np.random.default_rng(seed), requests, depth)


@pytest.mark.parametrize("policy", [GammaTune(), TailPruning()], ids=lambda p: p.name)
@pytest.mark.parametrize("scene", SCENES)
def test_compiled_is_plain(scene: str, policy: Policy) -> None:
    changes, workload = SCENES[scene]
    confident = ALLOTMENTS[changes.get("allotment", "each")] >= ALLOTMENTS["tetris"]
    if confident and not isinstance(policy, TailPruning):
        policy = Fixed(3)  # one class less to compile
    trace, server = mixed_trace(), Server(**({"slots": 3} | changes))
    wanted = demand(workload, trace.category, 2)
    costs = tabulate_batches(MODEL, server.slots, width=9, bucket_tokens=16)
    fast, slow = (
        serve(policy, trace, wanted, costs, server, seed=9, log=True, compiled=compiled)
        for compiled in (True, False)
    )
    assert same(fast, slow)
    assert np.isfinite(fast.finish_s).all()
    assert (fast.totals["preemptions"] > 0) == ("preemption" in scene)
    assert rounds_of(fast).batch_size.max() == server.slots


# --- what always holds

SERVERS = st.fixed_dictionaries(
    {
        "slots": st.integers(1, 4),
        "order": st.sampled_from(["first-come", "shortest", "priority"]),
        "block_tokens": st.integers(1, 20),
        "chunk_tokens": st.sampled_from([0, 1, 9, 64]),
        "padded": st.booleans(),
        "longest": st.booleans(),
        "allotment": st.sampled_from(list(ALLOTMENTS)),
        "budget_tokens": st.integers(4, 12),
        "apart": st.just(True),
        "jitter_s": st.sampled_from([0.0, 1e-3]),
        "pipelined": st.booleans(),
        "replicas": st.integers(1, 3),
        "router": st.sampled_from(ROUTERS),
    }
)
WORKLOADS = st.sampled_from(
    [
        Workload(14, "poisson", rate_per_s=5.0),
        Workload(14, "poisson", rate_per_s=200.0),
        Workload(14, "closed", users=3, think_s=0.03),
        Workload(14, "closed", users=14),
        Workload(14, "recorded", arrival_s=(0.0,) * 7 + (0.1,) * 7),
    ]
)
COSTS = tabulate_batches(MODEL, 4, width=9, bucket_tokens=16)


def fewest_blocks(trace: Trace, depth: int, block_tokens: int) -> int:
    longest = int((trace.prompt_tokens + trace.reply_tokens).max())
    return blocks_of(longest + depth + 1, block_tokens)


class Case(NamedTuple):
    trace: Trace
    wanted: Demand
    served: Served


def serve_anything(data: Any, **fixed: Any) -> Case:
    """A run of a random server under a random workload, compiled."""
    policy, trace, wanted, server = anything(data, **fixed)
    return Case(trace, wanted, serve(policy, trace, wanted, COSTS, server, seed=1, log=True))


def anything(data: Any, **fixed: Any) -> tuple[Policy, Trace, Demand, Server]:
    """A random server, a random workload, and a policy that fits them."""
    chosen = data.draw(SERVERS) | fixed
    trace = mixed_trace(data.draw(st.integers(0, 50)))
    confident = ALLOTMENTS[chosen["allotment"]] >= ALLOTMENTS["tetris"]
    policy = data.draw(
        st.sampled_from([TailPruning(), Fixed(3)] + ([] if confident else [GammaTune()]))
    )
    chosen["pipelined"] = chosen["pipelined"] and not confident
    if data.draw(st.booleans()) or "tight" in chosen:
        spare, drafts = data.draw(st.integers(0, 8)), 2 if chosen["pipelined"] else 1
        chosen["blocks"] = fewest_blocks(trace, drafts * 6, chosen["block_tokens"]) + spare
    chosen.pop("tight", None)
    wanted = demand(data.draw(WORKLOADS), trace.category, data.draw(st.integers(0, 9)))
    return policy, trace, wanted, Server(**chosen)


def iterations(served: Served) -> list[tuple[int, npt.NDArray[np.intp]]]:
    """Replica and rows of the log of each iteration, by replica and time."""
    log = rounds_of(served)
    replica = log.slot // served.server.slots
    order = np.lexsort((log.start_s, replica))
    key = np.stack([replica[order], log.start_s[order]])
    cuts = np.flatnonzero((np.diff(key) != 0).any(axis=0)) + 1
    return [(int(replica[rows[0]]), rows) for rows in np.split(order, cuts)]


EXAMPLES = settings(max_examples=150, deadline=None)


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


def memory_is_kept(served: Served) -> None:
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


# --- by hand: one iteration of a batch
#
# A draft step of b rows that read t tokens each costs 1 + 0.5 (t - 1) + 2 (b - 1), a target step
# 100 + 10 (t - 1) + 2 (b - 1); t may be a mean.

HAND = Affine(draft_fixed=1, draft_token=0.5, target_fixed=100, target_token=10, row=2)


@pytest.mark.parametrize(
    ("padded", "seconds"), [(False, [128, 114, 111, 100]), (True, [128, 124, 111, 100])]
)
def test_a_row_without_room_by_hand(padded: bool, seconds: list[float]) -> None:
    # Two replies of 4 tokens, the most there may be; fixed gamma 2.
    #  1: both draft 2: 2 (1 + 2), verify 3 per row 100 + 20 + 2: 128. A accepts 2, emits 3; B 1.
    #  2: A has room for 0, B drafts 2 alone: 1 + 1; 4 tokens in 2 rows, 2 per row: 112; 114.
    #     Padded: both as wide as B, 3 per row: 122; 124. A ends; B emits 1.
    #  3: B has room for 1: 1 + 110 = 111.   4: room for 0: 100.
    trace = make_trace([[2, 1, 1, 0], [0, 0, 0, 0]], [3, 3], max_new_tokens=4)
    served = by_hand(Fixed(2), trace, open_loop([0, 0]), HAND, slots=2, padded=padded)
    log = rounds_of(served)
    assert log.request.tolist() == [0, 1, 0, 1, 1, 1]
    assert log.batch_size.tolist() == [2, 2, 2, 2, 1, 1]
    assert log.gamma.tolist() == log.drafted.tolist() == [2, 2, 0, 2, 1, 0]
    assert log.accepted.tolist() == [2, 0, 0, 0, 0, 0]
    assert log.emitted.tolist() == [3, 1, 1, 1, 1, 1]
    assert log.elapsed_s.tolist() == np.repeat(seconds, [2, 2, 1, 1]).tolist()
    ends = np.cumsum(seconds)
    assert served.first_s.tolist() == [128, 128]
    assert served.finish_s.tolist() == [ends[1], ends[3]]
    assert served.longest_s.tolist() == [seconds[1], max(seconds[1:])]
    assert served.busy_s.tolist() == [ends[3]] and served.end_s == ends[3]


@pytest.mark.parametrize(
    ("script", "padded", "expected"),
    [
        # 3 and 1: steps of 2, 1, 1 rows: 3 + 1 + 1; 6 tokens in 2 rows: 122; padded 4 each: 132.
        (13, False, 5 + 122), (13, True, 5 + 132),
        (31, False, 5 + 122),  # the same, the other way round
        # 4, 2 and 1: 3, 2, 1, 1 rows: 5 + 3 + 1 + 1; 10 tokens in 3 rows: 104 + 10 * 7 / 3.
        (124, False, 10 + 104 + 70 / 3), (124, True, 10 + 104 + 40),
        (0, False, 102), (0, True, 102),
    ],
)  # fmt: skip
def test_lock_step_by_hand(script: int, padded: bool, expected: float) -> None:
    rows = 3 if script > 99 else 2
    trace = make_trace([[0]] * rows, [3] * rows)
    served = by_hand(BySlot(script), trace, open_loop([0] * rows), HAND, slots=rows, padded=padded)
    assert served.finish_s.tolist() == pytest.approx([expected] * rows, rel=1e-12)


def test_the_first_step_reads_what_the_caches_lack() -> None:
    # A accepts both drafts and lags by 2 tokens, B by 1: the first step reads 1.5 per row, 3.25
    # seconds; then 3, and 122 for the target. Then both lag by 1.
    trace = make_trace([[2, 1, 0, 0, 0], [0, 0, 0]], [3, 3])
    served = by_hand(Fixed(2), trace, open_loop([0, 0]), HAND, slots=2)
    assert rounds_of(served).elapsed_s[::2].tolist() == [128, 128.25, 128]


def test_steps_at_the_mean_or_the_longest_context() -> None:
    # Contexts 4 and 9, one second per context token (tabulated half a token on), both steps:
    # mean 6 (of 6.5): 2 * 6.5; longest 9: 2 * 9.5.
    model = Affine(draft_fixed=0, target_fixed=0, context_token=1)
    trace = make_trace([[0], [0]], [4, 9])
    for longest, seconds in ((False, 13.0), (True, 19.0)):
        served = by_hand(Fixed(1), trace, open_loop([0, 0]), model, slots=2, longest=longest)
        assert served.end_s == seconds


# --- by hand: queues, memory, chunks


def test_a_queue_by_hand() -> None:
    # One slot, prompts 50, tokens 100 each, two tokens per reply: 250 per request.
    #  0 comes at 0: prompt until 50, tokens at 150, 250. 1 comes at 10, waits until 250: 400, 500.
    #  2 comes at 600: 750, 850.
    trace = make_trace([[0, 0]] * 3, [3] * 3)
    model = Affine(target_fixed=100, prefill_fixed=50)
    served = by_hand(Fixed(0), trace, open_loop([0, 10, 600]), model, slots=1)
    assert served.admitted_s.tolist() == [0, 250, 600]
    assert (served.first_s - served.arrival_s).tolist() == [150, 390, 150]  # time to first token
    assert served.finish_s.tolist() == [250, 500, 850]
    assert served.prefill_s.tolist() == [50, 50, 50] and served.longest_s.tolist() == [100] * 3
    assert served.busy_s.tolist() == [750] and served.end_s == 850


def test_everybody_waits_for_a_prompt() -> None:
    # 0 reads until 50, a token at 150. 1 came at 120: its prompt until 200, then both: 302. 0: 402.
    trace = make_trace([[0, 0, 0], [0]], [3, 3])
    model = Affine(target_fixed=100, prefill_fixed=50, row=2)
    served = by_hand(Fixed(0), trace, open_loop([0, 120]), model, slots=2)
    assert served.admitted_s.tolist() == [0, 150]
    assert served.first_s.tolist() == [150, 302] and served.finish_s.tolist() == [402, 302]
    assert served.longest_s.tolist() == [152, 0]
    # In bins of one second up to the 1024th, by the end of the work; the last is open.
    assert float(served.bins.running_s.sum()) == 50 + 100 + 2 * 50 + 2 * 102 + 100


def test_orders_by_hand() -> None:
    # One slot, one token each, 100 s; 0 comes first, then 1, 2, 3 wait for it together.
    trace = make_trace([[0]] * 4, [9, 8, 3, 5])
    wanted = open_loop([0, 1, 2, 3])._replace(priority=np.asarray([0, 2, 2, 1], dtype=np.int32))
    begun = {
        order: by_hand(
            Fixed(0), trace, wanted, Affine(target_fixed=100), slots=1, order=order
        ).admitted_s.tolist()
        for order in ("first-come", "shortest", "priority")
    }
    assert begun["first-come"] == [0, 100, 200, 300]
    assert begun["shortest"] == [0, 300, 100, 200]
    assert begun["priority"] == [0, 200, 300, 100]


def test_a_preemption_by_hand() -> None:
    # Four blocks of 4 tokens, no drafts: a row at context x holds x + 1 tokens. Prompts of 3; A and
    # B reply with 8 tokens, C, who waits behind both, with 1. A prompt of x costs 51 + 2x.
    #  0: A reads until 57, B until 114. Five iterations of 102, until 624: contexts 3 .. 7.
    #  624: at context 8 A needs a third block. B, admitted last, gives back its two and waits, in
    #  front of C; 8 + 1 tokens need 3 blocks and 1 is free: both wait. A alone: 724, 824, 924.
    #  924: B reads 3 + 5 tokens again, 67 s, until 991; C until 1048. Both: 1150, C ends.
    #  B alone: 1250, 1350.
    trace = make_trace([[0] * 8, [0] * 8, [0]], [3, 3, 3])
    model = Affine(target_fixed=100, prefill_fixed=50, prefill_token=2, row=2)
    served = by_hand(
        Fixed(0), trace, open_loop([0, 0, 1]), model, slots=2, block_tokens=4, blocks=4,
        max_gamma=0,
    )  # fmt: skip
    assert served.preempted.tolist() == [0, 1, 0] and served.totals["preemptions"] == 1
    assert served.admitted_s.tolist() == [0, 57, 991]
    assert served.first_s.tolist() == [216, 216, 1150]
    assert served.finish_s.tolist() == [924, 1350, 1150]
    assert served.prefill_s.tolist() == [57, 57 + 67, 57]
    assert served.longest_s.tolist() == [102, 1150 - 624, 0]
    assert served.totals["peak_blocks"] == 4
    log = rounds_of(served)
    assert log.batch_size[log.start_s == 624].tolist() == [1]
    assert log.slot[log.request == 2].tolist() == [0]  # A's, and B has its own again


def test_chunks_by_hand() -> None:
    # Four prompt tokens per iteration; a prompt of x costs 51 + 2x, 51 the part without tokens.
    #  0: A reads 4 of 6 (8 s), nobody decodes: 51 + 8 = 59.
    #  59: A reads its last 2 (4 s), B 2 of 3 (4 s): 59 again, until 118.
    #  118: A decodes alone while B reads its last token: 100 + 2, until 220.
    #  220: both, 102, until 322: the end of both.
    trace = make_trace([[0, 0], [0]], [6, 3])
    model = Affine(target_fixed=100, prefill_fixed=50, prefill_token=2, row=2)
    served = by_hand(Fixed(0), trace, open_loop([0, 0]), model, slots=2, chunk_tokens=4)
    assert served.admitted_s.tolist() == [0, 0] and served.prefill_s.tolist() == [0, 0]
    assert served.first_s.tolist() == [220, 322] and served.finish_s.tolist() == [322, 322]
    log = rounds_of(served)
    assert log.start_s.tolist() == [118, 220, 220] and log.elapsed_s.tolist() == [102, 102, 102]
    assert log.batch_size.tolist() == [1, 2, 2] and served.totals["iterations"] == 4
    assert served.busy_s.tolist() == [322]


# --- by hand: a device of its own for the draft


def test_the_network_by_hand() -> None:
    # Two hops of 3 and a quarter second for each of 3 verified tokens; without a draft, nothing.
    trace = make_trace([[0, 0]], [3])
    model = Affine(draft_fixed=1, target_fixed=100, target_token=10)
    network = {"slots": 1, "apart": True, "hop_s": 3.0, "token_hop_s": 0.25}
    served = by_hand(ByRound(2), trace, open_loop([0]), model, **network)
    assert rounds_of(served).elapsed_s.tolist() == [2 + 120 + 6 + 0.75, 100]
    shaken = by_hand(ByRound(22), trace, open_loop([0]), model, jitter_s=1.0, **network)
    more = rounds_of(shaken).elapsed_s - 128.75
    assert (more >= 0.0).all() and (more < 2.0).all() and more[0] != more[1]


def runs_of(judged: str) -> list[int]:
    """accept_len of a reply whose token i a draft would have right where judged[i] is 1."""
    return [len(judged[i:].split("0")[0]) for i in range(len(judged))]


@pytest.mark.parametrize(
    ("draft_s", "seconds"),
    [
        # A target step over k tokens takes 100 + 10 k s: 110 s where nothing is ready (pre-verify),
        # 130 s with two drafted tokens (post-verify). Three draft steps run beside it, and what was
        # made crosses the network both ways at a time, 3 s.
        (20, [113, 133, 113, 133, 113, 113, 133]),  # 60 s of draft are hidden
        (40, [123, 133, 123, 133, 123, 123, 133]),  # 120 s: longer than a pre-verify
        (50, [153] * 7),  # 150 s: longer than anything
    ],
)
def test_pipelined_by_hand(draft_s: float, seconds: list[float]) -> None:
    # Tokens 0 1 2 3 4 5 6 7 8 9, which the draft has right or not: 1 1 1 0 1 1 0 0 1 1.
    # 1. 0 is judged while 0 1 2 are drafted: right, and 1 2 are ready.
    # 2. 1 2 are right, 3 is judged while 3 4 5 are drafted: wrong, the target's goes there.
    # 3. 4 is right, 5 6 are ready.  4. 5 is right, 6 is not: all behind it is thrown away.
    # 5. 7 is wrong: one token, the target's.  6. 8 is right.  7. 9 is, and the reply ends.
    trace = make_trace([runs_of("1110110011")], [3])
    model = Affine(draft_fixed=draft_s, target_fixed=110, target_token=10)
    served = by_hand(
        Fixed(3), trace, open_loop([0]), model, slots=1, apart=True, pipelined=True, hop_s=3.0
    )
    log = rounds_of(served)
    assert log.drafted.tolist() == [1, 3, 1, 3, 1, 1, 3]
    assert log.accepted.tolist() == [1, 2, 1, 1, 0, 1, 1]
    assert log.emitted.tolist() == [1, 3, 1, 2, 1, 1, 1]
    assert log.ended.tolist() == [False] * 6 + [True]
    assert log.elapsed_s.tolist() == seconds
    assert (served.totals["steps"], served.totals["ahead"]) == (0, 7 * 3)


def test_pipelined_rows_wait_for_each_other_by_hand() -> None:
    # Row 0 has everything right, row 1 nothing. A draft step costs 50 s and 8 for a second row, a
    # target step 100 s, 8 for a second row, 10 for each further token per row. First both are
    # pre-verified: 108 s, and two draft steps take 116. Then row 0 has one token ready, half a
    # token per row: 113 s. From then on it is alone: 110 s of target, 100 of draft; at last only
    # one token is left, which is ready.
    trace = make_trace([runs_of("1" * 6), runs_of("00")], [3, 3])
    model = Affine(draft_fixed=50, row=8, target_fixed=100, target_token=10)
    served = by_hand(Fixed(2), trace, open_loop([0, 0]), model, slots=2, apart=True, pipelined=True)
    log = rounds_of(served)
    row = log.request == 0
    assert log.emitted[row].tolist() == [1, 2, 2, 1] and log.emitted[~row].tolist() == [1, 1]
    assert log.elapsed_s[row].tolist() == [116, 116, 110, 110]
    assert served.finish_s.tolist() == [452, 232]


def test_pipelined_keeps_room_for_what_is_ready() -> None:
    """Six tokens at most: of a draft of 4 three are ready at place 1, and one more may follow."""
    trace = make_trace([runs_of("111111")], [3], max_new_tokens=6)
    served = by_hand(Fixed(4), trace, open_loop([0]), Affine(), slots=1, apart=True, pipelined=True)
    assert served.totals["ahead"] == 4 + 1 and served.tokens.tolist() == [6]


def test_pipelined_without_a_draft_is_in_turn() -> None:
    trace = mixed_trace()
    one, two = (
        serve_some(Fixed(0), trace, apart=True, hop_s=0.5, pipelined=pipelined)
        for pipelined in (False, True)
    )
    assert same(one, two)


def test_signals_behind_what_is_ready_by_hand() -> None:
    """While all is accepted a rule sees every token's signals once and in order, also of tokens
    that lie deeper behind the newest verified one than the trace has signals.
    """
    trace = make_trace([runs_of("1" * 12)], [3], depth=2)
    shown = np.repeat(np.arange(1.0, 13.0, dtype=np.float32)[:, None] / 100.0, 2, axis=1)
    shown[:-1, 1] = shown[1:, 0]  # what lies one deeper is what the next position begins with
    trace = dataclasses.replace(trace, top1_prob=shown, entropy=shown * 0)
    seen: list[float] = []

    class Sees(Fixed):
        def proceed(self, state: State, slot: int, draft: Any) -> bool:
            seen.append(round(100.0 * draft.top1_prob))
            return True

    by_hand(Sees(2), trace, open_loop([0]), Affine(), slots=1, apart=True, pipelined=True)
    # 1 2 are drafted; 2 is ready while 3 4 are; then 4 while 5 6 are, ..., 12 is the last.
    assert seen[:12] == [*range(1, 13)]


@pytest.mark.parametrize(
    ("script", "seconds"),
    [(22002, [122, 100, 100, 129, 122]), (22220, [100, 129, 122, 122, 122]), (0, [100] * 5)],
)
def test_reentry_is_charged_once(script: int, seconds: list[float]) -> None:
    trace = make_trace([[0] * 5], [3])
    model = Affine(draft_fixed=1, target_fixed=100, target_token=10)
    served = by_hand(ByRound(script), trace, open_loop([0]), model, slots=1, reentry_s=7.0)
    assert rounds_of(served).elapsed_s.tolist() == seconds


# --- common random numbers, and features that change nothing


def serve_some(policy: Policy, trace: Trace | None = None, **changes: Any) -> Served:
    """Twelve requests, if no other workload is given, in three slots, plain Python."""
    trace = trace or mixed_trace()
    seed, log, until_s, events, workload = (
        changes.pop(k, v)
        for k, v in (
            ("seed", 0), ("log", True), ("until", 9e9), ("events", False), ("workload", QUEUED),
        )
    )  # fmt: skip
    server = Server(**({"slots": 3} | changes))
    return serve(
        policy, trace, demand(workload, trace.category, 2), COSTS, server, seed=seed, log=log,
        until_s=until_s, compiled=False, events=events,
    )  # fmt: skip


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


# --- several replicas: one loop is simpy processes

TIED = tabulate_batches(Affine(target_fixed=0.1, draft_fixed=0.1), 4, width=9, bucket_tokens=16)


@EXAMPLES
@given(data=st.data())
def test_one_loop_over_replicas_is_simpy_processes(data: Any) -> None:
    """TIED: many iterations end together, up to the rounding of sums."""
    replicas = data.draw(st.integers(2, 4))
    policy, trace, wanted, server = anything(data, replicas=replicas)
    costs = data.draw(st.sampled_from([COSTS, TIED]))
    until_s = data.draw(st.sampled_from([math.inf, 0.0, 0.35]))
    loop, processes = (
        serve(
            policy, trace, wanted, costs, server, seed=1, until_s=until_s, log=True, events=events
        )
        for events in (False, True)
    )
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
    costs = tabulate_batches(Affine(target_fixed=0.01), 1, max_context=0, width=3)
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


# --- errors


def test_tetris_may_verify_fewer_drafts_than_there_are_slots() -> None:
    assert Server(slots=4, allotment="tetris", budget_tokens=1).budget_tokens == 1
    with pytest.raises(InputError, match="budget_tokens is 3; budget needs"):
        Server(slots=4, allotment="budget", budget_tokens=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": 0}, "slots is 0; give 1 to 4096"),
        ({"block_tokens": 0}, "block_tokens is 0; give 1 to 2147483647"),
        ({"replicas": 0}, "replicas is 0"),
        ({"blocks": -1}, "blocks is -1"),
        ({"chunk_tokens": -1}, "chunk_tokens is -1"),
        ({"budget_tokens": -1}, "budget_tokens is -1"),
        ({"apart": True, "hop_s": -1.0}, "hop_s is -1"),
        ({"apart": True, "jitter_s": math.nan}, "jitter_s is nan"),
        ({"apart": True, "token_hop_s": math.inf}, "token_hop_s is inf"),
        ({"reentry_s": -1.0}, "reentry_s is -1"),
        ({"bin_s": 0.0}, "bin_s is 0"),
        ({"order": "last-come"}, "order is 'last-come'; known: first-come, shortest, priority"),
        ({"allotment": "all"}, "allotment is 'all'; known: each, "),
        ({"router": "dice"}, "router is 'dice'; known: round-robin, "),
        ({"slots": 4, "allotment": "budget", "budget_tokens": 3}, "budget_tokens is 3; .* 4 slots"),
        ({"slots": 4, "allotment": "tetris"}, "budget_tokens is 0; tetris"),
        ({"pipelined": True}, "pipelined .*set apart"),
        (
            {"pipelined": True, "apart": True, "allotment": "tetris", "budget_tokens": 9},
            "tetris trims .*pipelined",
        ),
        ({"hop_s": 0.1}, "hop_s, .*set apart"),
        ({"jitter_s": 0.1}, "jitter_s .*set apart"),
        ({"token_hop_s": 0.1}, "token_hop_s .*set apart"),
    ],
)
def test_a_server_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Server(**changes)
    assert str(caught.value).startswith("server: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["slots", "blocks", "replicas", "chunk_tokens", "block_tokens"])
def test_counts_are_whole_numbers(field: str) -> None:
    """1.5 slots must not reach NumPy."""
    with pytest.raises(InputError, match=field):
        Server(**{field: 1.5})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "server", "changes", "message"),
    [
        (Fixed(1), {"max_gamma": 5}, {}, r"max_gamma is 5; this trace can play 0\.\.4"),
        (Fixed(1), {"max_gamma": -1}, {}, "max_gamma is -1"),
        (GammaTunePlus(), {}, {}, r"'gammatune\+' .*signals"),
        (Fixed(1), {"allotment": "adaptive"}, {}, "'adaptive' .*signals"),
        (Fixed(1), {"allotment": "tetris", "budget_tokens": 9}, {}, "'tetris' .*signals"),
        (Fixed(1), {}, {"wanted": open_loop([])}, "no request"),
        (Fixed(1), {"slots": 3}, {}, "costs cover 2 rows .* 3 slots"),
        (Fixed(1), {}, {"width": 5}, "costs cover 2 rows of 4 tokens; .* gamma 4"),
        # 9 + 2 tokens, 4 + 1 more: 16, four blocks of 4.
        (Fixed(1), {"blocks": 3, "block_tokens": 4}, {}, "3 blocks of 4 .*'r1'.*4 are needed"),
    ],
)
def test_what_does_not_fit_together(
    policy: Policy, server: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    trace = make_trace([[0], [0, 0]], [3, 9])
    costs = tabulate_batches(Affine(), 2, max_context=64, width=changes.get("width", 6))
    wanted = changes.get("wanted", open_loop([0, 0]))
    with pytest.raises(InputError, match=message) as caught:
        serve(policy, trace, wanted, costs, Server(**({"slots": 2} | server)), compiled=False)
    assert "\n" not in str(caught.value)


def test_memory_that_is_just_enough() -> None:
    trace = make_trace([[0], [0, 0]], [3, 9])
    served = by_hand(
        Fixed(4), trace, open_loop([0, 0]), Affine(), slots=2, blocks=4, block_tokens=4
    )
    assert np.isfinite(served.finish_s).all() and served.totals["peak_blocks"] <= 4
