"""The steps of a round whose drafts are looked up: only the target runs on the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from real_backend.decoding.judge import Judge, by_row, put_back
from real_backend.decoding.steps import Feed, Sampling, Uniforms, Verdict
from real_backend.drafters.drafter import MOST, Found, Index, LooksUp
from real_backend.drafters.lookup import NOTHING
from real_backend.load_pair import Pair


class LookupSteps(Judge):
    """Steps of any batch, an index a row. What it has to offer is found before anybody decides how
    much of it to draft; drafting a token of it is free.
    """

    def __init__(self, pair: Pair, batch: int, capacity: int) -> None:
        super().__init__(pair, batch, capacity)
        assert isinstance(pair.drafter, LooksUp)
        self._empty = pair.drafter.index
        self._index: list[Index] = [self._empty() for _ in range(batch)]
        self._held = [0] * batch  # tokens that each index knows
        self._found = [NOTHING] * batch
        self._drafted: dict[int, int] = {}  # row -> tokens drafted in this round
        self._reads_signals, self._most = False, MOST

    def prepare(
        self, sampling: Sampling, reads_signals: bool, max_gamma: int, shortest: int
    ) -> None:
        """No more is found than may be drafted."""
        self._most = max_gamma

    def holds(self, context: int) -> bool:
        """True if every row's caches can be read on from `context`."""
        return self.target.holds(context)

    def prefill(self, feed: Feed) -> None:
        """The target reads a prompt, and a new index does."""
        span = (feed.row, feed.start, len(feed.ids))
        self.target.read([span], self.tensor(feed.ids), last=True)
        self._learn(feed.row, feed.ids, afresh=True)

    def _learn(self, row: int, ids: list[int], afresh: bool = False) -> None:
        # Every round adds a token: where none is new, these are another request's, whose prompt of
        # one token is never prefilled.
        if afresh or len(ids) <= self._held[row]:
            self._index[row], self._held[row] = self._empty(), 0
        self._index[row].extend(ids[self._held[row] :])
        self._held[row] = len(ids)

    def offers(self, rows: Sequence[tuple[int, list[int]]]) -> list[int]:
        """Looks up what may follow in each row."""
        for row, ids in rows:
            self._learn(row, ids)
            self._found[row] = self._index[row].find(self._most)
        return [len(self._found[row].tokens) for row, _ in rows]

    def draft_first(
        self, feeds: Sequence[Feed], sampling: Sampling, reads_signals: bool, uniforms: Uniforms
    ) -> list[list[float]] | None:
        """The first token that was found in each row."""
        self._drafted = {}
        self._reads_signals = reads_signals
        return self.draft_next([feed.row for feed in feeds])

    def draft_next(self, rows: Sequence[int]) -> list[list[float]] | None:
        """The next one."""
        for row in rows:
            self._drafted[row] = self._drafted.get(row, 0) + 1
        return [self._signals(row) for row in rows] if self._reads_signals else None

    def drop(self, row: int) -> None:
        """The newest token of this row is not judged."""
        self._drafted[row] -= 1

    def _signals(self, row: int) -> list[float]:
        """As a trace keeps them, or a share that is a threshold would fall on its other side; 0
        where only a measurement asks.
        """
        found, at = self._found[row], self._drafted[row] - 1
        if at >= len(found.tokens):
            return [0.0, 0.0]
        return [float(np.float32(found.shares[at])), float(np.float32(found.entropy[at]))]

    def verify(
        self, newest: Sequence[Feed], sampling: Sampling, uniforms: Uniforms
    ) -> list[Verdict]:
        """The target judges each row's draft; one read-back."""
        order = by_row([feed.row for feed in newest])
        newest, uniforms = [newest[k] for k in order], [uniforms[k] for k in order]
        ids, drafted = [f.ids[-1] for f in newest], dict[int, list[int]]()
        looked_up: list[int] = []
        for f in newest:
            tokens = _tokens(self._found[f.row], self._drafted.get(f.row, 0))
            drafted[f.row] = list(range(len(looked_up), len(looked_up) + len(tokens)))
            looked_up += tokens
        laws = self._laws(looked_up) if sampling.temperature > 0.0 else []
        feed = self.tensor(ids + looked_up)
        found = self.judge(newest, drafted, feed, laws, sampling, uniforms)
        self._drafted = {}
        return put_back(found, order)

    def _laws(self, tokens: list[int]) -> list[Tensor]:
        """Laws [N, V] of tokens that are certain: 1 at each."""
        if not tokens:
            return []
        laws = torch.zeros(len(tokens), self.vocab, device=self.device)
        return [laws.scatter_(1, self.tensor(tokens)[:, None], 1.0)]


def _tokens(found: Found, drafted: int) -> list[int]:
    """The first `drafted` tokens found; 0 in the place of any beyond, which only a measurement
    asks for.
    """
    return (found.tokens + [0] * drafted)[:drafted]
