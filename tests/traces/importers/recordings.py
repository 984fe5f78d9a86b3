"""Files of recorded rounds made by hand, and the flags of a trace."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from traces.schema import Trace

Rows = Sequence[dict[str, Any]]


def write_lines(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags_in(trace: Trace) -> list[int]:
    """The flags that a trace holds."""
    unknown = np.zeros(trace.positions, bool) if trace.censored is None else trace.censored
    return np.where(trace.accept_len > 0, 1, np.where(unknown, -1, 0)).tolist()


def answer(question: int, rounds: list[int], **changes: Any) -> dict[str, Any]:
    """A Spec-Bench line of one turn that these rounds fill; changes go into choices[0]."""
    choice = {
        "index": 0,
        "turns": ["text"],
        "decoding_steps": [len(rounds)],
        "new_tokens": [sum(rounds)],
        "wall_time": [1.0],
        "accept_lengths": rounds,
    }
    model = "t-7b-sps-68m-float16-temp-0.0"
    row = {"question_id": question, "category": "writing", "model_id": model}
    return row | {"choices": [choice | changes]}
