"""Bandits that look at their situation first: recent acceptance, or the size of the batch."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from policies.base import FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import DRAFT, FACTOR, GAMMA, SHARE, Domain, disorder, hyper
from policies.randomness import Rng, normal, uniform

FEATURES = 4


class LinearState(NamedTuple):
    """F = 4 features. Shared: inverse [F, F] of I + sum x x'; weighted [F], prior + sum of
    tokens * x; x, ahead, theta [F] and root [F, F], scratch. Per request: passed, reached [slots],
    discounted counts of drafted tokens.
    """

    inverse: FloatArray
    weighted: FloatArray
    x: FloatArray
    ahead: FloatArray
    theta: FloatArray
    root: FloatArray
    passed: FloatArray
    reached: FloatArray


def recent_rate(state: LinearState, slot: int) -> float:
    """The chance that a drafted token passes once reached, of late in this request; 4 tokens of
    rate 0.7 come before the first.
    """
    return (float(state.passed[slot]) + 2.8) / (float(state.reached[slot]) + 4.0)


def fill_features(x: FloatArray, gamma: int, gamma_max: int, rate: float) -> None:
    """x = (1, share of gamma_max, the same times rate, (1 + rate + ... + rate^gamma) / gamma_max).

    The last one is what independent tokens would yield; the others bend it to what they do.
    """
    survival, expected = 1.0, 1.0
    for _ in range(gamma):
        survival *= rate
        expected += survival
    x[0] = 1.0
    x[1] = gamma / gamma_max
    x[2] = rate * gamma / gamma_max
    x[3] = expected / gamma_max


def multiply(matrix: FloatArray, vector: FloatArray, out: FloatArray) -> None:
    """out = matrix @ vector."""
    for i in range(vector.shape[0]):
        total = 0.0
        for j in range(vector.shape[0]):
            total += float(matrix[i, j]) * float(vector[j])
        out[i] = total


def dot(a: FloatArray, b: FloatArray) -> float:
    """The inner product."""
    total = 0.0
    for i in range(a.shape[0]):
        total += float(a[i]) * float(b[i])
    return total


def absorb(state: LinearState, tokens: float) -> None:
    """One more observation of `tokens` at state.x (Sherman and Morrison 1950)."""
    multiply(state.inverse, state.x, state.ahead)
    scale = 1.0 + dot(state.x, state.ahead)
    for i in range(FEATURES):
        for j in range(FEATURES):
            state.inverse[i, j] -= float(state.ahead[i]) * float(state.ahead[j]) / scale
        state.weighted[i] += tokens * float(state.x[i])


def take_root(inverse: FloatArray, root: FloatArray) -> None:
    """The lower triangle with root @ root' = inverse (Cholesky); a pivot that rounding has pushed
    below zero counts as zero.
    """
    for j in range(FEATURES):
        for i in range(j, FEATURES):
            rest = float(inverse[i, j])
            for k in range(j):
                rest -= float(root[i, k]) * float(root[j, k])
            if i == j:
                root[j, j] = math.sqrt(max(rest, 0.0))
            else:
                root[i, j] = rest / float(root[j, j]) if float(root[j, j]) > 0.0 else 0.0


@dataclasses.dataclass(frozen=True)
class LinUCB(Policy):
    """LinUCB on the tokens of a round; its seconds are known.

    E[tokens] = theta' x with x made of gamma and the request's recent acceptance rate; theta is a
    ridge regression over all rounds of all requests, around independent tokens. gamma = argmax_k
    (theta' x_k + exploration * sqrt(x_k' inverse x_k)) / (k draft_step_s + verify_s[k + 1]), ties
    to the smaller k: one model for all arms, so that a length learns from its neighbours; and the
    situation of the server enters through its prices. Li et al. regress the reward itself, one
    theta per arm (disjoint) or with shared features (hybrid); only the shared part is kept here,
    and the reward is split into the tokens that must be learned and the seconds that need not. A
    round in which the reply ended teaches no tokens. The recent rate counts reached tokens only:
    full acceptance is censored. It is quick, hence noisy: made for text that changes, it wanders by
    a length or two where the acceptance is constant.
    """

    gamma_min: int = hyper(1, GAMMA, "ours")
    gamma_max: int = hyper(8, DRAFT, "ours")
    exploration: float = hyper(0.5, FACTOR, "ours: tokens")
    memory: float = hyper(0.9, SHARE, "ours: discount per round of the recent acceptance rate")

    name = "linucb"
    rule = "gamma = argmax of upper bound of linearly predicted tokens / known seconds"
    source = "Li, Chu, Langford and Schapire, WWW 2010, arXiv 1003.0146 (LinUCB)"

    def conflict(self) -> str:
        return disorder(self, "gamma_min", "gamma_max")

    def new_state(self, slots: int) -> State:
        weighted, x, ahead, theta = (np.zeros(FEATURES) for _ in range(4))
        weighted[3] = self.gamma_max  # before any round theta is that of independent tokens
        root = np.zeros((FEATURES, FEATURES))
        passed, reached = np.zeros(slots), np.zeros(slots)
        return LinearState(np.eye(FEATURES), weighted, x, ahead, theta, root, passed, reached)

    def admit(self, state: LinearState, slot: int) -> None:
        state.passed[slot] = 0.0
        state.reached[slot] = 0.0

    def gamma(self, state: LinearState, slot: int, view: View, rng: Rng) -> int:
        rate = recent_rate(state, slot)
        best, best_score = 0, 0.0
        for k in range(self.gamma_min, min(self.gamma_max, view.room) + 1):
            fill_features(state.x, k, self.gamma_max, rate)
            multiply(state.inverse, state.x, state.ahead)
            width = math.sqrt(max(dot(state.x, state.ahead), 0.0))
            tokens = dot(state.weighted, state.ahead) + self.exploration * width
            score = tokens / (k * view.draft_step_s + float(view.verify_s[k + 1]))
            if k == self.gamma_min or score > best_score:
                best, best_score = k, score
        return best

    def learn(self, state: LinearState, slot: int, view: View, outcome: Outcome) -> None:
        if outcome.drafted == 0:
            return
        if not outcome.ended:
            fill_features(state.x, outcome.drafted, self.gamma_max, recent_rate(state, slot))
            absorb(state, float(outcome.emitted))
        rejected = 0.0 if outcome.ended or outcome.accepted == outcome.drafted else 1.0
        passed = self.memory * float(state.passed[slot]) + outcome.accepted
        reached = self.memory * float(state.reached[slot]) + outcome.accepted + rejected
        state.passed[slot] = passed
        state.reached[slot] = reached


@dataclasses.dataclass(frozen=True)
class LinThompson(LinUCB):
    """Linear Thompson sampling over the model of `linucb`.

    theta is drawn from N(inverse weighted, exploration^2 inverse), then gamma = argmax_k theta' x_k
    / seconds_k. Agrawal and Goyal's exploration, R sqrt(9 F ln(t / delta)), is for the proof.
    """

    name = "lin-thompson"
    rule = "gamma = argmax of tokens predicted by a drawn linear model / known seconds"
    source = "Agrawal and Goyal, ICML 2013, arXiv 1209.3352"

    def gamma(self, state: LinearState, slot: int, view: View, rng: Rng) -> int:
        multiply(state.inverse, state.weighted, state.theta)
        take_root(state.inverse, state.root)
        for j in range(FEATURES):
            draw = self.exploration * normal(rng, j)
            for i in range(j, FEATURES):
                state.theta[i] += draw * float(state.root[i, j])
        rate = recent_rate(state, slot)
        best, best_score = 0, 0.0
        for k in range(self.gamma_min, min(self.gamma_max, view.room) + 1):
            fill_features(state.x, k, self.gamma_max, rate)
            seconds = k * view.draft_step_s + float(view.verify_s[k + 1])
            score = dot(state.theta, state.x) / seconds
            if k == self.gamma_min or score > best_score:
                best, best_score = k, score
        return best


class NightjarState(NamedTuple):
    """Shared, B = batch_max batch sizes, K = gamma_max + 1 arms (arm k drafts k): tokens, seconds
    [B, K]; clocks [2], elapsed and priced seconds of all rounds; rounds [B]; arm [B], locked for
    this bin. Per request: idle [slots], 1 if its last round drafted nothing.
    """

    tokens: FloatArray
    seconds: FloatArray
    clocks: FloatArray
    rounds: IntArray
    arm: IntArray
    idle: IntArray


def cheapest_arm(state: NightjarState, row: int, switch_s: float) -> int:
    """The arm with the fewest seconds per token at this batch size, switch_s / k added to the cost
    of every k > 0; arms never played do not take part, and 0 is played if none was.
    """
    best, best_s = 0, -1.0
    for k in range(state.tokens.shape[1]):
        tokens = float(state.tokens[row, k])
        if tokens > 0.0:
            cost_s = float(state.seconds[row, k]) / tokens + (switch_s / k if k > 0 else 0.0)
            if best_s < 0.0 or cost_s < best_s:
                best, best_s = k, cost_s
    return best


def slowness(state: NightjarState) -> float:
    """Seconds on the runtime's clock per second of the step costs, 1 before the first round."""
    elapsed_s, priced_s = float(state.clocks[0]), float(state.clocks[1])
    return elapsed_s / priced_s if elapsed_s > 0.0 and priced_s > 0.0 else 1.0


@dataclasses.dataclass(frozen=True)
class Nightjar(Policy):
    """Nightjar's planner: one bandit per batch size, an arm locked for a bin of rounds, and a price
    for switching speculation on.

    ADA-BINGREEDY: the rounds at a batch size fall into blocks of H_j = 2^(j - 1), a block into
    bins. Bin number b explores with probability 1 / b (any arm of 0..gamma_max), else takes argmin
    of seconds per token + [the last round drafted nothing and gamma > 0] * switching cost / gamma.
    Bins of sqrt(H_j) rounds are our reading: they give the claimed regret of order sqrt(T). Seconds
    per token is a ratio of sums. The paper looks its switching cost up in a table measured by skip
    length; here it is `switch_steps` draft steps, which is what this engine pays to catch up, at
    the step costs times what rounds have taken beyond their price.
    Each row's round counts as one round of its batch size; moving the draft model out of GPU memory
    is beyond a controller.
    """

    gamma_max: int = hyper(8, DRAFT, "ours")
    batch_max: int = hyper(64, Domain(1, 10_000), "ours: larger batches share the last bandit")
    switch_steps: float = hyper(1.0, FACTOR, "ours: the paper has 18 to 102 ms on its device")

    batch_wide = True
    name = "nightjar"
    rule = "per batch size, bin-greedy on seconds per token plus a cost of switching drafting on"
    source = "Nightjar, arXiv 2512.22420"

    def new_state(self, slots: int) -> State:
        shape = (self.batch_max, self.gamma_max + 1)
        return NightjarState(
            np.zeros(shape),
            np.zeros(shape),
            np.zeros(2),
            np.zeros(self.batch_max, dtype=np.int64),
            np.zeros(self.batch_max, dtype=np.int64),
            np.zeros(slots, dtype=np.int64),
        )

    def admit(self, state: NightjarState, slot: int) -> None:
        state.idle[slot] = 0

    def gamma(self, state: NightjarState, slot: int, view: View, rng: Rng) -> int:
        row = min(view.batch_size, self.batch_max) - 1
        at, block = int(state.rounds[row]), 1
        state.rounds[row] = at + 1
        while at >= block:
            at -= block
            block *= 2
        width = int(math.sqrt(block))
        if at % width == 0:
            number = at // width + 1
            if uniform(rng, 0) * number < 1.0:
                state.arm[row] = int(uniform(rng, 1) * (self.gamma_max + 1))
            else:
                step_s = view.draft_step_s * slowness(state)
                switch_s = int(state.idle[slot]) * self.switch_steps * step_s
                state.arm[row] = cheapest_arm(state, row, switch_s)
        return int(state.arm[row])

    def learn(self, state: NightjarState, slot: int, view: View, outcome: Outcome) -> None:
        state.idle[slot] = 1 if outcome.gamma == 0 else 0
        state.clocks[0] += outcome.elapsed_s
        state.clocks[1] += outcome.priced_s
        if outcome.gamma <= self.gamma_max:
            row = min(view.batch_size, self.batch_max) - 1
            state.tokens[row, outcome.gamma] += outcome.emitted
            state.seconds[row, outcome.gamma] += outcome.elapsed_s
