"""Small servers: scripted policies, short traces, and what was served, held side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st

from policies.base import Policy, State, View
from policies.confidence.thresholds import TailPruning
from policies.counts.gammatune import GammaTune
from policies.randomness import Rng
from simulator.serving.draft_budget import ALLOTMENTS
from simulator.serving.options import ROUTERS, Server
from simulator.serving.queue import blocks_of
from simulator.serving.result import ServingResult
from simulator.serving.server import serve
from tests.specimens import random_trace
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate
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


def by_hand(
    policy: Policy, trace: Trace, wanted: Demand, model: Affine, **server: Any
) -> ServingResult:
    """Served as plain Python with a log, context priced to the token."""
    settings = Server(**server)
    costs = tabulate(model, range(1, settings.slots + 1), max_context=64, width=6, bucket_tokens=1)
    return serve(policy, trace, wanted, costs, settings, log=True, compiled=False)


def rounds_of(served: ServingResult) -> Any:
    assert served.round_log is not None
    return served.round_log


def same(one: ServingResult, two: ServingResult, leave_out: tuple[str, ...] = ()) -> bool:
    """Every number, bit for bit."""
    for field in dataclasses.fields(ServingResult):
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


MODEL = Affine(
    draft_fixed=1.3e-3, target_fixed=10.7e-3, draft_token=1.1e-4, target_token=3.3e-4,
    prefill_fixed=5e-3, prefill_token=1.7e-5, row=2.1e-4, context_token=1.3e-6, signal=1.9e-4,
    control=4.1e-4,
)  # fmt: skip


QUEUED = Workload(12, "poisson", rate_per_s=60.0)


def mixed_trace(seed: int = 1, requests: int = 8, depth: int = 6) -> Trace:
    return random_trace(np.random.default_rng(seed), requests, depth)


def of_a_model(trace: Trace) -> Trace:
    """The same acceptance, of a draft model: only that drafts ahead of the target."""
    meta = dataclasses.replace(trace.meta, drafter="model")
    return dataclasses.replace(trace, meta=meta, draft_len=None)


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
COSTS = tabulate(MODEL, range(1, 5), width=9, bucket_tokens=16)


def fewest_blocks(trace: Trace, depth: int, block_tokens: int) -> int:
    longest = int((trace.prompt_tokens + trace.reply_tokens).max())
    return blocks_of(longest + depth + 1, block_tokens)


def anything(
    data: Any, policies: Sequence[Policy] = (TailPruning(), GammaTune()), **fixed: Any
) -> tuple[Policy, Trace, Demand, Server]:
    """A random server, a random workload, and one of the policies that fits them."""
    chosen = data.draw(SERVERS) | fixed
    trace = mixed_trace(data.draw(st.integers(0, 50)))
    confident = ALLOTMENTS[chosen["allotment"]] >= ALLOTMENTS["tetris"]
    fitting = [p for p in policies if isinstance(p, TailPruning) or not confident]
    policy = data.draw(st.sampled_from(fitting))
    chosen["pipelined"] = chosen["pipelined"] and not confident
    trace = of_a_model(trace) if chosen["pipelined"] else trace
    if data.draw(st.booleans()) or "tight" in chosen:
        spare, drafts = data.draw(st.integers(0, 8)), 2 if chosen["pipelined"] else 1
        chosen["blocks"] = fewest_blocks(trace, drafts * 6, chosen["block_tokens"]) + spare
    chosen.pop("tight", None)
    wanted = demand(data.draw(WORKLOADS), trace.category, data.draw(st.integers(0, 9)))
    return policy, trace, wanted, Server(**chosen)


def iterations(served: ServingResult) -> list[tuple[int, npt.NDArray[np.intp]]]:
    """Replica and rows of the log of each iteration, by replica and time."""
    log = rounds_of(served)
    replica = log.slot // served.server.slots
    order = np.lexsort((log.start_s, replica))
    key = np.stack([replica[order], log.start_s[order]])
    cuts = np.flatnonzero((np.diff(key) != 0).any(axis=0)) + 1
    return [(int(replica[rows[0]]), rows) for rows in np.split(order, cuts)]


EXAMPLES = settings(max_examples=100, deadline=None)


def serve_some(policy: Policy, trace: Trace | None = None, **changes: Any) -> ServingResult:
    """Twelve requests, if no other workload is given, in three slots, plain Python."""
    trace = trace or mixed_trace()
    trace = of_a_model(trace) if changes.get("pipelined") else trace
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
