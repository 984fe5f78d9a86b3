"""Many requests at once: a server with continuous batching and speculative decoding, on simpy.

simpy keeps the time between parts that do not know each other's plans: replicas, and the router
that sends requests to them. Within a replica nothing happens between two such events but
iterations, so one compiled call (simulator.batch.advance) plays them all, and one timeout follows.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Generator
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy

from policies.base import Policy, State, uses_signals
from policies.shelf import label
from simulator import batch
from simulator.admission import ORDERS, blocks_of
from simulator.allotment import ADAPTIVE, ALLOTMENTS, TETRIS
from simulator.batch import FULL, Rules, World
from simulator.batch_costs import BatchCosts
from simulator.kernels import recipe, run_recipe
from simulator.replay import low_bits, tape_of
from simulator.rounds import Limits
from traces.errors import InputError
from traces.roundlog import ROUND_DTYPES, RoundLog
from traces.schema import Trace
from traces.workload import Demand

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]

ROUTERS = ("round-robin", "least-outstanding", "shortest-queue")
COLUMNS = (
    "row", "arrival_s", "admitted_s", "first_s", "finish_s", "prefill_s", "longest_s", "rounds",
    "drafted", "accepted", "preempted",
)  # fmt: skip
TOTALS = (
    "iterations",
    "preemptions",
    "drafted",
    "verified",
    "accepted",
    "emitted",
    "steps",
    "ahead",
)
LOG_ROWS = 1 << 16  # rounds per call of the kernel
BINS_AT_MOST = 1 << 20
LEAST = {
    "slots": 1, "block_tokens": 1, "replicas": 1, "blocks": 0, "chunk_tokens": 0,
    "budget_tokens": 0, "hop_s": 0.0, "jitter_s": 0.0, "token_hop_s": 0.0, "reentry_s": 0.0,
    "bin_s": 1e-6,
}  # fmt: skip
"""The smallest value of each number of a Server."""


@dataclasses.dataclass(frozen=True)
class Server:
    """How a server works.

    slots: requests that decode at once, per replica. order: of admission, see
    simulator.admission.ORDERS. blocks: memory for keys and values, in blocks of block_tokens, per
    replica (0: no limit); a round reserves gamma + 1 tokens; when none is free, who was admitted
    last waits again and is read anew. chunk_tokens: prompt tokens read per iteration beside the
    decoding rows; 0: a prompt is read at once, and everybody waits. padded: every row is verified
    as wide as the widest. longest: caches of one width, as real_backend reads them: steps are
    priced at the longest context of their rows, and what a target step costs beyond that of the
    shortest context is paid for every row as wide as the widest; else at the mean of both (paged
    attention). allotment: see simulator.allotment; budget_tokens: of "budget" and
    "tetris", tokens verified per iteration. max_gamma: None for the depth of the trace.

    apart: the draft has a device of its own, and every iteration with a draft crosses the network
    twice: hop_s each way, up to jitter_s more (uniform), token_hop_s per verified token.
    pipelined (PEARL, arXiv 2408.11850; needs apart): it drafts on while the target verifies; where
    everything was accepted the next round finds its draft ready, and gets no token from the target;
    everywhere else that work is thrown away. reentry_s: charged when drafting begins again after
    iterations without.

    replicas: targets, each with its slots and memory (and draft); router: see ROUTERS.
    bin_s: width of the time series' bins.
    """

    slots: int = 8
    order: str = "first-come"
    block_tokens: int = 16
    blocks: int = 0
    chunk_tokens: int = 0
    padded: bool = False
    longest: bool = False
    allotment: str = "each"
    budget_tokens: int = 0
    max_gamma: int | None = None
    apart: bool = False
    hop_s: float = 0.0
    jitter_s: float = 0.0
    token_hop_s: float = 0.0
    pipelined: bool = False
    reentry_s: float = 0.0
    replicas: int = 1
    router: str = "round-robin"
    bin_s: float = 1.0

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if isinstance(least, int) and not isinstance(value, int):
                raise InputError(f"server: {name} is {value!r}; give a whole number")
            if not least <= value < math.inf:
                raise InputError(f"server: {name} is {value}; give {least} or more")
        choices = (("order", ORDERS), ("allotment", ALLOTMENTS), ("router", ROUTERS))
        for name, known in choices:
            if getattr(self, name) not in known:
                raise InputError(
                    f"server: {name} is {getattr(self, name)!r}; known: {', '.join(known)}"
                )
        if self.max_gamma is not None and not isinstance(self.max_gamma, int):
            raise InputError(f"server: max_gamma is {self.max_gamma!r}; give a whole number")
        if self.allotment in ("budget", "tetris") and self.budget_tokens < self.slots:
            raise InputError(
                f"server: budget_tokens is {self.budget_tokens}; {self.allotment} needs at least "
                f"one token for each of the {self.slots} slots"
            )
        if self.pipelined and not self.apart:
            raise InputError("server: pipelined drafting needs a device of its own: set apart")
        network = self.hop_s + self.jitter_s + self.token_hop_s
        if network > 0.0 and not self.apart:
            raise InputError("server: hop_s, jitter_s and token_hop_s need a network: set apart")


@dataclasses.dataclass(frozen=True, eq=False)
class Served:
    """What a run came to. Letters: Q requests, B bins.

    arrival_s, admitted_s, first_s, finish_s [Q]: seconds since the run began; finish_s NaN if the
    run was cut off before. prefill_s, longest_s [Q]; prompt_tokens, tokens, rounds, drafted,
    accepted, preempted, replica [Q]; row [Q] of the trace. gaps: see simulator.batch.World. bins
    [replicas, B] records (simulator.batch.BIN). round_log: None unless asked for. totals: counts of
    all replicas by name. busy_s [replicas]: seconds of iterations and prompts.
    """

    policy: str
    server: Server
    arrival_s: FloatArray
    admitted_s: FloatArray
    first_s: FloatArray
    finish_s: FloatArray
    prefill_s: FloatArray
    longest_s: FloatArray
    prompt_tokens: Int32Array
    tokens: Int32Array
    rounds: Int32Array
    drafted: Int32Array
    accepted: Int32Array
    preempted: Int32Array
    replica: Int32Array
    row: Int32Array
    gaps: IntArray
    bins: Any
    busy_s: FloatArray
    end_s: float
    totals: dict[str, int]
    round_log: RoundLog | None
    meta: dict[str, Any]


def serve(
    policy: Policy,
    trace: Trace,
    demand: Demand,
    costs: BatchCosts,
    server: Server,
    *,
    seed: int = 0,
    until_s: float = math.inf,
    log: bool = False,
    compiled: bool = True,
) -> Served:
    """Serve the requests of `demand`, drawn from `trace`, under a policy.

    seed: of the hooks and the network; two policies with the same demand and seed meet the same
    requests at the same times (common random numbers). until_s: iterations begin before it. log:
    keep every round. compiled: False runs the same code as plain Python, the slow reference.
    Raises InputError if trace, costs, demand and server do not fit together.
    """
    limits = check(policy, trace, demand, costs, server)
    env = simpy.Environment()
    run = _Run(policy, trace, demand, costs, server, limits, seed, until_s, log, compiled)
    replicas = [_Replica(env, run, number) for number in range(server.replicas)]
    if server.replicas > 1:
        _Router(env, run, replicas)
    env.run()
    return _collect(run, replicas)


def check(
    policy: Policy, trace: Trace, demand: Demand, costs: BatchCosts, server: Server
) -> Limits:
    """The limits of a run; raises InputError if something does not fit."""
    depth = trace.meta.depth if server.max_gamma is None else server.max_gamma
    if not 0 <= depth <= trace.meta.depth:
        raise InputError(f"server: max_gamma is {depth}; this trace can play 0..{trace.meta.depth}")
    signals = uses_signals(policy) or ALLOTMENTS[server.allotment] >= TETRIS
    if signals and not trace.has_signals:
        raise InputError(
            f"policy {label(policy)!r} with allotment {server.allotment!r} reads the draft's "
            "signals, but the trace has none; capture it again, or choose others"
        )
    if len(demand.row) == 0:
        raise InputError("the workload has no request")
    sizes = f"{costs.verify_s.shape[0]} rows of {costs.verify_s.shape[2] - 1} tokens"
    if costs.verify_s.shape[0] < server.slots or costs.verify_s.shape[2] < depth + 2:
        raise InputError(
            f"the costs cover {sizes}; {server.slots} slots and gamma {depth} need more: tabulate "
            "them for both"
        )
    if server.blocks > 0:
        asked = trace.select(sorted({int(row) for row in demand.row}))
        longest = asked.prompt_tokens + np.diff(asked.offsets)
        worst = int(longest.argmax())
        need = blocks_of(int(longest[worst]) + depth + 1, server.block_tokens)
        if need > server.blocks:
            raise InputError(
                f"server: {server.blocks} blocks of {server.block_tokens} tokens can never hold "
                f"request {asked.request_id[worst]!r}: {int(longest[worst])} tokens with its "
                f"reply, and gamma {depth} + 1; {need} are needed"
            )
    return Limits(depth, trace.meta.max_new_tokens, trace.meta.max_context)


class _Run:
    """What all replicas share."""

    def __init__(
        self,
        policy: Policy,
        trace: Trace,
        demand: Demand,
        costs: BatchCosts,
        server: Server,
        limits: Limits,
        seed: int,
        until_s: float,
        log: bool,
        compiled: bool,
    ) -> None:
        self.policy, self.trace, self.demand, self.server = policy, trace, demand, server
        self.limits, self.seed, self.until_s, self.log = limits, seed, until_s, log
        self.signals = uses_signals(policy) or ALLOTMENTS[server.allotment] >= TETRIS
        self.costs = costs if self.signals else costs._replace(signal_s=0.0)
        self.tape = tape_of(trace, self.signals)
        self.bins = _bins(demand, server)
        self.requests = _new_requests(demand)
        self.now_s = 0.0  # simpy's clock, without the rounding of its sums
        self.replica_of = np.zeros(len(demand.row), dtype=np.int32)
        confidences = ALLOTMENTS[server.allotment] in (TETRIS, ADAPTIVE)
        names = batch.bindings(type(policy), confidences=confidences, logs=log)
        variant = f"serve{int(confidences)}{int(log)}"
        self._recipe = recipe(type(policy), batch.advance, names, variant)
        self._key = (type(policy), variant)
        self._plain = None if compiled else _plain(names)

    def advance(self, state: State, world: World, until_s: float) -> int:
        """simulator.batch.advance, compiled or not."""
        arguments = (state, world, low_bits(self.seed), float(until_s))
        if self._plain is not None:
            return int(self._plain(self.policy, *arguments))
        return run_recipe(self.policy, self._recipe, self._key, *arguments)


def _plain(names: dict[str, Any]) -> Any:
    """`advance` as plain Python: every function of its module rebuilt around these names."""
    world: dict[str, Any] = vars(batch) | names
    for name, value in vars(batch).items():
        if isinstance(value, types.FunctionType) and value.__module__ == batch.__name__:
            world[name] = types.FunctionType(value.__code__, world, name)
    return world["advance"]


def _bins(demand: Demand, server: Server) -> int:
    """Bins of the time series: up to the last known arrival and as many again; the last is open."""
    known = demand.arrival_s[np.isfinite(demand.arrival_s)]
    last = float(known.max()) if len(known) else 0.0
    return int(min(BINS_AT_MOST, 2.0 * last / server.bin_s + 1024))


class _Replica:
    """One target with its slots and memory, as a simpy process.

    horizon_s: when somebody else may next change what waits here; iterations that begin before it
    are this replica's own affair.
    """

    def __init__(self, env: simpy.Environment, run: _Run, number: int) -> None:
        self.env, self.run, self.number = env, run, number
        self.state = run.policy.new_state(run.server.slots)
        self.world = _new_world(run)
        self.desk = self.world.desk[0]
        self.parts: list[Any] = []
        self.router: _Router | None = None
        self.horizon_s = math.inf
        self.woken = env.event()
        env.process(self._live())

    @property
    def waiting(self) -> int:
        """Requests in the waiting line."""
        return int(self.desk.waiting)

    @property
    def outstanding(self) -> int:
        """Requests that wait or run."""
        return self.waiting + int(self.desk.running)

    def take(self, query: int) -> None:
        """The router sends a request here, now."""
        batch.wait(self.world, query)

    def wake(self) -> None:
        """Somebody has changed what waits here, or the horizon."""
        woken, self.woken = self.woken, self.env.event()
        woken.succeed()

    def _live(self) -> Generator[simpy.Event, None, None]:
        desk, run = self.desk, self.run
        while True:
            now = max(float(desk.now_s), run.now_s)
            desk.now_s = now
            stepwise = self.router is not None and self.router.closed
            until_s = math.nextafter(now, math.inf) if stepwise else self.horizon_s
            finished = int(desk.finished)
            why = run.advance(self.state, self.world, min(until_s, run.until_s))
            self._drain()
            if float(desk.now_s) > now:
                yield self.env.timeout(max(0.0, float(desk.now_s) - self.env.now))
                run.now_s = max(run.now_s, float(desk.now_s))
                if stepwise and self.router is not None:
                    self.router.send(int(desk.finished) - finished)
                    yield self.env.timeout(0.0)  # whatever else happens now comes first
            elif why != FULL:  # nothing to do before somebody else acts
                if self.router is None or now >= run.until_s:
                    return
                yield self.woken

    def _drain(self) -> None:
        """Take the rounds out of the log."""
        if self.desk.written:
            self.parts.append(self.world.log[: int(self.desk.written)].copy())
            self.desk.written = 0


class _Router:
    """Sends every request to a replica when it comes. It learns that a reply will end when the
    iteration in which it ends begins.
    """

    def __init__(self, env: simpy.Environment, run: _Run, replicas: list[_Replica]) -> None:
        self.env, self.run, self.replicas = env, run, replicas
        self.closed = run.demand.users > 0
        self.sent, self.turn = run.demand.users, 0
        for replica in replicas:
            replica.router = self
            replica.horizon_s = 0.0
        env.process(self._feed())

    def send(self, count: int) -> None:
        """So many users of a closed loop have got their replies and go on after a pause."""
        for _ in range(count):
            if self.sent < len(self.run.requests):
                pause_s = float(self.run.demand.think_s[self.sent])
                come_s = self.run.now_s + pause_s
                self.run.requests[self.sent].arrival_s = come_s
                if pause_s == 0.0:
                    self._deliver(self.sent)
                else:
                    self.env.process(self._deliver_later(self.sent, come_s))
                self.sent += 1

    def _deliver_later(self, query: int, come_s: float) -> Generator[simpy.Event, None, None]:
        yield self.env.timeout(max(0.0, come_s - self.env.now))
        self.run.now_s = max(self.run.now_s, come_s)
        self._deliver(query)

    def _feed(self) -> Generator[simpy.Event, None, None]:
        """The requests whose times are known beforehand."""
        known = self.run.demand.users if self.closed else len(self.run.requests)
        come_s = -1.0
        for query in range(min(known, len(self.run.requests))):
            if float(self.run.requests[query].arrival_s) > come_s:
                come_s = float(self.run.requests[query].arrival_s)
                self._plan(come_s)
                yield self.env.timeout(max(0.0, come_s - self.env.now))
                self.run.now_s = max(self.run.now_s, come_s)
            self._deliver(query)
        self._plan(math.inf)

    def _plan(self, horizon_s: float) -> None:
        """Tell all replicas when the next known request comes."""
        for replica in self.replicas:
            replica.horizon_s = horizon_s
            replica.wake()

    def _deliver(self, query: int) -> None:
        replica = self._choose()
        self.run.replica_of[query] = replica.number
        replica.take(query)
        if self.closed:
            replica.wake()

    def _choose(self) -> _Replica:
        if self.run.server.router == "round-robin":
            self.turn += 1
            return self.replicas[(self.turn - 1) % len(self.replicas)]
        if self.run.server.router == "least-outstanding":
            return min(self.replicas, key=lambda r: (r.outstanding, r.number))
        return min(self.replicas, key=lambda r: (r.waiting, r.outstanding, r.number))


def _new_world(run: _Run) -> World:
    """An idle replica. All replicas share the marks of the requests and the times they come at."""
    server, demand, total = run.server, run.demand, len(run.demand.row)
    alone = server.replicas == 1
    rules = Rules(
        slots=server.slots,
        order=ORDERS[server.order],
        block_tokens=server.block_tokens,
        blocks=server.blocks,
        chunk_tokens=server.chunk_tokens,
        padded=bool(server.padded),
        longest=bool(server.longest),
        allotment=ALLOTMENTS[server.allotment],
        budget_tokens=server.budget_tokens,
        pipelined=bool(server.pipelined),
        hop_s=float(server.hop_s),
        jitter_s=float(server.jitter_s),
        token_hop_s=float(server.token_hop_s),
        reentry_s=float(server.reentry_s),
        bin_s=float(server.bin_s),
        first=(min(demand.users, total) if demand.users else total) if alone else 0,
        closed=alone and demand.users > 0,
    )
    desk = _records(batch.DESK, 1)
    desk[0].free_blocks, desk[0].sent = server.blocks, rules.first
    places = _records(batch.PLACE, server.slots)
    places.free = np.arange(server.slots)
    return World(
        tape=run.tape,
        costs=run.costs,
        limits=run.limits,
        rules=rules,
        desk=desk,
        requests=run.requests,
        line=_records(batch.ENTRY, total),
        later=_records(batch.ENTRY, max(demand.users, 1)),
        slots=_records(batch.SLOT, server.slots),
        places=places,
        survival=np.zeros((server.slots, run.limits.max_gamma if run.signals else 0)),
        gaps=np.zeros(batch.GAPS, dtype=np.int64),
        bins=_records(batch.BIN, run.bins),
        log=_records(batch.ROUND, max(LOG_ROWS, server.slots) if run.log else 0),
    )


def _records(dtype: np.dtype[Any], length: int) -> Any:
    return np.zeros(length, dtype=dtype).view(np.recarray)


def _new_requests(demand: Demand) -> Any:
    """The requests of a workload before anything happened."""
    requests = _records(batch.REQUEST, len(demand.row))
    for name in ("row", "arrival_s", "think_s", "priority"):
        requests[name] = getattr(demand, name)
    for name in ("admitted_s", "first_s", "last_s", "finish_s"):
        requests[name] = np.nan
    return requests


def _collect(run: _Run, replicas: list[_Replica]) -> Served:
    """The run's result."""
    trace, demand, requests = run.trace, run.demand, run.requests
    worlds = [replica.world for replica in replicas]
    desks = np.concatenate([world.desk for world in worlds])
    totals = {name: int(desks[name].sum()) for name in TOTALS}
    totals["peak_blocks"] = int(desks["peak_blocks"].max())
    meta: dict[str, Any] = {
        "policy": label(run.policy),
        "clock": "simulated",
        "seed": run.seed,
        "max_gamma": run.limits.max_gamma,
        "pair": trace.meta.pair,
        "server": dataclasses.asdict(run.server),
    }
    return Served(
        policy=label(run.policy),
        server=run.server,
        **{name: np.ascontiguousarray(requests[name]) for name in COLUMNS},
        prompt_tokens=trace.prompt_tokens[demand.row],
        tokens=np.ascontiguousarray(requests["done"]),
        replica=run.replica_of,
        gaps=np.sum([world.gaps for world in worlds], axis=0),
        bins=np.stack([world.bins for world in worlds]).view(np.recarray),
        busy_s=desks["busy_s"] + desks["prompt_s"],
        end_s=float(desks["now_s"].max()),
        totals=totals,
        round_log=_round_log(run, replicas, meta) if run.log else None,
        meta=meta,
    )


def _round_log(run: _Run, replicas: list[_Replica], meta: dict[str, Any]) -> RoundLog:
    """Rounds of all replicas by the time they began; slots numbered on from replica to replica."""
    parts = [_records(batch.ROUND, 0)]
    for replica in replicas:
        for part in replica.parts:
            part.slot += replica.number * run.server.slots
            parts.append(part)
    rows = np.concatenate(parts)
    if len(replicas) > 1:
        rows = rows[np.argsort(rows["start_s"], kind="stable")]
    columns = {name: np.ascontiguousarray(rows[name]) for name in ROUND_DTYPES}
    prefill_s = np.ascontiguousarray(run.requests["prefill_s"])
    return RoundLog(**columns, prefill_s=prefill_s, meta=meta)
