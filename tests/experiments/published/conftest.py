"""A Spec-Bench run in small, and its plain one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def answers(path: Path, rows: list[tuple[int, str, list[int], list[int], list[float]]]) -> Path:
    """question, category, tokens of each turn, accept_lengths, wall times."""
    lines = [
        {
            "question_id": question,
            "category": category,
            "model_id": "t-sps-d-float16-temp-0.0",
            "choices": [
                {
                    "turns": ["text"] * len(tokens),
                    "new_tokens": tokens,
                    "accept_lengths": lengths,
                    "wall_time": seconds,
                }
            ],
        }
        for question, category, tokens, lengths, seconds in rows
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def small_run(tmp_path: Path) -> tuple[Path, Path]:
    """Four replies priced as 0.1 s a round and 0.01 s a draft; gamma 5, then 7 or 4, ..."""
    run = answers(
        tmp_path / "run.jsonl",
        [
            (1, "qa", [8], [6, 1, 1], [0.3 + 0.05 + 0.07 + 0.06]),
            (2, "qa", [3], [2, 1], [0.2 + 0.05 + 0.04]),
            (3, "rag", [4], [1, 1, 1, 1], [0.4 + 0.05 + 0.04 + 0.03 + 0.02]),
            (4, "rag", [15], [6, 8, 1], [0.3 + 0.05 + 0.07 + 0.09]),
        ],
    )
    plain = answers(
        tmp_path / "plain.jsonl",
        [
            (1, "qa", [8], [1] * 8, [0.8]),
            (2, "qa", [3], [1] * 3, [0.3]),
            (3, "rag", [4], [1] * 4, [0.4]),
            (4, "rag", [15], [1] * 15, [1.5]),
        ],
    )
    return run, plain
