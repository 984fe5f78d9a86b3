"""Trained stops: a logistic model of acceptance, asked after every drafted token.

The published controllers put a network on the draft's distribution or hidden state. Here both see
what `Draft` shows. Weights belong to a pair: the defaults are the embedded pair's, from
`experiments.sweep.classifiers`, which fits them to any trace.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from policies.base import Draft, FloatArray, Policy, State, View
from policies.fields import DRAFT, GAMMA, SHARE, WEIGHT, disorder, hyper
from policies.randomness import Rng

WEIGHTS = ("bias", "w_logit", "w_entropy", "w_root_entropy", "w_log_drafted")
"""The fields that hold the weights: of 1, then of `features` in their order."""

_TRAINED = "ours: trained on the tuning half of traces/data/embedded-greedy.parquet"


def log_odds(prob: float) -> float:
    """log(p / (1 - p)) with p kept inside 0.0001..0.9999."""
    inside = min(max(prob, 1e-4), 1.0 - 1e-4)
    return math.log(inside / (1.0 - inside))


def features(draft: Draft) -> tuple[float, float, float, float]:
    """Features of a drafted token: log odds of its top-1 probability, entropy (nats),
    square root of the entropy, logarithm of the token's number in the round.
    """
    entropy = max(0.0, draft.entropy)  # rounding may leave it below 0
    return log_odds(draft.top1_prob), entropy, math.sqrt(entropy), math.log(draft.drafted)


def chance(odds: float) -> float:
    """The probability with these log odds; no odds are too long for it."""
    return 1.0 / (1.0 + math.exp(min(-odds, 700.0)))


def accept_prob(fields: Disco | SpecDecPlusPlus, draft: Draft) -> float:
    """Chance that the newest token is accepted, given that all before it are."""
    logit, entropy, root_entropy, log_drafted = features(draft)
    odds = fields.bias + fields.w_logit * logit + fields.w_entropy * entropy
    odds += fields.w_root_entropy * root_entropy + fields.w_log_drafted * log_drafted
    return chance(odds)


@dataclasses.dataclass(frozen=True)
class Disco(Policy):
    """DISCO: stop when a classifier gives the newest token too little chance of acceptance.

    There the classifier reads the draft's ten largest probabilities, the entropy and the position;
    here it is logistic in the largest one, entropy and position. The doubtful token is still
    verified. The paper chooses tau and the longest draft per data set on validation data.
    """

    gamma_max: int = hyper(20, DRAFT, "ours: Hugging Face's 20")
    tau: float = hyper(0.5, SHARE, "ours: the paper tunes it per data set")
    bias: float = hyper(3.1539, WEIGHT, _TRAINED)
    w_logit: float = hyper(1.1171, WEIGHT, _TRAINED)
    w_entropy: float = hyper(1.3179, WEIGHT, _TRAINED)
    w_root_entropy: float = hyper(-3.7779, WEIGHT, _TRAINED)
    w_log_drafted: float = hyper(0.3076, WEIGHT, _TRAINED)

    name = "disco"
    rule = "stop when a trained classifier gives the newest token less than tau of acceptance"
    source = "DISCO, arXiv 2405.04304 (read at second hand)"

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        return self.gamma_max

    def proceed(self, state: State, slot: int, draft: Draft) -> bool:
        return accept_prob(self, draft) >= self.tau


class SurvivalState(NamedTuple):
    """Per request: survival [slots], estimated chance that all of this round's tokens pass."""

    survival: FloatArray


@dataclasses.dataclass(frozen=True)
class SpecDecPlusPlus(Policy):
    """SpecDec++: stop when it is too likely that something drafted will be rejected.

    Stop once 1 - a_1 ... a_k > threshold, never before gamma_min tokens. In the authors' code the
    factor of step 1 is set to 1: their head judges a token by the hidden state behind it, which the
    draft computes only while it drafts the next one. So the product lags: it covers all drafted
    tokens but the newest, at step 1 none. That timing is kept here, though the signals of `Draft`
    would judge the newest token too.

    Their head is a ResNet of 3 layers on the hidden state, trained with weight 6 on mismatches and
    15 % of the target's own tokens mixed into the draft's; here a_i is logistic in the signals of
    token i, with the same weight 6. Such an a_i is lower than the true chance of acceptance, there
    as here: the threshold is no probability.
    """

    gamma_min: int = hyper(2, GAMMA, "primary (--bound 2 20 of its README)")
    gamma_max: int = hyper(20, DRAFT, "primary (--bound 2 20 of its README)")
    threshold: float = hyper(0.3, SHARE, "primary (its README's example; dsdSim uses 0.7)")
    bias: float = hyper(0.8677, WEIGHT, _TRAINED + ", weight 6 on mismatches")
    w_logit: float = hyper(1.2505, WEIGHT, _TRAINED + ", weight 6 on mismatches")
    w_entropy: float = hyper(1.3107, WEIGHT, _TRAINED + ", weight 6 on mismatches")
    w_root_entropy: float = hyper(-3.3818, WEIGHT, _TRAINED + ", weight 6 on mismatches")
    w_log_drafted: float = hyper(0.2564, WEIGHT, _TRAINED + ", weight 6 on mismatches")

    name = "specdec++"
    rule = "stop when the estimated chance of a rejection among the drafted tokens is too high"
    source = "SpecDec++, arXiv 2405.19715; Kaffaljidhmah2/SpecDec_pp, specdec_pp/hf_generation.py"

    def conflict(self) -> str:
        return disorder(self, "gamma_min", "gamma_max")

    def new_state(self, slots: int) -> State:
        return SurvivalState(np.ones(slots))

    def admit(self, state: SurvivalState, slot: int) -> None:
        state.survival[slot] = 1.0

    def gamma(self, state: SurvivalState, slot: int, view: View, rng: Rng) -> int:
        return self.gamma_max

    def proceed(self, state: SurvivalState, slot: int, draft: Draft) -> bool:
        before = 1.0 if draft.drafted == 1 else float(state.survival[slot])
        state.survival[slot] = before * accept_prob(self, draft)
        return draft.drafted < self.gamma_min or 1.0 - before <= self.threshold
