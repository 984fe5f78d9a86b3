"""The steps of a round as CUDA graphs: one launch for a draft step, one for a verify.

A graph repeats the same kernels on the same memory, so every shape is fixed: all rows of the batch
take part in every step, widths are padded to a few sizes and attention covers one of a few spans of
the cache. Rows without a part read a spare place at the cache's end. Drafted tokens, positions and
the step's number stay on the device, so a chain of draft steps needs nothing from the host; the
host sends one small array before the first step and one before the verify, and reads one back.
The functions are recorded by cuda_graphs.GraphRecorder; without one they run eagerly.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from real_backend.decoding.cuda_graphs import Inbox, Recorder, eagerly
from real_backend.decoding.steps import Feed, Sampling, Uniforms, Verdict
from real_backend.decoding.verify import accept_greedy, accept_sampled, draw, signals
from real_backend.drafters.drafter import MOST
from real_backend.load_pair import Pair
from real_backend.models.llama import Layout, additive
from traces.errors import InputError

DEPTH = 64  # the most tokens a round may draft
LACKING = (1, 2, 4, 8, 16, 32, 65)  # padded widths of a first draft step; more is read before it
VERIFIED = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 17, 25, 33, 65)  # ... and of a verify
SHORTEST_SPAN = 256  # tokens of cache that attention covers; doubled up to the capacity


class GraphPurpose(NamedTuple):
    """The purpose of a set of graphs: how tokens are chosen, and whether signals are read."""

    sampling: Sampling
    reads_signals: bool


def judged_as(sampling: Sampling) -> GraphPurpose:
    """The purpose of a recorded verify: signals are the draft's."""
    return GraphPurpose(sampling, False)


def at_least(sizes: Sequence[int], needed: int) -> int:
    """The smallest of the sizes that holds `needed`."""
    return sizes[bisect.bisect_left(sizes, needed)]


def spans(capacity: int) -> tuple[int, ...]:
    """The spans that attention may cover in a cache of this capacity."""
    found = [SHORTEST_SPAN]
    while found[-1] < capacity:
        found.append(2 * found[-1])
    return tuple(min(span, capacity) for span in found)


class GraphSteps:
    """Steps of recorded graphs; both models must be lean. record: makes the graphs."""

    def __init__(self, pair: Pair, batch: int, capacity: int, record: Recorder = eagerly) -> None:
        assert pair.target.lean is not None and pair.draft.lean is not None
        self.pair, self.batch = pair, batch
        self.capacity = -(-capacity // 64) * 64
        self.target, self.draft = pair.target.lean, pair.draft.lean
        self.caches = [model.new_cache(self.capacity, batch) for model in (self.target, self.draft)]
        self._record = record
        self._graphs: dict[Any, Callable[[], object]] = {}
        # Graphs know addresses only: keep what they read alive when longer tables replace it.
        self._tables: list[tuple[Tensor, Tensor]] = []
        device = pair.device
        self._first = Inbox((batch, LACKING[-1] + 2), torch.long, device)  # ids, start, width
        self._newest = Inbox((batch, 3), torch.long, device)  # id, start, drafted tokens
        self._drawn = Inbox((batch, DEPTH), torch.float64, device)  # for drafting
        self._judged = Inbox((batch, DEPTH + 1), torch.float64, device)  # decisions; final at 0
        self._next = torch.zeros(batch, dtype=torch.long, device=device)  # places of next tokens
        self._step = torch.zeros(1, dtype=torch.long, device=device)
        self._tokens = torch.zeros(batch, DEPTH, dtype=torch.long, device=device)
        self._seen = torch.zeros(batch, 2, device=device)
        self._verdict = torch.zeros(batch, DEPTH + 2, dtype=torch.long, device=device)
        self._probs = torch.empty(batch, 0, 0, device=device)  # [B, DEPTH, V] once sampled
        self._begin(GraphPurpose(Sampling(), False), [])

    def _begin(self, chosen: GraphPurpose, feeds: Sequence[Feed]) -> None:
        self._chosen = chosen
        self._end = max((feed.start + len(feed.ids) for feed in feeds), default=0)
        self._counts = {feed.row: 0 for feed in feeds}

    def holds(self, context: int) -> bool:
        """Always: what a preallocated cache holds does not change what a read costs."""
        return True

    def prepare(
        self, sampling: Sampling, reads_signals: bool, max_gamma: int, shortest: int
    ) -> None:
        """Make the graphs of a run ahead of its clock, for contexts of `shortest` tokens and more.

        Raises InputError for longer drafts than a round can hold.
        """
        if max_gamma > DEPTH:
            raise InputError(f"the engine drafts at most {DEPTH} tokens a round, not {max_gamma}")
        chosen = GraphPurpose(sampling, reads_signals)
        self._sampled(sampling)
        for span in spans(self.capacity):
            if span < shortest and span < self.capacity:
                continue
            widths = VERIFIED[: bisect.bisect_left(VERIFIED, max_gamma + 1) + 1]
            for width in widths:
                self._graph("verify", width, span, judged_as(sampling))
            if max_gamma:
                for width in LACKING:
                    self._graph("first", width, span, chosen)
                self._graph("next", 1, span, chosen)

    def offers(self, rows: Sequence[tuple[int, list[int]]]) -> list[int]:
        """As many tokens as asked."""
        return [MOST] * len(rows)

    def prefill(self, feed: Feed) -> None:
        """Both models read a prompt."""
        tokens = torch.tensor([feed.ids], device=self.pair.device)
        for model, cache in zip((self.target, self.draft), self.caches, strict=True):
            model.forward(tokens, cache[:, :, feed.row : feed.row + 1], feed.start, last=1)

    def draft_first(
        self, feeds: Sequence[Feed], sampling: Sampling, reads_signals: bool, uniforms: Uniforms
    ) -> list[list[float]] | None:
        """The first draft step of a round, which reads what the draft lacks."""
        feeds = [self._caught_up(feed) for feed in feeds]
        self._begin(GraphPurpose(sampling, reads_signals), feeds)
        width = at_least(LACKING, max(len(feed.ids) for feed in feeds))
        lines: list[list[int]] = [[0] * LACKING[-1] + [self.capacity - 1, 1]] * self.batch
        for feed in feeds:
            padding = [0] * (LACKING[-1] - len(feed.ids))
            lines[feed.row] = [*feed.ids, *padding, feed.start, len(feed.ids)]
        self._first.put(lines)
        if sampling.temperature > 0.0:
            self._sampled(sampling)
            numbers = [[0.0] * DEPTH] * self.batch
            for feed, line in zip(feeds, uniforms, strict=True):
                numbers[feed.row] = line + [0.0] * (DEPTH - len(line))
            self._drawn.put(numbers)
        return self._drafted("first", width, [feed.row for feed in feeds])

    def _caught_up(self, feed: Feed) -> Feed:
        """The rest for the first step of a draft that lags more than a step can hold, as after
        a long run of rounds without a draft.
        """
        early = len(feed.ids) - LACKING[-1]
        if early <= 0:
            return feed
        tokens = torch.tensor([feed.ids[:early]], device=self.pair.device)
        cache = self.caches[1][:, :, feed.row : feed.row + 1]
        self.draft.forward(tokens, cache, feed.start, last=1)
        return Feed(feed.row, feed.ids[early:], feed.start + early)

    def draft_next(self, rows: Sequence[int]) -> list[list[float]] | None:
        """One more token for these rows."""
        return self._drafted("next", 1, rows)

    def drop(self, row: int) -> None:
        """The newest token of this row is not judged."""
        self._counts[row] -= 1

    def _drafted(self, kind: str, width: int, rows: Sequence[int]) -> list[list[float]] | None:
        span = at_least(spans(self.capacity), min(self._end, self.capacity))
        self._graph(kind, width, span, self._chosen)()
        self._end += 1
        for row in rows:
            self._counts[row] += 1
        if not self._chosen.reads_signals:
            return None
        seen = self._seen.tolist()
        return [seen[row] for row in rows]

    def verify(
        self, newest: Sequence[Feed], sampling: Sampling, uniforms: Uniforms
    ) -> list[Verdict]:
        """The target judges each row's draft; one read-back."""
        counts = [self._counts.get(feed.row, 0) for feed in newest]
        width = at_least(VERIFIED, max(counts) + 1)
        lines = [[0, self.capacity - 1, 0]] * self.batch
        for feed, count in zip(newest, counts, strict=True):
            lines[feed.row] = [feed.ids[-1], feed.start, count]
        self._newest.put(lines)
        if sampling.temperature > 0.0:
            self._sampled(sampling)
            numbers = [[0.0] * (DEPTH + 1)] * self.batch
            for feed, line in zip(newest, uniforms, strict=True):
                numbers[feed.row] = [line[-1], *line[:-1]] + [0.0] * (DEPTH + 1 - len(line))
            self._judged.put(numbers)
        end = min(max(feed.start for feed in newest) + width, self.capacity)
        span = at_least(spans(self.capacity), end)
        self._graph("verify", width, span, judged_as(sampling))()
        back = self._verdict[:, : max(counts) + 2].tolist()  # the round's one read-back
        self._begin(judged_as(sampling), [])
        return [
            Verdict(back[f.row][2 : 2 + n], back[f.row][0], back[f.row][1])
            for f, n in zip(newest, counts, strict=True)
        ]

    # The three functions of fixed shape.

    def _draft_first(self, width: int, span: int, chosen: GraphPurpose) -> None:
        inbox = self._first.tensor
        start, widths = inbox[:, -2], inbox[:, -1]
        last = torch.arange(self.batch, device=inbox.device) * width + widths - 1
        layout = self._layout(start, width, span, last, self.caches[1].dtype)
        tokens = inbox[:, :width].reshape(-1)
        logits = self.draft.forward_ragged(tokens, self.caches[1], layout, last=True)
        self._next.copy_(start + widths)
        self._step.zero_()
        self._choose(logits, chosen)

    def _draft_next(self, width: int, span: int, chosen: GraphPurpose) -> None:
        # At step 0 nothing is drafted yet: then this is only recorded, and its result unused.
        before = (self._step - 1).clamp(min=0).expand(self.batch, 1)
        tokens = self._tokens.gather(1, before)[:, 0]
        last = torch.arange(self.batch, device=tokens.device)
        layout = self._layout(self._next, 1, span, last, self.caches[1].dtype)
        logits = self.draft.forward_ragged(tokens, self.caches[1], layout, last=True)
        self._next.add_(1)
        self._choose(logits, chosen)

    def _choose(self, logits: Tensor, chosen: GraphPurpose) -> None:
        """The next token of each row into its place, with its law and signals where needed."""
        logits, watch = logits[:, : self.pair.vocab_size], self.pair.draft.watch
        step = self._step.expand(self.batch, 1)
        if chosen.sampling.temperature == 0.0:
            token = watch.best(logits)
            probs = torch.softmax(logits.float(), -1) if chosen.reads_signals else logits
        else:
            probs = watch.probs(logits, *chosen.sampling)
            token = draw(probs, self._drawn.tensor.gather(1, step)[:, 0])
            self._probs.index_copy_(1, self._step, probs[:, None])
        self._tokens.scatter_(1, step, token[:, None])
        if chosen.reads_signals:
            self._seen.copy_(signals(probs))
        self._step.add_(1)

    def _verify(self, width: int, span: int, chosen: GraphPurpose) -> None:
        newest, start, counts = self._newest.tensor.unbind(1)
        drafted = self._tokens[:, : width - 1]
        tokens = torch.cat([newest[:, None], drafted], dim=1).reshape(-1)
        layout = self._layout(start, width, span, counts, self.caches[0].dtype)
        logits = self.target.forward_ragged(tokens, self.caches[0], layout)
        logits = logits[:, : self.pair.vocab_size].view(self.batch, width, -1)
        watch = self.pair.target.watch
        if chosen.sampling.temperature == 0.0:
            accepted, extra = accept_greedy(drafted, counts, watch.best(logits))
        else:
            target_probs, numbers = watch.probs(logits, *chosen.sampling), self._judged.tensor
            proposed = self._probs[:, : width - 1]
            accepted, extra = accept_sampled(
                drafted, counts, target_probs, proposed, numbers[:, 1:width], numbers[:, 0]
            )
        self._verdict[:, 0], self._verdict[:, 1] = accepted, extra
        self._verdict[:, 2 : width + 1] = drafted

    def _layout(
        self, start: Tensor, width: int, span: int, last: Tensor, dtype: torch.dtype
    ) -> Layout:
        """All rows from start [B] on, `width` tokens each, as a model of that dtype reads them."""
        device = start.device
        positions = start[:, None] + torch.arange(width, device=device)
        positions = positions.clamp(max=self.capacity - 1)  # padding behind the cache's end
        seen = torch.arange(span, device=device) <= positions[:, :, None]
        return Layout(
            row=torch.arange(self.batch, device=device).repeat_interleave(width),
            position=positions.reshape(-1),
            rows=slice(None),
            padded=None,
            mask=additive(seen[:, None], dtype),
            last=last,
        )

    def _sampled(self, sampling: Sampling) -> None:
        """Room for the laws of drafted tokens, before a graph that writes them is made."""
        if sampling.temperature > 0.0 and self._probs.shape[1] == 0:
            shape = (self.batch, DEPTH, self.pair.vocab_size)
            self._probs = torch.ones(shape, device=self.pair.device)

    def _graph(
        self, kind: str, width: int, span: int, chosen: GraphPurpose
    ) -> Callable[[], object]:
        """The replay of one of the three functions, recorded when it is first needed."""
        key = (kind, width, span, chosen)
        if key not in self._graphs:
            works = {"first": self._draft_first, "next": self._draft_next, "verify": self._verify}

            def run() -> None:
                works[kind](width, span, chosen)

            model = self.target if kind == "verify" else self.draft
            self._tables.append((model._cos, model._sin))
            self._graphs[key] = self._record(run, (self._next, self._step))
        return self._graphs[key]
