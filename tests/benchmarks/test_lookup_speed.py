"""Nanoseconds of the look-ups, beside a naive search; prints, never asserts a time.

    python -m pytest -m benchmarks -s tests/benchmarks/test_lookup_speed.py

prompt: per token of a text that is learnt at once and asked about once. extend, find: of a round
behind it that emits one token and asks for 8, the median of 128. The texts: the embedded pair's
prompts, and one token over and over, where everything repeats. As in timeit, no garbage is
collected meanwhile.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence

import pytest
from transformers import AutoTokenizer

from real_backend.drafters.drafter import Found, Index
from real_backend.drafters.lookup import NgramIndex
from real_backend.drafters.suffix import SuffixAutomaton
from real_backend.pair_spec import EMBEDDED
from real_backend.prompts import EMBEDDED_PROMPTS, read_questions

MOST = 8  # tokens asked for
LENGTHS = (512, 2_048, 8_192)
TIMED = 128  # rounds


class Search:
    """A search for the longest of 3, 2 and 1 tokens from the front, without shares."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def extend(self, tokens: Sequence[int]) -> None:
        self.tokens += tokens

    def find(self, most: int) -> Found:
        tokens = self.tokens
        for n in (3, 2, 1):
            tail = tokens[-n:]
            for start in range(len(tokens) - n):
                if tokens[start : start + n] == tail:
                    return Found(tokens[start + n : start + n + most], [], [])
        return Found([], [], [])


def english(tokens: int) -> list[int]:
    """The prompts of the embedded pair, from the first one on again where they end."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "target")
    ids: list[int] = []
    for question in read_questions(EMBEDDED_PROMPTS):
        ids += tokenizer("\n".join(question.turns), add_special_tokens=False)["input_ids"]
    assert len(ids) > max(LENGTHS)
    return ids[:tokens]


def nanoseconds(make: Callable[[], Index], text: list[int]) -> tuple[float, float, float]:
    """Of the prompt per token, of extend and of find per round; the rounds are the text's end."""
    index, prompt = make(), text[:-TIMED]
    extend_s, find_s = [], []
    gc.collect()
    gc.disable()
    try:
        began = time.perf_counter()
        index.extend(prompt)
        index.find(MOST)
        prompt_s = time.perf_counter() - began
        for token in text[-TIMED:]:
            began = time.perf_counter()
            index.extend([token])
            extended = time.perf_counter()
            index.find(MOST)
            find_s.append(time.perf_counter() - extended)
            extend_s.append(extended - began)
    finally:
        gc.enable()
    extend, find = statistics.median(extend_s), statistics.median(find_s)
    return prompt_s / len(prompt) * 1e9, extend * 1e9, find * 1e9


@pytest.mark.benchmarks
def test_nanoseconds_per_token(capsys: pytest.CaptureFixture[str]) -> None:
    kinds: dict[str, Callable[[], Index]] = {
        "n-grams": lambda: NgramIndex(1, 3),
        "automaton": lambda: SuffixAutomaton(1.0, 0.1),
        "search": Search,
    }
    lines = [f"{'text':9}{'tokens':>7}{'index':>11}{'prompt':>9}{'extend':>9}{'find':>11}  ns"]
    for name, texts in {"English": english, "repeated": lambda n: [7] * n}.items():
        for length in LENGTHS:
            text = texts(length)
            for kind, make in kinds.items():
                prompt, extend, find = nanoseconds(make, text)
                lines.append(f"{name:9}{length:7}{kind:>11}{prompt:9.0f}{extend:9.0f}{find:11.0f}")
    with capsys.disabled():
        print("\n" + "\n".join(lines))
