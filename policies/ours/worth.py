"""Ours, and small: verify a token while it is worth its price, and draft on a budget.

Nothing is fitted beforehand and nothing is tuned per pair: chances, prices and the worth of a token
are what this server has seen, and three fields say how far to draft, how long to remember and how
much may be lost.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from policies.base import Draft, FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import DRAFT, SHARE, hyper
from policies.randomness import Rng

BINS = 10  # of a top-1 probability, see bin_of
DEEPER = 4  # row of a token behind the first; rows before it: the first token, by the last round
MOST = 500.0  # drafts that the mean of their gain remembers
DOUBT = 0.7  # of a gain, in plain rounds, after one draft; falls with the root of their number
LOOK = 8  # tokens that prices look ahead
PROBE = 16  # rounds without a draft, and doubtful tokens in a row, until one is tried all the same
PURSE = 4.0  # plain rounds that may be lost at the start
NEAR = 0.01  # prices are read anew when a plain round has moved by more
NEVER = 2.0  # no chance is as high

ALL, SOME_OF_IT, NOTHING, PLAIN = range(4)  # how the last round ended
TOKENS, SECONDS, FOLLOWS, SAVED_S, PLAIN_S = range(5)  # of WorthState.now
KEEP, GO, RISK_S = range(3)  # of WorthState.price
LAST, QUIET, DOUBTED, CAP = range(4)  # of WorthState.round


class WorthState(NamedTuple):
    """M = gamma_max.

    Per request: round [slots, 4]: how its last round ended, rounds without a draft, doubtful tokens
    since one was kept, cap of this round; survival [slots, M + 1], chance that the first k tokens
    stand; bin [slots, M], of every drafted token.

    Shared: chance [5, 10], that a token with this top-1 probability passes; paid, visits [4]: mean
    gain of a draft by how the round before it ended, in plain rounds, and their number; now [5]:
    discounted tokens and seconds, chance that a token behind an accepted one passes, seconds that
    may be lost, seconds of a plain round when prices were read; price [3, M + 1], by drafted tokens
    k: the survival from which on verifying token k pays, that from which on drafting another pays,
    the most seconds that a draft of k can lose.
    """

    round: IntArray
    survival: FloatArray
    bin: IntArray
    chance: FloatArray
    paid: FloatArray
    visits: FloatArray
    now: FloatArray
    price: FloatArray


def bin_of(top1_prob: float) -> int:
    """Bins halve the doubt: below 1/4, 1/2, 3/4, 7/8 and so on."""
    doubt, at, edge = 1.0 - top1_prob, 1, 0.5
    if doubt > 0.75:
        return 0
    while at < BINS - 1 and doubt <= edge:
        at += 1
        edge *= 0.5
    return at


def read_prices(state: WorthState, view: View, gamma_max: int) -> None:
    """Fill `price` from what a round costs now.

    With a chance S that k tokens stand, w seconds that a token is worth and n the chance that the
    next one passes, verifying token k behind k - 1 others pays if for some j >= 0

        w S (1 + n + ... + n^j)  >  verify[k + j + 1] - verify[k] + j steps,

    and another token pays if for some j >= 1 the same holds without the 1, of verify[k + 1]: prices
    rise in steps and may fall, so that more tokens can be cheaper than fewer.
    """
    now, price, verify_s = state.now, state.price, view.verify_s
    step_s, plain_s = view.draft_step_s, float(verify_s[1])
    now[PLAIN_S] = plain_s
    if float(now[TOKENS]) == 0.0:  # before the first round
        now[TOKENS], now[SECONDS], now[SAVED_S] = 1.0, plain_s, PURSE * plain_s
    worth_s, follows = float(now[SECONDS]) / float(now[TOKENS]), float(now[FOLLOWS])
    last, worst_s = min(gamma_max, verify_s.shape[0] - 2), 0.0
    for k in range(1, gamma_max + 1):
        keep, go, tokens, chance = NEVER, NEVER, 0.0, 1.0
        for j in range(min(LOOK, last - k + 1)):
            tokens += chance
            chance *= follows
            cost_s = float(verify_s[k + j + 1]) - float(verify_s[k]) + j * step_s
            keep = min(keep, cost_s / (worth_s * tokens))
            if j > 0:
                cost_s = float(verify_s[k + j + 1]) - float(verify_s[k + 1]) + j * step_s
                go = min(go, cost_s / (worth_s * (tokens - 1.0)))
        if k <= last:
            worst_s = max(worst_s, float(verify_s[k + 1]) - plain_s)
        price[KEEP, k], price[GO, k], price[RISK_S, k] = keep, go, worst_s + k * step_s


@dataclasses.dataclass(frozen=True)
class Worth(Policy):
    """Keep a drafted token while its chance is worth its price.

    1. Chance: top-1 probability in ten bins, apart for the first token by how the last round ended;
       what passed of each moves it, and it begins at the draft's own word.
    2. Price and worth: measured seconds of steps, and w, what a token has cost of late, see
       `read_prices`. A token whose survival is below its price is dropped unverified, every
       sixteenth excepted, or nobody would learn that the draft has improved.
    3. Draft at all unless drafts have not paid, beyond doubt, by how the round before ended:
       accepted tokens times w less the seconds beyond a plain round. Every sixteenth plain round
       looks again.
    4. Budget: a draft whose worst case could make the whole slower than (1 + allowance) times plain
       decoding, and four plain rounds, is not made: no text and no acceptance can.
    """

    gamma_max: int = hyper(16, DRAFT, "ours: the depth of a recording")
    rate: float = hyper(0.02, SHARE, "ours: of a chance, by what a token came to")
    allowance: float = hyper(0.015, SHARE, "ours: what is left of 2 % is for its own arithmetic")

    name = "worth"
    rule = "verify a token while chance x worth is above its price, draft where drafts have paid"
    source = "ours; the stopping problem of SpecDec++, arXiv 2405.19715; drops as llama-p-min does"

    def new_state(self, slots: int) -> State:
        middles = np.concatenate([[0.125, 0.375], 1.0 - 0.75 * 0.5 ** np.arange(1, BINS - 1)])
        return WorthState(
            round=np.zeros((slots, 4), dtype=np.int64),
            survival=np.ones((slots, self.gamma_max + 1)),
            bin=np.zeros((slots, self.gamma_max), dtype=np.int64),
            chance=np.tile(middles, (DEEPER + 1, 1)),
            paid=np.zeros(DEEPER),
            visits=np.zeros(DEEPER),
            now=np.array([0.0, 0.0, 0.7, 0.0, 0.0]),
            price=np.zeros((3, self.gamma_max + 1)),
        )

    def admit(self, state: WorthState, slot: int) -> None:
        for k in range(state.round.shape[1]):
            state.round[slot, k] = 0
        state.now[PLAIN_S] = 0.0  # prices are read anew

    def gamma(self, state: WorthState, slot: int, view: View, rng: Rng) -> int:
        now, here = state.now, state.round[slot]
        plain_s = float(view.verify_s[1])
        if abs(float(now[PLAIN_S]) - plain_s) > NEAR * plain_s:
            read_prices(state, view, self.gamma_max)
        here[CAP] = 0
        row = int(here[LAST])
        doubt = DOUBT / math.sqrt(float(state.visits[row]) + 0.1)
        if float(state.paid[row]) + doubt < 0.0 and int(here[QUIET]) < PROBE:
            return 0
        budget_s, cap = float(now[SAVED_S]), min(self.gamma_max, view.room)
        while cap > 0 and float(state.price[RISK_S, cap]) > budget_s:
            cap -= 1
        here[CAP] = cap
        return cap

    def retain(self, state: WorthState, slot: int, draft: Draft) -> bool:
        k, survival = draft.drafted, state.survival[slot]
        row = DEEPER if k > 1 else int(state.round[slot, LAST])
        at = bin_of(draft.top1_prob)
        stands = float(state.chance[row, at])
        if k > 1:
            stands *= float(survival[k - 1])
        survival[k] = stands
        state.bin[slot, k - 1] = at
        if stands >= float(state.price[KEEP, k]):
            return True
        doubted = int(state.round[slot, DOUBTED]) + 1
        state.round[slot, DOUBTED] = doubted % PROBE
        return doubted == PROBE

    def proceed(self, state: WorthState, slot: int, draft: Draft) -> bool:
        k = draft.drafted
        return float(state.survival[slot, k]) > float(state.price[GO, k])

    def learn(self, state: WorthState, slot: int, view: View, outcome: Outcome) -> None:
        now, here = state.now, state.round[slot]
        drafted, accepted, spent_s = outcome.drafted, outcome.accepted, outcome.priced_s
        plain_s, row = float(view.verify_s[1]), int(here[LAST])
        now[TOKENS] = 0.999 * float(now[TOKENS]) + outcome.emitted
        now[SECONDS] = 0.999 * float(now[SECONDS]) + spent_s
        now[SAVED_S] += (1.0 + self.allowance) * outcome.emitted * plain_s - spent_s
        if int(here[CAP]) == 0:
            here[QUIET] += 1
            here[LAST] = PLAIN
            return
        here[QUIET] = 0
        worth_s = float(now[SECONDS]) / float(now[TOKENS])
        gain = (accepted * worth_s - (spent_s - plain_s)) / plain_s
        visits = min(float(state.visits[row]) + 1.0, MOST)
        state.visits[row] = visits
        state.paid[row] += (gain - float(state.paid[row])) / (visits + 2.0)  # two drafts of gain 0
        here[LAST] = PLAIN
        if drafted > 0:
            here[LAST] = ALL if accepted == drafted else (SOME_OF_IT if accepted > 0 else NOTHING)
        judged = accepted if outcome.ended or accepted == drafted else accepted + 1
        for k in range(judged):
            passed = 1.0 if k < accepted else 0.0
            at = int(state.bin[slot, k])
            chance = float(state.chance[row, at])
            state.chance[row, at] = chance + self.rate * (passed - chance)
            if k > 0:
                now[FOLLOWS] += 0.01 * (passed - float(now[FOLLOWS]))
            row = DEEPER
