"""Ollama's depth controller: expected tokens over the measured cost of a round, one depth further
than what is known.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from policies.base import FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import DRAFT, FACTOR, SHARE, SOME, disorder, hyper
from policies.randomness import Rng

# DepthState.clock: the depth of the next round, whether the last round probed, rounds between
# probes, rounds since that number was set, the selection it was set for.
DEPTH, PROBED, INTERVAL, SINCE, SELECTED = 0, 1, 2, 3, 4


class DepthState(NamedTuple):
    """D = gamma_max. Shared: cost [D + 1], average seconds of a round of that depth, 0 where there
    is none yet; rate [D], average acceptance at a position given that those before it were
    accepted; seen [D], how often it was reached; clock [5], columns named above.
    Per request: previous [slots], depth of its last round, -1 before the first.
    """

    cost: FloatArray
    rate: FloatArray
    seen: IntArray
    clock: IntArray
    previous: IntArray


def frontier(state: DepthState, samples: int) -> int:
    """Leading positions reached at least `samples` times."""
    known: int = state.seen.shape[0]
    for k in range(known):
        if int(state.seen[k]) < samples:
            return k
    return known


def search_limit(state: DepthState, samples: int) -> int:
    """The deepest depth considered: one more than the frontier."""
    deepest: int = state.seen.shape[0]
    return min(frontier(state, samples) + 1, deepest)


def cost_at(state: DepthState, depth: int) -> float:
    """Seconds of a round of this depth: on the line between the nearest depths that were measured,
    the nearest one's outside them.
    """
    low = depth
    while low >= 0 and float(state.cost[low]) <= 0.0:
        low -= 1
    high, last = depth, state.cost.shape[0]
    while high < last and float(state.cost[high]) <= 0.0:
        high += 1
    if low < 0:
        return float(state.cost[high])
    if high >= last or low == high:
        return float(state.cost[low])
    share = (depth - low) / (high - low)
    return float(state.cost[low]) + share * (float(state.cost[high]) - float(state.cost[low]))


def best_depth(state: DepthState, samples: int) -> int:
    """The depth with the most expected tokens per second, the shallowest of equals; 0 while fewer
    than two depths were measured.
    """
    measured = 0
    for k in range(state.cost.shape[0]):
        measured += 1 if float(state.cost[k]) > 0.0 else 0
    if measured < 2:
        return 0
    best, best_rate = 0, 1.0 / cost_at(state, 0)
    expected, survival, trusted = 1.0, 1.0, 1.0
    for k in range(search_limit(state, samples)):
        if int(state.seen[k]) >= samples:
            trusted = float(state.rate[k])
        survival *= trusted
        expected += survival
        rate = expected / cost_at(state, k + 1)
        if rate > best_rate:
            best, best_rate = k + 1, rate
    return best


@dataclasses.dataclass(frozen=True)
class OllamaDepth(Policy):
    """gamma = argmax of (1 + S_1 + ... + S_gamma) / cost(gamma) over 0..frontier + 1.

    S_k = a_1 ... a_k. a_k is an average of position k's outcomes in rounds that reached it,
    weight `acceptance_weight`, the first outcome being its start; it counts from `samples` outcomes
    on, until then the deepest one that counts stands in (1 if there is none). The frontier is the
    number of leading positions that count, so depth grows one position at a time.

    cost(gamma) is an average of whole rounds of that depth, weight `cost_weight`, a sample's
    distance from it cut to `clamp` of it; only a round as deep as the one before it is a sample.
    Between measured depths it is interpolated. While any depth in 0..frontier + 1 has no sample,
    the shallowest such is drafted. Every `probe_every` rounds one token more than the selection is
    drafted; a probe that left the selection as it was doubles that number, up to `probe_most`, and
    a change of selection sets it back.

    All is learned across requests, as there. There a round is timed from its start to the next
    one's, here to its end (so the last round of a reply counts too), and the drafter alone bounds
    the depth (or nothing does). The seconds are those that elapsed, compared with each other only.
    """

    gamma_max: int = hyper(16, DRAFT, "ours: there the drafter's own limit, if it has one")
    acceptance_weight: float = hyper(0.1, SHARE, "primary")
    samples: int = hyper(10, SOME, "primary")
    cost_weight: float = hyper(0.3, SHARE, "primary")
    clamp: float = hyper(0.25, FACTOR, "primary")
    probe_every: int = hyper(4, SOME, "primary")
    probe_most: int = hyper(512, SOME, "primary")

    name = "ollama-depth"
    rule = "gamma = argmax of expected tokens over measured cost, at most one beyond what is known"
    source = "ollama/ollama, x/mlxrunner/speculate_depth.go and speculate.go (beginRound, endRound)"

    def conflict(self) -> str:
        return disorder(self, "probe_every", "probe_most")

    def new_state(self, slots: int) -> State:
        clock = np.zeros(5, dtype=np.int64)
        clock[INTERVAL] = self.probe_every
        return DepthState(
            np.zeros(self.gamma_max + 1),
            np.zeros(self.gamma_max),
            np.zeros(self.gamma_max, dtype=np.int64),
            clock,
            np.full(slots, -1, dtype=np.int64),
        )

    def admit(self, state: DepthState, slot: int) -> None:
        state.previous[slot] = -1

    def gamma(self, state: DepthState, slot: int, view: View, rng: Rng) -> int:
        return int(state.clock[DEPTH])

    def learn(self, state: DepthState, slot: int, view: View, outcome: Outcome) -> None:
        depth = outcome.drafted
        if depth > self.gamma_max:
            return
        if depth == int(state.previous[slot]) and outcome.elapsed_s > 0.0:
            cost = float(state.cost[depth])
            if cost > 0.0:
                most = self.clamp * cost
                step = max(-most, min(most, outcome.elapsed_s - cost))
                state.cost[depth] = cost + self.cost_weight * step
            else:
                state.cost[depth] = outcome.elapsed_s
        state.previous[slot] = depth
        judged = outcome.accepted if outcome.ended else min(outcome.accepted + 1, depth)
        for k in range(judged):
            passed = 1.0 if k < outcome.accepted else 0.0
            if int(state.seen[k]) == 0:
                state.rate[k] = passed
            else:
                state.rate[k] += self.acceptance_weight * (passed - float(state.rate[k]))
            state.seen[k] += 1
        state.clock[DEPTH] = next_depth(self, state)


def next_depth(fields: OllamaDepth, state: DepthState) -> int:
    """The depth of the next round: a probe when one is due, a depth not yet measured, or the best;
    the cadence of probes is kept here.
    """
    selected = best_depth(state, fields.samples)
    limit = search_limit(state, fields.samples)
    if selected != int(state.clock[SELECTED]):
        state.clock[INTERVAL] = fields.probe_every
        state.clock[SINCE] = 0
        state.clock[SELECTED] = selected
    elif int(state.clock[PROBED]) == 1:
        state.clock[INTERVAL] = min(2 * int(state.clock[INTERVAL]), fields.probe_most)
    state.clock[PROBED] = 0
    state.clock[SINCE] += 1
    if int(state.clock[SINCE]) >= int(state.clock[INTERVAL]):
        state.clock[SINCE] = 0
        if selected < limit:
            state.clock[PROBED] = 1
            return selected + 1
    for k in range(limit + 1):
        if float(state.cost[k]) <= 0.0:
            return k
    return selected
