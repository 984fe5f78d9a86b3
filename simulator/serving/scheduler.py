"""Iterations of a running batch: the only place where continuous batching is written.

One iteration admits waiting requests into free slots, asks the policy for every row's gamma,
reserves memory, drafts in lock step, verifies, and hands each row what it emitted. `advance` plays
iterations until a given time, until nothing is left to do, or until its log is full. Like
simulator.replay.rounds it is plain Python of plain arithmetic: `simulator.replay.kernels` compiles
it with the policy's own hooks, the interpreted server runs it as it is, and with one slot and no
queue its rounds are those of simulator.replay.rounds.play, bit for bit.

Everything that changes lies in simulator.serving.state.World. Longer than other files: hooks and
switches are bound by name, module by module, so whatever asks one of them stands here; what asks
none is in admission, costs and counters.
"""

from __future__ import annotations

import math
from typing import Any

from policies.base import (
    HOOKS,
    Draft,
    Hook,
    Outcome,
    Policy,
    State,
    View,
    clamp_gamma,
    decides_by_token,
    drops_tokens,
)
from policies.randomness import Rng, round_key, uniform
from policies.round import Settled, note_round, room_at, settle, view_at
from simulator.serving.admission import (
    enter,
    finish,
    leave,
    may_enter,
    next_arrival,
    read_chunks,
    reserve,
    take_arrivals,
)
from simulator.serving.costs import draft_seconds, start_due, start_held, verify_seconds
from simulator.serving.counters import end_iteration, mark
from simulator.serving.draft_budget import EACH, TETRIS, share_caps, trim
from simulator.serving.queue import blocks_of
from simulator.serving.state import Record, World
from traces.costs.pricing import bucket_of, lag_after

IDLE, LIMIT, FULL, DUE = range(4)  # why `advance` came back
NETWORK_KEY = 0x1F83D9AB  # keeps the network's draws apart from the policies'

# What this module calls by these names is replaced, compiled or not, by what `bindings` says.
admit: Hook = Policy.admit
gamma: Hook = Policy.gamma
retain: Hook = Policy.retain
proceed: Hook = Policy.proceed
learn: Hook = Policy.learn
STOPS = False  # the policy decides by token
DROPS = False  # the policy overrides retain
STARTS = True  # a draft has a price of its own besides its steps
SIGNALS = False  # it does, or the allotment reads confidences
LOGS = True  # rounds are written to the log
WIDE = False  # the policy chooses one gamma for the whole batch
PIPELINED = False  # draft and target run side by side
PAUSES = False  # `advance` comes back whenever the policy is about to be asked


def bindings(
    cls: type[Policy],
    *,
    confidences: bool,
    starts: bool,
    logs: bool,
    pipelined: bool,
    pauses: bool = False,
) -> dict[str, Any]:
    """The globals of this module for a policy class."""
    stops = decides_by_token(cls)
    hooks = {name: getattr(cls, name) for name in HOOKS}
    return hooks | {
        "STOPS": stops,
        "DROPS": drops_tokens(cls),
        "STARTS": starts,
        "SIGNALS": stops or confidences,
        "LOGS": logs,
        "WIDE": cls.batch_wide,
        "PIPELINED": pipelined,
        "PAUSES": pauses,
    }


def advance(self: Any, state: State, world: World, seed: int, until_s: float) -> int:
    """Play iterations that start before until_s; returns why it stopped.

    IDLE: nobody runs or waits, and nobody known will come. LIMIT: the next iteration, or the next
    arrival, is at until_s or later. FULL: the log has no room for another iteration. DUE, where
    PAUSES: the policy is about to be asked; the next call goes on from there.
    """
    counters, rules = world.counters[0], world.rules
    while True:
        if not PAUSES or int(counters.due) == 0:
            coming = next_arrival(world)
            if coming <= float(counters.now_s):
                take_arrivals(world)
            elif int(counters.running) == 0 and int(counters.waiting) == 0:
                if coming < until_s:
                    counters.now_s = coming
                    continue
                return IDLE if coming == math.inf else LIMIT
            if float(counters.now_s) >= until_s:
                return LIMIT
            if LOGS and int(counters.written) + rules.slots > world.log.shape[0]:
                return FULL
            while (
                int(counters.waiting) > 0
                and int(counters.running) < rules.slots
                and may_enter(world)
            ):
                admit(self, state, enter(world))
            if PAUSES and decoding(world) > 0:
                counters.due = 1
                return DUE
        counters.due = 0
        n, context = choose(self, state, world, seed)
        chunk_s = read_chunks(world) if rules.chunk_tokens > 0 else 0.0
        if n > 0:
            draft(self, state, world, n)
            elapsed = price(world, n, bucket_of(world.costs, context), seed) + chunk_s
            conclude(self, state, world, n, elapsed)
        elif chunk_s > 0.0:
            end_iteration(world, chunk_s + float(world.costs.prefill_s[0]), 0, 0)


def choose(self: Any, state: State, world: World, seed: int) -> tuple[int, int]:
    """Ask the policy for the gamma of every row that decodes, and reserve gamma + 1 tokens behind
    those that were drafted an iteration ago.

    Returns the number of rows, listed in places.decoding, and the context, tokens, that their
    steps are priced at: the mean, or the longest.
    """
    counters, rules, slots, places = world.counters[0], world.rules, world.slots, world.places
    batch, n, tokens, longest, requested_gamma = decoding(world), 0, 0, 0, 0
    counters.asked, counters.asked_waiting = batch, int(counters.waiting)  # both may change below
    for k in range(int(counters.running)):
        number = int(places[k].running)
        slot = slots[number]
        if int(slot.unread) > 0:
            continue
        place, prompt = int(slot.at) - int(slot.begin), int(slot.prompt)
        offered = int(world.tape.draft_len[slot.at])
        place_then = place + int(slot.ready) if PIPELINED else place
        room = room_at(world.limits, prompt, place_then, offered)
        slot.room, slot.bucket = room, bucket_of(world.costs, prompt + place)
        if n == 0 or not WIDE:
            rng = Rng(round_key(seed, int(slot.request), int(slot.rounds)))
            requested_gamma = gamma(self, state, number, view_of(world, slot), rng)
        slot.cap = clamp_gamma(requested_gamma, room)
        places[n].decoding = number
        n += 1
    if n > 0 and rules.allotment != EACH and rules.allotment < TETRIS:
        share_caps(rules.allotment, rules.budget_tokens, places, n, slots)
    if rules.blocks > 0:
        n = reserve_all(world, n)
    for k in range(n):
        slot = slots[places[k].decoding]
        context = int(slot.prompt) + int(slot.at) - int(slot.begin)
        tokens += context
        longest = max(longest, context)
    if rules.longest or n == 0:
        return n, longest
    return n, tokens // n


def reserve_all(world: World, n: int) -> int:
    """Hold ready + gamma + 1 tokens for each of n rows, first admitted first; how many of them are
    left when the last have been sent back. Who is sent back has no round, so its policy does not
    learn.
    """
    for k in range(n):
        number = int(world.places[k].decoding)
        slot = world.slots[number]
        context = int(slot.prompt) + int(slot.at) - int(slot.begin)
        need = blocks_of(context + int(slot.ready) + int(slot.cap) + 1, world.rules.block_tokens)
        if int(slot.held) == 0:  # sent back, and so are all behind it
            return k
        if need > int(slot.held) and not reserve(world, number, need):
            return k
    return n


def decoding(world: World) -> int:
    """How many rows have their whole prompt read."""
    batch, running = 0, int(world.counters[0].running)
    if world.rules.chunk_tokens == 0:
        return running
    for k in range(running):
        if int(world.slots[world.places[k].running].unread) == 0:
            batch += 1
    return batch


def view_of(world: World, slot: Record) -> View:
    """The view of a slot before its round, and again when it learns from it."""
    counters, batch = world.counters[0], int(world.counters[0].asked)
    context = int(slot.prompt) + int(slot.at) - int(slot.begin)
    waiting, room = int(counters.asked_waiting), int(slot.room)
    return view_at(world.costs, batch - 1, int(slot.bucket), context, batch, waiting, room)


def draft(self: Any, state: State, world: World, n: int) -> None:
    """Draft in lock step: after every step each row that still drafts is asked whether to go on."""
    slots, places, tape, going = world.slots, world.places, world.tape, 0
    for k in range(n):
        slot = slots[places[k].decoding]
        slot.drafted = 0 if SIGNALS else int(slot.cap)
        if DROPS:
            slot.dropped = 0
        slot.going = 1 if SIGNALS and int(slot.cap) > 0 else 0
        going += int(slot.going)
    while SIGNALS and going > 0:
        for k in range(n):
            number = int(places[k].decoding)
            slot = slots[number]
            if int(slot.going) == 0:
                continue
            depth = int(slot.drafted)
            at, behind = signals_at(slot, depth, tape.top1_prob.shape[1])
            top1, entropy = float(tape.top1_prob[at, behind]), float(tape.entropy[at, behind])
            before = float(world.survival[number, depth - 1]) if depth > 0 else 1.0
            world.survival[number, depth] = before * top1
            slot.drafted = depth + 1
            more = True
            if STOPS:
                newest = Draft(depth + 1, top1, entropy)
                more = not DROPS or retain(self, state, number, newest)
                if more:
                    more = proceed(self, state, number, newest)
                else:
                    slot.dropped = 1
            if not more or depth + 1 >= int(slot.cap):
                slot.going = 0
                going -= 1


def signals_at(slot: Record, depth: int, known: int) -> tuple[int, int]:
    """Position and depth of a trace's signals, `known` of them a position, for the token at this
    depth of a draft. Behind tokens drafted an iteration ago it lies as much deeper; where the trace
    ends, the draft's signals are those of one that begins where these were all accepted.
    """
    at, ready = int(slot.at), int(slot.ready) if PIPELINED else 0
    if not PIPELINED or ready + depth < known:
        return at, ready + depth
    return min(at + ready, int(slot.end) - 1), depth


def price(world: World, n: int, bucket: int, seed: int) -> float:
    """Decide what is verified, and say what drafting and verifying cost."""
    slots, costs, rules, counters = world.slots, world.costs, world.rules, world.counters[0]
    drafted, tokens, widest = load(world, n)
    draft_s = draft_seconds(costs, bucket, world.places, n, slots)
    due_s, start_s, first_s = 0.0, 0.0, 0.0  # of a draft's start: due; in verify_s here, and at 0
    if STARTS:
        assert costs.start_s is not None
        due_s = start_due(costs, bucket, world.places, n, slots)
        start_s, first_s = float(costs.start_s[n - 1, bucket]), float(costs.start_s[n - 1, 0])
    verify_s = costs.verify_s[n - 1, bucket]
    if rules.allotment >= TETRIS:
        trim(
            rules.allotment, rules.budget_tokens, world.places, n, slots, world.survival, costs,
            bucket, draft_s + due_s, start_s,
        )  # fmt: skip
        tokens, widest = n, 0
        for k in range(n):
            slot = slots[world.places[k].decoding]
            tokens += int(slot.verified)
            widest = max(widest, int(slot.verified))
    mean, wide = tokens / n, widest + 1.0
    read = wide if rules.padded else mean
    target_s, held_s = verify_seconds(verify_s, read), start_held(start_s, read)
    if rules.longest and not rules.padded and mean < wide:  # attention alone is padded
        bare = costs.verify_s[n - 1, 0]
        target_s = verify_seconds(bare, mean)
        target_s += verify_seconds(verify_s, wide) - verify_seconds(bare, wide)
        held_s = start_held(start_s, wide)
        held_s += start_held(first_s, mean) - start_held(first_s, wide)
    target_s += due_s - held_s
    if drafted == 0:
        counters.quiet = 1
        return target_s
    if int(counters.quiet) == 1:
        draft_s += rules.reentry_s
        counters.quiet = 0
    if PIPELINED:  # both begin together, and each waits for the other
        target_s, draft_s = max(draft_s, target_s), 0.0
    if rules.hop_s + rules.jitter_s + rules.token_hop_s > 0.0:
        key = Rng(round_key(seed ^ NETWORK_KEY, int(counters.iterations), 0))
        there, back = uniform(key, 0), uniform(key, 1)
        if PIPELINED:  # tokens and verdicts pass each other
            target_s += rules.hop_s + tokens * rules.token_hop_s
            target_s += rules.jitter_s * max(there, back)
        else:
            target_s += 2.0 * rules.hop_s + tokens * rules.token_hop_s
            target_s += rules.jitter_s * (there + back)
    return draft_s + target_s


def load(world: World, n: int) -> tuple[int, int, int]:
    """Tokens drafted in this iteration; that the target reads, own ones included; and drafted ones
    of the row of which it reads most.

    In turn, the target reads each row's draft behind its newest token. Pipelined (PEARL, see
    simulator.serving.options) it reads what was drafted an iteration ago while the next tokens are
    drafted, and so judges the first of these, too.
    """
    counters, drafted, tokens, widest = world.counters[0], 0, n, 0
    for k in range(n):
        slot = world.slots[world.places[k].decoding]
        made = int(slot.drafted)
        kept = made - int(slot.dropped) if DROPS else made
        slot.steps, slot.verified, read = made, kept, kept
        if PIPELINED:
            read = int(slot.ready)
            slot.verified = read + min(1, kept)
        drafted += made
        tokens += read
        widest = max(widest, read)
    if PIPELINED:
        counters.ahead += drafted
    else:
        counters.steps += drafted
    return drafted, tokens, widest


def judge(world: World, slot: Record) -> Settled:
    """The outcome of a row's round: of its verified tokens, and tokens that the row emits.

    Pipelined, the token that the target adds to those drafted an iteration ago is the first of the
    new draft, or else the whole new draft is thrown away; the others of it are verified next.
    """
    tape, at, left = world.tape, int(slot.at), int(slot.end) - int(slot.at)
    if not PIPELINED:
        return settle(int(slot.verified), int(tape.accept_len[at]), left)
    ready = int(slot.ready)
    accepted, emitted, ended = settle(ready, int(tape.accept_len[at]), left)
    slot.ready = 0
    kept = int(slot.drafted) - int(slot.dropped) if DROPS else int(slot.drafted)
    judged = kept > 0 and accepted == ready and ready < left
    if judged and int(tape.accept_len[at + ready]) > 0:
        accepted += 1
        ended = left <= accepted
        slot.ready = kept - 1
    return Settled(accepted, emitted, ended)


def conclude(self: Any, state: State, world: World, n: int, elapsed: float) -> None:
    """Hand every row what it emitted, let the policy learn, free the slots of ended replies."""
    counters = world.counters[0]
    now = float(counters.now_s)
    verified_all, accepted_all, emitted_all, drafted_all, ended = 0, 0, 0, 0, 0
    for k in range(n):
        number = int(world.places[k].decoding)
        slot = world.slots[number]
        at, end, verified = int(slot.at), int(slot.end), int(slot.verified)
        drafted = verified if PIPELINED else int(slot.drafted)
        accepted, emitted, over = judge(world, slot)
        cap = max(int(slot.cap), verified)  # more than the cap: drafted under the one before
        outcome = Outcome(cap, verified, accepted, emitted, over, elapsed, elapsed)
        view = view_of(world, slot)
        learn(self, state, number, view, outcome)
        if LOGS:
            row = world.log[counters.written]
            context = view.context_tokens
            note_round(row, int(slot.request), number, n, context, now, drafted, outcome)
            counters.written += 1
        mark(world, world.requests[slot.request], drafted, outcome, now + elapsed)
        if not PIPELINED:  # there one token is new to the draft, its own last or the target's
            slot.lag = lag_after(int(slot.lag), drafted, accepted, world.costs.reads_states)
        slot.at = at + emitted
        slot.rounds += 1
        verified_all += verified
        accepted_all += accepted
        emitted_all += emitted
        drafted_all += drafted
        if at + emitted >= end:
            finish(world, slot, now + elapsed)
            ended += 1
    counters.verified += verified_all
    counters.accepted += accepted_all
    end_iteration(world, elapsed, emitted_all, drafted_all)
    if ended > 0:
        leave(world)
