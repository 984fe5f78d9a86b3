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
import simpy

from policies.base import Policy, State
from policies.shelf import label
from simulator import batch
from simulator.admission import ORDERS
from simulator.allotment import ALLOTMENTS, TETRIS
from simulator.batch import FULL
from simulator.batch_costs import BatchCosts, charged
from simulator.kernels import recipe, run_recipe
from simulator.records import Records, Rules, World, new_requests, new_world
from simulator.replay import low_bits, tape_of
from simulator.rounds import Limits
from simulator.served import Served, collect
from simulator.server_options import Server, check, reads_signals
from traces.schema import Trace
from traces.workload import Demand

LOG_ROWS = 1 << 16  # rounds per call of the kernel
BINS_AT_MOST = 1 << 20


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
    run = Run(policy, trace, demand, costs, server, limits, seed, until_s, log, compiled)
    replicas = [_Replica(env, run, number) for number in range(server.replicas)]
    if server.replicas > 1:
        _Router(env, run, replicas)
    env.run()
    worlds = [replica.world for replica in replicas]
    logs = [replica.parts for replica in replicas]
    return collect(worlds, logs, run.replica_of, trace, server, run.meta)


class Run:
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
        self.signals = reads_signals(policy, server)
        costs = charged(policy, costs)
        self.costs = costs if self.signals else costs._replace(signal_s=0.0)
        self.tape = tape_of(trace, self.signals)
        self.bins = _bins(demand, server)
        self.requests = new_requests(demand)
        self.now_s = 0.0  # simpy's clock, without the rounding of its sums
        self.replica_of = np.zeros(len(demand.row), dtype=np.int32)
        self.meta: dict[str, Any] = {
            "policy": label(policy),
            "clock": "simulated",
            "seed": seed,
            "max_gamma": limits.max_gamma,
            "pair": trace.meta.pair,
            "server": dataclasses.asdict(server),
        }
        confidences = ALLOTMENTS[server.allotment] >= TETRIS
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

    def new_world(self) -> World:
        """An idle replica. All share the requests and the times they come at."""
        server, users, total = self.server, self.demand.users, len(self.demand.row)
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
            first=(min(users, total) if users else total) if alone else 0,
            closed=alone and users > 0,
        )
        return new_world(
            rules,
            self.tape,
            self.costs,
            self.limits,
            self.requests,
            users=users,
            bins=self.bins,
            depth=self.limits.max_gamma if self.signals else 0,
            log_rows=max(LOG_ROWS, server.slots) if self.log else 0,
        )


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

    def __init__(self, env: simpy.Environment, run: Run, number: int) -> None:
        self.env, self.run, self.number = env, run, number
        self.state = run.policy.new_state(run.server.slots)
        self.world = run.new_world()
        self.desk = self.world.desk[0]
        self.parts: list[Records] = []
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

    def __init__(self, env: simpy.Environment, run: Run, replicas: list[_Replica]) -> None:
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
