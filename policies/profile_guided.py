"""Stop where the machine's own cost of verifying more tokens says that doubt no longer pays."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from policies.base import Draft, FloatArray, Policy, State, View
from policies.fields import DRAFT, hyper
from policies.randomness import Rng


class ProfileState(NamedTuple):
    """M = gamma_max. Per request: confidence [slots], the product of this round's top-1
    probabilities; cost [slots, M], relative seconds per token of verifying k + 2 tokens.
    """

    confidence: FloatArray
    cost: FloatArray


@dataclasses.dataclass(frozen=True)
class ProfileGuided(Policy):
    """llama.cpp's profile-guided drafts: confidence against the measured price per verified token.

    With k tokens drafted the target will verify n = k + 1; cost(n) = verify_s[n] / (n verify_s[1])
    is what each of them costs relative to a token decoded alone (1, 0.605, 0.473, ... on the
    author's machine). Drafting stops once the draft's cumulative confidence is below cost(n).

    The pull requests could be read only in part. Not confirmed: that the confidence is the product
    over the round rather than the newest token's alone, and that the curve is read at n = k + 1.
    The later one takes the curve as an array from a benchmark, the earlier one a power law fitted
    to it (0.53 k^-0.65 in its example); here the curve is the measured one of `view`, the engine's
    fixed cost per round included, anew each round. The rule has no term for the draft's own time.
    """

    gamma_max: int = hyper(32, DRAFT, "primary (draft-max of its examples)")

    name = "profile-guided"
    rule = "stop when the product of top-1 probabilities is below verify_s[n] / (n verify_s[1])"
    source = "ggml-org/llama.cpp, pull requests 17034 and 14132 (jukofyork)"

    def new_state(self, slots: int) -> State:
        return ProfileState(np.ones(slots), np.zeros((slots, self.gamma_max)))

    def admit(self, state: ProfileState, slot: int) -> None:
        state.confidence[slot] = 1.0

    def gamma(self, state: ProfileState, slot: int, view: View, rng: Rng) -> int:
        alone = float(view.verify_s[1])
        cap = min(self.gamma_max, view.room)
        for k in range(cap):
            state.cost[slot, k] = float(view.verify_s[k + 2]) / ((k + 2) * alone)
        return cap

    def proceed(self, state: ProfileState, slot: int, draft: Draft) -> bool:
        before = 1.0 if draft.drafted == 1 else float(state.confidence[slot])
        confidence = before * draft.top1_prob
        state.confidence[slot] = confidence
        return confidence >= float(state.cost[slot, draft.drafted - 1])
