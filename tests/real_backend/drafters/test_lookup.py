"""The n-gram index by hand, against a search, and against two published look-ups."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from real_backend.drafters import lookup
from real_backend.drafters.drafter import Found, LooksUp
from real_backend.drafters.load import load_drafter
from real_backend.drafters.lookup import LookupDrafter, NgramIndex
from traces.errors import InputError

TEXT = st.integers(2, 4).flatmap(lambda size: st.lists(st.integers(0, size - 1), max_size=40))


def index_of(text: list[int], least: int = 1, greatest: int = 3) -> NgramIndex:
    index = NgramIndex(least, greatest)
    index.extend(text)
    return index


def searched(text: list[int], least: int, greatest: int, most: int) -> Found:
    """By search: every n from the greatest down, every place from the front."""
    for n in range(greatest, least - 1, -1):
        starts = [at + n for at in range(len(text) - n) if text[at : at + n] == text[-n:]]
        if not starts:
            continue
        chosen, shares, entropy = text[starts[0] :][:most], [], []
        share = 1.0
        for depth in range(len(chosen)):
            agreed = [text[s : s + depth + 1] for s in starts if s + depth < len(text)]
            agreed = [said for said in agreed if said[:depth] == chosen[:depth]]
            counts = Counter(said[depth] for said in agreed)
            share *= counts[chosen[depth]] / len(agreed)
            shares.append(share)
            parts = [count / len(agreed) for count in counts.values()]
            entropy.append(-sum(p * math.log(p) for p in parts))
        return Found(chosen, shares, entropy)
    return Found([], [], [])


def prompts() -> list[list[int]]:
    """100 random ones over 2 to 6 tokens, and some with a structure."""
    generator = np.random.default_rng(8)
    sizes = zip(generator.integers(2, 7, 100), generator.integers(1, 60, 100), strict=True)
    found = [generator.integers(2, 2 + size, length).tolist() for size, length in sizes]
    repeated, ending = [5] * 30, [2, 3, 4, 5, 6, 7, 2, 3, 4]
    return [*found, repeated, [2, 3] * 12, list(range(2, 40)), [*range(2, 12)] * 3, ending]


def test_by_hand() -> None:
    """Behind "1 2" stood 3 once and 4 twice; "9 1 2" never stood before; 3 came first."""
    found = index_of([1, 2, 3, 1, 2, 4, 8, 1, 2, 4, 9, 1, 2]).find(3)
    assert found.tokens == [3, 1, 2]
    assert found.shares == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    third, rest = math.log(3) / 3, 2 * math.log(3 / 2) / 3
    assert found.entropy == pytest.approx([third + rest, 0.0, 0.0])


def test_shares_count_a_continuation_as_long_as_it_lasts() -> None:
    """Behind 1 stood "1 2 1" and "2 1"; behind "1 1" of the second row one place has nothing."""
    found = index_of([1, 1, 2, 1], greatest=1).find(4)
    assert found.tokens == [1, 2, 1]
    assert found.shares == pytest.approx([1 / 2, 1 / 2, 1 / 2])
    found = index_of([1, 1, 1], greatest=1).find(4)
    assert found == Found([1, 1], [1.0, 1.0], [0.0, 0.0])


def test_the_longest_n_gram_wins_and_its_earliest_place() -> None:
    text = [2, 3, 7, 1, 2, 3, 8, 1, 2, 3, 9, 1, 2, 3]
    assert index_of(text).find(1).tokens == [8]
    assert index_of(text, greatest=2).find(1).tokens == [7]
    assert index_of(text, least=4, greatest=5).find(1).tokens == []  # "9 1 2 3" is new


@given(TEXT, st.integers(1, 3), st.integers(0, 2), st.integers(0, 9))
def test_equals_a_search(text: list[int], least: int, more: int, most: int) -> None:
    found, wanted = (
        index_of(text, least, least + more).find(most),
        searched(text, least, least + more, most),
    )
    assert found.tokens == wanted.tokens
    assert found.shares == pytest.approx(wanted.shares)
    assert found.entropy == pytest.approx(wanted.entropy)
    assert all(type(token) is int for token in found.tokens)


@given(TEXT, st.lists(st.integers(1, 5)), st.integers(0, 9), st.integers(0, 9))
def test_learnt_in_pieces_and_asked_for_less(
    text: list[int], pieces: list[int], less: int, most: int
) -> None:
    index, at = NgramIndex(1, 3), 0
    for size in [*pieces, len(text)]:
        index.extend(text[at : at + size])
        index.find(4)
        at += size
    found = index.find(most)
    assert found == index_of(text).find(most)
    short = index.find(min(less, most))
    assert short == Found(*(column[: min(less, most)] for column in found))


@given(TEXT, st.integers(0, 9))
def test_many_continuations_give_the_same_bits(text: list[int], most: int) -> None:
    found = index_of(text).find(most)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lookup, "MANY", 1)
        assert index_of(text).find(most) == found


@pytest.mark.parametrize("greatest", [1, 2, 3, 5])
@pytest.mark.parametrize("eos", [None, 3])
def test_proposes_what_transformers_does(greatest: int, eos: int | None) -> None:
    """The same tokens, but that transformers drops an end token and all behind it; with none left
    it proposes nothing, nor looks elsewhere. Here the engine ends the reply, so nothing is dropped.
    """
    end = None if eos is None else torch.tensor([eos])
    theirs = PromptLookupCandidateGenerator(
        eos_token_id=end,
        num_output_tokens=6,
        max_matching_ngram_size=greatest,
        max_length=10_000,
    )
    cut = 0
    for text in prompts():
        ours = index_of(text, greatest=greatest).find(6).tokens
        kept = ours[: ours.index(eos)] if eos in ours else ours
        candidates, logits = theirs.get_candidates(torch.tensor([text]))
        assert candidates[0, len(text) :].tolist() == kept and logits is None
        cut += len(ours) - len(kept)
    assert (cut > 0) == (eos is not None)


def as_vllm(text: list[int], least: int, greatest: int, most: int) -> list[int]:
    """The rule of vLLM's n-gram proposer: of all earlier places where the row's last tokens stand,
    those that share most of them (no more than `greatest`), of these the earliest; nothing if they
    share fewer than `least`.
    """
    best, start = 0, 0
    for end in range(len(text) - 1, 0, -1):  # tokens before `end` are compared with the last ones
        shared = 0
        while shared < min(greatest, end) and text[end - 1 - shared] == text[-1 - shared]:
            shared += 1
        if shared >= max(best, 1):
            best, start = shared, end
    return text[start : start + most] if best >= least else []


@pytest.mark.parametrize(("least", "greatest"), [(1, 1), (1, 3), (2, 3), (5, 5)])
def test_proposes_what_vllm_does(least: int, greatest: int) -> None:
    """vllm/v1/spec_decode/ngram_proposer.py takes the earliest of the longest matches, too."""
    proposals = [as_vllm(text, least, greatest, 6) for text in prompts()]
    assert [index_of(t, least, greatest).find(6).tokens for t in prompts()] == proposals
    assert 0 < sum(map(bool, proposals)) < len(proposals)


def test_fields() -> None:
    target: Any = None
    assert load_drafter("lookup", target) == LookupDrafter(1, 3)
    made = load_drafter("lookup:least=2,greatest=5", target)
    assert made == LookupDrafter(2, 5) and isinstance(made, LooksUp)
    assert load_drafter(made.name, target) == made
    made.index().extend([1])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("least=0", "1 <= least"),
        ("least=4", "least=4, greatest=3"),
        ("greatest=0", "greatest=0"),
        ("greatest=65", "<= 64"),
        ("least=1.5", "whole number"),
        ("least=1,least=1", "second time"),
        ("factor=1", "it takes least=, greatest="),
        ("3", "it takes least=, greatest="),
    ],
)
def test_refused_fields(settings: str, said: str) -> None:
    target: Any = None
    with pytest.raises(InputError) as caught:
        load_drafter(f"lookup:{settings}", target)
    message = str(caught.value)
    assert said in message and message.startswith("--draft lookup:") and "\n" not in message
