"""What ragged batches save: the engine's reads beside the same rounds with every row padded.

    python -m pytest -m benchmarks -s tests/benchmarks/test_ragged_speed.py

Embedded pair, greedy, float32, one thread, up to 128 new tokens, batches of 1, 2, 4 and 8 rows; a
row that ends takes the next prompt. Ragged is what the engine does: a step reads the rows that
still draft and the tokens they have. Padded, in the same rounds: every running row takes part in
every draft step; where one row's cache lacks two tokens, all rows read two; the target reads
max(drafted) + 1 tokens of every row. A padded row's draft so often has read more than a ragged
one's, which is put to its credit. Both forms are recorded reads asked again, through the same lean
forward, whose kernels for rows of equal width only the padded form can use. Round by round both are
timed one behind the other, each first in turn, REPEATS times, and count with the round's median.
Prompts are read in both and timed in neither.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence

import pytest
import torch

from policies.registry import parse_policy
from real_backend.decoding.engine import Engine
from real_backend.load_pair import load_pair
from real_backend.pair_spec import resolve_pair
from real_backend.prompts import EMBEDDED_PROMPTS, Request
from tests.benchmarks.test_engine_speed import (
    COSTS,
    NEW_TOKENS,
    Read,
    capacity_for,
    header,
    one_thread,
    recording,
    replay,
    requests_by_task,
    waiting_shown,
)

PER_TASK, REPEATS = 4, 3
BATCHES = (1, 2, 4, 8)
POLICIES = ("gammatune", "hf-confidence", "hf-heuristic", "fixed:gamma=4")

pytestmark = [
    pytest.mark.benchmarks,
    pytest.mark.skipif(not EMBEDDED_PROMPTS.exists(), reason="no embedded pair in this checkout"),
]


Round = list[Read]
"""The reads of a round, the verify last; or one read of a prompt."""


def is_prompt(reads: Round) -> bool:
    return reads[0].feeds[0][1] == 0


def rounds_of(reads: Sequence[Read]) -> Iterator[Round]:
    """The reads of a run, round by round."""
    so_far: Round = []
    for read in reads:
        so_far.append(read)
        if is_prompt(so_far) or not read.last:
            yield so_far
            so_far = []


def padded(rounds: Sequence[Round], batch: int, capacity: int) -> Iterator[Round]:
    """The same rounds if every running row were as wide as the widest one.

    Each padded token is what the row's text holds at its place, so that rows read the right tokens
    wherever the ragged form reads them.
    """
    text = torch.zeros(batch, capacity, dtype=torch.long)
    held = [0] * batch  # how much of each row's text a padded draft's cache holds

    def wide(read: Read, starts: list[tuple[int, int]], width: int) -> Read:
        tokens = torch.cat([text[row, start : start + width] for row, start in starts])
        return Read(read.rows, [(*start, width) for start in starts], tokens, read.last)

    for reads in rounds:
        *drafts, verify = reads
        parts = verify.tokens.split([width for _, _, width in verify.feeds])
        for (row, start, width), part in zip(verify.feeds, parts, strict=True):
            text[row, start : start + width] = part
            held[row] = min(held[row], start)
        if is_prompt(reads):
            held[row] = width
            yield reads
            continue
        newest = [(row, start) for row, start, _ in verify.feeds]
        lag = max(start + 1 - held[row] for row, start in newest)
        form = []
        for step, draft in enumerate(drafts):
            width = lag if step == 0 else 1
            form.append(wide(draft, [(row, at + step + 1 - width) for row, at in newest], width))
        yield [*form, wide(verify, newest, len(drafts) + 1)]
        for row, start in newest if drafts else []:
            held[row] = start + len(drafts)


def seconds_of(forms: Sequence[Sequence[Round]]) -> list[float]:
    """Seconds of each form's rounds, prompts left out."""
    taken: list[list[list[float]]] = [[[] for _ in rounds] for rounds in forms]
    order = list(range(len(forms)))
    for turn in range(REPEATS):
        for k, reads in enumerate(forms[0]):
            for form in order if (turn + k) % 2 else order[::-1]:
                began = time.process_time()
                replay(forms[form][k])
                if not is_prompt(reads):
                    taken[form][k].append(time.process_time() - began)
    return [sum(statistics.median(times) for times in rounds if times) for rounds in taken]


def tokens_of(rounds: Sequence[Round], last: bool) -> int:
    """Tokens read by the draft (last) or by the target, prompts left out."""
    bare = [reads for reads in rounds if not is_prompt(reads)]
    return sum(len(read.tokens) for reads in bare for read in reads if read.last is last)


def compare(
    engine: Engine, text: str, requests: list[Request], batch: int, replies: list[list[int]]
) -> str:
    """One line of the table; fills `replies` or checks that they are the same again."""
    policy, capacity = parse_policy(text), capacity_for(requests, engine)
    with recording(engine, batch, capacity) as reads:
        run = engine.decode(policy, requests, max_new_tokens=NEW_TOKENS, batch=batch)
    replies[:] = replies or run.tokens
    assert run.tokens == replies
    ragged = list(rounds_of(reads))
    wide = list(padded(ragged, batch, capacity))
    seconds = []
    for _ in range(REPEATS):
        began = time.process_time()
        engine.decode(policy, requests, max_new_tokens=NEW_TOKENS, batch=batch)
        seconds.append(time.process_time() - began)
    rate = sum(len(reply) for reply in replies) / statistics.median(seconds)
    ragged_s, padded_s = seconds_of([ragged, wide])
    draft, target = (1 - tokens_of(ragged, k) / tokens_of(wide, k) for k in (True, False))
    return (
        f"{text:16}{batch:6d}{rate:10.0f}{ragged_s:10.3f}{padded_s:10.3f}"
        f"{padded_s / ragged_s:15.2f}{draft:12.1%}{target:12.1%}"
    )


def test_ragged_against_padded() -> None:
    engine = Engine(load_pair(resolve_pair(None, None, None), device="cpu"), COSTS)
    requests = requests_by_task(engine.pair, PER_TASK)
    replies: list[list[int]] = []
    with one_thread(), waiting_shown():
        print(f"{header()}, {len(requests)} prompts")
        print(f"{'':42}{'seconds of reads':>20}{'':15}{'tokens that are padding':>24}")
        titles = (("tokens/s", 10), ("ragged", 10), ("padded", 10), ("padded/ragged", 15))
        columns = "".join(f"{title:>{width}}" for title, width in titles)
        print(f"{'policy':16}{'batch':>6}{columns}{'draft':>12}{'target':>12}")
        for text in POLICIES:
            for batch in BATCHES:
                print(compare(engine, text, requests, batch, replies), flush=True)
