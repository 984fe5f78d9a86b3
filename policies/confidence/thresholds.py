"""Stop drafting when the draft model itself is in doubt."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from policies.base import Draft, FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import DRAFT, SHARE, hyper
from policies.randomness import Rng


@dataclasses.dataclass(frozen=True)
class HFConfidence(Policy):
    """transformers' assisted generation with a constant assistant_confidence_threshold.

    The doubtful token is still verified. Under sampling transformers reads the probability of the
    sampled token; the interface here hands over the top-1 probability.

    Kangaroo, arXiv 2404.18911, publishes the same rule with constants of its own (0.6 in its
    README, 0.4 on its command line, at most 6 tokens, never a stop at the first one); llama.cpp's
    drops the doubtful token, see LlamaPMin.
    """

    gamma_max: int = hyper(20, DRAFT, "primary")
    threshold: float = hyper(0.4, SHARE, "primary")

    name = "hf-confidence"
    rule = "draft until a token's probability is below the threshold, at most gamma_max"
    source = "huggingface/transformers, generation/stopping_criteria.py (ConfidenceCriteria)"

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        return self.gamma_max

    def proceed(self, state: State, slot: int, draft: Draft) -> bool:
        return draft.top1_prob >= self.threshold


@dataclasses.dataclass(frozen=True)
class LlamaPMin(Policy):
    """llama.cpp's draft-p-min: HFConfidence, but for the doubtful token, which is not verified.

    It has cost its draft step and the reading of its signals. There, since pull request 22506, a
    draft whose first token is in doubt leaves a plain round. Not here: n-min, below which a whole
    draft is thrown away.
    """

    gamma_max: int = hyper(16, DRAFT, "primary (its draft-n-max of 2025)")
    p_min: float = hyper(0.75, SHARE, "primary (of 2025; 0.9 in 2024, 0, off, by mid-2026)")

    name = "llama-p-min"
    rule = "draft until a token's probability is below p_min and drop it, at most gamma_max"
    source = "ggml-org/llama.cpp, common/speculative.cpp, pull request 22506"

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        return self.gamma_max

    def retain(self, state: State, slot: int, draft: Draft) -> bool:
        return draft.top1_prob >= self.p_min


class BatchState(NamedTuple):
    """Per request: drafted [slots], tokens of this round, 0 between rounds; top1_prob [slots], of
    the newest one.
    """

    drafted: IntArray
    top1_prob: FloatArray


@dataclasses.dataclass(frozen=True)
class BatchConfidence(Policy):
    """vLLM's proposed draft_confidence_threshold: one confidence for the whole batch.

    There the batch stops as a whole, behind the token at which the mean top-1 probability of its
    rows falls below the threshold; the first token is never tested (draft_length_policy.py of the
    pull request: step 0 is the token behind it, so at least two are verified). Here a hook sees one
    row at a time, in the order of the batch: the mean is over the rows that have drafted this many
    tokens so far, and each row stops for itself, so the first rows of a batch decide on less than
    the last ones, and a row that has stopped weighs no more.

    Approximated: in one state of the pull request all gamma_max drafts run, so as not to wait for
    the verdict, and only what is verified is cut; in two others drafting stops. A hook that stops
    ends both, so the tokens are those of every state and the seconds those of the latter. What the
    drafts behind the cut would cost besides is traces.costs.log_prices.surplus_draft_s of the round
    log: on the shipped pair more than the rule gains.
    """

    gamma_max: int = hyper(20, DRAFT, "primary (num_speculative_tokens of its example)")
    threshold: float = hyper(
        0.4, SHARE, "ours: the pull request's default is 0, off; 0.4 is transformers' value"
    )

    name = "batch-confidence"
    rule = "draft until the batch's mean top-1 probability, from token 2 on, is below the threshold"
    source = "vllm-project/vllm, pull request 35301, v1/spec_decode/draft_length_policy.py"

    def new_state(self, slots: int) -> State:
        return BatchState(np.zeros(slots, dtype=np.int64), np.zeros(slots))

    def admit(self, state: BatchState, slot: int) -> None:
        state.drafted[slot] = 0

    def gamma(self, state: BatchState, slot: int, view: View, rng: Rng) -> int:
        return self.gamma_max

    def proceed(self, state: BatchState, slot: int, draft: Draft) -> bool:
        state.drafted[slot] = draft.drafted
        state.top1_prob[slot] = draft.top1_prob
        if draft.drafted == 1:
            return True
        total, rows = 0.0, 0
        for row in range(state.drafted.shape[0]):
            if int(state.drafted[row]) == draft.drafted:
                total += float(state.top1_prob[row])
                rows += 1
        return total / rows >= self.threshold

    def learn(self, state: BatchState, slot: int, view: View, outcome: Outcome) -> None:
        state.drafted[slot] = 0


class TailState(NamedTuple):
    """Per request: product [slots], the product of this round's top-1 probabilities so far."""

    product: FloatArray


@dataclasses.dataclass(frozen=True)
class TailPruning(Policy):
    """Stop when the draft thinks that its whole continuation is no longer likely to survive.

    The token that takes the product below theta is still verified (modal_vllm_tailprune2.py of the
    audit: KMAX 7, thresholds 0.2 and 0.05, tested before each further draft step).
    """

    theta: float = hyper(0.2, SHARE, "primary")
    gamma_max: int = hyper(7, DRAFT, "primary")

    name = "tail-pruning"
    rule = "stop when the product of top-1 probabilities falls below theta, at most gamma_max"
    source = "pramodjella/speculative-decoding-draft-length-audit (cumulative confidence)"

    def new_state(self, slots: int) -> State:
        return TailState(np.ones(slots))

    def admit(self, state: TailState, slot: int) -> None:
        state.product[slot] = 1.0

    def gamma(self, state: TailState, slot: int, view: View, rng: Rng) -> int:
        return self.gamma_max

    def proceed(self, state: TailState, slot: int, draft: Draft) -> bool:
        before = 1.0 if draft.drafted == 1 else float(state.product[slot])
        product = before * draft.top1_prob
        state.product[slot] = product
        return product >= self.theta
