"""Drafters recorded on the replies of another trace: as if they had been there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from real_backend.load_pair import load_pair
from real_backend.pair_spec import PairSpec
from real_backend.prompts import Request, read_questions
from real_backend.recording.capture import capture
from real_backend.recording.coupling import CaptureSettings, decode_coupled
from real_backend.recording.replies import Replies
from tests.specimens import few_or_slow, write_prompts
from traces.errors import InputError
from traces.schema import OPTIONAL, Trace
from traces.store import read_trace, write_trace

COLUMNS = ("accept_len", "token_ids", "top1_prob", "entropy", "accept_prob", *OPTIONAL)


@pytest.fixture(scope="module")
def looks(pair_folder: Path) -> Any:
    """The tiny target with a look-up."""
    spec = PairSpec("tiny+lookup", str(pair_folder / "target"), "lookup")
    return load_pair(spec, device="cpu")


def same(one: Trace, other: Trace) -> None:
    for name in COLUMNS:
        ours, theirs = getattr(one, name), getattr(other, name)
        assert (ours is None) == (theirs is None), name
        assert ours is None or np.allclose(ours, theirs, atol=1e-5), name


@pytest.mark.parametrize("turns", [1, 2])
def test_greedy_drafters_record_what_they_would_have(
    pair: Any, looks: Any, tmp_path: Path, turns: int
) -> None:
    questions = read_questions(write_prompts(tmp_path / "p.jsonl", questions=4, turns=turns))
    settings = CaptureSettings(max_new_tokens=24, depth=6)
    first = tmp_path / "model.parquet"
    capture(pair, questions, first, settings)
    alone = capture(looks, questions, tmp_path / "alone.parquet", settings)
    other = dataclasses.replace(settings, max_new_tokens=99)  # the recording's limit is taken
    same(alone, capture(looks, questions, tmp_path / "on.parquet", other, replies=first))
    again = capture(pair, questions, tmp_path / "again.parquet", settings, replies=first)
    same(again, read_trace(first))
    bare = tmp_path / "bare.parquet"  # the target is asked for what it lacks
    write_trace(dataclasses.replace(read_trace(first), target_entropy=None), bare)
    same(alone, capture(looks, questions, tmp_path / "b.parquet", settings, replies=bare))


@pytest.mark.parametrize("recorder", few_or_slow(["lookup", "model"], ["lookup"]))
@pytest.mark.slow
def test_a_sampled_reply_tells_what_a_draft_proposed(
    pair: Any, looks: Any, tmp_path: Path, recorder: str
) -> None:
    """P(accepted) is the sum of min(p, q); a rejected proposal is of the law (q - p)+, whoever
    recorded the reply, also with draws of the same seed.
    """
    from scipy import stats

    runs, prompt = 3_000, [0, 2, 9, 13, 34, 3]
    asked = [Request(str(k), "qa", prompt) for k in range(runs)]
    settings = CaptureSettings(max_new_tokens=1, depth=1, temperature=1.0, seed=5, batch=runs)
    with torch.inference_mode():
        first = pair if recorder == "model" else looks
        replies = [one.tokens for one in decode_coupled(first, asked, settings)]
        target, draft = (
            torch.softmax(m.module(torch.tensor([prompt])).logits[0, -1, :64], -1).double().numpy()
            for m in (pair.target, pair.draft)
        )
    seen = np.bincount([tokens[0] for tokens in replies], minlength=64)
    assert chi_square(stats, seen, target) > 1e-3
    meta = dataclasses.replace(lookup_meta(looks), temperature=1.0, max_new_tokens=1, depth=1)
    trace = Trace(
        meta=meta,
        offsets=np.arange(runs + 1),
        prompt_tokens=np.full(runs, len(prompt), dtype=np.int32),
        request_id=tuple(one.request_id for one in asked),
        category=("qa",) * runs,
        accept_len=np.zeros(runs, dtype=np.int16),
        token_ids=np.asarray([tokens[0] for tokens in replies], dtype=np.int32),
    )
    write_trace(trace, tmp_path / "t.parquet")
    recorded = Replies(tmp_path / "t.parquet", pair)
    with torch.inference_mode():
        found = [recorded.of(pair, one, settings) for one in asked]
    proposals = np.asarray([one.proposals[0] for one in found])
    taken = proposals >= 0
    assert (proposals[taken] == trace.token_ids[taken]).all()  # type: ignore[index]
    likely = np.minimum(target, draft).sum()
    assert taken.mean() == pytest.approx(likely, abs=4 * 0.5 / np.sqrt(runs))
    rejected = np.bincount(-1 - proposals[~taken], minlength=64)
    law = np.maximum(draft - target, 0.0)
    assert chi_square(stats, rejected, law / law.sum()) > 1e-3
    everything = np.bincount(np.where(taken, proposals, -1 - proposals), minlength=64)
    assert chi_square(stats, everything, draft) > 1e-3
    assert chi_square(stats, everything, target) < 1e-6


def chi_square(stats: Any, seen: np.ndarray, law: np.ndarray) -> float:
    """p-value; tokens that are expected fewer than five times count as one."""
    expected = law * seen.sum()
    big = expected >= 5
    observed = np.append(seen[big], seen[~big].sum())
    wanted = np.append(expected[big], expected[~big].sum())
    keep = wanted > 0
    assert observed[~keep].sum() == 0
    scaled = wanted[keep] * observed.sum() / wanted.sum()
    return float(stats.chisquare(observed[keep], scaled).pvalue)


def lookup_meta(pair: Any) -> Any:
    from real_backend.recording.capture import make_meta

    return make_meta(pair, [], CaptureSettings(temperature=1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": None}, "the trace holds no token ids"),
        ({"target": "another"}, "its target is 'another'"),
        ({"tokenizer_sha256": "ff"}, "with another tokenizer or name"),
        ({"request_id": ("9.1", "2.1")}, r"request 1\.1 is not in it"),
        (
            {"prompt_tokens": np.asarray([99, 99], dtype=np.int32)},
            "a prompt of 99 tokens there",
        ),
    ],
)
def test_replies_of_something_else_are_refused(
    looks: Any, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    questions = read_questions(write_prompts(tmp_path / "p.jsonl", questions=2))
    settings = CaptureSettings(max_new_tokens=6, depth=2)
    trace = capture(looks, questions, tmp_path / "t.parquet", settings)
    named = {f.name for f in dataclasses.fields(trace.meta)}
    meta = {name: value for name, value in change.items() if name in named}
    rest = {name: value for name, value in change.items() if name not in named}
    wrong = dataclasses.replace(trace, meta=dataclasses.replace(trace.meta, **meta), **rest)
    write_trace(wrong, tmp_path / "w.parquet")
    with pytest.raises(InputError, match=message):
        capture(looks, questions, tmp_path / "o.parquet", settings, replies=tmp_path / "w.parquet")
