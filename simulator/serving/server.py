"""Many requests at once: a server with continuous batching and speculative decoding.

Within a replica nothing happens between two events from outside but iterations, so one compiled
call (simulator.serving.scheduler.advance) plays them all. One replica alone is a simpy process
(simulator.serving.processes); several, between which a router and the users of a closed loop go to
and fro, are one compiled loop (simulator.serving.routing).
"""

from __future__ import annotations

import dataclasses
import math
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import config

from policies.base import Policy, State
from policies.overhead import charged
from policies.registry import label
from policies.round import Limits
from simulator.replay.kernels import recipe, run_recipe
from simulator.replay.replay import low_bits, tape_of
from simulator.serving import processes, routing, scheduler
from simulator.serving.costs import without_idle_starts
from simulator.serving.draft_budget import ALLOTMENTS, TETRIS
from simulator.serving.options import Server, check, reads_signals
from simulator.serving.queue import ORDERS
from simulator.serving.result import ServingResult, collect
from simulator.serving.scheduler import FULL
from simulator.serving.state import (
    BIN,
    ENTRY,
    PLACE,
    SLOT,
    Records,
    Rules,
    World,
    drain,
    new_requests,
    new_worlds,
    world_of,
)
from traces.costs.pricing import StepCosts
from traces.errors import InputError
from traces.schema import Trace
from traces.workload.arrivals import Demand

LOG_ROWS = 1 << 16  # rounds per call of the kernel
BINS_AT_MOST = 1 << 20
MOST_BYTES = 4 << 30


def serve(
    policy: Policy,
    trace: Trace,
    demand: Demand,
    costs: StepCosts,
    server: Server,
    *,
    seed: int = 0,
    until_s: float = math.inf,
    log: bool = False,
    compiled: bool = True,
    events: bool = False,
) -> ServingResult:
    """Serve the requests of `demand`, drawn from `trace`, under a policy.

    seed: of the hooks and the network; two policies with the same demand and seed meet the same
    requests at the same times (common random numbers). until_s: iterations begin before it. log:
    keep every round. compiled: False runs the same code as plain Python, the slow reference.
    events: several replicas are simpy processes, the slow reference of the loop that plays them.
    Raises InputError if trace, costs, demand and server do not fit together.
    """
    limits = check(policy, trace, demand, costs, server)
    run = SharedState(policy, trace, demand, costs, server, limits, seed, until_s, log, compiled)
    worlds, logs = processes.play(run) if events or server.replicas == 1 else _routed(run)
    return collect(worlds, logs, run.replica_of, trace, server, run.meta)


def _routed(run: SharedState) -> tuple[list[World], list[list[Records]]]:
    """Play several replicas in one loop; they, and their rounds."""
    server, worlds = run.server, run.new_worlds()
    own = [run.policy.new_state(server.slots) for _ in range(server.replicas)]
    states = type(own[0])(*map(np.stack, zip(*own, strict=True)))
    fleet = routing.new_fleet(
        server.replicas, server.router, run.demand.users, run.replica_of, run.until_s
    )
    found = [world_of(worlds, replica) for replica in range(server.replicas)]
    parts: list[list[Records]] = [[] for _ in found]
    full = True
    while full:
        full = run.route(states, worlds, fleet) == FULL
        for world, rounds in zip(found, parts, strict=True):
            drain(world, rounds)
    return found, parts


class SharedState:
    """Common parts of all replicas."""

    def __init__(
        self,
        policy: Policy,
        trace: Trace,
        demand: Demand,
        costs: StepCosts,
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
        if server.pipelined and trace.meta.drafter != "model":
            raise InputError(
                f"server: only a model drafts ahead of the target; the trace's drafter is of kind "
                f"{trace.meta.drafter!r}: leave pipelined out"
            )
        self.costs = without_idle_starts(charged(policy, costs, signals=self.signals, starts=True))
        self.tape = tape_of(trace, self.signals)
        self.bins = _bins(demand, server)
        _check_memory(demand, server, self.bins)
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
        kinds = {
            "confidences": confidences,
            "starts": self.costs.start_s is not None,
            "logs": log,
            "pipelined": server.pipelined,
        }
        self._names = scheduler.bindings(type(policy), **kinds)
        self._variant = "serve" + "".join(str(int(kind)) for kind in kinds.values())
        self._recipe = recipe(type(policy), scheduler.advance, self._names, self._variant)
        self._plain = None if compiled else _plain(scheduler.advance, self._names)

    def advance(self, state: State, world: World, until_s: float) -> int:
        """simulator.serving.scheduler.advance, compiled or not."""
        arguments = (state, world, low_bits(self.seed), float(until_s))
        if self._plain is not None:
            return int(self._plain(self.policy, *arguments))
        key = (type(self.policy), self._variant)
        return run_recipe(self.policy, self._recipe, key, *arguments)

    def route(self, states: State, worlds: World, fleet: routing.Fleet) -> int:
        """simulator.serving.routing.route, compiled or not."""
        cls, variant = type(self.policy), f"routed {self._variant}"
        arguments = (states, worlds, fleet, low_bits(self.seed), float(self.until_s))
        if self._plain is not None:
            plain = _plain(routing.route, {"advance": self._plain})
            return int(plain(self.policy, *arguments))
        names = dict(self._names)
        if not config.DISABLE_JIT:
            names["own_state"] = routing.own_state_compiled
        lower = scheduler.__name__
        made = recipe(cls, routing.route, names, variant, lower)
        return run_recipe(self.policy, made, (cls, variant), *arguments)

    def new_world(self) -> World:
        """The idle replica of a server that has only one."""
        return world_of(self.new_worlds(), 0)

    def new_worlds(self) -> World:
        """All idle replicas. They share the requests and the times they come at."""
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
            hop_s=float(server.hop_s),
            jitter_s=float(server.jitter_s),
            token_hop_s=float(server.token_hop_s),
            reentry_s=float(server.reentry_s),
            bin_s=float(server.bin_s),
            first=(min(users, total) if users else total) if alone else 0,
            closed=alone and users > 0,
        )
        return new_worlds(
            rules,
            self.tape,
            self.costs,
            self.limits,
            self.requests,
            replicas=server.replicas,
            users=users,
            bins=self.bins,
            depth=self.limits.max_gamma if self.signals else 0,
            log_rows=max(LOG_ROWS, server.slots) if self.log else 0,
        )


def _plain(loop: Callable[..., int], names: dict[str, Any]) -> Callable[..., int]:
    """A loop as plain Python: every function of its module rebuilt around these names."""
    module = sys.modules[loop.__module__]
    world: dict[str, Any] = vars(module) | names
    for name, value in vars(module).items():
        if isinstance(value, types.FunctionType) and value.__module__ == module.__name__:
            world[name] = types.FunctionType(value.__code__, world, name)
    found: Callable[..., int] = world[loop.__name__]
    return found


def _check_memory(demand: Demand, server: Server, bins: int) -> None:
    """Raise InputError if the lists and time series of all replicas would outgrow MOST_BYTES."""
    waiting = len(demand.row) + max(demand.users, 1)
    rows = (SLOT.itemsize + PLACE.itemsize) * server.slots
    needed = server.replicas * (ENTRY.itemsize * waiting + rows + BIN.itemsize * bins)
    if needed > MOST_BYTES:
        raise InputError(
            f"server: {server.replicas} replicas with {len(demand.row)} requests and {bins} bins "
            f"of {server.bin_s:g} s need {needed / 2**30:.1f} GiB, {MOST_BYTES >> 30} are allowed; "
            "take fewer replicas or requests, or a larger bin_s"
        )


def _bins(demand: Demand, server: Server) -> int:
    """Bins of the time series: up to the last known arrival and as many again; the last is open."""
    known = demand.arrival_s[np.isfinite(demand.arrival_s)]
    last = float(known.max()) if len(known) else 0.0
    return int(min(BINS_AT_MOST, 2.0 * last / server.bin_s + 1024))
