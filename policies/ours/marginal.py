"""Ours: draft one more token while it pays, and draft at all where drafting has paid.

What a token is worth, what it costs and how likely it is to survive are all estimated while
serving; how fast it learns and how much doubt it allows are fields like any other rule's.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from policies.base import Draft, FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import DRAFT, FACTOR, SHARE, SOME, WEIGHT, hyper
from policies.randomness import Rng

LAST = 5  # how the last draft ended: all accepted, some, none once, twice, three times or more
SKIPPED = 4  # rounds without a draft since then: 0, 1, 2, 3 or more


STEP_S, WORTH_S, SURVIVAL = 0, 1, 2  # columns of MarginalState.now
X, H, OWN, NEXT = range(4)  # of MarginalState.token


class MarginalState(NamedTuple):
    """M = gamma_max, C = LAST * SKIPPED contexts.

    Per request, of the round at hand: now [slots, 3]: seconds of a draft step, seconds that a token
    is worth, chance that all drafted tokens stand;

    rest [slots, M + 2]: a round that drafts k takes k * STEP_S + rest[k + 1], see open_round.
    last [slots]: tokens that there is room for; token [slots, M, 4], of every drafted one the logit
        of its top-1 probability, its entropy, and what the two models said. context [slots]; quiet
        [slots], rounds skipped in a row. Shared: weight [2, 3] of the two logistic models, squares
        [2, 3] of their gradients summed; clock [2], discounted tokens and seconds; paid, visits
        [C], mean gain of a draft and its count; depth [M + 1], share of the rounds in a batch that
        drafted at least k tokens.
    """

    now: FloatArray
    rest: FloatArray
    last: IntArray
    token: FloatArray
    context: IntArray
    quiet: IntArray
    weight: FloatArray
    squares: FloatArray
    clock: FloatArray
    paid: FloatArray
    visits: FloatArray
    depth: FloatArray


def logit(probability: float) -> float:
    """log(p / (1 - p)), p kept inside 1e-4 .. 1 - 1e-4."""
    inside = probability
    if inside < 1e-4:
        inside = 1e-4
    elif inside > 1.0 - 1e-4:
        inside = 1.0 - 1e-4
    return math.log(inside / (1.0 - inside))


def logistic(z: float) -> float:
    """1 / (1 + exp(-z)), z kept inside -30 .. 30."""
    if z > 30.0:
        z = 30.0
    elif z < -30.0:
        z = -30.0
    return 1.0 / (1.0 + math.exp(-z))


def descend(
    state: MarginalState, model: int, base: float, on_x: float, on_h: float, rate: float
) -> None:
    """One AdaGrad step (Duchi et al. 2011) of a model's weights along these slopes."""
    weight, squares = state.weight[model], state.squares[model]
    base2 = float(squares[0]) + base * base
    x2 = float(squares[1]) + on_x * on_x
    h2 = float(squares[2]) + on_h * on_h
    squares[0], squares[1], squares[2] = base2, x2, h2
    weight[0] = float(weight[0]) - rate * base / math.sqrt(base2)
    weight[1] = float(weight[1]) - rate * on_x / math.sqrt(x2)
    weight[2] = float(weight[2]) - rate * on_h / math.sqrt(h2)


def seconds_per_token(state: MarginalState) -> float:
    """The price of a token so far, which an accepted one is worth."""
    return float(state.clock[1]) / float(state.clock[0])


@dataclasses.dataclass(frozen=True)
class Marginal(Policy):
    """Draft one more token while its expected worth exceeds its price.

    After k drafted tokens, S = a_1 ... a_k is the chance that all of them stand, a_i a logistic
    model of (logit of top-1, entropy) of token i. A further token stands with chance S n, n a
    second such model of the *next* token. With w the seconds a token has cost so far (the running
    average: optimal stopping at the average rate, a renewal-reward argument), go on if for some j

        w (S n + S n^2 + ... + S n^j)  >  price of k + j drafted tokens - price of k,

    looking `look` tokens ahead because measured prices rise in steps. Both models learn online,
    from judged tokens only: those accepted and the first rejected. In a batch a step of the draft
    is dearer the fewer rows take it, see open_round.
    """

    gamma_max: int = hyper(16, DRAFT, "ours: the depth of a recording")
    look: int = hyper(8, SOME, "ours")
    rate: float = hyper(0.1, FACTOR, "ours, chosen on the training half of the embedded traces")
    memory: float = hyper(0.999, SHARE, "ours")
    own_base: float = hyper(
        0.5, WEIGHT, "ours: between the fits to two traces; learned on from there"
    )
    own_logit: float = hyper(1.0, WEIGHT, "ours: as own_base")
    own_entropy: float = hyper(0.0, WEIGHT, "ours: as own_base")
    next_base: float = hyper(2.3, WEIGHT, "ours: as own_base")
    next_logit: float = hyper(-0.1, WEIGHT, "ours: as own_base")
    next_entropy: float = hyper(-0.5, WEIGHT, "ours: as own_base")

    name = "marginal"
    rule = "draft on while survival x worth of a token exceeds what it adds to the round's seconds"
    source = "ours; the stopping problem of SpecDec++, arXiv 2405.19715, with measured prices"

    def new_state(self, slots: int) -> State:
        own = (self.own_base, self.own_logit, self.own_entropy)
        following = (self.next_base, self.next_logit, self.next_entropy)
        return MarginalState(
            now=np.ones((slots, 3)),
            rest=np.zeros((slots, self.gamma_max + 2)),
            last=np.zeros(slots, dtype=np.int64),
            token=np.zeros((slots, self.gamma_max, 4)),
            context=np.zeros(slots, dtype=np.int64),
            quiet=np.zeros(slots, dtype=np.int64),
            weight=np.array([own, following], dtype=np.float64),
            squares=np.ones((2, 3)),
            clock=np.zeros(2),
            paid=np.zeros(LAST * SKIPPED),
            visits=np.zeros(LAST * SKIPPED),
            depth=np.ones(self.gamma_max + 1),
        )

    def admit(self, state: MarginalState, slot: int) -> None:
        state.context[slot] = 0
        state.quiet[slot] = 0

    def gamma(self, state: MarginalState, slot: int, view: View, rng: Rng) -> int:
        open_round(state, slot, view, self.gamma_max)
        return self.gamma_max

    def proceed(self, state: MarginalState, slot: int, draft: Draft) -> bool:
        k, x, h = draft.drafted, logit(draft.top1_prob), draft.entropy
        now, token, w = state.now[slot], state.token[slot, k - 1], state.weight
        own = logistic(float(w[0, 0]) + float(w[0, 1]) * x + float(w[0, 2]) * h)
        following = logistic(float(w[1, 0]) + float(w[1, 1]) * x + float(w[1, 2]) * h)
        token[X], token[H], token[OWN], token[NEXT] = x, h, own, following
        survival = own if k == 1 else float(now[SURVIVAL]) * own
        now[SURVIVAL] = survival
        rest, step_s, gain = state.rest[slot], float(now[STEP_S]), 0.0
        value, here = survival * float(now[WORTH_S]), k * step_s + float(rest[k + 1])
        for n in range(k + 1, min(k + self.look, int(state.last[slot])) + 1):
            value *= following
            gain += value
            if gain > n * step_s + float(rest[n + 1]) - here:
                return True
        return False

    def learn(self, state: MarginalState, slot: int, view: View, outcome: Outcome) -> None:
        close_round(state, slot, view, outcome, self.memory, self.rate)


def open_round(state: MarginalState, slot: int, view: View, gamma_max: int) -> None:
    """Note what a round costs that drafts as much as there is room for, and what a token is worth.

    Alone, k tokens cost k draft steps, and `rest` is the view's verify_s. A batch drafts in lock
    step: every row waits for step k, so a row that takes it should pay for all, with those who take
    it, too: batch / (1 + (batch - 1) depth[k]) steps. There all is in `rest`, and STEP_S is 0.
    """
    last, others = min(view.room, gamma_max), view.batch_size - 1
    if float(state.clock[0]) == 0.0:  # before the first round: what plain decoding costs
        state.clock[0] = 1.0
        state.clock[1] = float(view.verify_s[1])
    state.last[slot] = last
    now = state.now[slot]
    now[WORTH_S] = seconds_per_token(state)
    if others == 0:
        now[STEP_S] = view.draft_step_s
        state.rest[slot, : last + 2] = view.verify_s[: last + 2]
        return
    now[STEP_S] = 0.0
    steps = 0.0
    for k in range(1, last + 1):
        steps += view.batch_size / (1.0 + others * float(state.depth[k]))
        state.rest[slot, k + 1] = steps * view.draft_step_s + float(view.verify_s[k + 1])


def close_round(
    state: MarginalState, slot: int, view: View, outcome: Outcome, memory: float, rate: float
) -> None:
    """Tokens and seconds of the round, how deep it drafted in a batch, and what its judged tokens
    taught both models.
    """
    clock, accepted = state.clock, outcome.accepted
    clock[0] = memory * float(clock[0]) + outcome.emitted
    clock[1] = memory * float(clock[1]) + outcome.priced_s
    if view.batch_size > 1:
        for k in range(1, state.depth.shape[0]):
            deep = 1.0 if outcome.drafted >= k else 0.0
            state.depth[k] = memory * float(state.depth[k]) + (1.0 - memory) * deep
    judged = accepted if outcome.ended else min(accepted + 1, outcome.drafted)
    if judged == 0:
        return
    base, on_x, on_h = 0.0, 0.0, 0.0  # slopes of the log-loss, summed over the round
    next_base, next_on_x, next_on_h = 0.0, 0.0, 0.0
    x, h, following = 0.0, 0.0, 0.0
    for k in range(judged):
        passed = 1.0 if k < accepted else 0.0
        if k > 0:  # x and h are still those of the token before
            error = following - passed
            next_base += error
            next_on_x += error * x
            next_on_h += error * h
        token = state.token[slot, k]
        x, h, following = float(token[X]), float(token[H]), float(token[NEXT])
        error = float(token[OWN]) - passed
        base += error
        on_x += error * x
        on_h += error * h
    descend(state, 0, base, on_x, on_h, rate)
    if judged > 1:
        descend(state, 1, next_base, next_on_x, next_on_h, rate)


@dataclasses.dataclass(frozen=True)
class Payback(Marginal):
    """`marginal`, and no draft at all where drafting has not paid.

    Acceptance comes in bursts, and the first drafted token is the dear one: a target step of two
    tokens can cost much more than one of one. So for every *context* (how the last draft ended, and
    how many rounds were skipped since) the mean gain of a draft is kept: accepted tokens times
    their worth, less the seconds beyond a plain round. Where it is below zero by more than
    `doubt` / sqrt(visits) plain rounds, the round is plain; after `probe_every` plain rounds in a
    row one is drafted to look again. Worth here is half way between the average seconds of a token
    and those of a plain round: that is what a hard stretch of text would cost without drafts.
    """

    doubt: float = hyper(1.0, FACTOR, "ours")
    probe_every: int = hyper(16, SOME, "ours")

    name = "payback"
    rule = "marginal, and gamma = 0 in contexts where drafts have cost more than they saved"

    def gamma(self, state: MarginalState, slot: int, view: View, rng: Rng) -> int:
        at = int(state.context[slot])
        doubt = self.doubt / math.sqrt(float(state.visits[at]) + 0.1)
        if float(state.paid[at]) + doubt < 0.0 and int(state.quiet[slot]) < self.probe_every:
            return 0
        open_round(state, slot, view, self.gamma_max)
        return self.gamma_max

    def learn(self, state: MarginalState, slot: int, view: View, outcome: Outcome) -> None:
        close_round(state, slot, view, outcome, self.memory, self.rate)
        at = int(state.context[slot])
        state.context[slot] = context_after(at, outcome)
        if outcome.drafted == 0:
            state.quiet[slot] += 1
            return
        state.quiet[slot] = 0
        plain = float(view.verify_s[1])
        worth = (seconds_per_token(state) + plain) / 2.0
        spent = outcome.priced_s
        if view.batch_size > 1:  # most of it passed because of others
            spent = float(state.rest[slot, outcome.drafted + 1])
        gain = (outcome.accepted * worth - (spent - plain)) / plain
        visits = self.memory * float(state.visits[at]) + 1.0
        state.visits[at] = visits
        state.paid[at] += (gain - float(state.paid[at])) / (visits + 2.0)  # two rounds of gain 0


def context_after(context: int, outcome: Outcome) -> int:
    """The context that a round leads to; see Payback."""
    last, skipped = context // SKIPPED, context % SKIPPED
    if outcome.drafted == 0:
        return last * SKIPPED + min(skipped + 1, SKIPPED - 1)
    if outcome.accepted == outcome.drafted:
        return 0
    if outcome.accepted > 0:
        return SKIPPED
    return min(max(last, 1) + 1, LAST - 1) * SKIPPED
