"""The steps of a round operation by operation, for any pair, device and batch size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from real_backend.decoding.cache_rows import rows_of
from real_backend.decoding.steps import Feed, Sampling, Uniforms, Verdict
from real_backend.decoding.verify import accept_sampled, accepted_of, draw, signals
from real_backend.models.pair import Pair


class EagerSteps:
    """Steps of separate operations, of any pair and batch."""

    def __init__(self, pair: Pair, batch: int, capacity: int) -> None:
        self.pair, self.batch, self.capacity = pair, batch, capacity
        self.device, self.vocab = pair.device, pair.vocab_size
        self.target = rows_of(pair.target, batch, capacity)
        self.draft = rows_of(pair.draft, batch, capacity)
        self._begin([], Sampling(), False, [])

    def _begin(
        self, rows: list[int], sampling: Sampling, reads_signals: bool, uniforms: Uniforms
    ) -> None:
        self._sampling, self._reads_signals = sampling, reads_signals
        self._uniforms = dict(zip(rows, uniforms, strict=False))
        self._next: dict[int, int] = {}  # row -> where its next drafted token will stand
        self._steps: list[list[int]] = []  # which rows drafted at each step
        self._tokens: list[Tensor] = []  # what they drafted, [A] per step
        self._probs: list[Tensor] = []  # and its law, [A, V] per step, if sampled
        self._fed: Tensor | None = None  # what the draft read first

    def holds(self, context: int) -> bool:
        """True if every row's caches can be read on from `context`."""
        return self.target.holds(context) and self.draft.holds(context)

    def prepare(
        self, sampling: Sampling, reads_signals: bool, max_gamma: int, shortest: int
    ) -> None:
        """Nothing: eager steps come as they are."""

    def prefill(self, feed: Feed) -> None:
        """Both models read a prompt."""
        tokens, span = self._tensor(feed.ids), (feed.row, feed.start, len(feed.ids))
        self.target.read([span], tokens, last=True)
        self.draft.read([span], tokens, last=True)

    def draft_first(
        self, feeds: Sequence[Feed], sampling: Sampling, reads_signals: bool, uniforms: Uniforms
    ) -> list[list[float]] | None:
        """The first draft step of a round, which reads what the draft lacks."""
        order = by_row([feed.row for feed in feeds])
        feeds, uniforms = [feeds[k] for k in order], [uniforms[k] for k in order]
        rows = [feed.row for feed in feeds]
        self._begin(rows, sampling, reads_signals, uniforms)
        spans = [(feed.row, feed.start, len(feed.ids)) for feed in feeds]
        self._next = {row: start + width for row, start, width in spans}
        self._fed = self._tensor([token for f in feeds for token in f.ids])
        seen = self._draft(rows, spans, self._fed)
        return None if seen is None else put_back(seen, order)

    def draft_next(self, rows: Sequence[int]) -> list[list[float]] | None:
        """One more token for these rows."""
        order = by_row(rows)
        rows = [rows[k] for k in order]
        before, tokens = self._steps[-1], self._tokens[-1]
        if len(rows) < len(before):
            tokens = tokens[self._tensor([before.index(row) for row in rows])]
        spans = [(row, self._next[row], 1) for row in rows]
        for row in rows:
            self._next[row] += 1
        seen = self._draft(rows, spans, tokens)
        return None if seen is None else put_back(seen, order)

    def _draft(
        self, rows: list[int], spans: list[tuple[int, int, int]], tokens: Tensor
    ) -> list[list[float]] | None:
        logits = self.draft.read(spans, tokens, last=True)[:, : self.vocab]
        if self._sampling.temperature == 0.0:
            chosen = self.pair.draft.watch.best(logits)
            probs = torch.softmax(logits.float(), -1) if self._reads_signals else logits
        else:
            probs = self.pair.draft.watch.probs(logits, *self._sampling)
            step = len(self._steps)
            uniforms = [self._uniforms[row][step] for row in rows]
            chosen = draw(probs, torch.tensor(uniforms, dtype=torch.float64, device=self.device))
            self._probs.append(probs)
        self._steps.append(rows)
        self._tokens.append(chosen)
        seen: list[list[float]] | None = signals(probs).tolist() if self._reads_signals else None
        return seen

    def verify(
        self, newest: Sequence[Feed], sampling: Sampling, uniforms: Uniforms
    ) -> list[Verdict]:
        """The target judges each row's draft; one read-back."""
        order = by_row([feed.row for feed in newest])
        newest, uniforms = [newest[k] for k in order], [uniforms[k] for k in order]
        rows, drafted = [feed.row for feed in newest], self._drafted_by()
        counts = [len(drafted.get(row, [])) for row in rows]
        spans = [(f.row, f.start, n + 1) for f, n in zip(newest, counts, strict=True)]
        if len(rows) == 1 and self._fed is not None:  # the draft was fed its newest token last
            feed = torch.cat([self._fed[-1:], *self._tokens])
        else:
            feed = torch.cat([self._tensor([f.ids[-1] for f in newest]), *self._tokens])
        if sampling.temperature == 0.0:
            found = self._verify_greedy(rows, drafted, spans, feed)
        else:
            found = self._verify_sampled(rows, drafted, spans, feed, sampling, uniforms)
        self._begin([], sampling, False, [])
        return put_back(found, order)

    def _verify_greedy(
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
            feed = feed[self._tensor(order)]
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

    def _verify_sampled(
        self,
        rows: list[int],
        drafted: dict[int, list[int]],
        spans: list[tuple[int, int, int]],
        feed: Tensor,
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
            at, behind = self._tensor(places), self._tensor(ends)
            grid = feed[at]
            logits = self.target.read(spans, feed[self._tensor(order)], last=False)
            logits = logits[behind, : self.vocab]
        proposed = self._proposed(len(rows), at, logits)
        target_probs = self.pair.target.watch.probs(logits, *sampling)
        numbers = self._numbers(uniforms, grid.shape[1])
        accepted, extra = accept_sampled(
            grid, self._tensor(counts), target_probs, proposed, *numbers
        )
        back = torch.cat([accepted[:, None], extra[:, None], grid], dim=1).tolist()
        return [
            Verdict(line[2 : 2 + count], line[0], line[1])
            for line, count in zip(back, counts, strict=True)
        ]

    def _proposed(self, rows: int, at: Tensor, logits: Tensor) -> Tensor:
        """[A, D, V] laws of the drafted tokens; at [A, D]: their places behind `rows` others."""
        if not self._probs:
            return logits[:, :0].float()
        probs = torch.cat(self._probs)
        return probs[None] if rows == 1 else probs[(at - rows).clamp_(min=0)]

    def _numbers(self, uniforms: Uniforms, depth: int) -> tuple[Tensor, Tensor]:
        """[A, D] decisions and [A] final draws of rows that drafted up to `depth` tokens."""
        padded = [line[:-1] + [0.0] * (depth + 1 - len(line)) + line[-1:] for line in uniforms]
        numbers = torch.tensor(padded, dtype=torch.float64, device=self.device)
        return numbers[:, :-1], numbers[:, -1]

    def _drafted_by(self) -> dict[int, list[int]]:
        """For each row that drafted, where its tokens stand among all drafted ones."""
        found: dict[int, list[int]] = {}
        at = 0
        for step in self._steps:
            for row in step:
                found.setdefault(row, []).append(at)
                at += 1
        return found

    def _tensor(self, values: object) -> Tensor:
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
