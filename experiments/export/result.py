"""The result of an export: the setting in the engine's terms, and the speeds that were replayed."""

from __future__ import annotations

import dataclasses

from experiments.export.engines import EngineSetting, Names, Rendered, ServingEngine
from policies.base import Policy


@dataclasses.dataclass(frozen=True)
class BatchRow:
    """One measured batch size: the exported length and the best of all, tokens/s of one request.

    best_gamma was chosen on the training half; the speeds are those of the held-out one.
    """

    batch: int
    gamma: int
    tokens_per_s: float
    plain_tokens_per_s: float
    best_gamma: int
    best_tokens_per_s: float


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Held-out decode tokens/s at batch 1 of the policy, of the exported setting and of plain
    decoding.

    loss: share of the policy's speed that the translation costs, negative if it gains.
    alternatives: the same of what else a user of the engine may end up with.
    """

    policy_tokens_per_s: float
    exported_tokens_per_s: float
    plain_tokens_per_s: float
    loss: float
    alternatives: dict[str, float]
    batches: tuple[BatchRow, ...]


@dataclasses.dataclass(frozen=True)
class Export:
    """A policy in an engine's terms. depth: drafts per round that the trace can replay;
    temperature: of the trace.
    """

    policy: Policy
    engine: ServingEngine
    setting: EngineSetting
    rendered: Rendered
    names: Names
    predicted: Predicted
    depth: int
    temperature: float
