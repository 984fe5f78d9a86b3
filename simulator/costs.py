"""Seconds of the steps of speculative decoding: cost models, their tables, and closed forms.

A round of a batch costs sum_j [draft_step_s(active_j) + signal_s] + verify_s(sum(drafted + 1))
+ control_s, and what the rule's own arithmetic costs (policies.overhead). Nothing is hidden in
another term.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from traces.costs import CostModel, KnowsRules
from traces.timing import OwnSeconds

FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Affine:
    """A fixed part and a part per token, per row and per context token; for theory and tests.

    All in seconds. A draft forward over t tokens costs draft_fixed + draft_token * (t - 1), a
    target forward target_fixed + target_token * (t - 1); target_fixed / draft_fixed is the c of
    `gammatune_seconds`.
    `row` is added per further row of the batch, `context_token` per token in the cache. own: of the
    rules' own arithmetic, see policies.overhead.
    """

    draft_fixed: float = 1.0e-3
    target_fixed: float = 10.0e-3
    draft_token: float = 0.0
    target_token: float = 0.0
    prefill_fixed: float = 0.0
    prefill_token: float = 0.0
    row: float = 0.0
    context_token: float = 0.0
    signal: float = 0.0
    control: float = 0.0
    own: OwnSeconds = dataclasses.field(default_factory=dict, hash=False)

    def prefill_s(self, tokens: float, batch: int) -> float:
        return self.prefill_fixed + self.prefill_token * tokens * batch

    def draft_step_s(self, batch: int, context_tokens: float, tokens: float = 1) -> float:
        shared = self.row * (batch - 1) + self.context_token * context_tokens
        return self.draft_fixed + self.draft_token * (tokens - 1) + shared

    def verify_s(self, tokens: float, batch: int, context_tokens: float) -> float:
        shared = self.row * (batch - 1) + self.context_token * context_tokens
        return self.target_fixed + self.target_token * (tokens - 1) + shared

    def signal_s(self) -> float:
        return self.signal

    def control_s(self) -> float:
        return self.control

    def own_s(self) -> OwnSeconds:
        return self.own


def at_ratio(model: CostModel, ratio: float) -> CostModel:
    """The world in which a target step of any width costs `ratio` draft steps and nothing else
    costs anything, in seconds of this model: a target step is its one-token verify at batch 1
    without context. A rule's own arithmetic costs what it costs there.
    """
    target_s = model.verify_s(1, 1, 0)
    own_s = model.own_s() if isinstance(model, KnowsRules) else {}
    return Affine(draft_fixed=target_s / ratio, target_fixed=target_s, own=own_s)


def roofline_s(tokens: float, memory_s: float, token_s: float, fixed_s: float = 0.0) -> float:
    """Seconds of one forward over `tokens`: what it reads takes memory_s whatever their number,
    each token takes token_s of arithmetic, the slower of both hides the other; fixed_s is launched
    before. Williams, Waterman and Patterson, Roofline, CACM 52(4), 2009.
    """
    return fixed_s + max(memory_s, token_s * tokens)


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Costs from the size of both models and two rates of the device, where nothing was measured.

    *_bytes: weights read by a forward; *_flops: operations per token, about twice the weights;
    *_context_bytes: keys and values of one context token. bytes_per_s, flops_per_s: of the device;
    what is reached is less than the data sheet's. fixed, signal, control: seconds, as in Affine.
    knee_tokens: how many tokens' arithmetic hides behind the reading of the weights; 0: all that
    fits, the textbook's roofline. Measured layers turn up earlier (docs/published.md): above the
    knee every token costs its arithmetic on top of what the weights cost.
    Operations of attention itself are left out: few beside those of the weights.
    """

    target_bytes: float
    target_flops: float
    draft_bytes: float
    draft_flops: float
    bytes_per_s: float
    flops_per_s: float
    target_context_bytes: float = 0.0
    draft_context_bytes: float = 0.0
    knee_tokens: float = 0.0
    fixed: float = 0.0
    signal: float = 0.0
    control: float = 0.0

    def prefill_s(self, tokens: float, batch: int) -> float:
        return self.verify_s(tokens, batch, 0) + self.draft_step_s(batch, 0, tokens)

    def draft_step_s(self, batch: int, context_tokens: float, tokens: float = 1) -> float:
        read = self.draft_bytes + self.draft_context_bytes * context_tokens * batch
        return self._forward_s(tokens * batch, read, self.draft_flops)

    def verify_s(self, tokens: float, batch: int, context_tokens: float) -> float:
        read = self.target_bytes + self.target_context_bytes * context_tokens * batch
        return self._forward_s(tokens * batch, read, self.target_flops)

    def _forward_s(self, tokens: float, read: float, flops: float) -> float:
        memory_s, token_s = read / self.bytes_per_s, flops / self.flops_per_s
        if self.knee_tokens == 0.0:
            return roofline_s(tokens, memory_s, token_s, self.fixed)
        hidden_s = min(memory_s, token_s * self.knee_tokens)
        return roofline_s(tokens, hidden_s, token_s, self.fixed + memory_s - hidden_s)

    def signal_s(self) -> float:
        return self.signal

    def control_s(self) -> float:
        return self.control


def expected_emitted(alpha: float, gamma: int) -> float:
    """Tokens per round when every draft is accepted with chance alpha, independently.

    (1 - alpha^(gamma + 1)) / (1 - alpha): Leviathan et al., Fast Inference from Transformers via
    Speculative Decoding, arXiv 2211.17192, equation 1.
    """
    if alpha == 1.0:
        return gamma + 1.0
    return float((1.0 - alpha ** (gamma + 1)) / (1.0 - alpha))


def gammatune_seconds(
    tokens: float, acceptance: float, gamma: float, cost_ratio: float, draft_s: float
) -> float:
    """Seconds for a reply of `tokens`, N / (alpha gamma + 1) * (c + gamma) * T_draft.

    GammaTune, arXiv 2504.00030. acceptance: its alpha, the share of drafted tokens accepted (so
    alpha gamma + 1 tokens per round); cost_ratio: c = T_target / T_draft.
    """
    return tokens / (acceptance * gamma + 1.0) * (cost_ratio + gamma) * draft_s
