"""The steps of a round operation by operation, for any drafter of logits, device and batch size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from real_backend.decoding.judge import Judge, by_row, put_back
from real_backend.decoding.steps import Feed, Sampling, Uniforms, Verdict
from real_backend.decoding.verify import draw, signals
from real_backend.drafters.drafter import RunsForwards
from real_backend.load_pair import Pair


class EagerSteps(Judge):
    """Steps of separate operations, of any pair whose drafter runs forwards, and any batch."""

    def __init__(self, pair: Pair, batch: int, capacity: int) -> None:
        super().__init__(pair, batch, capacity)
        assert isinstance(pair.drafter, RunsForwards) and pair.drafter.watch is not None
        self.draft, self.watch = pair.drafter.rows(batch, capacity), pair.drafter.watch
        self._taps = bool(pair.target.taps)
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
        self._dropped: set[int] = set()  # rows whose newest token is not judged

    def holds(self, context: int) -> bool:
        """True if every row's caches can be read on from `context`."""
        return self.target.holds(context) and self.draft.holds(context)

    def offers(self, rows: Sequence[tuple[int, list[int]]]) -> list[int]:
        """As many as asked, but none where the drafter reads states and the target has read
        nothing.
        """
        most, fewest = self.pair.drafter.most, 2 if self._taps else 1
        return [most if len(ids) >= fewest else 0 for _, ids in rows]

    def prefill(self, feed: Feed) -> None:
        """Both read a prompt."""
        tokens, span = self.tensor(feed.ids), (feed.row, feed.start, len(feed.ids))
        self.target.read([span], tokens, last=True)
        states = self.target.states if self._taps else tokens
        self.draft.prefill(feed.row, feed.start, tokens, states)

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
        self._fed = self.tensor([token for f in feeds for token in f.ids])
        seen = self._choose(rows, self.draft.first(spans, self._fed))
        return None if seen is None else put_back(seen, order)

    def draft_next(self, rows: Sequence[int]) -> list[list[float]] | None:
        """One more token for these rows."""
        order = by_row(rows)
        rows = [rows[k] for k in order]
        before, tokens = self._steps[-1], self._tokens[-1]
        if len(rows) < len(before):
            tokens = tokens[self.tensor([before.index(row) for row in rows])]
        spans = [(row, self._next[row], 1) for row in rows]
        for row in rows:
            self._next[row] += 1
        seen = self._choose(rows, self.draft.further(spans, tokens))
        return None if seen is None else put_back(seen, order)

    def drop(self, row: int) -> None:
        """The newest token of this row is not judged."""
        self._dropped.add(row)

    def _choose(self, rows: list[int], logits: Tensor) -> list[list[float]] | None:
        """A token for each of these rows out of logits [A, V]."""
        logits = logits[:, : self.vocab]
        if self._sampling.temperature == 0.0:
            chosen = self.watch.best(logits)
            probs = torch.softmax(logits.float(), -1) if self._reads_signals else logits
        else:
            probs = self.watch.probs(logits, *self._sampling)
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
        tokens, laws = self._tokens, self._probs
        if self._dropped and len(newest) == 1:  # a single row is read as it lies
            tokens, laws = tokens[:-1], laws[:-1]
        if len(newest) == 1 and self._fed is not None:  # the draft was fed its newest token last
            feed = torch.cat([self._fed[-1:], *tokens])
        else:
            feed = torch.cat([self.tensor([f.ids[-1] for f in newest]), *tokens])
        found = self.judge(newest, self._drafted_by(), feed, laws, sampling, uniforms)
        if self._taps:
            self._hand_over(newest, found)
        self._begin([], sampling, False, [])
        return put_back(found, order)

    def _hand_over(self, newest: Sequence[Feed], verdicts: Sequence[Verdict]) -> None:
        """The target's states of the newest and the accepted tokens go to the drafter."""
        widths = [len(verdict.drafted) + 1 for verdict in verdicts]
        parts = torch.split(self.target.states, widths)
        for feed, verdict, states in zip(newest, verdicts, parts, strict=True):
            self.draft.verified(feed.row, feed.start, states[: verdict.accepted + 1])

    def _drafted_by(self) -> dict[int, list[int]]:
        """For each row that drafted, where its tokens stand among all drafted ones."""
        found: dict[int, list[int]] = {}
        at = 0
        for step in self._steps:
            for row in step:
                found.setdefault(row, []).append(at)
                at += 1
        for row in self._dropped:
            found[row].pop()
        return found
