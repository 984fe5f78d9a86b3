"""The cost model of two shapes on a device of which only two rates are known."""

from __future__ import annotations

import dataclasses

from traces.timing import BLOCK, HOST, STEP


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
    *_context_bytes: keys and values of one context token.

    bytes_per_s, flops_per_s: of the device; what is reached is less than the data sheet's.
    fixed, signal, control: seconds, as in Affine.
    knee_tokens: how many tokens' arithmetic hides behind the reading of the weights; 0: all that
        fits, the textbook's roofline. Measured layers turn up earlier (docs/published.md): above
        the knee every token costs its arithmetic on top of what the weights cost. Operations of
        attention itself are left out: few beside those of the weights.
    draft_kind: see traces.timing.DRAFT_KINDS; a block's forward is over block_tokens per row, a
        look-up takes `host` seconds per row.
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
    draft_kind: str = STEP
    block_tokens: int = 1
    host: float = 0.0

    def prefill_s(self, tokens: float, batch: int) -> float:
        read_s = 0.0 if self.draft_kind == HOST else self._draft_s(batch, 0, tokens)
        return self.verify_s(tokens, batch, 0) + read_s

    def draft_start_s(self, batch: int, context_tokens: float) -> float:
        if self.draft_kind == BLOCK:
            return self._draft_s(batch, context_tokens, self.block_tokens)
        return self.host * batch if self.draft_kind == HOST else 0.0

    def draft_step_s(self, batch: int, context_tokens: float, tokens: float = 1) -> float:
        return self._draft_s(batch, context_tokens, tokens) if self.draft_kind == STEP else 0.0

    def _draft_s(self, batch: int, context_tokens: float, tokens: float) -> float:
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
