"""Several replicas behind a router, in one loop over what happens: compiled like the iterations.

Simpy would spend thirty times an iteration's own time on an event for each, and a routed closed
loop needs one: whoever ends a reply sends the next request, whose replica may be at its next
iteration by then. So this loop keeps simpy's calendar itself: what happens, in the order of time
and, at the same time, of planning, the times summed as simpy sums them. simulator.serving.processes
is the same system as simpy processes; the two agree bit for bit.

A replica's own events: an iteration ends (open loop: all that begin before the next arrival), or it
acts, after everything else that had been planned for that moment. The router learns that a reply
will end when the iteration in which it ends begins. Letters: R replicas, Q requests.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba.core import types
from numba.extending import intrinsic

from policies.base import State
from simulator.serving.admission import wait
from simulator.serving.options import ROUTERS
from simulator.serving.queue import pop, push
from simulator.serving.scheduler import FULL, IDLE, advance
from simulator.serving.state import ENTRY, Records, World, record, records, world_of

ROUND_ROBIN, LEAST_OUTSTANDING, SHORTEST_QUEUE = range(len(ROUTERS))

ROUTER = record(
    now_s=np.float64, exact_s=np.float64, coming_s=np.float64, horizon_s=np.float64, fed=np.int64,
    sent=np.int64, turn=np.int64, events=np.int64, planned=np.int64, due=np.int64,
)  # fmt: skip
"""One record. now_s: the calendar's clock, a sum as simpy makes it; exact_s: the same without the
rounding of such sums. coming_s: the newest arrival that has been announced; horizon_s: when the
next known request comes. fed: requests that have come at times noted beforehand; sent: of a closed
loop; turn: of round-robin. events: in the calendar; planned: so far. due: the replica that acts
next, -1 if none."""

STAND = record(idle=np.int64, halfway=np.int64, began_s=np.float64, finished=np.int64)
"""A replica. idle: 1 while it has nothing to do before somebody wakes it; halfway: 1 if its log was
full; began_s, finished: its clock and its finished replies when it last began to act."""


class Fleet(NamedTuple):
    """The router's record. router: place in ROUTERS; users: of a closed loop, else 0. counters [1]
    ROUTER; stands [R] STAND; events: the calendar, a heap; replica_of [Q] int32.
    """

    router: int
    users: int
    counters: Records
    stands: Records
    events: Records
    replica_of: npt.NDArray[np.int32]


def new_fleet(
    replicas: int, router: str, users: int, replica_of: npt.NDArray[np.int32], until_s: float
) -> Fleet:
    """A router whose first request is still to come, and idle replicas; with until_s 0 they stay
    so.
    """
    counters, stands = records(ROUTER, 1), records(STAND, replicas)
    counters.coming_s, counters.sent, counters.due = -1.0, users, -1
    stands.idle = until_s > 0.0
    events = records(ENTRY, replicas + users + 1)  # one a replica, one a user who pauses, the feed
    fleet = Fleet(ROUTERS.index(router), users, counters, stands, events, replica_of)
    plan(fleet, 0.0, 0)
    return fleet


def own_state(states: State, replica: int) -> State:
    """The state of one replica out of those of all, stacked: the same memory."""
    return type(states)(*(field[replica] for field in states))


@intrinsic  # type: ignore[untyped-decorator]  # numba ships no types
def own_state_compiled(context: Any, states: Any, replica: Any) -> Any:
    """own_state, in compiled code."""

    def at(array: Any, place: int) -> Any:
        return array[place]

    fields = [field.copy(ndim=field.ndim - 1) for field in states.types]
    found = types.containers.NamedTuple(fields, states.instance_class)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        parts = []
        for k, field in enumerate(states.types):
            array = builder.extract_value(arguments[0], k)
            taken = fields[k](field, replica)
            parts.append(context.compile_internal(builder, at, taken, (array, arguments[1])))
        return context.make_tuple(builder, found, parts)

    return found(states, replica), generate


def route(self: Any, states: State, worlds: World, fleet: Fleet, seed: int, until_s: float) -> int:
    """Play iterations that begin before until_s. IDLE: nothing more will happen. FULL: a log has no
    room; empty all of them and call again.
    """
    counters = fleet.counters[0]
    while True:
        if int(counters.due) >= 0:
            if not act(self, states, worlds, fleet, int(counters.due), seed, until_s):
                return FULL
            counters.due = -1
        if int(counters.events) == 0:
            return IDLE
        counters.due = happen(worlds, fleet)


def act(
    self: Any,
    states: State,
    worlds: World,
    fleet: Fleet,
    replica: int,
    seed: int,
    until_s: float,
) -> bool:
    """A replica plays on as far as nobody can come in between; False if its log is full."""
    stand, world = fleet.stands[replica], world_of(worlds, replica)
    counters = world.counters[0]
    if int(stand.halfway) == 0:
        counters.now_s = max(float(counters.now_s), float(fleet.counters[0].exact_s))
        stand.began_s, stand.finished = float(counters.now_s), int(counters.finished)
    began = float(stand.began_s)
    horizon = float(fleet.counters[0].horizon_s)
    if fleet.users > 0:  # one iteration: its end may bring the next request
        horizon = float(np.nextafter(began, np.inf))
    why = advance(self, own_state(states, replica), world, seed, min(horizon, until_s))
    stand.halfway = 1 if why == FULL else 0
    if why == FULL:
        return False
    if float(counters.now_s) > began:
        plan(fleet, float(counters.now_s), 1 + replica)
    elif began < until_s:
        stand.idle = 1
    return True


def plan(fleet: Fleet, at_s: float, event: int) -> None:
    """Enter an event. 0: the next known request comes; 1 + r: an iteration of replica r ends;
    1 + R + r: it acts; 1 + 2 R + q: the user of request q has paused.
    """
    counters = fleet.counters[0]
    now = float(counters.now_s)
    kinds = 1 + 2 * fleet.stands.shape[0] + fleet.replica_of.shape[0]
    number = int(counters.planned) * kinds + event
    push(fleet.events, int(counters.events), now + max(0.0, at_s - now), number)
    counters.planned += 1
    counters.events += 1


def happen(worlds: World, fleet: Fleet) -> int:
    """Let the next event happen; returns the replica that acts at once, -1 if none."""
    counters, replicas = fleet.counters[0], int(fleet.stands.shape[0])
    kinds = 1 + 2 * replicas + int(fleet.replica_of.shape[0])
    counters.now_s = float(fleet.events[0].key)
    event = int(pop(fleet.events, int(counters.events))) % kinds
    counters.events -= 1
    if event == 0:
        feed(worlds, fleet)
    elif event <= replicas:
        counters.exact_s = max(float(counters.exact_s), float(worlds.counters[event - 1, 0].now_s))
        if fleet.users == 0:
            return event - 1
        send(worlds, fleet, event - 1)
    elif event <= 2 * replicas:
        return event - 1 - replicas
    else:
        request = event - 1 - 2 * replicas
        counters.exact_s = max(float(counters.exact_s), float(worlds.requests[request].arrival_s))
        deliver(worlds, fleet, request)
    return -1


def feed(worlds: World, fleet: Fleet) -> None:
    """Deliver requests whose times are known beforehand, and announce the next one."""
    counters, known = fleet.counters[0], worlds.requests.shape[0]
    if fleet.users > 0:
        known = min(known, fleet.users)
    counters.exact_s = max(float(counters.exact_s), float(counters.coming_s))
    while int(counters.fed) < known:
        come_s = float(worlds.requests[counters.fed].arrival_s)
        if come_s > float(counters.coming_s):
            counters.coming_s = come_s
            announce(fleet, come_s)
            plan(fleet, come_s, 0)
            return
        deliver(worlds, fleet, int(counters.fed))
        counters.fed += 1
    announce(fleet, math.inf)


def announce(fleet: Fleet, horizon_s: float) -> None:
    """Tell all replicas when the next known request comes."""
    fleet.counters[0].horizon_s = horizon_s
    for replica in range(fleet.stands.shape[0]):
        wake(fleet, replica)


def wake(fleet: Fleet, replica: int) -> None:
    """An idle replica acts, after what has been planned for this moment."""
    stand = fleet.stands[replica]
    if int(stand.idle) == 1:
        stand.idle = 0
        plan(fleet, float(fleet.counters[0].now_s), 1 + fleet.stands.shape[0] + replica)


def send(worlds: World, fleet: Fleet, replica: int) -> None:
    """An iteration of a closed loop has ended: the users who got their replies go on, at once or
    after a pause; then the replica acts.
    """
    counters, requests = fleet.counters[0], worlds.requests
    first = int(counters.sent)
    count = int(worlds.counters[replica, 0].finished) - int(fleet.stands[replica].finished)
    for request in range(first, min(first + count, requests.shape[0])):
        pause_s = float(requests[request].think_s)
        requests[request].arrival_s = float(counters.exact_s) + pause_s
        if pause_s == 0.0:
            deliver(worlds, fleet, request)
        counters.sent += 1
    plan(fleet, float(counters.now_s), 1 + fleet.stands.shape[0] + replica)
    for request in range(first, int(counters.sent)):
        if float(requests[request].think_s) != 0.0:
            event = 1 + 2 * fleet.stands.shape[0] + request
            plan(fleet, float(requests[request].arrival_s), event)


def deliver(worlds: World, fleet: Fleet, request: int) -> None:
    """Send a request to a replica, now."""
    replica = choose_replica(worlds, fleet)
    fleet.replica_of[request] = replica
    wait(world_of(worlds, replica), request)
    if fleet.users > 0:
        wake(fleet, replica)


def choose_replica(worlds: World, fleet: Fleet) -> int:
    """The next in turn; with the fewest requests that wait or run; or with the fewest that wait,
    among them with the fewest that run, too. Ties to the first.
    """
    counters, replicas, best = fleet.counters[0], int(fleet.stands.shape[0]), 0
    if fleet.router == ROUND_ROBIN:
        counters.turn += 1
        return (int(counters.turn) - 1) % replicas
    least = (-1, -1)
    for replica in range(replicas):
        own = worlds.counters[replica, 0]
        waiting = int(own.waiting)
        outstanding = waiting + int(own.running)
        load = (waiting if fleet.router == SHORTEST_QUEUE else 0, outstanding)
        if replica == 0 or load < least:
            best, least = replica, load
    return best
