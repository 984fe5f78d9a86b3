"""Drafters: what all of them have, and what they keep of the rows of a batch.

A drafter is loaded once a pair. Those that run forwards (model, eagle3, block) make DraftRows,
which the steps of a round ask for logits; those of the host (lookup, suffix) make an Index a row,
which says at once what it has to offer.

Letters: A rows that draft, V vocabulary, E hidden size of the target, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from real_backend.models.cache_rows import Branches
from real_backend.models.finite import Watch

MOST = 32_767  # tokens of a draft that nothing bounds
Span = tuple[int, int, int]
"""(row, place of the first token, tokens)."""


class Drafter(Protocol):
    """The members of every kind."""

    @property
    def kind(self) -> str:
        """One of traces.schema.DRAFTERS."""

    @property
    def name(self) -> str:
        """For reports."""

    @property
    def most(self) -> int:
        """The most tokens of a draft, or MOST."""

    @property
    def vocab_size(self) -> int:
        """Tokens that it knows, 0: all of the target's."""

    @property
    def max_context(self) -> int:
        """Tokens that it can hold, 0: no bound of its own."""

    @property
    def watch(self) -> Watch | None:
        """Chooses tokens of its logits; None: it has none."""

    @property
    def modules(self) -> tuple[Any, ...]:
        """The holders of its weights."""


@runtime_checkable
class RunsForwards(Drafter, Protocol):
    """A drafter whose tokens come of logits."""

    def rows(self, batch: int, capacity: int) -> DraftRows:
        """Empty caches of `batch` rows of `capacity` tokens."""


class Level(NamedTuple):
    """The nodes of a level of every row's tree, in the places of its span. branches: of each row.
    parents: of each row's nodes, the place in the level above that each is a child of.
    """

    branches: list[Branches]
    parents: list[npt.NDArray[np.int64]]


class DraftRows(Protocol):
    """The caches of a batch, of a drafter of logits. Places are those of tokens in the
    target's cache.
    """

    def holds(self, context: int) -> bool:
        """True if every row can be drafted from at `context` without a prefill."""

    def prefill(self, row: int, start: int, tokens: Tensor, states: Tensor) -> None:
        """A prompt [N] was read by the target. states [N, taps E]: what it kept, as in
        LeanLlama.taps.
        """

    def first(self, spans: Sequence[Span], tokens: Tensor) -> Tensor:
        """Logits [A, V] of the first drafted token; tokens [N]: those that the drafter lacks."""

    def further(self, spans: Sequence[Span], tokens: Tensor, level: Level | None = None) -> Tensor:
        """Logits [A, V] of another one, behind the newest drafted tokens [A]; or, of trees, [N, V]
        behind every node of the newest level.
        """

    def move(self, row: int, places: Sequence[int], start: int) -> None:
        """Drafted tokens that were accepted at these places stand at start and on from now."""

    def verified(self, row: int, start: int, states: Tensor) -> None:
        """The target has read this row's newest token, which stands at `start`, and the accepted
        ones; states: as above.
        """


class Found(NamedTuple):
    """The offer of a look-up. shares: of the earlier continuations, those that agree with the
    tokens up to and including this one. entropy: of the continuations at this depth, nats.
    """

    tokens: list[int]
    shares: list[float]
    entropy: list[float]


class Index(Protocol):
    """The memory of a look-up of one row: all its tokens so far."""

    def extend(self, tokens: Sequence[int]) -> None:
        """These follow."""

    def find(self, most: int) -> Found:
        """The tokens that may follow now, at most so many."""


@runtime_checkable
class LooksUp(Drafter, Protocol):
    """A drafter of the host."""

    def index(self) -> Index:
        """An empty one."""
