"""Draft & Verify (arXiv 2309.08168): a confidence threshold that chases an acceptance rate."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from policies.base import Draft, FloatArray, Outcome, Policy, State, View
from policies.fields import DRAFT, SHARE, hyper
from policies.randomness import Rng


class ThresholdState(NamedTuple):
    """Shared: threshold [1]. Per request: matchness [slots], decayed share of drafts accepted."""

    threshold: FloatArray
    matchness: FloatArray


@dataclasses.dataclass(frozen=True)
class DraftVerify(Policy):
    """Stop below a threshold that rises while too few drafts are accepted, else falls.

    After each round: matchness <- beta1 matchness + (1 - beta1) accepted / drafted; the threshold
    moves by epsilon up if matchness < target, down otherwise, not at all if matchness is good and
    gamma_max tokens were drafted; of that move (1 - beta2) is made: 0.001 a round by default. So
    little cannot settle within one reply, and the authors' notebooks hand the threshold on from
    sample to sample while matchness starts at 0 in each: here the threshold is shared by all
    requests and stays, matchness is per request. It has no bounds, there as here.

    There the probability of the sampled token is compared, here the top-1 probability. A round
    whose reply ended inside the accepted tokens is not judged. Under sampling the authors start at
    a threshold of 0.5; their notebooks allow 12 tokens.
    """

    gamma_max: int = hyper(8, DRAFT, "primary")
    threshold0: float = hyper(0.8, SHARE, "primary (greedy)")
    beta1: float = hyper(0.5, SHARE, "primary")
    target: float = hyper(0.9, SHARE, "primary")
    epsilon: float = hyper(0.01, SHARE, "primary")
    beta2: float = hyper(0.9, SHARE, "primary")

    name = "draft-verify"
    rule = "stop below a threshold that rises while the accepted share is under target, else falls"
    source = "Draft & Verify, arXiv 2309.08168; dilab-zju/self-speculative-decoding, decoding.py"

    def new_state(self, slots: int) -> State:
        return ThresholdState(np.full(1, self.threshold0), np.zeros(slots))

    def admit(self, state: ThresholdState, slot: int) -> None:
        state.matchness[slot] = 0.0

    def gamma(self, state: ThresholdState, slot: int, view: View, rng: Rng) -> int:
        return self.gamma_max

    def proceed(self, state: ThresholdState, slot: int, draft: Draft) -> bool:
        return draft.top1_prob >= float(state.threshold[0])

    def learn(self, state: ThresholdState, slot: int, view: View, outcome: Outcome) -> None:
        if outcome.drafted == 0 or outcome.ended:
            return
        share = outcome.accepted / outcome.drafted
        matchness = self.beta1 * float(state.matchness[slot]) + (1.0 - self.beta1) * share
        state.matchness[slot] = matchness
        threshold = float(state.threshold[0])
        wanted = threshold
        if matchness < self.target:
            wanted = threshold + self.epsilon
        elif outcome.drafted < self.gamma_max:
            wanted = threshold - self.epsilon
        state.threshold[0] = self.beta2 * threshold + (1.0 - self.beta2) * wanted
