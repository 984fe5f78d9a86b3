"""The steps of a single row, operation by operation: nothing is packed, sorted or padded.

A round's tokens lie in one strip on the device: the newest one, then every drafted one where its
draft step wrote it, and below them the target's choices; the strip is what the target reads, and
what comes back. The tokens that a draft lacks are the target's own choices at accepted positions,
so they are there already; they are sent only where they differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from real_backend.decoding.steps import GREEDY, Feed, Sampling, Uniforms, Verdict
from real_backend.decoding.verify import accept_sampled, accepted_of, draw, signals
from real_backend.drafters.drafter import MOST
from real_backend.load_pair import Pair
from real_backend.models.cache_rows import CacheRows, rows_of

STRIP = 32  # tokens a strip holds before anybody says how many a round may have


class SoloSteps:
    """Steps of batch 1."""

    batch = 1

    def __init__(self, pair: Pair, capacity: int) -> None:
        self.pair, self.capacity = pair, capacity
        self.device, self.vocab = pair.device, pair.vocab_size
        self.target: CacheRows = rows_of(pair.target, 1, capacity)
        self.draft: CacheRows = rows_of(pair.draft, 1, capacity)
        self._padded = {pair.target.vocab_size, pair.draft.vocab_size} != {self.vocab}
        self._sampling, self._reads_signals, self._numbers = GREEDY, False, list[float]()
        self._known: Tensor | None = None  # the newest tokens of the reply, on the device
        self._known_ids: list[int] = []
        self._probs: list[Tensor] = []  # laws [1, V] of the drafted tokens, if sampled
        self._said: Tensor | None = None  # logits [1, V] of the newest drafted token, if greedy
        self._drafted = 0
        self._at = 0  # where the next drafted token will stand
        self._lay_out(STRIP)

    def _lay_out(self, width: int) -> None:
        """A strip for that many tokens, and its views: making one takes as long as using it."""
        strip = torch.zeros((2, width), dtype=torch.long, device=self.device)
        self._cells = [strip[0, k : k + 1] for k in range(width)]
        self._feeds = [strip[0, :k] for k in range(width + 1)]
        self._choices = [strip[1, :k] for k in range(width + 1)]
        self._both = [strip[:, :k] for k in range(width + 1)]

    def holds(self, context: int) -> bool:
        """True if every row's caches can be read on from `context`."""
        return self.target.holds(context) and self.draft.holds(context)

    def prepare(
        self, sampling: Sampling, reads_signals: bool, max_gamma: int, shortest: int
    ) -> None:
        """Make ready, ahead of the clock, for a run from `shortest` tokens on."""
        if max_gamma + 1 > len(self._cells):
            self._lay_out(max_gamma + 1)
            self._known, self._known_ids = None, []

    def offers(self, rows: Sequence[tuple[int, list[int]]]) -> list[int]:
        """As many tokens as asked."""
        return [MOST] * len(rows)

    def prefill(self, feed: Feed) -> None:
        """Both models read a prompt."""
        tokens, span = self._sent(feed.ids), [(0, feed.start, len(feed.ids))]
        self.target.read(span, tokens, last=True)
        self.draft.read(span, tokens, last=True)

    def _sent(self, ids: list[int]) -> Tensor:
        """These tokens on the device, from what is there if they are its last ones."""
        if self._known is not None and self._known_ids[-len(ids) :] == ids:
            return self._known[-len(ids) :]
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def draft_first(
        self, feeds: Sequence[Feed], sampling: Sampling, reads_signals: bool, uniforms: Uniforms
    ) -> list[list[float]] | None:
        """The first draft step of a round, which reads what the draft lacks."""
        ((_, ids, start),) = feeds
        self._sampling, self._reads_signals, self._numbers = sampling, reads_signals, uniforms[0]
        tokens = self._sent(ids)
        self._at = start + len(ids)
        return self._draft(start, tokens, len(ids))

    def draft_next(self, rows: Sequence[int]) -> list[list[float]] | None:
        """One more token for these rows."""
        self._at += 1
        return self._draft(self._at - 1, self._cells[self._drafted], 1)

    def drop(self, row: int) -> None:
        """The newest token is not judged, but whether a model said NaN is asked all the same."""
        self._drafted -= 1
        if self._probs:
            self._probs.pop()

    def _draft(self, start: int, tokens: Tensor, width: int) -> list[list[float]] | None:
        logits = self._cut(self.draft.read([(0, start, width)], tokens, last=True))
        self._drafted += 1
        cell = self._cells[self._drafted]
        if self._sampling.temperature == 0.0:
            torch.argmax(logits, -1, out=cell)
            self._said = logits
            if not self._reads_signals:
                return None
            probs = torch.softmax(logits.float(), -1)
        else:
            probs = self.pair.draft.watch.probs(logits, *self._sampling)
            number = [self._numbers[len(self._probs)]]
            chosen = torch.tensor(number, dtype=torch.float64, device=self.device)
            cell.copy_(draw(probs, chosen))
            self._probs.append(probs)
            if not self._reads_signals:
                return None
        seen: list[list[float]] = signals(probs).tolist()
        return seen

    def verify(
        self, newest: Sequence[Feed], sampling: Sampling, uniforms: Uniforms
    ) -> list[Verdict]:
        """The target judges each row's draft; one read-back."""
        ((_, ids, start),) = newest
        width, self._drafted = self._drafted + 1, 0
        self._cells[0].fill_(ids[-1])
        logits = self.target.read([(0, start, width)], self._feeds[width], last=False)
        if sampling.temperature == 0.0:
            return [self._greedy(width, self._cut(logits))]
        target_probs = self.pair.target.watch.probs(self._cut(logits), *sampling)
        return [self._sampled(width, target_probs, uniforms[0])]

    def _greedy(self, width: int, logits: Tensor) -> Verdict:
        """Tokens and the target's choices come back in one piece."""
        self.pair.target.watch.best(logits, self._choices[width])
        if self._said is not None:  # what a NaN did before stands in the cache, so in these too
            self.pair.draft.watch.note(self._said.amax(-1))
            self._said = None
        (_, *drafted), chosen = self._both[width].tolist()
        accepted = accepted_of(drafted, chosen)
        self._known, self._known_ids = self._choices[accepted + 1], chosen[: accepted + 1]
        return Verdict(drafted, accepted, chosen[accepted])

    def _sampled(self, width: int, target_probs: Tensor, uniforms: list[float]) -> Verdict:
        """The device decides; tokens and the decision come back in one piece."""
        drafted = self._feeds[width][None, 1:]
        proposed = torch.cat(self._probs)[None] if self._probs else target_probs[None, :0]
        numbers = torch.tensor([uniforms], dtype=torch.float64, device=self.device)
        counts = torch.tensor([width - 1], device=self.device)
        accepted, extra = accept_sampled(
            drafted, counts, target_probs[None], proposed, numbers[:, :-1], numbers[:, -1]
        )
        self._known, self._known_ids, self._probs = None, [], []
        kept, added, *tokens = torch.cat([accepted, extra, drafted[0]]).tolist()
        return Verdict(tokens, kept, added)

    def _cut(self, logits: Tensor) -> Tensor:
        """Of the tokens that both models know."""
        return logits[:, : self.vocab] if self._padded else logits
