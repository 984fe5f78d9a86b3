"""TapOut (arXiv 2511.02017): a bandit whose arms are stopping rules."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from policies.base import Draft, FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import DRAFT, FACTOR, GAMMA, SHARE, hyper
from policies.randomness import Rng

RULES = 6
LONG, SHORT, ENTROPY_LOW, ENTROPY_HIGH, SVIP, CONFIDENCE = range(RULES)


class TapOutState(NamedTuple):
    """Shared: plays, rewards [6], sums by stopping rule. Per request: rule [slots], in force."""

    plays: FloatArray
    rewards: FloatArray
    rule: IntArray


@dataclasses.dataclass(frozen=True)
class TapOut(Policy):
    """Sequence-level UCB1 over stopping rules; the rule drawn for a round decides token by token.

    Rules: draft gamma_max tokens; draft `short`; stop behind a token whose entropy is above
    entropy_low; above entropy_high; SVIP, stop behind sqrt(0.15 entropy) > 0.3; stop behind a top-1
    probability below `confidence`. Reward: blend * accepted / gamma_max + (1 - blend) * accepted /
    drafted; index of round t: mean reward + exploration sqrt(ln t / plays). What has been learned
    stays across requests.

    The paper's own pool could not be read: fixed and entropy rules, their bounds and the weight 2
    are those of a public port (class TapOutStyle, and modal_controller_benchmark.py, where entropy
    is in bits: 1 and 2 there, in nats here); its reward is tokens per second over 200. SVIP and
    confidence belong to the paper's family; the port's margin rule needs the second probability,
    the paper's AdaEDL and difference rules are left out. The reward knows no seconds: it weighs
    tokens against wasted drafts half and half whatever both cost, and need not settle on the
    fastest rule.
    """

    gamma_max: int = hyper(8, DRAFT, "secondary")
    short: int = hyper(2, GAMMA, "secondary")
    entropy_low: float = hyper(0.693, FACTOR, "secondary (1 bit)")
    entropy_high: float = hyper(1.386, FACTOR, "secondary (2 bits)")
    confidence: float = hyper(0.8, SHARE, "unconfirmed")
    blend: float = hyper(0.5, SHARE, "unconfirmed")
    exploration: float = hyper(2.0, FACTOR, "secondary")

    name = "tapout"
    rule = "UCB1 chooses one of six stopping rules per round; reward blends length and acceptance"
    source = (
        "TapOut, arXiv 2511.02017; rules from pramodjella/speculative-decoding-draft-length-audit"
    )

    def new_state(self, slots: int) -> State:
        return TapOutState(np.zeros(RULES), np.zeros(RULES), np.zeros(slots, dtype=np.int64))

    def admit(self, state: TapOutState, slot: int) -> None:
        state.rule[slot] = LONG

    def gamma(self, state: TapOutState, slot: int, view: View, rng: Rng) -> int:
        total = 1.0  # the round at hand counts
        for k in range(RULES):
            total += float(state.plays[k])
        best, best_index = 0, -1.0
        for k in range(RULES):
            plays = float(state.plays[k])
            if plays == 0.0:
                best = k
                break
            index = float(state.rewards[k]) / plays
            index += self.exploration * math.sqrt(math.log(total) / plays)
            if index > best_index:
                best, best_index = k, index
        state.rule[slot] = best
        return self.short if best == SHORT else self.gamma_max

    def proceed(self, state: TapOutState, slot: int, draft: Draft) -> bool:
        rule = int(state.rule[slot])
        if rule == ENTROPY_LOW:
            return draft.entropy <= self.entropy_low
        if rule == ENTROPY_HIGH:
            return draft.entropy <= self.entropy_high
        if rule == SVIP:
            return math.sqrt(0.15 * draft.entropy) <= 0.3
        if rule == CONFIDENCE:
            return draft.top1_prob >= self.confidence
        return True

    def learn(self, state: TapOutState, slot: int, view: View, outcome: Outcome) -> None:
        longest = min(self.gamma_max, view.room)
        if outcome.drafted == 0 or longest <= 0:
            return
        rule = int(state.rule[slot])
        reward = self.blend * outcome.accepted / longest
        reward += (1.0 - self.blend) * outcome.accepted / outcome.drafted
        state.plays[rule] += 1.0
        state.rewards[rule] += reward
