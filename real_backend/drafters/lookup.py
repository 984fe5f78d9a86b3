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
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from real_backend.drafters.drafter import MOST, Found
from traces.errors import InputError

NOTHING = Found([], [], [])
MANY = 64  # continuations from which on arrays of them are faster


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
    look-up in the place of a search. What a find costs grows with the earlier places of the n-gram;
    behind one token over and over these are all.
    """

    def __init__(self, least: int, greatest: int) -> None:
        self.least, self.greatest = least, greatest
        self.tokens = array("q")  # numpy reads these without a copy
        self._ends: dict[tuple[int, ...], array[int]] = defaultdict(lambda: array("q"))

    def extend(self, tokens: Sequence[int]) -> None:
        """These follow."""
        for token in tokens:
            end = len(self.tokens)
            for n in range(self.least, min(self.greatest, end) + 1):
                self._ends[tuple(self.tokens[end - n :])].append(end)
            self.tokens.append(token)

    def find(self, most: int) -> Found:
        """The tokens behind the earliest place of the longest n-gram that the row ends with."""
        tokens = self.tokens
        for n in range(min(self.greatest, len(tokens)), self.least - 1, -1):
            ends = self._ends.get(tuple(tokens[-n:]))
            if ends:
                return agreement(tokens, tokens[ends[0] : ends[0] + most].tolist(), ends)
        return NOTHING


def agreement(tokens: Sequence[int], chosen: list[int], starts: Sequence[int]) -> Found:
    """The chosen tokens with the share of the continuations, from all `starts` on, that agree up to
    each of them, and the entropy of what those that agreed so far go on with.

    A continuation that the row's end cuts off counts as long as it lasts.
    """
    if len(starts) >= MANY:
        return _agreement_of_many(tokens, chosen, starts)
    shares, entropy, share = list[float](), list[float](), 1.0
    agreeing = list(starts)
    for depth, token in enumerate(chosen):
        lasting = [start for start in agreeing if start + depth < len(tokens)]
        said = Counter(tokens[start + depth] for start in lasting)
        share *= said[token] / len(lasting)
        shares.append(share)
        entropy.append(entropy_of(said.values()))
        agreeing = [start for start in lasting if tokens[start + depth] == token]
        if len(agreeing) == 1:  # agrees with itself from here on
            rest = len(chosen) - len(shares)
            return Found(chosen, shares + [share] * rest, entropy + [0.0] * rest)
    return Found(chosen, shares, entropy)


def _agreement_of_many(tokens: Sequence[int], chosen: list[int], starts: Sequence[int]) -> Found:
    """The same numbers, bit for bit."""
    shares, entropy, share = list[float](), list[float](), 1.0
    text, agreeing = np.asarray(tokens), np.asarray(starts)
    for depth, token in enumerate(chosen):
        lasting = agreeing[agreeing < len(text) - depth]
        said = text[lasting + depth]
        agrees = said == token
        count = int(np.count_nonzero(agrees))
        share *= count / len(lasting)
        shares.append(share)
        alike = count == len(lasting)
        entropy.append(0.0 if alike else entropy_of(np.unique_counts(said).counts.tolist()))
        agreeing = lasting if alike else lasting[agrees]
    return Found(chosen, shares, entropy)


def entropy_of(counts: Iterable[int]) -> float:
    """Entropy, nats, of what was counted; the same in any order."""
    values = sorted(counts)
    total = sum(values)
    return max(0.0, math.log(total) - sum(n * math.log(n) for n in values) / total)
