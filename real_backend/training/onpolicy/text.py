"""The chunks that write_text.py wrote, as batches of rows in an order of their own.

Letters: B rows, W tokens of a row, K likeliest tokens, E hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from real_backend.training.onpolicy.write_text import GREEDY
from traces.errors import InputError


class Rows(NamedTuple):
    """A batch of dialogues and what the target said behind each of their tokens.

    ids [B, W] int64.
    whose [B, W]: GIVEN, ASKED, GREEDY or SAMPLED (write_text.py).
    states [B, W, 3 E]: of the target's tapped layers; None if not asked for.
    likeliest, logs [B, W, K]: tokens and the logarithms of their probabilities.
    """

    ids: Tensor
    whose: Tensor
    states: Tensor | None
    likeliest: Tensor
    logs: Tensor


class OwnText:
    """Chunks of the folders, in order, until they hold `tokens` of answers.

    Raises InputError if a folder is not there, a file is no chunk, or there are too few tokens.
    """

    def __init__(self, folders: Iterable[Path], tokens: float, seed: int) -> None:
        self.seed, self.tokens = seed, 0
        self._files: list[Any] = []
        self._rows: list[tuple[int, int]] = []  # file and row
        paths: list[Path] = []
        for folder in folders:
            if not folder.is_dir():
                raise InputError(f"{folder}: no such folder of chunks")
            paths += sorted(folder.glob("*.safetensors"))
        for path in paths:
            if self.tokens >= tokens:
                break
            try:
                file: Any = safe_open(path, framework="pt")
                whose = file.get_tensor("whose")
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path}: no chunk of write_text ({error})") from None
            self._rows += [(len(self._files), row) for row in range(len(whose))]
            self._files.append(file)
            self.tokens += int((whose >= GREEDY).sum())
        if self.tokens < tokens:
            raise InputError(f"the text holds {self.tokens} tokens of answers, not {tokens:.0f}")

    def __len__(self) -> int:
        """Rows."""
        return len(self._rows)

    def whole(self, name: str) -> Tensor:
        """A column of all rows."""
        return torch.cat([file.get_tensor(name).long() for file in self._files])

    def batch(self, step: int, rows: int, states: bool) -> Rows:
        """The rows of a step: every epoch has an order of its own."""
        places = []
        for k in range(step * rows, (step + 1) * rows):
            epoch, at = divmod(k, len(self._rows))
            order = list(range(len(self._rows)))
            Random(f"order {self.seed} {epoch}").shuffle(order)
            places.append(self._rows[order[at]])

        def of(name: str) -> Tensor:
            return torch.stack([self._files[f].get_slice(name)[row] for f, row in places])

        return Rows(
            of("ids").long(),
            of("whose"),
            of("states").float() if states else None,
            of("likeliest").long(),
            of("logs").float(),
        )
