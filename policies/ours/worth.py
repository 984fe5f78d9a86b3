"""Ours, and small: verify a token while it is worth its price, and draft on a budget.

Nothing is fitted beforehand and nothing is tuned per pair: chances, prices and the worth of a token
are what this server has seen, and three fields say how far to draft, how long to remember and how
much may be lost.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from policies.base import Draft, FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import DRAFT, SHARE, SOME, hyper
from policies.randomness import Rng

BINS = 10  # of a top-1 probability
DEEPER = 4  # row of a token behind the first; rows before it: the first token, by the last round
PRIOR = 4.0  # tokens that the draft's own word weighs, in every bin
REFRESH = 16  # rounds between two readings of the prices
PROBE = 16  # rounds without a look, and doubtful tokens in a row, until one is tried all the same
PURSE = 4.0  # plain rounds that may be lost at the start
ALL, SOME_OF_IT, NOTHING, PLAIN = range(4)  # how the last round ended

TOKENS, SECONDS, NEXT, SAVED_S, PLAIN_S, STEP_S, FRESH = range(7)  # of WorthState.now
NEED, GAIN_S, RISK_S = range(3)  # of WorthState.price
LAST, DRAFTED, QUIET, DOUBTED, CAP = range(5)  # of WorthState.round


class WorthState(NamedTuple):
    """M = gamma_max.

    Per request: round [slots, 5]: how its last round ended, tokens drafted in this one, rounds
    without a look, doubtful tokens since one was kept, cap; survival [slots, M + 1], chance that
    the first k tokens stand; bin [slots, M], of every drafted token.

    Shared: chance, seen [5, 10]: that a token with this top-1 probability passes, and how often
    that was seen; look [5], seconds that a look was worth, per chance that what stands before it
    does; now [7]: discounted tokens and seconds, chance that a token behind an accepted one
    passes, seconds saved so far, of a plain round, of a draft step, rounds until prices are read
    again; price [3, M + 1], by drafted tokens k: the survival from which on verifying token k pays,
    the seconds it gains per survival above that, the most that a draft of k can lose.
    """

    round: IntArray
    survival: FloatArray
    bin: IntArray
    chance: FloatArray
    seen: FloatArray
    look: FloatArray
    now: FloatArray
    price: FloatArray


def read_prices(state: WorthState, view: View, gamma_max: int) -> None:
    """Fill `price` from what a round costs now.

    Verifying token k behind k - 1 others pays if, for some j, a chance of S that it stands brings
    w S (1 + n + ... + n^j) > verify[k + j + 1] - verify[k] + j steps: prices rise in steps and may
    fall, so that more tokens can be cheaper than fewer.
    """
    now, price, verify_s = state.now, state.price, view.verify_s
    step_s, plain_s = view.draft_step_s, float(verify_s[1])
    now[PLAIN_S], now[STEP_S], now[FRESH] = plain_s, step_s, REFRESH
    if float(now[TOKENS]) == 0.0:  # before the first round
        now[TOKENS], now[SECONDS], now[SAVED_S] = 1.0, plain_s, PURSE * plain_s
    worth_s, following = float(now[SECONDS]) / float(now[TOKENS]), float(now[NEXT])
    last = min(gamma_max, verify_s.shape[0] - 2)
    worst = 0.0
    for k in range(1, gamma_max + 1):
        if k > last:
            price[NEED, k], price[GAIN_S, k], price[RISK_S, k] = 2.0, 0.0, 1e300
            continue
        need, gain_s, tokens, chance = 2.0, 0.0, 0.0, 1.0
        for j in range(last - k + 1):
            tokens += chance
            chance *= following
            cost_s = float(verify_s[k + j + 1]) - float(verify_s[k]) + j * step_s
            least = cost_s / (worth_s * tokens)
            if least < need:
                need, gain_s = least, worth_s * tokens
        worst = max(worst, float(verify_s[k + 1]) - plain_s)
        price[NEED, k], price[GAIN_S, k] = need, gain_s
        price[RISK_S, k] = worst + k * step_s


@dataclasses.dataclass(frozen=True)
class Worth(Policy):
    """Keep a drafted token while its chance is worth its price; look while looking has paid.

    1. Chance: top-1 probability in ten bins, apart for the first token by how the last round ended;
       what passed of each is counted, and begins at the draft's own word.
    2. Worth: w seconds a token, what one has cost of late. Price: measured, see `read_prices`. A
       token whose survival is below its price is dropped unverified; every sixteenth is kept, or
       nobody would learn that the draft has improved.
    3. A look (one more draft step) is worth, per chance that what stands before it does, what the
       looks before it gained: the mean excess of survival over price, nothing where a token was
       dropped. Go on while that exceeds a step; draft at all likewise, every sixteenth plain round
       excepted.
    4. Budget: a draft whose worst case could take what was spent beyond (1 + allowance) times plain
       decoding, and four plain rounds, is not made. So no text and no acceptance makes it slower.
    """

    gamma_max: int = hyper(16, DRAFT, "ours: the depth of a recording")
    memory: int = hyper(500, SOME, "ours: tokens that a chance remembers")
    allowance: float = hyper(0.015, SHARE, "ours: what is left of 2 % is for its own arithmetic")

    name = "worth"
    rule = "verify a token while chance x worth is above its price, draft while looking pays"
    source = (
        "ours; the stopping problem of SpecDec++, arXiv 2405.19715, and llama.cpp's drop of p-min"
    )

    def new_state(self, slots: int) -> State:
        middles = (np.arange(BINS) + 0.5) / BINS
        return WorthState(
            round=np.zeros((slots, 5), dtype=np.int64),
            survival=np.ones((slots, self.gamma_max + 1)),
            bin=np.zeros((slots, self.gamma_max), dtype=np.int64),
            chance=np.tile(middles, (DEEPER + 1, 1)),
            seen=np.full((DEEPER + 1, BINS), PRIOR),
            look=np.full(DEEPER + 1, 1e300),
            now=np.array([0.0, 0.0, 0.7, 0.0, 0.0, 0.0, 0.0]),
            price=np.zeros((3, self.gamma_max + 1)),
        )

    def admit(self, state: WorthState, slot: int) -> None:
        for k in range(5):
            state.round[slot, k] = 0

    def gamma(self, state: WorthState, slot: int, view: View, rng: Rng) -> int:
        now, here = state.now, state.round[slot]
        here[DRAFTED] = 0
        if float(now[FRESH]) <= 0.0 or float(now[PLAIN_S]) != float(view.verify_s[1]):
            read_prices(state, view, self.gamma_max)
        looks = float(state.look[int(here[LAST])]) > view.draft_step_s
        if not looks and int(here[QUIET]) < PROBE:
            return 0
        purse_s, cap = float(now[SAVED_S]), min(self.gamma_max, view.room)
        while cap > 0 and float(state.price[RISK_S, cap]) > purse_s:
            cap -= 1
        here[CAP] = cap
        return cap

    def retain(self, state: WorthState, slot: int, draft: Draft) -> bool:
        k, here, survival = draft.drafted, state.round[slot], state.survival[slot]
        row = DEEPER if k > 1 else int(here[LAST])
        at = min(int(draft.top1_prob * BINS), BINS - 1)
        before = float(survival[k - 1]) if k > 1 else 1.0
        stands = before * float(state.chance[row, at])
        survival[k] = stands
        state.bin[slot, k - 1] = at
        excess = stands - float(state.price[NEED, k])
        gained = excess * float(state.price[GAIN_S, k]) if excess > 0.0 else 0.0
        looked = float(state.look[row])
        if looked > 1e299:
            state.look[row] = gained
        elif before > 0.0:
            state.look[row] = looked + 0.02 * (gained / before - looked)
        if excess >= 0.0:
            here[DRAFTED] = k
            return True
        here[DOUBTED] += 1
        if int(here[DOUBTED]) >= PROBE:
            here[DOUBTED] = 0
            here[DRAFTED] = k
            return True
        return False

    def proceed(self, state: WorthState, slot: int, draft: Draft) -> bool:
        stands = float(state.survival[slot, draft.drafted])
        return stands * float(state.look[DEEPER]) > float(state.now[STEP_S])

    def learn(self, state: WorthState, slot: int, view: View, outcome: Outcome) -> None:
        now, here = state.now, state.round[slot]
        drafted, accepted = outcome.drafted, outcome.accepted
        plain_s = float(view.verify_s[1])
        now[FRESH] -= 1.0
        now[TOKENS] = 0.999 * float(now[TOKENS]) + outcome.emitted
        now[SECONDS] = 0.999 * float(now[SECONDS]) + outcome.priced_s
        now[SAVED_S] += (1.0 + self.allowance) * outcome.emitted * plain_s - outcome.priced_s
        row = int(here[LAST])
        judged = accepted if outcome.ended or accepted == drafted else accepted + 1
        for k in range(judged):
            passed = 1.0 if k < accepted else 0.0
            at = int(state.bin[slot, k])
            seen = float(state.seen[row, at]) + 1.0
            state.chance[row, at] += (passed - float(state.chance[row, at])) / seen
            state.seen[row, at] = min(seen, float(self.memory))
            if k > 0:
                now[NEXT] += 0.01 * (passed - float(now[NEXT]))
            row = DEEPER
        if drafted > 0:
            here[QUIET] = 0
            last = ALL if accepted == drafted else (SOME_OF_IT if accepted > 0 else NOTHING)
            here[LAST] = last
            return
        here[LAST] = PLAIN
        looked = int(here[CAP]) > 0
        here[QUIET] = 0 if looked else int(here[QUIET]) + 1
        here[CAP] = 0
