"""The target's half of a round, operation by operation: it reads what was drafted and judges it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from real_backend.decoding.steps import Feed, Sampling, Uniforms, Verdict
from real_backend.decoding.verify import accept_sampled, accepted_of
from real_backend.load_pair import Pair
from real_backend.models.cache_rows import rows_of


class Judge:
    """The target with a cache per row of a batch; steps of every kind of drafter build on it."""

    def __init__(self, pair: Pair, batch: int, capacity: int) -> None:
        self.pair, self.batch, self.capacity = pair, batch, capacity
        self.device, self.vocab = pair.device, pair.vocab_size
        self.target = rows_of(pair.target, batch, capacity)

    def prepare(
        self, sampling: Sampling, reads_signals: bool, max_gamma: int, shortest: int
    ) -> None:
        """Nothing: separate operations come as they are."""

    def judge(
        self,
        newest: Sequence[Feed],
        drafted: dict[int, list[int]],
        feed: Tensor,
        laws: Sequence[Tensor],
        sampling: Sampling,
        uniforms: Uniforms,
    ) -> list[Verdict]:
        """The verdicts on rows in rising order, one read-back.

        feed [N]: every row's newest token, then all drafted ones; drafted: of each row that
        drafted, the places of its tokens among the latter. laws: [., V] each, of the drafted tokens
        in their order; none if greedy.
        """
        rows = [f.row for f in newest]
        counts = [len(drafted.get(row, [])) for row in rows]
        spans = [(f.row, f.start, n + 1) for f, n in zip(newest, counts, strict=True)]
        if sampling.temperature == 0.0:
            return self._greedy(rows, drafted, spans, feed)
        return self._sampled(rows, drafted, spans, feed, laws, sampling, uniforms)

    def _greedy(
        self,
        rows: list[int],
        drafted: dict[int, list[int]],
        spans: list[tuple[int, int, int]],
        feed: Tensor,
    ) -> list[Verdict]:
        """Tokens and the target's choices go back in one piece; comparing them needs no device."""
        if len(rows) > 1:
            order: list[int] = []
            for index, row in enumerate(rows):
                order += [index, *(len(rows) + at for at in drafted.get(row, []))]
            feed = feed[self.tensor(order)]
        logits = self.target.read(spans, feed, last=False)[:, : self.vocab]
        choices = self.pair.target.watch.best(logits)
        read, chosen = torch.stack([feed, choices]).tolist()
        found, at = [], 0
        for _, _, width in spans:
            own, ours = read[at + 1 : at + width], chosen[at : at + width]
            accepted = accepted_of(own, ours)
            found.append(Verdict(own, accepted, ours[accepted]))
            at += width
        return found

    def _sampled(
        self,
        rows: list[int],
        drafted: dict[int, list[int]],
        spans: list[tuple[int, int, int]],
        feed: Tensor,
        laws: Sequence[Tensor],
        sampling: Sampling,
        uniforms: Uniforms,
    ) -> list[Verdict]:
        """Laws stay on the device, which decides; tokens and decisions come back."""
        counts = [width - 1 for _, _, width in spans]
        if len(rows) == 1:  # already in order
            grid, at = feed[None, 1:], feed
            logits = self.target.read(spans, feed, last=False)[None, :, : self.vocab]
        else:
            order, places, ends = _places(rows, drafted, counts)
            at, behind = self.tensor(places), self.tensor(ends)
            grid = feed[at]
            logits = self.target.read(spans, feed[self.tensor(order)], last=False)
            logits = logits[behind, : self.vocab]
        proposed = self._proposed(len(rows), at, logits, laws)
        target_probs = self.pair.target.watch.probs(logits, *sampling)
        numbers = self._numbers(uniforms, grid.shape[1])
        accepted, extra = accept_sampled(
            grid, self.tensor(counts), target_probs, proposed, *numbers
        )
        back = torch.cat([accepted[:, None], extra[:, None], grid], dim=1).tolist()
        return [
            Verdict(line[2 : 2 + count], line[0], line[1])
            for line, count in zip(back, counts, strict=True)
        ]

    def _proposed(self, rows: int, at: Tensor, logits: Tensor, laws: Sequence[Tensor]) -> Tensor:
        """[A, D, V] laws of the drafted tokens; at [A, D]: their places behind `rows` others."""
        if not laws:
            return logits[:, :0].float()
        probs = torch.cat(list(laws))
        return probs[None] if rows == 1 else probs[(at - rows).clamp_(min=0)]

    def _numbers(self, uniforms: Uniforms, depth: int) -> tuple[Tensor, Tensor]:
        """[A, D] decisions and [A] final draws of rows that drafted up to `depth` tokens."""
        padded = [line[:-1] + [0.0] * (depth + 1 - len(line)) + line[-1:] for line in uniforms]
        numbers = torch.tensor(padded, dtype=torch.float64, device=self.device)
        return numbers[:, :-1], numbers[:, -1]

    def tensor(self, values: object) -> Tensor:
        """Whole numbers on the device."""
        return torch.tensor(values, dtype=torch.long, device=self.device)


def by_row(rows: Sequence[int]) -> list[int]:
    """The places of these rows in rising order: a full batch in order is a view of its cache, in
    any other order it would be copied.
    """
    return sorted(range(len(rows)), key=rows.__getitem__)


def put_back(results: list[Any], order: Sequence[int]) -> list[Any]:
    """Results that were made in `order`, in the order of the asker."""
    found: list[Any] = [None] * len(order)
    for result, place in zip(results, order, strict=True):
        found[place] = result
    return found


def _places(
    rows: list[int], drafted: dict[int, list[int]], counts: list[int]
) -> tuple[list[int], list[list[int]], list[list[int]]]:
    """How a batch's tokens, newest of all rows first and then as drafted, become rows.

    Returns their order row behind row [N]; where each row's drafted tokens are [A, D]; where the
    logits behind its newest and drafted tokens are in that order [A, D + 1]. Short rows repeat.
    """
    order: list[int] = []
    places: list[list[int]] = []
    behind: list[list[int]] = []
    depth = max(counts)
    for index, row in enumerate(rows):
        own = [len(rows) + at for at in drafted.get(row, [])]
        first = len(order)
        behind.append([first + min(k, len(own)) for k in range(depth + 1)])
        places.append((own + [index] * depth)[:depth])
        order += [index, *own]
    return order, places, behind
