"""An EAGLE-3 head that was trained a little, and a recording of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from real_backend.load_pair import Pair, load_pair
from real_backend.pair_spec import resolve_pair
from real_backend.prompts import Request, read_questions, requests_of_trace
from real_backend.recording.capture import capture
from real_backend.recording.coupling import CaptureSettings
from tests.real_backend.drafters.plain_eagle3 import Plain, pair_with, replies_of, train
from tests.specimens import save_eagle3, write_prompts
from traces.schema import Trace


@pytest.fixture(scope="session")
def trained(deep_target: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, Plain]:
    """A pair whose head often agrees with the target, and its plain reading."""
    folder = save_eagle3(
        tmp_path_factory.mktemp("trained") / "head", deep_target, num_key_value_heads=2
    )
    module = load_pair(resolve_pair(None, str(deep_target), "lookup"), device="cpu").target.module
    questions = read_questions(write_prompts(folder.parent / "p.jsonl", questions=6))
    pair = pair_with(deep_target, folder)
    settings = CaptureSettings(max_new_tokens=40, depth=4)
    trace = capture(pair, questions, folder.parent / "t.parquet", settings)
    replies = [
        request.prompt_ids + reply
        for request, reply in zip(
            requests_of_trace(questions, trace, pair), replies_of(trace), strict=True
        )
    ]
    train(folder, Plain(folder, module), replies)
    pair = pair_with(deep_target, folder)
    return pair, Plain(folder, pair.target.module)


@pytest.fixture(scope="session")
def recorded(
    trained: tuple[Pair, Plain], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trace, list[Request]]:
    """A greedy trace of the trained head, and the requests it recorded."""
    folder = tmp_path_factory.mktemp("recorded")
    questions = read_questions(write_prompts(folder / "p.jsonl", questions=5))
    settings = CaptureSettings(max_new_tokens=40, depth=6)
    trace = capture(trained[0], questions, folder / "t.parquet", settings)
    return trace, requests_of_trace(questions, trace, trained[0])
