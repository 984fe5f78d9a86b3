"""Logits that are NaN or infinite: noticed where tokens are chosen.

An arg-max over NaN is a token like any other, so nothing else would notice. The values that tokens
were chosen by go into a running sum, which NaN and infinity never leave; it is read once a reply,
behind the last read-back, so that no round waits for it (real_backend.not_finite).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from real_backend.decoding.verify import distribution


class Watch:
    """Chooses tokens of one model's logits [..., V] and remembers if any were not finite."""

    def __init__(self, device: str) -> None:
        self.sum = torch.zeros((), device=device)

    def best(self, logits: Tensor, out: Tensor | None = None) -> Tensor:
        """The arg-max [...], of equals the first; NaN and +inf win over every number. out: int64
        [...] that it is written to.
        """
        tokens = logits.argmax(-1) if out is None else torch.argmax(logits, -1, out=out)
        self.note(logits.gather(-1, tokens[..., None]))
        return tokens

    def probs(self, logits: Tensor, temperature: float, top_p: float) -> Tensor:
        """verify.distribution, watched: a row with NaN or +inf is NaN in every place."""
        probs = distribution(logits, temperature, top_p)
        self.note(probs[..., 0])
        return probs

    def note(self, values: Tensor) -> None:
        """Remember it if one of these is not finite."""
        self.sum += values.sum(dtype=torch.float32)

    def broken(self) -> bool:
        """True if something was not finite since the last time this was asked."""
        if math.isfinite(float(self.sum)):
            return False
        self.sum.zero_()
        return True
