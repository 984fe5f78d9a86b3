"""Record a Trace from real models: `python -m real_backend.recording.capture`.

Per request: decode the reply (`coupling.py`), then find what the drafter would have offered at
every position of it, and how much of that the target takes (`annotation.py`).
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from real_backend.command_line import Result, run_module
from real_backend.load_pair import Pair, pair_from, versions
from real_backend.options import CaptureOptions, refuse_shape
from real_backend.pair_spec import resolve_pair
from real_backend.progress import Step, progress
from real_backend.prompts import (
    EMBEDDED_PROMPTS,
    Question,
    Request,
    alike,
    decode_reply,
    questions_hash,
    read_questions,
    request_for,
)
from real_backend.recording.annotation import annotate
from real_backend.recording.coupling import CaptureSettings, decode_coupled
from real_backend.recording.replies import Replies
from traces.errors import InputError
from traces.schema import Trace, TraceMeta
from traces.store import content_hash
from traces.trace_writer import TraceWriter


def make_meta(pair: Pair, questions: list[Question], settings: CaptureSettings) -> TraceMeta:
    """The trace's provenance; no clock in it, so that a resumed capture has the same bytes."""
    about = pair.describe()
    return TraceMeta(
        pair=pair.name,
        target=about["target"],
        draft=about["draft"],
        tokenizer_sha256=pair.tokenizer_sha256,
        weights_sha256=pair.weights_sha256,
        device=about["device_name"],
        dtype=pair.dtype,
        exactness="exact" if settings.temperature == 0.0 else "in-law",
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
        depth=settings.depth,
        max_new_tokens=settings.max_new_tokens,
        max_context=pair.max_context,
        prompts_sha256=questions_hash(questions),
        versions=versions(),
        drafter=pair.drafter.kind,
    )


def _capture_batch(
    pair: Pair,
    batch: list[tuple[int, Question]],
    settings: CaptureSettings,
    writer: TraceWriter,
    recorded: Replies | None,
    step: Step,
) -> None:
    """All turns of a few questions; `batch` pairs each with the row of its first turn."""
    replies: dict[int, list[str]] = {first: [] for first, _ in batch}
    for turn in range(max(len(question.turns) for _, question in batch)):
        live = [(first, question) for first, question in batch if turn < len(question.turns)]
        requests = _requests_of_turn(pair, live, turn, replies)
        live = [(first, question) for first, question in live if first in requests]
        # A batch is kept or redone as a whole: padding may change the last bits of its neighbours.
        if all(writer.has(first + turn) for first, _ in live):
            for first, _ in live:
                tokens = writer.read(first + turn).token_ids
                assert tokens is not None
                replies[first].append(decode_reply(pair, tokens.tolist()))
            continue
        asked = list(requests.values())
        if recorded is None:
            decoded = decode_coupled(pair, asked, settings)
        else:
            decoded = [recorded.of(pair, request, settings) for request in asked]
        for (first, request), one in zip(requests.items(), decoded, strict=True):
            writer.append(first + turn, annotate(pair, request, one, settings, writer.meta))
            replies[first].append(decode_reply(pair, one.tokens))
            step()


def _requests_of_turn(
    pair: Pair, live: list[tuple[int, Question]], turn: int, replies: dict[int, list[str]]
) -> dict[int, Request]:
    """The requests of one turn by the row of their question's first turn.

    A dialogue that has outgrown the context ends, with a warning; what it has given stays.
    """
    requests: dict[int, Request] = {}
    for first, question in live:
        if len(replies[first]) < turn:  # ended before
            continue
        try:
            requests[first] = request_for(pair, question, turn, replies[first])
        except InputError as error:
            if turn == 0:
                raise
            tqdm.write(f"capture: {error}; this dialogue ends before it", file=sys.stderr)
    return requests


@torch.inference_mode()
def capture(
    pair: Pair,
    questions: list[Question],
    out: Path,
    settings: CaptureSettings,
    *,
    replies: Path | None = None,
    resume: bool = False,
    force: bool = False,
) -> Trace:
    """Record every turn of every question into the Parquet file `out`.

    replies: a trace whose replies, sampling and limit are taken. Each finished request is on disk
    at once; after a kill, resume=True goes on and ends with the same bytes. Raises InputError if
    `out` exists (unless force), a prompt does not fit, the replies are another target's, the disk
    is full.
    """
    if out.exists() and not force:
        raise InputError(f"{out} exists; choose another name or pass --force")
    recorded = None if replies is None else Replies(replies, pair)
    settings = settings if recorded is None else recorded.settings(settings)
    settings = dataclasses.replace(settings, depth=min(settings.depth, pair.drafter.most))
    for question in questions:  # find a prompt that does not fit before hours of decoding
        request_for(pair, question, 0, [])
    meta = make_meta(pair, questions, settings)
    if force and not resume:
        TraceWriter.discard_partial(out)
    about = pair.describe()
    conditions = {"batch": settings.batch, "threads": about["threads"], "engine": about["engine"]}
    if recorded is not None:
        conditions["replies"] = content_hash(recorded.trace)
    writer = TraceWriter(out, meta, resume=resume, conditions=conditions)
    first_rows = np.cumsum([0] + [len(q.turns) for q in questions])
    total = int(first_rows[-1])
    work = list(zip(first_rows[:-1].tolist(), questions, strict=True))
    done = sum(writer.has(row) for row in range(total))
    with progress(total, "capture", done) as step:
        for begin in range(0, len(work), settings.batch):
            some = work[begin : begin + settings.batch]
            _capture_batch(pair, some, settings, writer, recorded, step)
    return writer.finish(total, overwrite=force)


def run(options: CaptureOptions) -> Result:
    """`gammalab capture`."""
    o, named = options, options.pair
    refuse_shape(named, "capture")
    settings = CaptureSettings(o.max_new_tokens, o.temperature, o.top_p, o.depth, o.seed, o.batch)
    resolve_pair(named.name, named.target, named.draft)  # one that cannot be is told first
    if o.prompts is None and not named.is_embedded:
        raise InputError("--prompts is missing; only the embedded pair brings its own")
    questions = alike(read_questions(o.prompts or EMBEDDED_PROMPTS, o.limit), o.per_task)
    if o.out.exists() and not o.force:
        raise InputError(f"{o.out} exists; choose another name or pass --force")
    # Begun with so many threads: another trial might choose otherwise.
    threads = int(TraceWriter.conditions_of(o.out).get("threads", 0)) if o.resume else 0
    pair = pair_from(named, threads=threads)
    again = {"resume": o.resume, "force": o.force}
    trace = capture(pair, questions, o.out, settings, replies=o.replies, **again)
    print(f"{o.out}: {trace.requests} replies, {trace.positions} tokens", file=sys.stderr)
    return Result()


if __name__ == "__main__":
    sys.exit(run_module("real_backend.recording.capture", __doc__, CaptureOptions, run))
