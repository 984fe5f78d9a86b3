"""A fake server in this process, and options of `observe` for it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.servers.options import ObserveOptions
from tests.experiments.servers import fake


@contextlib.contextmanager
def serving(*words: str) -> Iterator[Any]:
    """A running fake; `url` is where."""
    server: Any = fake.Fake(*words)
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def write_questions(path: Path, count: int = 8) -> Path:
    """Single-turn questions of different lengths, the third with two turns."""
    rows = [
        {
            "question_id": number,
            "category": "qa",
            "turns": [f"question {number} {'x' * (7 * number % 40)}"] + ["more"] * (number == 2),
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options_for(tmp_path: Path, url: str, **more: Any) -> ObserveOptions:
    """Greedy, one request at a time, nothing to warm up."""
    prompts = tmp_path / "questions.jsonl"
    if not prompts.exists():
        write_questions(prompts)
    how: dict[str, Any] = {
        "url": url, "engine": "llama.cpp", "prompts": prompts, "out": tmp_path / "seen",
        "warm_up": 0, "max_tokens": 64, "timeout": 2.0,
    }  # fmt: skip
    return ObserveOptions(**how | more)
