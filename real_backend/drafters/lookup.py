"""N-gram look-up in prompt and output: where the last n tokens stood before, and what followed.

The longest n-gram first, its earliest occurrence, as vLLM's n-gram proposer and transformers'
prompt look-up do it; what the reply has fixed is searched, never what is only drafted.
Source: apoorvumang/prompt-lookup-decoding; huggingface/transformers,
generation/candidate_generator.py (PromptLookupCandidateGenerator); vllm-project/vllm,
v1/spec_decode/ngram_proposer.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from real_backend.drafters.drafter import MOST, Found
from traces.errors import InputError

NOTHING = Found([], [], [])


@dataclasses.dataclass(frozen=True)
class LookupDrafter:
    """N-grams of `least` to `greatest` tokens; both at least 1."""

    least: int = 1
    greatest: int = 3

    kind = "lookup"
    most = MOST
    vocab_size = max_context = 0
    watch = None
    modules = ()

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.greatest <= 64:
            raise InputError(
                f"lookup: least={self.least}, greatest={self.greatest}; need 1 <= least <= "
                "greatest <= 64"
            )

    @property
    def name(self) -> str:
        """With its settings."""
        return f"lookup:least={self.least},greatest={self.greatest}"

    def index(self) -> NgramIndex:
        """Of one row."""
        return NgramIndex(self.least, self.greatest)


class NgramIndex:
    """Where every n-gram of a row ends, by n, but those that end at its last token: a dictionary
    look-up in the place of a search.
    """

    def __init__(self, least: int, greatest: int) -> None:
        self.least, self.greatest = least, greatest
        self.tokens: list[int] = []
        self._ends: dict[tuple[int, ...], list[int]] = defaultdict(list)

    def extend(self, tokens: Sequence[int]) -> None:
        """These follow."""
        for token in tokens:
            end = len(self.tokens)
            for n in range(self.least, min(self.greatest, end) + 1):
                self._ends[tuple(self.tokens[end - n :])].append(end)
            self.tokens.append(token)

    def find(self, most: int) -> Found:
        """What followed the earliest occurrence of the longest n-gram that the row ends with."""
        tokens = self.tokens
        for n in range(min(self.greatest, len(tokens)), self.least - 1, -1):
            ends = self._ends.get(tuple(tokens[-n:]))
            if ends:
                return agreement(tokens, tokens[ends[0] : ends[0] + most], ends)
        return NOTHING


def agreement(tokens: Sequence[int], chosen: list[int], starts: Iterable[int]) -> Found:
    """The chosen tokens with the share of the continuations, from all `starts` on, that agree up to
    each of them, and the entropy of what those that agreed so far go on with.

    A continuation that the row's end cuts off counts as long as it lasts.
    """
    shares, entropy, share = list[float](), list[float](), 1.0
    agreeing = list(starts)
    for depth, token in enumerate(chosen):
        lasting = [start for start in agreeing if start + depth < len(tokens)]
        said = Counter(tokens[start + depth] for start in lasting)
        share *= said[token] / len(lasting)
        shares.append(share)
        entropy.append(entropy_of(said.values()))
        agreeing = [start for start in lasting if tokens[start + depth] == token]
    return Found(chosen, shares, entropy)


def entropy_of(counts: Iterable[int]) -> float:
    """Entropy, nats, of what was counted."""
    values = list(counts)
    total = sum(values)
    return max(0.0, math.log(total) - sum(n * math.log(n) for n in values) / total)
