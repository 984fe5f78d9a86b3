"""Suffix decoding: the longest suffix of prompt and output that stood there before, and what
followed it most often.

A suffix automaton of the row's tokens that also counts: every state is a set of substrings that end
at the same places, and knows how many these are, so that the likeliest continuation is walked
without a search.
Source: Oliaro et al., SuffixDecoding, arXiv 2411.04975, Section 3 (a tree there, of all requests;
here of one); defaults of vllm-project/vllm, config/speculative.py (suffix_decoding_*). The
automaton: Blumer et al., The smallest automaton recognizing the subwords of a text, 1985.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from real_backend.drafters.drafter import MOST, Found
from real_backend.drafters.lookup import NOTHING, entropy_of
from traces.errors import InputError

ROUNDING = 1e-6  # of a token: 0.29 x 100 are 29 of them


@dataclasses.dataclass(frozen=True)
class SuffixDrafter:
    """At most factor x (length of the match) tokens, as long as the share of earlier continuations
    that agree with all of them is at least min_share.
    """

    factor: float = 1.0
    min_share: float = 0.1

    kind = "suffix"
    most = MOST
    vocab_size = max_context = 0
    watch = None
    modules = ()

    def __post_init__(self) -> None:
        if not 0.0 < self.factor <= 1e3 or not 0.0 <= self.min_share <= 1.0:
            raise InputError(
                f"suffix: factor={self.factor:g}, min_share={self.min_share:g}; need 0 < factor <= "
                "1000 and 0 <= min_share <= 1"
            )

    @property
    def name(self) -> str:
        """With its settings."""
        return f"suffix:factor={self.factor:g},min_share={self.min_share:g}"

    def index(self) -> SuffixAutomaton:
        """Of one row."""
        return SuffixAutomaton(self.factor, self.min_share)


class SuffixAutomaton:
    """Of the tokens so far; state 0 is the empty string.

    A state has the length of its longest string, a link to the state of the longest suffix that
    ends elsewhere, too, the states that a further token leads to in the order in which they came
    first, and the number of places where its strings end.

    Places are counted when something is looked up, for all tokens since the last time at once: a
    state costs one increment, however many of them end in it. Behind one token over and over every
    suffix is a state, so that a look-up for every token takes quadratic time in all.
    """

    def __init__(self, factor: float, min_share: float) -> None:
        self.factor, self.min_share = factor, min_share
        self._next: list[dict[int, int]] = [{}]
        self._link, self._length, self._count = [-1], [0], [0]
        self._last = 0
        self._uncounted: list[int] = []  # states of the prefixes since the last look-up

    def extend(self, tokens: Sequence[int]) -> None:
        """These follow."""
        for token in tokens:
            self._append(token)

    def _append(self, token: int) -> None:
        following, link, length = self._next, self._link, self._length
        new, at = len(length), self._last
        following.append({})
        length.append(length[at] + 1)
        self._count.append(0)
        link.append(0)
        while at >= 0 and token not in following[at]:
            following[at][token] = new
            at = link[at]
        if at >= 0:
            there = following[at][token]
            link[new] = there if length[there] == length[at] + 1 else self._split(at, token)
        self._last = new
        self._uncounted.append(new)

    def _count_places(self) -> None:
        """Every new prefix ends in its state and, link by link, in those of its suffixes."""
        link, count = self._link, self._count
        if len(self._uncounted) == 1:
            at = self._uncounted[0]
            while at > 0:
                count[at] += 1
                at = link[at]
        else:
            more = dict.fromkeys(self._uncounted, 1)
            for at in self._uncounted:
                while (at := link[at]) > 0 and at not in more:
                    more[at] = 0
            for at in sorted(more, key=self._length.__getitem__, reverse=True):
                count[at] += more[at]
                if link[at] > 0:
                    more[link[at]] += more[at]
        self._uncounted = []

    def _split(self, at: int, token: int) -> int:
        """A state of its own for the strings of `at` with the token: they end at more places."""
        there, copy = self._next[at][token], len(self._length)
        self._next.append(dict(self._next[there]))
        self._length.append(self._length[at] + 1)
        self._count.append(self._count[there])
        self._link.append(self._link[there])
        self._link[there] = copy
        while at >= 0 and self._next[at].get(token) == there:
            self._next[at][token] = copy
            at = self._link[at]
        return copy

    def find(self, most: int) -> Found:
        """The likeliest continuation of the longest suffix that stood here before."""
        self._count_places()
        at = self._link[self._last]
        if at <= 0:
            return NOTHING
        room = min(most, int(self.factor * self._length[at] + ROUNDING))
        found, share = Found([], [], []), 1.0
        while len(found.tokens) < room and (following := self._next[at]):
            counts = {token: self._count[state] for token, state in following.items()}
            token = max(counts, key=counts.__getitem__)  # of equals the one that came first
            share *= counts[token] / sum(counts.values())
            if share < self.min_share:
                break
            found.tokens.append(token)
            found.shares.append(share)
            found.entropy.append(entropy_of(counts.values()))
            at = following[token]
        return found
