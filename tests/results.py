"""What tests of comparison, validation and report make for themselves: traces, timings, results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from traces.schema import Trace, TraceMeta
from traces.store import write_trace
from traces.timing import Cell, Timing


def make_trace(
    accept_len: Sequence[Sequence[int]],
    request_id: Sequence[str],
    category: Sequence[str],
    *,
    signals: bool = False,
    exactness: str = "exact",
    depth: int = 4,
    censored: Sequence[Sequence[bool]] | None = None,
) -> Trace:
    """One reply per row of accept_len, prompts of 8 tokens, token ids counting up."""
    lengths = [len(row) for row in accept_len]
    positions = sum(lengths)
    shape = (positions, depth)
    meta = TraceMeta(
        pair="tiny",
        target="target",
        draft="draft",
        tokenizer_sha256="aa",
        device="a CPU",
        dtype="float32",
        exactness=exactness if censored is None else "censored",
        depth=depth,
        max_new_tokens=max(lengths),
    )
    return Trace(
        meta=meta,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompt_tokens=np.full(len(lengths), 8, dtype=np.int32),
        request_id=tuple(request_id),
        category=tuple(category),
        censored=None if censored is None else np.concatenate(list(map(np.asarray, censored))),
        accept_len=np.concatenate([np.asarray(row, dtype=np.int16) for row in accept_len]),
        token_ids=np.arange(positions, dtype=np.int32),
        top1_prob=np.full(shape, 0.9, dtype=np.float32) if signals else None,
        entropy=np.full(shape, 0.3, dtype=np.float32) if signals else None,
    )


def make_timing(
    draft_s: float = 1.0, verify_s: float = 10.0, control_s: float = 0.0, **meta: str
) -> Timing:
    """A draft step and a verify cost the same whatever they read; prefill costs 5 s."""
    cells = [Cell("prefill", 1, t, 0, 5.0, 5.0, 5.0, 9) for t in (8, 64)]
    for context in (8, 64):
        cells += [Cell("first", 1, t, context, draft_s, draft_s, draft_s, 9) for t in (1, 2)]
        cells += [Cell("draft", 1, 1, context, draft_s, draft_s, draft_s, 9)]
        cells += [Cell("verify", 1, t, context, verify_s, verify_s, verify_s, 9) for t in (1, 9)]
    about = {"pair": "tiny", "tokenizer_sha256": "aa", "device": "cpu", "device_name": "a CPU"}
    return Timing(about | {"dtype": "float32"} | meta, tuple(cells), 0.0, control_s)


def lively_trace(questions: int = 12, reply: int = 24, seed: int = 3) -> Trace:
    """Two tasks, one much easier than the other, two turns a question; with signals."""
    generator = np.random.default_rng(seed)
    rows, ids, tasks = [], [], []
    for number in range(questions):
        for turn in (1, 2):
            easy = generator.random(reply) < (0.9 if number % 2 else 0.4)
            run, lengths = 0, []
            for flag in easy[::-1]:
                run = run + 1 if flag else 0
                lengths.append(run)
            rows.append(lengths[::-1])
            ids.append(f"{number}.{turn}")
            tasks.append("easy_talk" if number % 2 else "hard")
    return make_trace(rows, ids, tasks, signals=True)


def save_inputs(folder: Path, **meta: str) -> tuple[Path, Path]:
    """lively_trace and make_timing as files."""
    trace, timing = folder / "trace.parquet", folder / "timing.json"
    write_trace(lively_trace(), trace)
    make_timing(**meta).write(timing)
    return trace, timing
