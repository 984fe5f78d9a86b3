"""Steps of the timing measured again during a sitting, between requests a block of every kind."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from real_backend.decoding.bench import Bench, Samples, lags_for
from real_backend.decoding.measured import Anchor
from real_backend.decoding.steps import Sampling
from real_backend.load_pair import Pair
from traces.split import named_generator
from traces.timing import Timing

KINDS: Sequence[int] = (0, 1, 3, 6)  # tokens drafted: plain, and verifies of 2, 4 and 7 tokens


def anchor_context(timing: Timing) -> int:
    """The context of a timing's steps that is measured again: the shortest, tokens."""
    return min(cell.context for cell in timing.cells if cell.operation == "verify")


class Anchors:
    """Blocks as `measure` times them, every kind of round once a call, in random order.

    timing: of which it is a part, with its law and the shortest of its contexts.
    """

    @torch.inference_mode()
    def __init__(self, pair: Pair, timing: Timing, seed: int) -> None:
        self.context = anchor_context(timing)
        sampling = Sampling(timing.meta.get("temperature", 0.0), timing.meta.get("top_p", 1.0))
        self._samples: Samples = {}
        self._kinds = [drafted for drafted in KINDS if drafted <= pair.drafter.most]
        self._lags, deepest = lags_for(pair)[:2], max(self._kinds)
        self._bench = Bench(pair, 1, self.context + deepest + 1, self._samples, sampling, deepest)
        self._seed = seed

    @torch.inference_mode()
    def __call__(self, began: float, turn: int) -> list[Anchor]:
        """The blocks now, in the order of turn number `turn`; began: the moment
        (time.perf_counter) from which at_s counts.
        """
        at_s = time.perf_counter() - began
        self._samples.clear()
        for index in named_generator(self._seed, f"anchors {turn}").permutation(len(self._kinds)):
            self._bench.block(self._kinds[index], self._lags, self.context)
        return [
            Anchor(at_s, operation, tokens, context, *np.median(spent, axis=0).tolist())
            for (operation, _, tokens, context), spent in self._samples.items()
        ]
