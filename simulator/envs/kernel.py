"""Lanes: many requests side by side, each waiting for the next decision of a learner.

A lane plays one request at a time by the rules of policies.round, cut where a decision is due:
before a round (step_rounds: how many to draft) or every token (step_tokens: one more, or verify).
simulator.envs.pins compiles it. Letters: L lanes, R requests and N positions of all traces, G
depth, M cost tables of C buckets, W = widest step + 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from policies.base import FloatArray, IntArray, clamp_gamma
from policies.learned.observation import (
    FACTS,
    ROUND,
    forget,
    remember,
    show_draft,
    show_no_draft,
    show_request,
)
from policies.randomness import Rng, round_key, uniform
from policies.round import Limits, room_at, settle
from traces.costs.pricing import StepCosts, bucket_end, bucket_of, lag_after, round_seconds

NEXT_STEP, SAME_STEP, DISABLED = range(3)  # what follows the end of an episode
BEGIN, END, PROMPT, LAST = range(4)  # columns of Lanes.requests
SIGNAL_S, UNIT_S, RHO = range(3)  # columns of Lanes.rates
MODE, LIMIT, BUCKET_TOKENS, MAX_GAMMA, AVERAGE, READS_STATES = range(6)  # entries of Lanes.rules

_COUNTS = (
    "request cost begin at end prompt last room bucket lag round_number steps done tokens "
    "first_request requests first_cost costs"
)
LANE = np.dtype(
    [
        ("spent_s", np.float64),
        *((name, np.int64) for name in ("key", "episode", "edge")),
        *((name, np.int32) for name in _COUNTS.split()),
    ],
    align=True,
)
"""One lane. key, episode: of its draws; request, cost: drawn for this episode. begin, at, end: its
positions; prompt, last: see Lanes.requests; room, bucket, lag: of the round, edge: where the bucket
ends; round_number: in the request, steps: of the episode, done: 1 after its end. tokens, spent_s:
drafted so far. first_request, requests, first_cost, costs: what may be drawn of Lanes.choices."""

OUTCOME = np.dtype(
    [
        *((name, np.float64) for name in ("elapsed_s", "priced_s")),
        *((name, np.int32) for name in ("gamma", "drafted", "accepted", "emitted")),
        ("ended", np.bool_),
    ],
    align=True,
)
"""policies.base.Outcome of the last round of a lane."""


class Lanes(NamedTuple):
    """Everything a step touches.

    requests [R, 4] int64: begin, end (positions), prompt (tokens), last (no draft reaches beyond
        output position last - 1).
    accept_len, draft_len [N] int16; top1_prob, entropy [N, G], or [0, 0]: of the trace.
    draft_s, verify_s [M, C, W]: seconds, a plane per cost table.
    rates [M, 3]: seconds of a signal, seconds that count as 1 in the reward, tokens per second in
        the average-reward form.
    facts [M, C, 6] float32: what policies.learned.observation shows of costs and load.
    choices [any] int64: requests and cost tables that episodes are drawn from.
    rules [6] int64: mode, limit (steps of an episode, 0: none), bucket_tokens, max_gamma, 1 for
        average reward, 1 for a feature head.
    lanes [L] LANE, memory [L, 6]: where each lane is, and of its rounds what it sees.
    seen [L, K] float32: its observation, see of_tokens.
    actions [L] int64: what to do; at a reset, 1 where an episode begins.
    obs, final [L, K] float32, rewards [L], terminated, truncated, played [L] uint8, outcomes [L]
        OUTCOME: results; final: the last observation of an episode that ended; played: 1 where the
        step ended a round.
    """

    requests: IntArray
    accept_len: npt.NDArray[np.int16]
    draft_len: npt.NDArray[np.int16]
    top1_prob: npt.NDArray[np.float32]
    entropy: npt.NDArray[np.float32]
    draft_s: FloatArray
    verify_s: FloatArray
    rates: FloatArray
    facts: npt.NDArray[np.float32]
    choices: IntArray
    rules: IntArray
    lanes: Any
    memory: FloatArray
    seen: Any
    actions: IntArray
    obs: Any
    final: Any
    rewards: FloatArray
    terminated: npt.NDArray[np.uint8]
    truncated: npt.NDArray[np.uint8]
    played: npt.NDArray[np.uint8]
    outcomes: Any


def step_rounds(arrays: Lanes) -> int:
    """One round in every lane; the number of the first lane with an impossible action (then
    nothing was done), else -1.
    """
    lanes = arrays.lanes.shape[0]
    bad = unusable(arrays, int(arrays.rules[MAX_GAMMA]))
    for i in range(lanes if bad < 0 else 0):
        if restarted(arrays, i):
            continue
        lane = arrays.lanes[i]
        cap = clamp_gamma(int(arrays.actions[i]), int(lane.room))
        emitted = end_round(arrays, i, cap, cap)
        close_step(arrays, i, float(arrays.outcomes[i].elapsed_s), emitted)
    return bad


def step_tokens(arrays: Lanes) -> int:
    """One decision in every lane: 1 drafts a token, 0 verifies what was drafted; so does the token
    that fills the room. Returns as step_rounds does.
    """
    lanes = arrays.lanes.shape[0]
    bad = unusable(arrays, 1)
    for i in range(lanes if bad < 0 else 0):
        if restarted(arrays, i):
            continue
        lane = arrays.lanes[i]
        seconds, room = 0.0, int(lane.room)
        if int(arrays.actions[i]) == 1 and room > 0:
            seconds += draft_token(arrays, i)
        drafted, emitted = int(lane.tokens), 0
        if int(arrays.actions[i]) == 0 or drafted >= room:
            charged_s = float(lane.spent_s) - seconds  # by the steps before
            emitted = end_round(arrays, i, room, drafted)
            seconds = float(arrays.outcomes[i].elapsed_s) - charged_s
        close_step(arrays, i, seconds, emitted)
    return bad


def unusable(arrays: Lanes, highest: int) -> int:
    """The first lane whose action lies outside 0..highest, or that waits for a reset; else -1."""
    actions = arrays.actions
    for i in range(actions.shape[0]):
        if actions[i] < 0 or actions[i] > highest:
            return i
    if arrays.rules[MODE] == DISABLED:
        for i in range(actions.shape[0]):
            if arrays.lanes[i].done == 1:
                return i
    return -1


def restarted(arrays: Lanes, i: int) -> bool:
    """Next-step mode: begin the next episode in place of this step if the last one has ended."""
    if int(arrays.lanes[i].done) == 0:
        arrays.played[i] = 0
        return False
    begin(arrays, i)
    arrays.rewards[i] = 0.0
    arrays.terminated[i] = 0
    arrays.truncated[i] = 0
    arrays.played[i] = 0
    return True


def begin(arrays: Lanes, i: int) -> None:
    """Draw a request and a cost table for the next episode of a lane and show its start."""
    lane = arrays.lanes[i]
    draw = Rng(round_key(int(lane.key), int(lane.episode), 0))
    request = int(lane.first_request) + int(uniform(draw, 0) * int(lane.requests))
    cost = int(lane.first_cost) + int(uniform(draw, 1) * int(lane.costs))
    lane.episode += 1
    lane.request, lane.cost = int(arrays.choices[request]), int(arrays.choices[cost])
    row = int(lane.request)
    lane.begin, lane.at = int(arrays.requests[row, BEGIN]), int(arrays.requests[row, BEGIN])
    lane.end = int(arrays.requests[row, END])
    lane.prompt, lane.last = int(arrays.requests[row, PROMPT]), int(arrays.requests[row, LAST])
    lane.lag, lane.round_number, lane.steps, lane.done, lane.edge = 1, 0, 0, 0, 0
    forget(arrays.memory, i)
    open_round(arrays, i)
    if of_tokens(arrays):
        show(arrays, i, arrays.obs)


def open_round(arrays: Lanes, i: int) -> None:
    """The next round of a lane is due: its room, its prices, what is shown of them."""
    lane = arrays.lanes[i]
    place = int(lane.at) - int(lane.begin)
    context = int(lane.prompt) + place
    limits = Limits(int(arrays.rules[MAX_GAMMA]), int(lane.last), 0)
    at = min(int(lane.at), int(lane.end) - 1)  # behind a reply's end nobody drafts
    lane.room = room_at(limits, int(lane.prompt), place, int(arrays.draft_len[at]))
    lane.tokens, lane.spent_s = 0, 0.0
    if context >= int(lane.edge):
        costs = costs_at(arrays, int(lane.cost))
        lane.bucket = bucket_of(costs, context)
        lane.edge = bucket_end(costs, int(lane.bucket))
    for k in range(len(ROUND) - FACTS):
        arrays.seen[i, FACTS + k] = arrays.facts[lane.cost, lane.bucket, k]
    show_request(arrays.memory, i, int(lane.room), context, arrays.seen, i)
    if of_tokens(arrays):
        show_no_draft(arrays.seen, i)


def costs_at(arrays: Lanes, cost: int) -> StepCosts:
    """All cost tables, a plane each, with the signals' price at this one; prompts cost nothing."""
    return StepCosts(
        None,
        int(arrays.rules[BUCKET_TOKENS]),
        arrays.draft_s[cost, 0],
        arrays.draft_s,
        arrays.verify_s,
        None,
        float(arrays.rates[cost, SIGNAL_S]),
        int(arrays.rules[READS_STATES]) > 0,
        None,
        None,
    )


def draft_token(arrays: Lanes, i: int) -> float:
    """Draft one more token and look at it; its seconds."""
    lane = arrays.lanes[i]
    depth = int(lane.tokens)
    lane.tokens = depth + 1
    read = 1 if depth > 0 else min(int(lane.lag), int(arrays.draft_s.shape[2]) - 1)
    seconds = float(arrays.draft_s[lane.cost, lane.bucket, read])
    seconds += float(arrays.rates[lane.cost, SIGNAL_S])
    lane.spent_s += seconds
    top1 = float(arrays.top1_prob[lane.at, depth])
    entropy = float(arrays.entropy[lane.at, depth])
    show_draft(depth + 1, top1, entropy, arrays.seen, i)
    return seconds


def end_round(arrays: Lanes, i: int, gamma: int, drafted: int) -> int:
    """Verify what was drafted and open the next round; returns the tokens emitted."""
    lane = arrays.lanes[i]
    at, end = int(lane.at), int(lane.end)
    accepted, emitted, ended = settle(drafted, int(arrays.accept_len[at]), end - at)
    cost, bucket, lag = int(lane.cost), int(lane.bucket), int(lane.lag)
    out, costs = arrays.outcomes[i], costs_at(arrays, cost)
    seconds = round_seconds(costs, cost, bucket, drafted, lag)
    out.elapsed_s, out.priced_s, out.ended = seconds, seconds, ended
    out.gamma, out.drafted, out.accepted, out.emitted = gamma, drafted, accepted, emitted
    lane.lag = lag_after(lag, drafted, accepted, costs.reads_states)
    lane.at = at + emitted
    lane.round_number += 1
    arrays.played[i] = 1
    remember(arrays.memory, i, drafted, accepted)
    open_round(arrays, i)
    return emitted


def close_step(arrays: Lanes, i: int, seconds: float, emitted: int) -> None:
    """The results of a step: reward, the end of the episode and what follows it, what is seen."""
    lane = arrays.lanes[i]
    if arrays.rules[AVERAGE] == 1:
        arrays.rewards[i] = emitted - float(arrays.rates[lane.cost, RHO]) * seconds
    else:
        arrays.rewards[i] = -seconds / float(arrays.rates[lane.cost, UNIT_S])
    lane.steps += 1
    terminated = 1 if int(lane.at) >= int(lane.end) else 0
    limit = int(arrays.rules[LIMIT])
    truncated = 1 if 0 < limit <= int(lane.steps) else 0
    arrays.terminated[i] = terminated
    arrays.truncated[i] = truncated
    if terminated + truncated > 0:
        lane.done = 1
        if arrays.rules[MODE] == SAME_STEP:
            show(arrays, i, arrays.final)
            begin(arrays, i)
            return
    if of_tokens(arrays):
        show(arrays, i, arrays.obs)


def of_tokens(arrays: Lanes) -> bool:
    """A decision per token. Per round, `seen` is `obs`: it is written anew in every step."""
    return int(arrays.seen.shape[1]) > len(ROUND)


def show(arrays: Lanes, i: int, out: Any) -> None:
    """Copy what is seen of a lane into out[i]."""
    for k in range(arrays.seen.shape[1]):
        out[i, k] = arrays.seen[i, k]


def reset_lanes(arrays: Lanes) -> int:
    """Begin an episode in every lane whose `actions` entry is 1."""
    for i in range(arrays.lanes.shape[0]):
        if int(arrays.actions[i]) == 1:
            begin(arrays, i)
    return -1
