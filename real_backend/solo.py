"""The steps of a single row, operation by operation: nothing is packed, sorted or padded.

What a row reads next is on the device already, in what was read back last: the tokens that a draft
lacks are the target's own choices at accepted positions. They are sent only where they differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from real_backend.models import Pair
from real_backend.steps import (
    GREEDY,
    Feed,
    Law,
    Rows,
    Uniforms,
    Verdict,
    accepted_of,
    rows_of,
)
from real_backend.verify import accept_sampled, draw, signals


class SoloSteps:
    """See real_backend.steps.Steps; batch 1."""

    batch = 1

    def __init__(self, pair: Pair, capacity: int) -> None:
        self.pair, self.capacity = pair, capacity
        self.device, self.vocab = pair.device, pair.vocab_size
        self.target: Rows = rows_of(pair.target, 1, capacity)
        self.draft: Rows = rows_of(pair.draft, 1, capacity)
        self._padded = {pair.target.vocab_size, pair.draft.vocab_size} != {self.vocab}
        self._law, self._looks, self._numbers = GREEDY, False, list[float]()
        self._known: Tensor | None = None  # the newest tokens of the reply, on the device
        self._known_ids: list[int] = []
        self._forget()

    def _forget(self) -> None:
        self._tokens: list[Tensor] = []  # drafted in this round, [1] each
        self._probs: list[Tensor] = []  # and their laws [1, V], if sampled
        self._fed: Tensor | None = None  # the newest token, as the draft was fed it
        self._at = 0  # where the next drafted token will stand

    def holds(self, context: int) -> bool:
        """See Steps."""
        return self.target.holds(context) and self.draft.holds(context)

    def prepare(self, law: Law, looks: bool, max_gamma: int, shortest: int) -> None:
        """Nothing: eager steps come as they are."""

    def prefill(self, feed: Feed) -> None:
        """See Steps."""
        tokens, span = self._sent(feed.ids), [(0, feed.start, len(feed.ids))]
        self.target.read(span, tokens, last=True)
        self.draft.read(span, tokens, last=True)

    def _sent(self, ids: list[int]) -> Tensor:
        """These tokens on the device, from what is there if they are its last ones."""
        if self._known is not None and self._known_ids[-len(ids) :] == ids:
            return self._known[-len(ids) :]
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def draft_first(
        self, feeds: Sequence[Feed], law: Law, looks: bool, uniforms: Uniforms
    ) -> list[list[float]] | None:
        """See Steps."""
        ((_, ids, start),) = feeds
        self._law, self._looks, self._numbers = law, looks, uniforms[0]
        tokens = self._sent(ids)
        self._fed = tokens[-1:]
        self._at = start + len(ids)
        return self._draft(start, tokens, len(ids))

    def draft_next(self, rows: Sequence[int]) -> list[list[float]] | None:
        """See Steps."""
        self._at += 1
        return self._draft(self._at - 1, self._tokens[-1], 1)

    def _draft(self, start: int, tokens: Tensor, width: int) -> list[list[float]] | None:
        logits = self._cut(self.draft.read([(0, start, width)], tokens, last=True))
        if self._law.temperature == 0.0:
            self._tokens.append(self.pair.draft.watch.best(logits))
            if not self._looks:
                return None
            probs = torch.softmax(logits.float(), -1)
        else:
            probs = self.pair.draft.watch.law(logits, *self._law)
            number = [self._numbers[len(self._tokens)]]
            chosen = torch.tensor(number, dtype=torch.float64, device=self.device)
            self._tokens.append(draw(probs, chosen))
            self._probs.append(probs)
            if not self._looks:
                return None
        seen: list[list[float]] = signals(probs).tolist()
        return seen

    def verify(self, newest: Sequence[Feed], law: Law, uniforms: Uniforms) -> list[Verdict]:
        """See Steps."""
        ((_, ids, start),) = newest
        first = self._sent(ids[-1:]) if self._fed is None else self._fed
        feed = torch.cat([first, *self._tokens]) if self._tokens else first
        logits = self._cut(self.target.read([(0, start, 1 + len(self._tokens))], feed, last=False))
        watch = self.pair.target.watch
        if law.temperature == 0.0:
            found = self._greedy(feed, watch.best(logits))
        else:
            found = self._sampled(feed, watch.law(logits, *law), uniforms[0])
        self._forget()
        return [found]

    def _greedy(self, feed: Tensor, choices: Tensor) -> Verdict:
        """Tokens and the target's choices come back in one piece."""
        if not self._tokens:
            self._known, self._known_ids = choices, choices.tolist()
            return Verdict([], 0, self._known_ids[0])
        read, chosen = torch.stack([feed, choices]).tolist()
        drafted = read[1:]
        accepted = accepted_of(drafted, chosen)
        self._known, self._known_ids = choices[: accepted + 1], chosen[: accepted + 1]
        return Verdict(drafted, accepted, chosen[accepted])

    def _sampled(self, feed: Tensor, laws: Tensor, uniforms: list[float]) -> Verdict:
        """The device decides; tokens and the decision come back in one piece."""
        drafted = feed[None, 1:]
        proposed = torch.cat(self._probs)[None] if self._probs else laws[None, :0]
        numbers = torch.tensor([uniforms], dtype=torch.float64, device=self.device)
        counts = torch.tensor([len(self._tokens)], device=self.device)
        accepted, extra = accept_sampled(
            drafted, counts, laws[None], proposed, numbers[:, :-1], numbers[:, -1]
        )
        self._known, self._known_ids = None, []
        kept, added, *tokens = torch.cat([accepted, extra, drafted[0]]).tolist()
        return Verdict(tokens, kept, added)

    def _cut(self, logits: Tensor) -> Tensor:
        """Of the tokens that both models know."""
        return logits[:, : self.vocab] if self._padded else logits
