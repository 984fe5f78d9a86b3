"""A running batch that is told its gamma from outside, and what is shown of it: the inside of
simulator.envs.serve.

`Commanded` is a policy like any other, so that simulator.serving.scheduler runs as it always does:
its gamma is a number that somebody else wrote into its state, and its other hooks note what
happened.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from policies.base import FloatArray, IntArray, Outcome, Policy, State, View
from policies.learned.observation import (
    MEMORY,
    ROUND,
    forget,
    on_grid,
    part,
    remember,
    show_costs,
    show_request,
)
from policies.randomness import Rng
from policies.round import room_at, view_at
from simulator.serving.scheduler import decoding
from simulator.serving.state import World
from traces.costs.pricing import bucket_of

BATCH = (
    "requests that run, of the slots",
    "of those, the share whose prompt is still being read",
    "blocks of memory in use, of all; 0 without a limit",
    "1 if the last iteration had no draft, so that the next one with a draft pays reentry_s",
    "seconds that the first of the queue has waited, in plain rounds x, as x / (1 + x)",
)
"""Observations of the server beside the mean of its rows (policies.learned.observation.ROUND). A
plain round here: one token, one row, shortest context."""

LEARNED, ENTERED = range(2)  # entries of CommandState.counts
REQUEST, SLOT, ROUND_NUMBER, CONTEXT, ROOM, BUCKET = range(6)  # columns of a row shown
NOW_S, REQUEST_S, EMITTED, WAITING = range(4)  # of what `observe` counts


class CommandState(NamedTuple):
    """S slots. memory [S, MEMORY]: see policies.learned.observation. command [1]: the gamma that
    holds. counts [2]: rows that learned and slots that were entered since gamma was asked. outcomes
    [S, 6]: slot, gamma, drafted, accepted, emitted, ended of those rows; elapsed_s [S] theirs.
    entered [S]: those slots.
    """

    memory: FloatArray
    command: IntArray
    counts: IntArray
    outcomes: IntArray
    elapsed_s: FloatArray
    entered: IntArray


@dataclasses.dataclass(frozen=True)
class Commanded(Policy):
    """The gamma that was written into the state, for the whole batch."""

    batch_wide = True
    name = "external-gamma"
    rule = "what it was told"
    source = "GammaLab"

    def new_state(self, slots: int) -> CommandState:
        return CommandState(
            memory=np.zeros((slots, MEMORY)),
            command=np.zeros(1, dtype=np.int64),
            counts=np.zeros(2, dtype=np.int64),
            outcomes=np.zeros((slots, 6), dtype=np.int64),
            elapsed_s=np.zeros(slots),
            entered=np.zeros(slots, dtype=np.int64),
        )

    def admit(self, state: State, slot: int) -> None:
        forget(state.memory, slot)
        state.entered[state.counts[ENTERED]] = slot
        state.counts[ENTERED] += 1

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        state.counts[LEARNED] = 0
        state.counts[ENTERED] = 0
        return int(state.command[0])

    def learn(self, state: State, slot: int, view: View, outcome: Outcome) -> None:
        remember(state.memory, slot, outcome.drafted, outcome.accepted)
        k = int(state.counts[LEARNED])
        state.outcomes[k, 0] = slot
        state.outcomes[k, 1] = outcome.gamma
        state.outcomes[k, 2] = outcome.drafted
        state.outcomes[k, 3] = outcome.accepted
        state.outcomes[k, 4] = outcome.emitted
        state.outcomes[k, 5] = 1 if outcome.ended else 0
        state.elapsed_s[k] = outcome.elapsed_s
        state.counts[LEARNED] += 1


def observe(
    world: World,
    memory: FloatArray,
    since_s: float,
    scale_s: float,
    rows: IntArray,
    shown: FloatArray,
    counted: FloatArray,
    out: npt.NDArray[np.float32],
) -> int:
    """Show a server whose next iteration is due; returns n, its rows that decode.

    Fills rows [:n, 6], in the order of the batch, and out [len(ROUND) + len(BATCH)]; shown
    [S, len(ROUND)] is scratch. counted [4]: the time; seconds since since_s, summed over the
    requests in the system (come, not finished); tokens emitted so far; requests that wait. scale_s:
    of a plain round.
    """
    counters, costs, rules = world.counters[0], world.costs, world.rules
    batch, waiting, n = decoding(world), int(counters.waiting), 0
    for k in range(int(counters.running)):
        number = int(world.places[k].running)
        slot = world.slots[number]
        if int(slot.unread) > 0:
            continue
        place, prompt = int(slot.at) - int(slot.begin), int(slot.prompt)
        offered = int(world.tape.draft_len[slot.at])
        room = room_at(world.limits, prompt, place + int(slot.ready), offered)
        bucket = bucket_of(costs, prompt + place)
        rows[n, REQUEST], rows[n, SLOT], rows[n, ROUND_NUMBER] = slot.request, number, slot.rounds
        rows[n, CONTEXT], rows[n, ROOM], rows[n, BUCKET] = prompt + place, room, bucket
        view = view_at(costs, batch - 1, bucket, prompt + place, batch, waiting, room)
        show_request(memory, number, room, prompt + place, shown, n)
        show_costs(view.draft_step_s, view.verify_s, batch, waiting, shown, n)
        n += 1
    for j in range(len(ROUND)):
        total = 0.0
        for k in range(n):
            total += float(shown[k, j])
        out[j] = on_grid(total / n) if n > 0 else 0.0
    now, running, first = float(counters.now_s), int(counters.running), len(ROUND)
    out[first] = on_grid(running / rules.slots)
    out[first + 1] = on_grid(1.0 - n / running) if running > 0 else 0.0
    used = rules.blocks - int(counters.free_blocks)
    out[first + 2] = on_grid(used / rules.blocks) if rules.blocks > 0 else 0.0
    out[first + 3] = float(counters.quiet)
    out[first + 4] = 0.0
    if waiting > 0:
        come_s = float(world.requests[world.queue[0].number].arrival_s)
        out[first + 4] = part((now - come_s) / scale_s)
    counted[NOW_S], counted[EMITTED], counted[WAITING] = (
        now,
        float(counters.emitted),
        float(waiting),
    )
    counted[REQUEST_S] = request_seconds(world, since_s, now)
    return n


def request_seconds(world: World, since_s: float, until_s: float) -> float:
    """The integral of the number of requests in the system over a stretch of time."""
    total = 0.0
    for q in range(world.requests.shape[0]):
        request = world.requests[q]
        begin, end = max(since_s, float(request.arrival_s)), until_s
        if float(request.finish_s) < until_s:  # NaN while it runs
            end = float(request.finish_s)
        if end > begin:
            total += end - begin
    return total
