"""The device half of a round: draft step by step, verify, read the decision back once.

A batch has rows; a row is one request with its place in both caches. Rows stand at different
lengths and draft different numbers of tokens: a step reads only the rows that take part, and only
the tokens they have (a ragged batch). Between two calls nothing returns from the device, unless the
policy looks at signals. `EagerSteps` runs operation by operation on any device; `graphs.py` holds
the same steps as CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from real_backend.decoding.verify import accept_sampled, draw, signals
from real_backend.models.kvcache import GeneralReader, Reader
from real_backend.models.llama import Layout, LeanLlama, additive
from real_backend.models.model import Model
from real_backend.models.pair import Pair


class Law(NamedTuple):
    """How tokens are chosen: temperature 0 is greedy, top_p the nucleus of sampling."""

    temperature: float = 0.0
    top_p: float = 1.0


GREEDY = Law()


class Feed(NamedTuple):
    """What a row reads next: token ids, and where in its cache the first of them stands."""

    row: int
    ids: list[int]
    start: int


class Verdict(NamedTuple):
    """What one row's round came to: tokens drafted, how many were accepted, the target's own."""

    drafted: list[int]
    accepted: int
    extra: int


Uniforms = list[list[float]]
"""Numbers in [0, 1) per row, one per token to be drawn; empty lists if greedy."""


class Steps(Protocol):
    """See the module docstring. rows: 0 <= row < batch; positions stay below `capacity`."""

    batch: int
    capacity: int

    def holds(self, context: int) -> bool:
        """True if every row's caches can be read on from `context`."""

    def prepare(self, law: Law, looks: bool, max_gamma: int, shortest: int) -> None:
        """Do ahead of the clock what a run with contexts from `shortest` tokens on will need."""

    def prefill(self, feed: Feed) -> None:
        """Both models read a prompt; nothing is drafted from it yet."""

    def draft_first(
        self, feeds: Sequence[Feed], law: Law, looks: bool, uniforms: Uniforms
    ) -> list[list[float]] | None:
        """The first draft step of a round: read what the draft lacks, draft one token per row.

        Returns [top1_prob, entropy] per row if the policy looks at them. uniforms: enough numbers
        for every token of the round.
        """

    def draft_next(self, rows: Sequence[int]) -> list[list[float]] | None:
        """One more token for these rows, each of which took part in the step before."""

    def verify(self, newest: Sequence[Feed], law: Law, uniforms: Uniforms) -> list[Verdict]:
        """The target reads each row's newest token and its drafted ones; one read-back.

        uniforms: one number per drafted token and one for the token added.
        """


class Rows(Protocol):
    """One model with a cache per row."""

    def holds(self, context: int) -> bool:
        """See Steps."""

    def read(self, feeds: Sequence[tuple[int, int, int]], tokens: Tensor, last: bool) -> Tensor:
        """Logits [N, V] behind each of tokens [N], or [A, V] behind each row's last.

        feeds: (row, start, width) of each row, whose tokens lie one behind the other in `tokens`.
        """


class LeanRows:
    """The lean forward over one preallocated cache of all rows."""

    def __init__(self, model: LeanLlama, batch: int, capacity: int) -> None:
        self.model, self.batch = model, batch
        self.cache = model.new_cache(capacity, batch)

    def holds(self, context: int) -> bool:
        """Always: what a preallocated cache holds does not change what a read costs."""
        return True

    def read(self, feeds: Sequence[tuple[int, int, int]], tokens: Tensor, last: bool) -> Tensor:
        """See Rows."""
        if len(feeds) == 1:
            row, start, _ = feeds[0]
            cache = self.cache if self.batch == 1 else self.cache[:, :, row : row + 1]
            return self.model.forward(tokens[None], cache, start, last=1 if last else None)[0]
        layout = layout_of(feeds, self.batch, self.cache)
        return self.model.forward_ragged(tokens, self.cache, layout, last=last)


class GeneralRows:
    """Any transformers model: one cache per row, read one after another."""

    def __init__(self, model: Model, batch: int, capacity: int) -> None:
        self.readers: list[Reader] = [GeneralReader(model.module, capacity) for _ in range(batch)]

    def holds(self, context: int) -> bool:
        """See Steps."""
        return all(reader.held >= context for reader in self.readers)

    def read(self, feeds: Sequence[tuple[int, int, int]], tokens: Tensor, last: bool) -> Tensor:
        """See Rows."""
        parts = torch.split(tokens, [width for _, _, width in feeds])
        logits = [
            self.readers[row].read(part[None], start, last=1 if last else None)[0]
            for (row, start, _), part in zip(feeds, parts, strict=True)
        ]
        return torch.cat(logits) if len(logits) > 1 else logits[0]


def rows_of(model: Model, batch: int, capacity: int) -> Rows:
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


class EagerSteps:
    """See Steps."""

    def __init__(self, pair: Pair, batch: int, capacity: int) -> None:
        self.pair, self.batch, self.capacity = pair, batch, capacity
        self.device, self.vocab = pair.device, pair.vocab_size
        self.target = rows_of(pair.target, batch, capacity)
        self.draft = rows_of(pair.draft, batch, capacity)
        self._begin([], Law(), False, [])

    def _begin(self, rows: list[int], law: Law, looks: bool, uniforms: Uniforms) -> None:
        self._law, self._looks = law, looks
        self._uniforms = dict(zip(rows, uniforms, strict=False))
        self._next: dict[int, int] = {}  # row -> where its next drafted token will stand
        self._steps: list[list[int]] = []  # which rows drafted at each step
        self._tokens: list[Tensor] = []  # what they drafted, [A] per step
        self._probs: list[Tensor] = []  # and its law, [A, V] per step, if sampled
        self._fed: Tensor | None = None  # what the draft read first

    def holds(self, context: int) -> bool:
        """See Steps."""
        return self.target.holds(context) and self.draft.holds(context)

    def prepare(self, law: Law, looks: bool, max_gamma: int, shortest: int) -> None:
        """Nothing: eager steps come as they are."""

    def prefill(self, feed: Feed) -> None:
        """See Steps."""
        tokens, span = self._tensor(feed.ids), (feed.row, feed.start, len(feed.ids))
        self.target.read([span], tokens, last=True)
        self.draft.read([span], tokens, last=True)

    def draft_first(
        self, feeds: Sequence[Feed], law: Law, looks: bool, uniforms: Uniforms
    ) -> list[list[float]] | None:
        """See Steps."""
        order = by_row([feed.row for feed in feeds])
        feeds, uniforms = [feeds[k] for k in order], [uniforms[k] for k in order]
        rows = [feed.row for feed in feeds]
        self._begin(rows, law, looks, uniforms)
        spans = [(feed.row, feed.start, len(feed.ids)) for feed in feeds]
        self._next = {row: start + width for row, start, width in spans}
        self._fed = self._tensor([token for f in feeds for token in f.ids])
        seen = self._draft(rows, spans, self._fed)
        return None if seen is None else put_back(seen, order)

    def draft_next(self, rows: Sequence[int]) -> list[list[float]] | None:
        """See Steps."""
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
        if self._law.temperature == 0.0:
            chosen = self.pair.draft.watch.best(logits)
            probs = torch.softmax(logits.float(), -1) if self._looks else logits
        else:
            probs = self.pair.draft.watch.law(logits, *self._law)
            step = len(self._steps)
            uniforms = [self._uniforms[row][step] for row in rows]
            chosen = draw(probs, torch.tensor(uniforms, dtype=torch.float64, device=self.device))
            self._probs.append(probs)
        self._steps.append(rows)
        self._tokens.append(chosen)
        seen: list[list[float]] | None = signals(probs).tolist() if self._looks else None
        return seen

    def verify(self, newest: Sequence[Feed], law: Law, uniforms: Uniforms) -> list[Verdict]:
        """See Steps."""
        order = by_row([feed.row for feed in newest])
        newest, uniforms = [newest[k] for k in order], [uniforms[k] for k in order]
        rows, drafted = [feed.row for feed in newest], self._drafted_by()
        counts = [len(drafted.get(row, [])) for row in rows]
        spans = [(f.row, f.start, n + 1) for f, n in zip(newest, counts, strict=True)]
        if len(rows) == 1 and self._fed is not None:  # the draft was fed its newest token last
            feed = torch.cat([self._fed[-1:], *self._tokens])
        else:
            feed = torch.cat([self._tensor([f.ids[-1] for f in newest]), *self._tokens])
        if law.temperature == 0.0:
            found = self._verify_greedy(rows, drafted, spans, feed)
        else:
            found = self._verify_sampled(rows, drafted, spans, feed, law, uniforms)
        self._begin([], law, False, [])
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
        law: Law,
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
        laws = self.pair.target.watch.law(logits, *law)
        numbers = self._numbers(uniforms, grid.shape[1])
        accepted, extra = accept_sampled(grid, self._tensor(counts), laws, proposed, *numbers)
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


def accepted_of(drafted: list[int], choices: list[int]) -> int:
    """How many drafted tokens the target would have chosen itself, up to the first it would not.

    choices: the target's arg-max behind the newest token and behind each drafted one; the host's
    form of `verify.accept_greedy`.
    """
    differ = (k for k, token in enumerate(drafted) if token != choices[k])
    return next(differ, len(drafted))


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
