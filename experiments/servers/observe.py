"""`gammalab observe`: prompts sent to a running server, and all that it tells of the answers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.common.frames import csv_of, described
from experiments.servers.answers import FILE, AnswerFile
from experiments.servers.columns import OBSERVED, observed_frame, observed_text
from experiments.servers.engines import find_engine
from experiments.servers.options import ObserveOptions
from experiments.servers.plan import Seat, Turn, turns_of
from experiments.servers.session import Session, missing
from real_backend.command_line import Result
from real_backend.progress import progress
from real_backend.prompts import Question, questions_hash, read_questions
from traces.errors import InputError, warn


def run(options: ObserveOptions) -> Result:
    """Play what is still to be played. Findings: requests that got no answer, or, with --verify, a
    contradicted recommendation.

    Raises InputError for what the user can mend.
    """
    if options.verify:
        from experiments.servers.verify import verify

        return verify(options)
    lengths = options.lengths
    if options.server_command is None and len(lengths) > 1:
        raise InputError(
            f"--lengths {','.join(map(str, lengths))} needs --server-command; without it, name the "
            "one length that the server drafts now, and observe again after each restart"
        )
    kept, findings = play(options, [Seat(str(n), n) for n in lengths], options.out)
    frame = observed_frame(kept.answers)
    content = {
        "answers": str(options.out / FILE),
        "asked": kept.asked,
        "columns": described(OBSERVED),
        "rows": frame.to_dict("records"),
    }
    return Result(observed_text(kept, frame), content, csv_of(OBSERVED, frame), findings)


def play(
    options: ObserveOptions, seats: Sequence[Seat], folder: Path, **more: Any
) -> tuple[AnswerFile, list[str]]:
    """The answers of these seats, and a line on those that are missing; what was answered before
    is not asked again. more: what else all answers of the folder share.
    """
    engine = find_engine(options.engine)
    questions = read_questions(options.prompts, options.limit)
    path = folder / FILE
    if options.force:
        path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    kept = AnswerFile(folder, settings_of(options, questions) | more)
    every = turns_of(questions, seats, options.blocks, options.seed)
    turns = [(turn, missing(turn, kept)) for turn in every]
    total = sum(len(question.turns) for question in questions) * len(seats)
    left = sum(len(places) for _, places in turns)
    with progress(total, "observe", total - left) as step:
        session = Session(options, engine, kept, step)
        try:
            asyncio.run(_until_told([turn for turn, places in turns if places], session))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
    if kept.refused:
        warn(f"{len(kept.refused)} requests were refused, the first: {_first(kept.refused)}")
    findings = []
    if session.failed:
        findings.append(
            f"{len(session.failed)} requests got no answer, the first: {_first(session.failed)}; "
            "the same command asks them again"
        )
    return kept, findings


async def _until_told(turns: Sequence[Turn], session: Session) -> None:
    """Play; SIGTERM ends it as Ctrl-C does, so that no server of ours is left behind."""
    task = asyncio.current_task()
    assert task is not None
    with contextlib.suppress(NotImplementedError, RuntimeError):  # not on every system, or thread
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await session.play(turns)


def _first(reasons: dict[Any, str]) -> str:
    return next(iter(reasons.values()))


def settings_of(options: ObserveOptions, questions: Sequence[Question]) -> dict[str, Any]:
    """The settings that all answers of a folder share, so that they can be compared."""
    return {
        "engine": options.engine,
        "questions_sha256": questions_hash(list(questions)),
        "questions": len(questions),
        "blocks": options.blocks,
        "concurrency": options.concurrency,
        "rate": options.rate,
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "seed": options.seed,
    }
