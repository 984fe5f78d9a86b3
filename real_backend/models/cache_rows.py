"""One model with a cache per row: a step reads only the rows that take part, each from its own
place on (a ragged batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from real_backend.models.kvcache import GeneralReader, move_entries
from real_backend.models.llama import Layout, LeanLlama, additive
from real_backend.models.model import Model

Span = tuple[int, int, int]
"""(row, start, width): a row's next tokens, and where in its cache the first of them goes."""


class Branches(NamedTuple):
    """How tokens of one row stand that do not all follow one another.

    positions [T]: what each is read at. own [T, K] bool: which of the last K places of the cache,
    their own among them, each sees; it sees all places before these.
    """

    positions: npt.NDArray[np.int64]
    own: npt.NDArray[np.bool_]


def _seen(branches: Branches, end: int) -> npt.NDArray[np.bool_]:
    """[T, end] which places each of the tokens sees."""
    fixed = np.ones((len(branches.own), end - branches.own.shape[1]), dtype=np.bool_)
    return np.concatenate([fixed, branches.own], axis=1)


def _how(branches: Branches | None, end: int, device: torch.device) -> dict[str, Tensor]:
    """Of one row's read that ends there: its positions and mask, where it needs any."""
    if branches is None:
        return {}
    return {
        "positions": torch.from_numpy(branches.positions[None]).to(device),
        "mask": torch.from_numpy(_seen(branches, end)[None, None]).to(device),
    }


class CacheRows(Protocol):
    """One model with a cache per row."""

    @property
    def states(self) -> Tensor:
        """[N, taps E] the hidden states that the model keeps (LeanLlama.taps), of the last
        read.
        """

    def holds(self, context: int) -> bool:
        """True if every row's caches can be read on from `context`."""

    def read(
        self,
        feeds: Sequence[Span],
        tokens: Tensor,
        last: bool,
        branches: Sequence[Branches] | None = None,
    ) -> Tensor:
        """Logits [N, V] behind each of tokens [N], or [A, V] behind each row's last.

        feeds: (row, start, width) of each row, whose tokens lie one behind the other in `tokens`.
        branches: of each row, None where all of them follow one another.
        """

    def move(self, row: int, places: Sequence[int], start: int) -> None:
        """Entries of this row's cache go elsewhere, as kvcache.move_entries."""


class LeanRows:
    """The lean forward over one preallocated cache of all rows."""

    def __init__(self, model: LeanLlama, batch: int, capacity: int) -> None:
        self.model, self.batch = model, batch
        self.cache = model.new_cache(capacity, batch)

    @property
    def states(self) -> Tensor:
        """[N, taps E] of the last read."""
        return self.model.states

    def holds(self, context: int) -> bool:
        """Always: what a preallocated cache holds does not change what a read costs."""
        return True

    def read(
        self,
        feeds: Sequence[Span],
        tokens: Tensor,
        last: bool,
        branches: Sequence[Branches] | None = None,
    ) -> Tensor:
        """Logits of these tokens, read behind what the cache holds."""
        if len(feeds) == 1:
            ((row, start, width),) = feeds
            cache = self.cache if self.batch == 1 else self.cache[:, :, row : row + 1]
            tree = None if branches is None else branches[0]
            how = _how(tree, start + width, cache.device)
            return self.model.forward(tokens[None], cache, start, **how, last=1 if last else None)[
                0
            ]
        layout = layout_of(feeds, self.batch, self.cache, branches)
        return self.model.forward_ragged(tokens, self.cache, layout, last=last)

    def move(self, row: int, places: Sequence[int], start: int) -> None:
        """As move_entries."""
        move_entries(self.cache[:, :, row], places, start)


class GeneralRows:
    """Any transformers model: one cache per row, read one after another."""

    def __init__(self, model: Model, batch: int, capacity: int) -> None:
        self.readers = [GeneralReader(model.module, capacity, model.taps) for _ in range(batch)]
        self._read: list[int] = []  # rows of the last read

    @property
    def states(self) -> Tensor:
        """[N, taps E] of the last read."""
        return torch.cat([self.readers[row].states for row in self._read])

    def holds(self, context: int) -> bool:
        """True if every row's caches can be read on from `context`."""
        return all(reader.held >= context for reader in self.readers)

    def read(
        self,
        feeds: Sequence[Span],
        tokens: Tensor,
        last: bool,
        branches: Sequence[Branches] | None = None,
    ) -> Tensor:
        """Logits of these tokens, read behind what the cache holds."""
        self._read = [row for row, _, _ in feeds]
        parts = torch.split(tokens, [width for _, _, width in feeds])
        logits = []
        for k, ((row, start, width), part) in enumerate(zip(feeds, parts, strict=True)):
            tree = None if branches is None else branches[k]
            how = _how(tree, start + width, tokens.device)
            logits.append(
                self.readers[row].read(part[None], start, **how, last=1 if last else None)[0]
            )
        return torch.cat(logits) if len(logits) > 1 else logits[0]

    def move(self, row: int, places: Sequence[int], start: int) -> None:
        """As move_entries."""
        self.readers[row].move(places, start)


def rows_of(model: Model, batch: int, capacity: int) -> CacheRows:
    """The leanest form that this model allows."""
    if model.lean is not None:
        return LeanRows(model.lean, batch, capacity)
    return GeneralRows(model, batch, capacity)


def layout_of(
    feeds: Sequence[Span],
    batch: int,
    cache: Tensor,
    branches: Sequence[Branches] | None = None,
) -> Layout:
    """Where the packed tokens of these rows go in a cache of `batch` rows.

    Where at least half of the rows take part, in order, the whole cache is read as a view, its
    other rows masked: copying most of it costs more.
    """
    rows, starts, widths = (np.asarray(column) for column in zip(*feeds, strict=True))
    width, span = int(widths.max()), int((starts + widths).max())
    place = np.arange(width) < widths[:, None]  # (A, T) where the packed tokens are
    positions = starts[:, None] + np.arange(width)
    seen = np.arange(span) <= positions[:, :, None]  # (A, T, S)
    for k, tree in enumerate(branches or []):
        seen[k, : widths[k]] = False
        seen[k, : widths[k], : starts[k] + widths[k]] = _seen(tree, int(starts[k] + widths[k]))
    every = bool((np.diff(rows) > 0).all()) and 2 * len(rows) >= batch
    device, grid = cache.device, place
    if every and len(rows) < batch:
        grid = np.zeros((batch, width), dtype=bool)
        grid[rows] = place
        all_seen = np.zeros((batch, width, span), dtype=bool)
        all_seen[rows] = seen
        seen = all_seen

    def put(array: object) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return Layout(
        row=put(np.repeat(rows, widths)),
        position=put(positions[place]),
        rows=slice(None) if every else put(rows),
        padded=None if bool(grid.all()) else put(np.flatnonzero(grid)),
        mask=additive(put(seen[:, None]), cache.dtype),
        last=put(widths.cumsum() - 1),
        rotary=put(np.concatenate([tree.positions for tree in branches])) if branches else None,
    )
