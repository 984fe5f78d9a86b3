"""One model with a cache per row: a step reads only the rows that take part, each from its own
place on (a ragged batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from real_backend.models.kvcache import GeneralReader, Reader
from real_backend.models.llama import Layout, LeanLlama, additive
from real_backend.models.model import Model


class CacheRows(Protocol):
    """One model with a cache per row."""

    @property
    def states(self) -> Tensor:
        """[N, taps E] the hidden states that the model keeps (LeanLlama.taps), of the last
        read.
        """

    def holds(self, context: int) -> bool:
        """True if every row's caches can be read on from `context`."""

    def read(self, feeds: Sequence[tuple[int, int, int]], tokens: Tensor, last: bool) -> Tensor:
        """Logits [N, V] behind each of tokens [N], or [A, V] behind each row's last.

        feeds: (row, start, width) of each row, whose tokens lie one behind the other in `tokens`.
        """


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

    def read(self, feeds: Sequence[tuple[int, int, int]], tokens: Tensor, last: bool) -> Tensor:
        """Logits of these tokens, read behind what the cache holds."""
        if len(feeds) == 1:
            row, start, _ = feeds[0]
            cache = self.cache if self.batch == 1 else self.cache[:, :, row : row + 1]
            return self.model.forward(tokens[None], cache, start, last=1 if last else None)[0]
        layout = layout_of(feeds, self.batch, self.cache)
        return self.model.forward_ragged(tokens, self.cache, layout, last=last)


class GeneralRows:
    """Any transformers model: one cache per row, read one after another."""

    def __init__(self, model: Model, batch: int, capacity: int) -> None:
        self.readers: list[Reader] = [
            GeneralReader(model.module, capacity, model.taps) for _ in range(batch)
        ]
        self._read: list[int] = []  # rows of the last read

    @property
    def states(self) -> Tensor:
        """[N, taps E] of the last read."""
        return torch.cat([self.readers[row].states for row in self._read])

    def holds(self, context: int) -> bool:
        """True if every row's caches can be read on from `context`."""
        return all(reader.held >= context for reader in self.readers)

    def read(self, feeds: Sequence[tuple[int, int, int]], tokens: Tensor, last: bool) -> Tensor:
        """Logits of these tokens, read behind what the cache holds."""
        self._read = [row for row, _, _ in feeds]
        parts = torch.split(tokens, [width for _, _, width in feeds])
        logits = [
            self.readers[row].read(part[None], start, last=1 if last else None)[0]
            for (row, start, _), part in zip(feeds, parts, strict=True)
        ]
        return torch.cat(logits) if len(logits) > 1 else logits[0]


def rows_of(model: Model, batch: int, capacity: int) -> CacheRows:
    """The leanest form that this model allows."""
    if model.lean is not None:
        return LeanRows(model.lean, batch, capacity)
    return GeneralRows(model, batch, capacity)


def layout_of(feeds: Sequence[tuple[int, int, int]], batch: int, cache: Tensor) -> Layout:
    """Where the packed tokens of these (row, start, width) go in a cache of `batch` rows.

    Where at least half of the rows take part, in order, the whole cache is read as a view, its
    other rows masked: copying most of it costs more.
    """
    rows, starts, widths = (np.asarray(column) for column in zip(*feeds, strict=True))
    width, span = int(widths.max()), int((starts + widths).max())
    place = np.arange(width) < widths[:, None]  # (A, T) where the packed tokens are
    positions = starts[:, None] + np.arange(width)
    seen = np.arange(span) <= positions[:, :, None]  # (A, T, S)
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
    )
