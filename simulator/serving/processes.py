"""The server as simpy processes: replicas, and the router that sends requests to them.

One replica alone is one call of simulator.serving.scheduler.advance and one timeout. Several are
played by simulator.serving.routing; as processes, with an event per iteration of a closed loop,
they are its slow reference.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import TYPE_CHECKING

import simpy

from simulator.serving.admission import wait
from simulator.serving.scheduler import FULL
from simulator.serving.state import Records, World, drain, world_of

if TYPE_CHECKING:
    from simulator.serving.server import SharedState


def play(run: SharedState) -> tuple[list[World], list[list[Records]]]:
    """Play a run; the replicas, and their rounds."""
    env = simpy.Environment()
    worlds = run.new_worlds()
    replicas = [_Replica(env, run, r, world_of(worlds, r)) for r in range(run.server.replicas)]
    if run.server.replicas > 1:
        _Router(env, run, replicas)
    env.run()
    return [replica.world for replica in replicas], [replica.parts for replica in replicas]


class _Replica:
    """One target with its slots and memory, as a simpy process.

    horizon_s: when somebody else may next change what waits here; iterations that begin before it
    are this replica's own affair.
    """

    def __init__(self, env: simpy.Environment, run: SharedState, number: int, world: World) -> None:
        self.env, self.run, self.number, self.world = env, run, number, world
        self.state = run.policy.new_state(run.server.slots)
        self.counters = self.world.counters[0]
        self.parts: list[Records] = []
        self.router: _Router | None = None
        self.horizon_s = math.inf
        self.woken = env.event()
        env.process(self._live())

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return int(self.counters.waiting)

    @property
    def outstanding(self) -> int:
        """Requests that wait or run."""
        return self.waiting + int(self.counters.running)

    def take(self, request: int) -> None:
        """The router sends a request here, now."""
        wait(self.world, request)

    def wake(self) -> None:
        """Somebody has changed what waits here, or the horizon."""
        woken, self.woken = self.woken, self.env.event()
        woken.succeed()

    def _live(self) -> Generator[simpy.Event, None, None]:
        counters, run = self.counters, self.run
        while True:
            now = max(float(counters.now_s), run.now_s)
            counters.now_s = now
            stepwise = self.router is not None and self.router.closed
            until_s = math.nextafter(now, math.inf) if stepwise else self.horizon_s
            finished = int(counters.finished)
            why = run.advance(self.state, self.world, min(until_s, run.until_s))
            drain(self.world, self.parts)
            if float(counters.now_s) > now:
                yield self.env.timeout(max(0.0, float(counters.now_s) - self.env.now))
                run.now_s = max(run.now_s, float(counters.now_s))
                if stepwise and self.router is not None:
                    self.router.send(int(counters.finished) - finished)
                    yield self.env.timeout(0.0)  # whatever else happens now comes first
            elif why != FULL:  # nothing to do before somebody else acts
                if self.router is None or now >= run.until_s:
                    return
                yield self.woken


class _Router:
    """Sends every request to a replica when it comes. It learns that a reply will end when the
    iteration in which it ends begins.
    """

    def __init__(self, env: simpy.Environment, run: SharedState, replicas: list[_Replica]) -> None:
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

    def _deliver_later(self, request: int, come_s: float) -> Generator[simpy.Event, None, None]:
        yield self.env.timeout(max(0.0, come_s - self.env.now))
        self.run.now_s = max(self.run.now_s, come_s)
        self._deliver(request)

    def _feed(self) -> Generator[simpy.Event, None, None]:
        """The requests whose times are known beforehand."""
        known = self.run.demand.users if self.closed else len(self.run.requests)
        come_s = -1.0
        for request in range(min(known, len(self.run.requests))):
            if float(self.run.requests[request].arrival_s) > come_s:
                come_s = float(self.run.requests[request].arrival_s)
                self._plan(come_s)
                yield self.env.timeout(max(0.0, come_s - self.env.now))
                self.run.now_s = max(self.run.now_s, come_s)
            self._deliver(request)
        self._plan(math.inf)

    def _plan(self, horizon_s: float) -> None:
        """Tell all replicas when the next known request comes."""
        for replica in self.replicas:
            replica.horizon_s = horizon_s
            replica.wake()

    def _deliver(self, request: int) -> None:
        replica = self._choose()
        self.run.replica_of[request] = replica.number
        replica.take(request)
        if self.closed:
            replica.wake()

    def _choose(self) -> _Replica:
        if self.run.server.router == "round-robin":
            self.turn += 1
            return self.replicas[(self.turn - 1) % len(self.replicas)]
        if self.run.server.router == "least-outstanding":
            return min(self.replicas, key=lambda r: (r.outstanding, r.number))
        return min(self.replicas, key=lambda r: (r.waiting, r.outstanding, r.number))
