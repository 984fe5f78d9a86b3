"""vLLM's proposed schedules by context length: with the batch size, and alone."""

from __future__ import annotations

import dataclasses

from policies.base import Policy, State, View
from policies.fields import COUNT, GAMMA, disorder, hyper
from policies.randomness import Rng


@dataclasses.dataclass(frozen=True)
class ContextTable(Policy):
    """A length per range of batch sizes and of contexts.

    Three ranges of batch sizes: up to bound1, up to bound2, above. Two of contexts, in tokens: up
    to `context_tokens` (short), above (long). short2 is the length of the second range of batches
    with a short context. The last range of batches goes on for ever, as there.

    There the context is the median, mean or maximum over the batch (a setting) of the tokens
    computed so far; here that of the row that is asked for gamma. With one slot and the default
    table it is a fixed length: the table's point is that at large batches drafts pay again where
    contexts are long.
    """

    bound1: int = hyper(64, COUNT, "primary (the example of the issue)")
    bound2: int = hyper(256, COUNT, "primary (the example of the issue)")
    context_tokens: int = hyper(768, COUNT, "primary (the example of the issue)")
    short1: int = hyper(3, GAMMA, "primary (the example of the issue)")
    long1: int = hyper(3, GAMMA, "primary (the example of the issue)")
    short2: int = hyper(0, GAMMA, "primary (the example of the issue)")
    long2: int = hyper(3, GAMMA, "primary (the example of the issue)")
    short3: int = hyper(0, GAMMA, "primary (the example of the issue)")
    long3: int = hyper(0, GAMMA, "primary (the example of the issue)")

    batch_wide = True
    name = "context-table"
    rule = "the length of the first row whose batch bound holds, in the column of the context"
    source = (
        "vllm-project/vllm, issue 48627 and pull request 48944, commit 14b450c: "
        "v1/spec_decode/dynamic/utils.py; v1/core/sched/scheduler.py"
    )

    def conflict(self) -> str:
        return disorder(self, "bound1", "bound2")

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        short = view.context_tokens <= self.context_tokens
        if view.batch_size <= self.bound1:
            return self.short1 if short else self.long1
        if view.batch_size <= self.bound2:
            return self.short2 if short else self.long2
        return self.short3 if short else self.long3


@dataclasses.dataclass(frozen=True)
class LengthTable(Policy):
    """A length per range of contexts, nothing above the last one.

    gamma1 up to context1 tokens, gamma2 up to context2; 0 above the largest. A row with context 0
    is not there. The pull request's code was not to be had: that lengths fall with the context, and
    its example, are read in its text; how a batch's contexts become one number is not (here the row
    that is asked for gamma).
    """

    context1: int = hyper(131072, COUNT, "primary (the example of the pull request: 0 above 128k)")
    gamma1: int = hyper(5, GAMMA, "primary (the example of the pull request)")
    context2: int = hyper(0, COUNT, "ours: a second row, not there by default")
    gamma2: int = hyper(0, GAMMA, "ours: a second row, not there by default")

    batch_wide = True
    name = "length-table"
    rule = "the length of the first row whose bound the context does not exceed; 0 above the last"
    source = "vllm-project/vllm, pull request 54801 (num_speculative_tokens_per_seq_len), its text"

    def conflict(self) -> str:
        return disorder(self, "context1", "context2") if self.context2 > 0 else ""

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        if view.context_tokens <= self.context1:
            return self.gamma1
        if view.context_tokens <= self.context2:
            return self.gamma2
        return 0
