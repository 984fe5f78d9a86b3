"""A server with two drafters, one that runs forwards and a look-up: which of them drafts a round,
and how far.

The look-up is made in every round, so that its price is on every round; the other drafter reads
what it lacks when its turn comes. Functions are plain Python of plain arithmetic, compiled as
simulator.replay.rounds is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from policies.round import Limits, room_at, settle
from simulator.replay.kernels import run_function
from simulator.replay.replay import tape_of
from simulator.replay.rounds import Tape
from traces.costs.pricing import StepCosts, bucket_of, lag_after, prices_of, round_seconds
from traces.schema import Trace

FloatArray = npt.NDArray[np.float64]
SECONDS, ROUNDS, LOOKED_UP = range(3)  # columns of what `play_switch` finds


class Switch(NamedTuple):
    """The rule: if the look-up has at least `least` tokens to offer, of which the first has at
    least this share of the continuations, up to `looked_up` of them are drafted, else `drafted`
    tokens by the other drafter.
    """

    least: int
    share: float
    looked_up: int
    drafted: int


class TwoDrafters(NamedTuple):
    """The prices of both, at batch 1, by context bucket [C].

    costs: of the drafter that runs forwards. look_up_s: of a look-up.
    """

    costs: StepCosts
    look_up_s: FloatArray


def switch_totals(rule: Switch, forwards: Trace, lookup: Trace, prices: TwoDrafters) -> FloatArray:
    """[R, 3] decode seconds, rounds, and rounds that the look-up drafted, by request.

    forwards, lookup: of the same replies, the latter with draft_len and shares.
    """
    out = np.zeros((forwards.requests, 3))
    run_function(play_switch, *_tapes(forwards, lookup, prices), np.asarray(rule, np.float64), out)
    return out


def switch_ceiling(forwards: Trace, lookup: Trace, prices: TwoDrafters) -> FloatArray:
    """[R] the least decode seconds that any choice of drafter and length could have had, by dynamic
    programming over the known future.
    """
    out = np.zeros(forwards.requests)
    run_function(plan_switch, *_tapes(forwards, lookup, prices), out)
    return out


def _tapes(
    forwards: Trace, lookup: Trace, prices: TwoDrafters
) -> tuple[Tape, Tape, StepCosts, FloatArray, Limits]:
    meta = forwards.meta
    limits = Limits(min(meta.depth, lookup.meta.depth), meta.max_new_tokens, meta.max_context)
    costs = prices_of(prices.costs, signals=False, starts=True)
    tapes = tape_of(forwards, signals=False), tape_of(lookup, signals=True)
    return *tapes, costs, prices.look_up_s, limits


def looked_up_seconds(costs: StepCosts, look_up_s: FloatArray, bucket: int, drafted: int) -> float:
    """Seconds of a round that the look-up drafts: the other drafter does not start."""
    seconds = float(costs.verify_s[0, bucket, drafted + 1]) + float(look_up_s[bucket])
    assert costs.start_s is not None
    return seconds - float(costs.start_s[0, bucket]) if drafted > 0 else seconds


def play_switch(
    forwards: Tape,
    lookup: Tape,
    costs: StepCosts,
    look_up_s: FloatArray,
    limits: Limits,
    rule: FloatArray,
    out: FloatArray,
) -> None:
    """Fill out [R, 3], see switch_totals; rule: a Switch."""
    for request in range(forwards.prompt_tokens.shape[0]):
        prompt = int(forwards.prompt_tokens[request])
        begin, end = int(forwards.offsets[request]), int(forwards.offsets[request + 1])
        at, lag = begin, 1
        while at < end:
            bucket = bucket_of(costs, prompt + at - begin)
            room = room_at(limits, prompt, at - begin, int(forwards.draft_len[at]))
            found = room_at(limits, prompt, at - begin, int(lookup.draft_len[at]))
            if found >= int(rule[0]) and float(lookup.top1_prob[at, 0]) >= rule[1] and found > 0:
                drafted = min(found, int(rule[2]))
                accepted, emitted, _ = settle(drafted, int(lookup.accept_len[at]), end - at)
                seconds = looked_up_seconds(costs, look_up_s, bucket, drafted)
                out[request, LOOKED_UP] += 1.0
                lag += emitted
            else:
                drafted = min(room, int(rule[3]))
                accepted, emitted, _ = settle(drafted, int(forwards.accept_len[at]), end - at)
                seconds = round_seconds(costs, 0, bucket, drafted, lag) + float(look_up_s[bucket])
                lag = lag_after(lag, drafted, accepted, costs.reads_states)
            out[request, SECONDS] += seconds
            out[request, ROUNDS] += 1.0
            at += emitted


def plan_switch(
    forwards: Tape,
    lookup: Tape,
    costs: StepCosts,
    look_up_s: FloatArray,
    limits: Limits,
    out: FloatArray,
) -> None:
    """Fill out [R], see switch_ceiling. least[i, lag]: seconds from position i to the end; a lag
    behind the last column costs as much as the last one.
    """
    widest = int(costs.draft_s.shape[2]) - 1
    for request in range(forwards.prompt_tokens.shape[0]):
        prompt = int(forwards.prompt_tokens[request])
        begin, end = int(forwards.offsets[request]), int(forwards.offsets[request + 1])
        least = np.zeros((end - begin + 1, widest + 1))
        for i in range(end - begin - 1, -1, -1):
            at, left = begin + i, end - begin - i
            bucket = bucket_of(costs, prompt + i)
            room = room_at(limits, prompt, i, int(forwards.draft_len[at]))
            found = room_at(limits, prompt, i, int(lookup.draft_len[at]))
            for lag in range(1, widest + 1):
                best = np.inf
                for gamma in range(room + 1):
                    accepted, emitted, _ = settle(gamma, int(forwards.accept_len[at]), left)
                    lag_then = min(lag_after(lag, gamma, accepted, costs.reads_states), widest)
                    seconds = round_seconds(costs, 0, bucket, gamma, lag)
                    seconds += float(look_up_s[bucket]) + least[i + emitted, lag_then]
                    best = min(best, seconds)
                for gamma in range(1, found + 1):
                    accepted, emitted, _ = settle(gamma, int(lookup.accept_len[at]), left)
                    seconds = looked_up_seconds(costs, look_up_s, bucket, gamma)
                    seconds += least[i + emitted, min(lag + emitted, widest)]
                    best = min(best, seconds)
                least[i, lag] = best
        out[request] = least[0, 1]
