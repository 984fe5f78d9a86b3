"""The suffix automaton by hand and against a search."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from real_backend.drafters.drafter import Found, LooksUp
from real_backend.drafters.load import load_drafter
from real_backend.drafters.suffix import SuffixAutomaton, SuffixDrafter
from traces.errors import InputError

TEXT = st.integers(2, 4).flatmap(lambda size: st.lists(st.integers(0, size - 1), max_size=40))
FACTOR = st.sampled_from([0.29, 0.5, 1.0, 1.5, 4.0])
MIN_SHARE = st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 1.0])


def automaton_of(text: list[int], factor: float = 1.0, min_share: float = 0.0) -> SuffixAutomaton:
    index = SuffixAutomaton(factor, min_share)
    index.extend(text)
    return index


def longest_repeated(text: list[int]) -> int:
    """Tokens of the longest suffix that also stands somewhere before."""
    for n in range(len(text) - 1, 0, -1):
        if any(text[at : at + n] == text[-n:] for at in range(len(text) - n)):
            return n
    return 0


def searched(text: list[int], factor: float, min_share: float, most: int) -> Found:
    """By search: the places of the match and the tokens so far, and what stands behind them."""
    length = longest_repeated(text)
    said = text[len(text) - length :]
    found, share = Found([], [], []), 1.0
    room = min(most, math.floor(round(factor * length, 6))) if length else 0
    for _ in range(room):
        n = len(said)
        behind = [text[at + n] for at in range(len(text) - n) if text[at : at + n] == said]
        if not behind:
            break
        counts = Counter(behind)
        token = max(counts, key=lambda t: (counts[t], -behind.index(t)))
        share *= counts[token] / len(behind)
        if share < min_share:
            break
        found.tokens.append(token)
        found.shares.append(share)
        parts = [count / len(behind) for count in counts.values()]
        found.entropy.append(-sum(p * math.log(p) for p in parts))
        said = [*said, token]
    return found


def test_by_hand() -> None:
    """Behind "1 2" stood 3 once and 4 twice, so 4; then 8 and 9 once each, and 8 came first."""
    text = [1, 2, 3, 1, 2, 4, 8, 1, 2, 4, 9, 1, 2]
    found = automaton_of(text).find(9)
    assert found.tokens == [4, 8]  # as many as match
    assert found.shares == pytest.approx([2 / 3, 1 / 3])
    third, rest = math.log(3) / 3, 2 * math.log(3 / 2) / 3
    assert found.entropy == pytest.approx([third + rest, math.log(2)])
    assert automaton_of(text).find(1).tokens == [4]
    assert automaton_of(text, min_share=0.5).find(9).tokens == [4]
    assert automaton_of(text, min_share=0.7).find(9).tokens == []
    assert automaton_of(text, factor=2.0).find(9).tokens == [4, 8, 1, 2]
    assert automaton_of(text, factor=0.5).find(9).tokens == [4]


def test_nothing_repeated_is_nothing_found() -> None:
    for text in ([], [1], [1, 2, 3]):
        assert automaton_of(text, factor=9.0).find(9) == Found([], [], [])


def test_a_factor_is_not_rounded_down() -> None:
    """0.29 x 100 is 28.999999999999996 in floating point, and 29 tokens."""
    assert 0.29 * 100 < 29
    assert len(automaton_of([*range(200), *range(100)], factor=0.29).find(99).tokens) == 29


@given(TEXT, FACTOR, MIN_SHARE, st.integers(0, 9))
def test_equals_a_search(text: list[int], factor: float, min_share: float, most: int) -> None:
    """Ties too: of equally frequent tokens the one that followed first in the row."""
    found, wanted = (
        automaton_of(text, factor, min_share).find(most),
        searched(text, factor, min_share, most),
    )
    assert found.tokens == wanted.tokens
    assert found.shares == pytest.approx(wanted.shares)
    assert found.entropy == pytest.approx(wanted.entropy)


@given(TEXT, st.integers(1, 5))
def test_the_match_is_the_longest_repeated_suffix(text: list[int], step: int) -> None:
    """At every moment, whether the row was learnt in pieces or at once."""
    index = SuffixAutomaton(1.0, 0.0)
    for at in range(0, len(text), step):
        index.extend(text[at : at + step])
        so_far = text[: at + step]
        found = index.find(99)
        assert found == automaton_of(so_far).find(99) and index.find(99) == found
        assert index._length[index._link[index._last]] == longest_repeated(so_far)
        assert found.tokens == searched(so_far, 1.0, 0.0, 99).tokens


@given(TEXT, st.integers(0, 9), st.integers(0, 9))
def test_asked_for_less(text: list[int], less: int, most: int) -> None:
    index = automaton_of(text, 4.0, 0.1)
    few = min(less, most)
    assert index.find(few) == Found(*(column[:few] for column in index.find(most)))


def test_a_long_text_in_pieces() -> None:
    """Counted by the piece or token by token, thousands of tokens with many states split."""
    generator = np.random.default_rng(4)
    text = np.where(generator.random(3_000) < 0.7, np.arange(3_000) % 7, generator.integers(7))
    pieces, single = SuffixAutomaton(4.0, 0.0), SuffixAutomaton(4.0, 0.0)
    for piece in np.split(text, np.flatnonzero(generator.random(3_000) < 0.1)):
        pieces.extend(piece.tolist())
        for token in piece.tolist():
            single.extend([token])
            found = single.find(12)
        assert len(piece) == 0 or pieces.find(12) == found
    assert pieces._count == single._count


def test_fields() -> None:
    target: Any = None
    assert load_drafter("suffix", target) == SuffixDrafter(1.0, 0.1)
    made = load_drafter("suffix:factor=2.5,min_share=0", target)
    assert made == SuffixDrafter(2.5, 0.0) and isinstance(made, LooksUp)
    assert load_drafter(made.name, target) == made
    made.index().extend([1])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("factor=0", "0 < factor"),
        ("factor=-1", "factor=-1"),
        ("factor=nan", "factor=nan"),
        ("factor=inf", "factor=inf"),
        ("min_share=1.1", "min_share <= 1"),
        ("min_share=-0.1", "0 <= min_share"),
        ("min_share=nan", "min_share=nan"),
        ("factor=much", "must be a number"),
        ("least=1", "it takes factor=, min_share="),
        ("factor", "it takes factor=, min_share="),
    ],
)
def test_refused_fields(settings: str, said: str) -> None:
    target: Any = None
    with pytest.raises(InputError) as caught:
        load_drafter(f"suffix:{settings}", target)
    message = str(caught.value)
    assert said in message and message.startswith("--draft suffix:") and "\n" not in message
