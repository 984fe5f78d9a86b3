"""transformers' default stop: a confidence threshold that follows the reply's own ROC curve."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from policies.base import Draft, FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import DRAFT, SHARE, Domain, hyper
from policies.randomness import Rng


class RocState(NamedTuple):
    """Per request, H = history, M = gamma_max: threshold [slots]; pairs [slots] kept so far;
    prob [slots, H] descending, matched [slots, H] their labels; drafted_prob [slots, M], this
    round's.
    """

    threshold: FloatArray
    pairs: IntArray
    prob: FloatArray
    matched: IntArray
    drafted_prob: FloatArray


def insert_descending(state: RocState, slot: int, prob: float, matched: int) -> None:
    """Insert one (probability, matched) pair; a full history takes no more."""
    count = int(state.pairs[slot])
    if count == state.prob.shape[1]:
        return
    k = count
    while k > 0 and float(state.prob[slot, k - 1]) < prob:
        state.prob[slot, k] = state.prob[slot, k - 1]
        state.matched[slot, k] = state.matched[slot, k - 1]
        k -= 1
    state.prob[slot, k] = prob
    state.matched[slot, k] = matched
    state.pairs[slot] = count + 1


def best_threshold(state: RocState, slot: int, miss_weight: int) -> float:
    """The kept probability that minimises FPR + miss_weight * FNR; -1 while a class is unseen.

    Compared as integers (both rates times positives * negatives); ties go to the highest threshold.
    """
    count = int(state.pairs[slot])
    positives = 0
    for k in range(count):
        positives += int(state.matched[slot, k])
    negatives = count - positives
    if count <= 5 or positives == 0 or negatives == 0:
        return -1.0
    best, best_cost = -1.0, (miss_weight + 1) * positives * negatives + 1
    true_positives = 0
    for k in range(count):
        true_positives += int(state.matched[slot, k])
        prob = float(state.prob[slot, k])
        if k + 1 == count or float(state.prob[slot, k + 1]) < prob:
            false_positives = k + 1 - true_positives
            cost = false_positives * positives
            cost += miss_weight * (positives - true_positives) * negatives
            if cost < best_cost:
                best, best_cost = prob, cost
    return best


@dataclasses.dataclass(frozen=True)
class HFRocConfidence(Policy):
    """transformers' default: the confidence threshold follows the ROC curve of this reply so far.

    After each round the pairs (probability, matched) of the matched tokens and the first mismatch
    join the history; later drafts are unjudged. With more than 5 pairs of both classes the
    threshold becomes the ROC point that minimises FPR + 3 FNR. transformers keeps an unbounded
    history (and needs scikit-learn); here a reply may hold `history` pairs.
    """

    gamma_max: int = hyper(20, DRAFT, "primary")
    threshold0: float = hyper(0.4, SHARE, "primary")
    miss_weight: int = hyper(3, Domain(0, 1_000_000), "primary")
    history: int = hyper(
        1024, Domain(1, 100_000), "ours: transformers keeps all pairs of a generation"
    )

    name = "hf-roc"
    rule = "hf-confidence whose threshold minimises FPR + 3 FNR over the reply so far"
    source = "huggingface/transformers, generation/candidate_generator.py"

    def new_state(self, slots: int) -> State:
        return RocState(
            np.full(slots, self.threshold0),
            np.zeros(slots, dtype=np.int64),
            np.zeros((slots, self.history)),
            np.zeros((slots, self.history), dtype=np.int64),
            np.zeros((slots, self.gamma_max)),
        )

    def admit(self, state: RocState, slot: int) -> None:
        state.threshold[slot] = self.threshold0
        state.pairs[slot] = 0

    def gamma(self, state: RocState, slot: int, view: View, rng: Rng) -> int:
        return self.gamma_max

    def proceed(self, state: RocState, slot: int, draft: Draft) -> bool:
        state.drafted_prob[slot, draft.drafted - 1] = draft.top1_prob
        return draft.top1_prob >= float(state.threshold[slot])

    def learn(self, state: RocState, slot: int, view: View, outcome: Outcome) -> None:
        for k in range(outcome.accepted):
            insert_descending(state, slot, float(state.drafted_prob[slot, k]), 1)
        if outcome.accepted < outcome.drafted:
            insert_descending(state, slot, float(state.drafted_prob[slot, outcome.accepted]), 0)
        threshold = best_threshold(state, slot, self.miss_weight)
        if threshold >= 0.0:
            state.threshold[slot] = threshold
