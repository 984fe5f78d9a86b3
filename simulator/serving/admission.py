"""Requests of a running server: they come, wait, enter a slot, hold memory, and leave.

Plain Python of plain arithmetic, compiled with simulator.serving.scheduler, which calls it.
"""

from __future__ import annotations

import math

from simulator.serving.counters import note
from simulator.serving.queue import blocks_of, pop, push, queue_key
from simulator.serving.state import Record, World
from traces.costs.pricing import bucket_of


def next_arrival(world: World) -> float:
    """When the next known request comes; inf if none is known."""
    counters, coming = world.counters[0], math.inf
    if int(counters.fed) < world.rules.first:
        coming = float(world.requests[counters.fed].arrival_s)
    if int(counters.later) > 0:
        coming = min(coming, float(world.later[0].key))
    return coming


def take_arrivals(world: World) -> None:
    """Put everybody who has come by now into the queue."""
    counters, first = world.counters[0], world.rules.first
    now = float(counters.now_s)
    while int(counters.fed) < first and float(world.requests[counters.fed].arrival_s) <= now:
        wait(world, int(counters.fed))
        counters.fed += 1
    while int(counters.later) > 0 and float(world.later[0].key) <= now:
        request = pop(world.later, int(counters.later))
        counters.later -= 1
        wait(world, request)


def wait(world: World, request: int) -> None:
    """A request joins the queue."""
    record, counters = world.requests[request], world.counters[0]
    prompt = int(world.tape.prompt_tokens[record.row])
    key = queue_key(world.rules.order, float(record.arrival_s), prompt, int(record.priority))
    push(world.queue, int(counters.waiting), key, request)
    counters.waiting += 1


def may_enter(world: World) -> bool:
    """True if there is memory for the first of the queue: its prompt, its reply so far, the
    longest draft and one token more. Until then everybody waits.
    """
    rules = world.rules
    if rules.blocks == 0:
        return True
    record = world.requests[world.queue[0].number]
    context = int(world.tape.prompt_tokens[record.row]) + int(record.done)
    need = blocks_of(context + world.limits.max_gamma + 1, rules.block_tokens)
    return need <= int(world.counters[0].free_blocks)


def enter(world: World) -> int:
    """Take the first of the queue into a slot and read its prompt, or let it be read in
    chunks; returns the slot. After a preemption the reply so far is part of the prompt.
    """
    counters, rules, tape = world.counters[0], world.rules, world.tape
    request = pop(world.queue, int(counters.waiting))
    counters.waiting -= 1
    number = int(world.places[counters.first_free].free)
    counters.first_free = (int(counters.first_free) + 1) % rules.slots
    world.places[counters.running].running = number
    counters.running += 1
    record, slot = world.requests[request], world.slots[number]
    row, done = int(record.row), int(record.done)
    slot.request, slot.prompt = request, int(tape.prompt_tokens[row])
    slot.begin, slot.end = int(tape.offsets[row]), int(tape.offsets[row + 1])
    slot.at = int(tape.offsets[row]) + done
    slot.lag, slot.rounds, slot.ready, slot.held, slot.unread = 1, int(record.rounds), 0, 0, 0
    if math.isnan(float(record.admitted_s)):
        record.admitted_s = float(counters.now_s)
    context = int(slot.prompt) + done
    if rules.blocks > 0:
        hold(world, number, blocks_of(context + 1, rules.block_tokens))
    if rules.chunk_tokens > 0:
        slot.unread = context
        return number
    seconds = float(world.costs.prefill_s[bucket_of(world.costs, context)])
    record.prefill_s += seconds
    counters.prompt_s += seconds
    counters.now_s += seconds
    note(world, seconds, 0, 0)
    return number


def hold(world: World, number: int, blocks: int) -> None:
    """Let a slot hold so many blocks in place of those it has; the others are free."""
    slot, counters = world.slots[number], world.counters[0]
    counters.free_blocks -= blocks - int(slot.held)
    slot.held = blocks
    used = world.rules.blocks - int(counters.free_blocks)
    counters.peak_blocks = max(int(counters.peak_blocks), used)


def reserve(world: World, number: int, blocks: int) -> bool:
    """Hold so many blocks, if need be by sending those back who were admitted last; False if that
    was this slot itself.
    """
    counters, more = world.counters[0], blocks - int(world.slots[number].held)
    while more > int(counters.free_blocks):
        victim = int(world.places[int(counters.running) - 1].running)
        counters.running -= 1
        preempt(world, victim)
        if victim == number:
            return False
    hold(world, number, blocks)
    return True


def preempt(world: World, number: int) -> None:
    """A slot gives everything back and its request waits again, its reply kept; prompt and reply
    will be read anew.
    """
    request = int(world.slots[number].request)
    give_back(world, number)
    world.requests[request].preempted += 1
    world.counters[0].preemptions += 1
    wait(world, request)


def give_back(world: World, number: int) -> None:
    """A slot that no longer counts as running is free, and so are its blocks."""
    counters, size = world.counters[0], world.rules.slots
    free = size - int(counters.running) - 1
    world.places[(int(counters.first_free) + free) % size].free = number
    counters.free_blocks += int(world.slots[number].held)
    world.slots[number].held = 0


def read_chunks(world: World) -> float:
    """Read up to chunk_tokens of the prompts that wait for it, first admitted first; seconds.

    A chunk that rides on a step of the target does not pay the fixed part of reading a prompt.
    """
    costs, left, seconds, read = world.costs, world.rules.chunk_tokens, 0.0, 0
    for k in range(int(world.counters[0].running)):
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
    counters, requests = world.counters[0], world.requests
    requests[slot.request].finish_s = end_s
    slot.request = -1
    counters.finished += 1
    if world.rules.closed and int(counters.sent) < requests.shape[0]:
        following = int(counters.sent)
        counters.sent += 1
        come_s = end_s + float(requests[following].think_s)
        requests[following].arrival_s = come_s
        push(world.later, int(counters.later), come_s, following)
        counters.later += 1


def leave(world: World) -> None:
    """Slots whose reply has ended become free, in the order of the batch."""
    counters, places, kept = world.counters[0], world.places, 0
    for k in range(int(counters.running)):
        number = int(places[k].running)
        if int(world.slots[number].request) >= 0:
            places[kept].running = number
            kept += 1
        else:
            counters.running -= 1
            give_back(world, number)
