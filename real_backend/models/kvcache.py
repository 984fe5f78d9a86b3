"""A model and its cache as one thing that reads tokens and can be rolled back.

Both readers share one contract. `read(tokens, start, positions, mask, last)` returns the logits
[B, T, V] behind each of tokens [B, T]; the tokens enter the cache at start..start+T-1 and whatever
the cache held from `start` on is forgotten. That single argument is every roll-back of speculative
decoding. positions [B, T] and mask [B, 1, T, S] bool (True = visible, S = start + T) replace the
causal default where rows are padded or branch. last: only the logits behind that many last tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from real_backend.models.llama import LeanLlama, additive


class Reader(Protocol):
    """A model and its cache; capacity in tokens."""

    capacity: int

    @property
    def states(self) -> Tensor:
        """[B T, taps E] the hidden states that the model keeps (LeanLlama.taps), of the last
        read.
        """

    @property
    def held(self) -> int:
        """Tokens from which a read can start: what was read, or all of a preallocated cache."""

    def read(
        self,
        tokens: Tensor,
        start: int,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Logits [B, T, V]."""


class LeanReader:
    """The lean Llama forward over a preallocated cache."""

    def __init__(self, model: LeanLlama, capacity: int, batch: int) -> None:
        self.model, self.capacity = model, capacity
        self.cache = model.new_cache(capacity, batch)

    @property
    def states(self) -> Tensor:
        """[B T, taps E] of the last read."""
        return self.model.states

    @property
    def held(self) -> int:
        """All of it: what a preallocated cache holds does not change what a read costs."""
        return self.capacity

    def read(
        self,
        tokens: Tensor,
        start: int,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Logits [B, T, V] of the tokens, read from `start` on."""
        return self.model.forward(tokens, self.cache, start, positions, mask, last)


class GeneralReader:
    """Any transformers causal language model over its DynamicCache, which is cropped to roll
    back. taps: as in LeanLlama.
    """

    def __init__(self, model: Any, capacity: int, taps: tuple[int, ...] = ()) -> None:
        self.model, self.capacity, self.taps = model, capacity, taps
        self.states = torch.empty(0, 0)
        self.cache = DynamicCache(config=model.config)
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    @property
    def held(self) -> int:
        """Tokens in the cache."""
        return int(self.cache.get_seq_length())

    def read(
        self,
        tokens: Tensor,
        start: int,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Logits [B, T, V] of the tokens, read from `start` on."""
        if start == 0 and self.held:
            self.cache = DynamicCache(config=self.model.config)
        elif self.held > start:
            self.cache.crop(start - self.held)  # transformers counts what to remove
        if positions is None:
            positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)[None]
            positions = positions.expand(tokens.shape[0], -1)
        if mask is not None:
            mask = additive(mask, self.model.dtype)
        output = self.model(
            input_ids=tokens,
            past_key_values=self.cache,
            position_ids=positions,
            attention_mask=mask,
            use_cache=True,
            output_hidden_states=bool(self.taps),
            **({"logits_to_keep": last} if last and self._keeps else {}),
        )
        if self.taps:  # transformers' last one is normed: NORMED is -1
            tapped = [output.hidden_states[tap] for tap in self.taps]
            self.states = torch.cat(tapped, -1).flatten(0, 1)
        logits: Tensor = output.logits
        return logits if last is None else logits[:, -last:]

    def move(self, places: Sequence[int], start: int) -> None:
        """As move_entries."""
        for layer in self.cache.layers:
            move_entries(layer.keys, places, start)
            move_entries(layer.values, places, start)


def move_entries(cache: Tensor, places: Sequence[int], start: int) -> None:
    """Entries of a cache [..., S, D] at these places go to start, start + 1, ...; those behind are
    of no use until they are read anew.
    """
    if list(places) != list(range(start, start + len(places))):
        moved = cache.index_select(-2, torch.tensor(places, device=cache.device))
        cache[..., start : start + len(places), :] = moved
