"""Iterations of a running batch: the only place where continuous batching is written.

One iteration admits waiting requests into free slots, asks the policy for every row's gamma,
reserves memory, drafts in lock step, verifies, and hands each row what it emitted. `advance` plays
iterations until a given time, until nothing is left to do, or until its log is full. Like
simulator.replay.rounds it is plain Python of plain arithmetic: `simulator.replay.kernels` compiles
it with the policy's own hooks, the interpreted server runs it as it is, and with one slot and no
queue its rounds are those of simulator.replay.rounds.play, bit for bit.

Everything that changes lies in simulator.serving.state.World.
"""

from __future__ import annotations

import math
from typing import Any

from policies.base import HOOKS, Draft, Hook, Outcome, Policy, State, View, clamp_gamma
from policies.randomness import Rng, round_key, uniform
from simulator.replay.rounds import room_at
from simulator.serving.costs import context_bucket, draft_seconds, verify_seconds
from simulator.serving.draft_budget import EACH, TETRIS, share_caps, trim
from simulator.serving.queue import blocks_of, line_key, pop, push
from simulator.serving.state import GAPS, Record, World
from traces.costs import lag_after

IDLE, LIMIT, FULL, DUE = range(4)  # why `advance` came back
FINEST_GAP_S, GAPS_PER_DOUBLING = 1e-6, 16
NETWORK_KEY = 0x1F83D9AB  # keeps the network's draws apart from the policies'

# What this module calls by these names is replaced, compiled or not, by what `bindings` says.
admit: Hook = Policy.admit
gamma: Hook = Policy.gamma
proceed: Hook = Policy.proceed
learn: Hook = Policy.learn
STOPS = False  # the policy overrides proceed
SIGNALS = False  # it does, or the allotment reads confidences
LOGS = True  # rounds are written to the log
WIDE = False  # the policy chooses one gamma for the whole batch
PIPELINED = False  # draft and target run side by side
PAUSES = False  # `advance` comes back whenever the policy is about to be asked


def bindings(
    cls: type[Policy], *, confidences: bool, logs: bool, pipelined: bool, pauses: bool = False
) -> dict[str, Any]:
    """The globals of this module for a policy class."""
    stops = cls.proceed is not Policy.proceed
    hooks = {name: getattr(cls, name) for name in HOOKS}
    return hooks | {
        "STOPS": stops,
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
    desk, rules = world.desk[0], world.rules
    while True:
        if not PAUSES or int(desk.due) == 0:
            coming = next_arrival(world)
            if coming <= float(desk.now_s):
                take_arrivals(world)
            elif int(desk.running) == 0 and int(desk.waiting) == 0:
                if coming < until_s:
                    desk.now_s = coming
                    continue
                return IDLE if coming == math.inf else LIMIT
            if float(desk.now_s) >= until_s:
                return LIMIT
            if LOGS and int(desk.written) + rules.slots > world.log.shape[0]:
                return FULL
            while int(desk.waiting) > 0 and int(desk.running) < rules.slots and may_enter(world):
                admit(self, state, enter(world))
            if PAUSES and decoding(world) > 0:
                desk.due = 1
                return DUE
        desk.due = 0
        n, context = choose(self, state, world, seed)
        chunk_s = read_chunks(world) if rules.chunk_tokens > 0 else 0.0
        if n > 0:
            draft(self, state, world, n)
            elapsed = price(world, n, context_bucket(world.costs, context), seed) + chunk_s
            conclude(self, state, world, n, elapsed)
        elif chunk_s > 0.0:
            end_iteration(world, chunk_s + float(world.costs.prefill_s[0]), 0, 0)


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
    seconds = float(world.costs.prefill_s[context_bucket(world.costs, context)])
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


def choose(self: Any, state: State, world: World, seed: int) -> tuple[int, int]:
    """Ask the policy for the gamma of every row that decodes, and reserve gamma + 1 tokens behind
    those that were drafted an iteration ago.

    Returns the number of rows, listed in places.decoding, and the context, tokens, that their
    steps are priced at: the mean, or the longest.
    """
    desk, rules, slots, places = world.desk[0], world.rules, world.slots, world.places
    batch, n, tokens, longest, wish = decoding(world), 0, 0, 0, 0
    desk.asked, desk.asked_waiting = batch, int(desk.waiting)  # both may change below
    for k in range(int(desk.running)):
        number = int(places[k].running)
        slot = slots[number]
        if int(slot.unread) > 0:
            continue
        place, prompt = int(slot.at) - int(slot.begin), int(slot.prompt)
        room = room_at(world.limits, prompt, place + int(slot.ready) if PIPELINED else place)
        slot.room, slot.bucket = room, context_bucket(world.costs, prompt + place)
        if n == 0 or not WIDE:
            rng = Rng(round_key(seed, int(slot.query), int(slot.rounds)))
            wish = gamma(self, state, number, view_of(world, slot), rng)
        slot.cap = clamp_gamma(wish, room)
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
    batch, running = 0, int(world.desk[0].running)
    if world.rules.chunk_tokens == 0:
        return running
    for k in range(running):
        if int(world.slots[world.places[k].running].unread) == 0:
            batch += 1
    return batch


def view_of(world: World, slot: Record) -> View:
    """What the policy is shown of a slot before its round, and again when it learns from it."""
    costs, bucket, batch = world.costs, int(slot.bucket), int(world.desk[0].asked)
    return View(
        int(slot.prompt) + int(slot.at) - int(slot.begin),
        batch,
        int(world.desk[0].asked_waiting),
        int(slot.room),
        float(costs.draft_s[batch - 1, bucket, 1]) + costs.signal_s,
        costs.verify_s[batch - 1, bucket],
    )


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
            seconds += float(costs.prefill_s[context_bucket(costs, whole - unread + take)])
            seconds -= float(costs.prefill_s[context_bucket(costs, whole - unread)])
            slot.unread = unread - take
            left -= take
            read += take
    return max(seconds, 1e-12) if read > 0 else 0.0  # inside one bucket: free, but it took place


def draft(self: Any, state: State, world: World, n: int) -> None:
    """Draft in lock step: after every step each row that still drafts is asked whether to go on."""
    slots, places, tape, going = world.slots, world.places, world.tape, 0
    for k in range(n):
        slot = slots[places[k].decoding]
        slot.drafted = 0 if SIGNALS else int(slot.cap)
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
                more = proceed(self, state, number, Draft(depth + 1, top1, entropy))
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
    slots, costs, rules, desk = world.slots, world.costs, world.rules, world.desk[0]
    drafted, tokens, widest = load(world, n)
    draft_s = draft_seconds(costs, bucket, world.places, n, slots)
    verify_s = costs.verify_s[n - 1, bucket]
    if rules.allotment >= TETRIS:
        trim(
            rules.allotment, rules.budget_tokens, world.places, n, slots, world.survival, verify_s,
            draft_s,
        )  # fmt: skip
        tokens, widest = n, 0
        for k in range(n):
            slot = slots[world.places[k].decoding]
            tokens += int(slot.verified)
            widest = max(widest, int(slot.verified))
    mean, wide = tokens / n, widest + 1.0
    target_s = verify_seconds(verify_s, wide if rules.padded else mean)
    if rules.longest and not rules.padded and mean < wide:  # attention alone is padded
        bare = costs.verify_s[n - 1, 0]
        target_s = verify_seconds(bare, mean)
        target_s += verify_seconds(verify_s, wide) - verify_seconds(bare, wide)
    if drafted == 0:
        desk.quiet = 1
        return target_s
    if int(desk.quiet) == 1:
        draft_s += rules.reentry_s
        desk.quiet = 0
    if PIPELINED:  # both begin together, and each waits for the other
        target_s, draft_s = max(draft_s, target_s), 0.0
    if rules.hop_s + rules.jitter_s + rules.token_hop_s > 0.0:
        key = Rng(round_key(seed ^ NETWORK_KEY, int(desk.iterations), 0))
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
    desk, drafted, tokens, widest = world.desk[0], 0, n, 0
    for k in range(n):
        slot = world.slots[world.places[k].decoding]
        made = int(slot.drafted)
        slot.steps, slot.verified, read = made, made, made
        if PIPELINED:
            read = int(slot.ready)
            slot.verified = read + min(1, made)
        drafted += made
        tokens += read
        widest = max(widest, read)
    if PIPELINED:
        desk.ahead += drafted
    else:
        desk.steps += drafted
    return drafted, tokens, widest


def judge(world: World, slot: Record) -> tuple[int, int]:
    """Tokens that the target accepted of a row's verified ones, and tokens that the row emits.

    Pipelined, the token that the target adds to those drafted an iteration ago is the first of the
    new draft, or else the whole new draft is thrown away; the others of it are verified next.
    """
    tape, at, left = world.tape, int(slot.at), int(slot.end) - int(slot.at)
    if not PIPELINED:
        accepted = min(int(slot.verified), int(tape.accept_len[at]))
        return accepted, min(accepted + 1, left)
    ready = int(slot.ready)
    accepted = min(ready, int(tape.accept_len[at]))
    emitted = min(accepted + 1, left)
    slot.ready = 0
    judged = int(slot.drafted) > 0 and accepted == ready and ready < left
    if judged and int(tape.accept_len[at + ready]) > 0:
        accepted += 1
        slot.ready = int(slot.drafted) - 1
    return accepted, emitted


def conclude(self: Any, state: State, world: World, n: int, elapsed: float) -> None:
    """Hand every row what it emitted, let the policy learn, free the slots of ended replies."""
    desk = world.desk[0]
    now = float(desk.now_s)
    verified_all, accepted_all, emitted_all, drafted_all, ended = 0, 0, 0, 0, 0
    for k in range(n):
        number = int(world.places[k].decoding)
        slot = world.slots[number]
        at, end, verified = int(slot.at), int(slot.end), int(slot.verified)
        drafted = verified if PIPELINED else int(slot.drafted)
        accepted, emitted = judge(world, slot)
        over = end - at <= accepted  # the reply ended at a drafted token
        cap = max(int(slot.cap), verified)  # more than the cap: drafted under the one before
        outcome = Outcome(cap, verified, accepted, emitted, over, elapsed, elapsed)
        learn(self, state, number, view_of(world, slot), outcome)
        if LOGS:
            write_row(world.log[desk.written], slot, number, n, drafted, outcome, now)
            desk.written += 1
        mark(world, world.requests[slot.query], drafted, outcome, now + elapsed)
        if not PIPELINED:  # there one token is new to the draft, its own last or the target's
            slot.lag = lag_after(int(slot.lag), drafted, accepted)
        slot.at = at + emitted
        slot.rounds += 1
        verified_all += verified
        accepted_all += accepted
        emitted_all += emitted
        drafted_all += drafted
        if at + emitted >= end:
            finish(world, slot, now + elapsed)
            ended += 1
    desk.verified += verified_all
    desk.accepted += accepted_all
    end_iteration(world, elapsed, emitted_all, drafted_all)
    if ended > 0:
        leave(world)


def mark(world: World, request: Record, drafted: int, outcome: Outcome, end_s: float) -> None:
    """Note a round of a request that ended at end_s."""
    if int(request.rounds) == 0:
        request.first_s = end_s
    else:
        gap = end_s - float(request.last_s)
        world.gaps[gap_bin(gap)] += 1
        request.longest_s = max(float(request.longest_s), gap)
    request.last_s = end_s
    request.done += outcome.emitted
    request.rounds += 1
    request.drafted += drafted
    request.accepted += outcome.accepted


def gap_bin(gap_s: float) -> int:
    """The bin of a gap: 16 to a doubling, from a microsecond."""
    if gap_s <= FINEST_GAP_S:
        return 0
    return min(GAPS - 1, int(GAPS_PER_DOUBLING * math.log2(gap_s / FINEST_GAP_S)))


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


def write_row(
    row: Record,
    slot: Record,
    number: int,
    n: int,
    drafted: int,
    outcome: Outcome,
    start_s: float,
) -> None:
    """One round into the log."""
    row.request, row.slot, row.batch_size = int(slot.query), number, n
    row.context_tokens = int(slot.prompt) + int(slot.at) - int(slot.begin)
    row.gamma, row.drafted, row.verified = outcome.gamma, drafted, outcome.drafted
    row.accepted, row.emitted, row.ended = outcome.accepted, outcome.emitted, outcome.ended
    row.start_s, row.elapsed_s = start_s, outcome.elapsed_s


def end_iteration(world: World, elapsed: float, emitted: int, drafted: int) -> None:
    """The clock moves on, and what ran along is added up."""
    desk = world.desk[0]
    desk.now_s += elapsed
    desk.busy_s += elapsed
    desk.iterations += 1
    desk.emitted += emitted
    desk.drafted += drafted
    note(world, elapsed, emitted, drafted)


def note(world: World, seconds: float, emitted: int, drafted: int) -> None:
    """Add a stretch of work that ends now to the time series, whose last bin is open."""
    desk, rules = world.desk[0], world.rules
    place = min(int(float(desk.now_s) / rules.bin_s), world.bins.shape[0] - 1)
    stretch = world.bins[place]
    stretch.busy_s += seconds
    stretch.running_s += seconds * int(desk.running)
    stretch.waiting_s += seconds * int(desk.waiting)
    stretch.block_s += seconds * (rules.blocks - int(desk.free_blocks))
    stretch.emitted += emitted
    stretch.drafted += drafted
