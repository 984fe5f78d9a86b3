"""Requests of a running server: they come, wait, enter a slot, hold memory, and leave.

Plain Python of plain arithmetic, compiled with simulator.serving.scheduler, which calls it.
"""

from __future__ import annotations

import math

from simulator.serving.counters import note
from simulator.serving.queue import blocks_of, line_key, pop, push
from simulator.serving.state import Record, World
from traces.costs.pricing import bucket_of


def next_arrival(world: World) -> float:
    """When the next known request comes; inf if none is known."""
    desk, coming = world.desk[0], math.inf
    if int(desk.fed) < world.rules.first:
        coming = float(world.requests[desk.fed].arrival_s)
    if int(desk.later) > 0:
        coming = min(coming, float(world.later[0].key))
    return coming


def take_arrivals(world: World) -> None:
    """Put everybody who has come by now into the waiting line."""
    desk, first = world.desk[0], world.rules.first
    now = float(desk.now_s)
    while int(desk.fed) < first and float(world.requests[desk.fed].arrival_s) <= now:
        wait(world, int(desk.fed))
        desk.fed += 1
    while int(desk.later) > 0 and float(world.later[0].key) <= now:
        query = pop(world.later, int(desk.later))
        desk.later -= 1
        wait(world, query)


def wait(world: World, query: int) -> None:
    """A request joins the waiting line."""
    request, desk = world.requests[query], world.desk[0]
    prompt = int(world.tape.prompt_tokens[request.row])
    key = line_key(world.rules.order, float(request.arrival_s), prompt, int(request.priority))
    push(world.line, int(desk.waiting), key, query)
    desk.waiting += 1


def may_enter(world: World) -> bool:
    """True if there is memory for the first of the waiting line: its prompt, its reply so far, the
    longest draft and one token more. Until then everybody waits.
    """
    rules = world.rules
    if rules.blocks == 0:
        return True
    request = world.requests[world.line[0].number]
    context = int(world.tape.prompt_tokens[request.row]) + int(request.done)
    need = blocks_of(context + world.limits.max_gamma + 1, rules.block_tokens)
    return need <= int(world.desk[0].free_blocks)


def enter(world: World) -> int:
    """Take the first of the waiting line into a slot and read its prompt, or let it be read in
    chunks; returns the slot. After a preemption the reply so far is part of the prompt.
    """
    desk, rules, tape = world.desk[0], world.rules, world.tape
    query = pop(world.line, int(desk.waiting))
    desk.waiting -= 1
    number = int(world.places[desk.first_free].free)
    desk.first_free = (int(desk.first_free) + 1) % rules.slots
    world.places[desk.running].running = number
    desk.running += 1
    request, slot = world.requests[query], world.slots[number]
    row, done = int(request.row), int(request.done)
    slot.query, slot.prompt = query, int(tape.prompt_tokens[row])
    slot.begin, slot.end = int(tape.offsets[row]), int(tape.offsets[row + 1])
    slot.at = int(tape.offsets[row]) + done
    slot.lag, slot.rounds, slot.ready, slot.held, slot.unread = 1, int(request.rounds), 0, 0, 0
    if math.isnan(float(request.admitted_s)):
        request.admitted_s = float(desk.now_s)
    context = int(slot.prompt) + done
    if rules.blocks > 0:
        hold(world, number, blocks_of(context + 1, rules.block_tokens))
    if rules.chunk_tokens > 0:
        slot.unread = context
        return number
    seconds = float(world.costs.prefill_s[bucket_of(world.costs, context)])
    request.prefill_s += seconds
    desk.prompt_s += seconds
    desk.now_s += seconds
    note(world, seconds, 0, 0)
    return number


def hold(world: World, number: int, blocks: int) -> None:
    """Let a slot hold so many blocks in place of those it has; the others are free."""
    slot, desk = world.slots[number], world.desk[0]
    desk.free_blocks -= blocks - int(slot.held)
    slot.held = blocks
    used = world.rules.blocks - int(desk.free_blocks)
    desk.peak_blocks = max(int(desk.peak_blocks), used)


def reserve(world: World, number: int, blocks: int) -> bool:
    """Hold so many blocks, if need be by sending those back who were admitted last; False if that
    was this slot itself.
    """
    desk, more = world.desk[0], blocks - int(world.slots[number].held)
    while more > int(desk.free_blocks):
        victim = int(world.places[int(desk.running) - 1].running)
        desk.running -= 1
        preempt(world, victim)
        if victim == number:
            return False
    hold(world, number, blocks)
    return True


def preempt(world: World, number: int) -> None:
    """A slot gives everything back and its request waits again, its reply kept; prompt and reply
    will be read anew.
    """
    query = int(world.slots[number].query)
    give_back(world, number)
    world.requests[query].preempted += 1
    world.desk[0].preemptions += 1
    wait(world, query)


def give_back(world: World, number: int) -> None:
    """A slot that no longer counts as running is free, and so are its blocks."""
    desk, size = world.desk[0], world.rules.slots
    free = size - int(desk.running) - 1
    world.places[(int(desk.first_free) + free) % size].free = number
    desk.free_blocks += int(world.slots[number].held)
    world.slots[number].held = 0


def read_chunks(world: World) -> float:
    """Read up to chunk_tokens of the prompts that wait for it, first admitted first; seconds.

    A chunk that rides on a step of the target does not pay the fixed part of reading a prompt.
    """
    costs, left, seconds, read = world.costs, world.rules.chunk_tokens, 0.0, 0
    for k in range(int(world.desk[0].running)):
        slot = world.slots[world.places[k].running]
        unread = int(slot.unread)
        if unread > 0 and left > 0:
            whole = int(slot.prompt) + int(slot.at) - int(slot.begin)
            take = min(unread, left)
            seconds += float(costs.prefill_s[bucket_of(costs, whole - unread + take)])
            seconds -= float(costs.prefill_s[bucket_of(costs, whole - unread)])
            slot.unread = unread - take
            left -= take
            read += take
    return max(seconds, 1e-12) if read > 0 else 0.0  # inside one bucket: free, but it took place


def finish(world: World, slot: Record, end_s: float) -> None:
    """A reply has ended; in a closed loop its user sends the next request after a pause."""
    desk, requests = world.desk[0], world.requests
    requests[slot.query].finish_s = end_s
    slot.query = -1
    desk.finished += 1
    if world.rules.closed and int(desk.sent) < requests.shape[0]:
        following = int(desk.sent)
        desk.sent += 1
        come_s = end_s + float(requests[following].think_s)
        requests[following].arrival_s = come_s
        push(world.later, int(desk.later), come_s, following)
        desk.later += 1


def leave(world: World) -> None:
    """Slots whose reply has ended become free, in the order of the batch."""
    desk, places, kept = world.desk[0], world.places, 0
    for k in range(int(desk.running)):
        number = int(places[k].running)
        if int(world.slots[number].query) >= 0:
            places[kept].running = number
            kept += 1
        else:
            desk.running -= 1
            give_back(world, number)
