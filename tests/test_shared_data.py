"""Other people's files, where they are at hand: ../shared/data beside the checkout."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from real_backend.prompts import read_questions

QUESTIONS = Path(__file__).parents[2] / "shared" / "data" / "spec_bench" / "question.jsonl"


@pytest.mark.skipif(
    not QUESTIONS.exists(), reason="no Spec-Bench question file beside the checkout"
)
def test_spec_bench_questions_work_as_they_are() -> None:
    questions = read_questions(QUESTIONS)
    tasks = Counter(question.task for question in questions)
    assert len(questions) == 480 and set(tasks.values()) == {80}
    assert set(tasks) == {
        "conversation", "translation", "summarization", "qa", "math_reasoning", "rag",
    }  # fmt: skip
    assert all(len(q.turns) == 2 for q in questions if q.task == "conversation")
