"""The cost model of theory and tests: a fixed part, and a part per token, row and context token."""

from __future__ import annotations

import dataclasses

from traces.costs.model import CostModel, KnowsRules
from traces.timing import HOST, STEP, OwnSeconds


@dataclasses.dataclass(frozen=True)
class Affine:
    """A fixed part and a part per token, per row and per context token; for theory and tests.

    All in seconds. A draft forward over t tokens costs draft_fixed + draft_token * (t - 1), a
    target forward target_fixed + target_token * (t - 1); target_fixed / draft_fixed is the c of
    simulator.replay.theory.gammatune_seconds. `row` is added per further row of the batch,
    `context_token` per token in the cache.

    own: of the rules' own arithmetic, see policies.overhead.
    draft_kind: see traces.timing.DRAFT_KINDS; of a block its one forward costs draft_fixed, of
        look-up every row does.
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
    draft_kind: str = STEP

    def prefill_s(self, tokens: float, batch: int) -> float:
        return self.prefill_fixed + self.prefill_token * tokens * batch

    def draft_start_s(self, batch: int, context_tokens: float) -> float:
        if self.draft_kind == STEP:
            return 0.0
        if self.draft_kind == HOST:
            return self.draft_fixed * batch
        return self.draft_fixed + self._shared_s(batch, context_tokens)

    def draft_step_s(self, batch: int, context_tokens: float, tokens: float = 1) -> float:
        lagging_s = self.draft_token * (tokens - 1)
        if self.draft_kind != STEP:
            return lagging_s
        return self.draft_fixed + lagging_s + self._shared_s(batch, context_tokens)

    def verify_s(self, tokens: float, batch: int, context_tokens: float) -> float:
        shared = self._shared_s(batch, context_tokens)
        return self.target_fixed + self.target_token * (tokens - 1) + shared

    def _shared_s(self, batch: int, context_tokens: float) -> float:
        return self.row * (batch - 1) + self.context_token * context_tokens

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
