"""An independent draft model: one forward per token over a cache of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from real_backend.drafters.drafter import MOST, Level, Span
from real_backend.models.cache_rows import CacheRows, rows_of
from real_backend.models.finite import Watch
from real_backend.models.model import Model


@dataclasses.dataclass(frozen=True)
class ModelDrafter:
    """A causal language model that shares the target's tokenizer."""

    model: Model
    name: str

    kind = "model"
    most = MOST

    @property
    def vocab_size(self) -> int:
        """Tokens it knows."""
        return self.model.vocab_size

    @property
    def max_context(self) -> int:
        """Tokens it can hold."""
        return self.model.max_context

    @property
    def watch(self) -> Watch:
        """The model's."""
        return self.model.watch

    @property
    def modules(self) -> tuple[Any, ...]:
        """The model."""
        return (self.model.module,)

    def rows(self, batch: int, capacity: int) -> ModelRows:
        """Its caches."""
        return ModelRows(rows_of(self.model, batch, capacity))


class ModelRows:
    """The caches of a draft model."""

    def __init__(self, cache: CacheRows) -> None:
        self.cache = cache

    def holds(self, context: int) -> bool:
        """True if every row's cache can be read on from `context`."""
        return self.cache.holds(context)

    def prefill(self, row: int, start: int, tokens: Tensor, states: Tensor) -> None:
        """The model reads the prompt, too."""
        self.cache.read([(row, start, len(tokens))], tokens, last=True)

    def first(self, spans: Sequence[Span], tokens: Tensor) -> Tensor:
        """Logits [A, V] behind the tokens that the cache lacked."""
        return self.cache.read(spans, tokens, last=True)

    def further(self, spans: Sequence[Span], tokens: Tensor, level: Level | None = None) -> Tensor:
        """As `first`; of trees behind every node."""
        if level is None:
            return self.cache.read(spans, tokens, last=True)
        return self.cache.read(spans, tokens, last=False, branches=level.branches)

    def move(self, row: int, places: Sequence[int], start: int) -> None:
        """Nodes that were read stay read."""
        self.cache.move(row, places, start)

    def verified(self, row: int, start: int, states: Tensor) -> None:
        """Nothing: its cache rolls back by being read on from an earlier place."""
