"""Answers of serving engines: JSON objects, in them the ordered verification steps of a request.

Two habits of engines decide where a step lies. The first token of a reply comes from the prefill,
without a draft, so the first step starts at output position 1; and steps without a draft are not
logged. So places are trusted only if the logged steps fill the reply: first + sum(accepted + 1)
must reach its length, and only the last step may go beyond it, cut by a limit or a stop. A request
that fails this is left out and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from traces.errors import InputError
from traces.importers.common import (
    Options,
    Reply,
    field,
    integer,
    integers,
    open_text,
    reply_length,
    trace_of,
)
from traces.importers.flags import UNKNOWN, Flags, round_flags
from traces.schema import Trace


class RequestSteps(NamedTuple):
    """The steps of one request.

    first: output position of the first one.
    place: for messages.
    """

    place: str
    request_id: str
    category: str
    prompt_tokens: int
    reply_tokens: int
    first: int
    accepted: Sequence[int]
    drafted: Sequence[int]
    token_ids: Sequence[int] | None


def flags_of(steps: RequestSteps) -> Flags | None:
    """[reply_tokens] flags; None if the steps' places are unknown.

    Raises InputError naming the request if a step accepted more than it drafted.
    """
    for number, (drafted, accepted) in enumerate(zip(steps.drafted, steps.accepted, strict=True)):
        if accepted > drafted:
            raise InputError(
                f"{steps.place}: step {number + 1} accepted {accepted} of {drafted} drafted tokens"
            )
    reply_length(steps.first + sum(steps.accepted) + len(steps.accepted), steps.place)
    before = np.full(steps.first, UNKNOWN, dtype=np.int8)
    flags = np.concatenate([before, round_flags(steps.drafted, steps.accepted)])
    last = steps.accepted[-1] + 1 if steps.accepted else 1
    if not len(flags) - last < steps.reply_tokens <= len(flags):
        return None
    return flags[: steps.reply_tokens]


def trace_of_steps(
    requests: Sequence[RequestSteps], options: Options, form: str, file: str, counts: dict[str, int]
) -> Trace:
    """The requests whose steps have a place in the reply, as a Trace; the others are counted.

    counts: further counts for the source. Token ids are kept if every request has them. Raises
    InputError if no request has steps with a place or, with options.strict, if one has none.
    """
    replies: list[Reply] = []
    steps = longest = 0
    with_tokens = all(request.token_ids is not None for request in requests)
    for request in requests:
        flags = flags_of(request)
        if flags is None or not len(flags):
            if options.strict:
                raise InputError(f"{request.place}: the steps do not fill the reply")
            continue
        tokens = np.asarray(request.token_ids, dtype=np.int32) if with_tokens else None
        about = request.request_id, request.category, request.prompt_tokens
        replies.append(Reply(*about, flags, tokens))
        steps += len(request.drafted)
        longest = max(longest, max(request.drafted, default=0))
    if not replies:
        raise InputError(
            f"{file}: the steps of no request fill its reply, so none has a place; do the lengths "
            "count one choice, and did every step draft?"
        )
    source = {
        "format": form,
        "files": [file],
        "steps": steps,
        "unplaced_requests": len(requests) - len(replies),
        **counts,
    }
    return trace_of(replies, options, source, depth=max(1, longest))


def text_of(path: Path) -> str:
    """The text of a file, gzipped or not; raises InputError if it is missing or no text."""
    try:
        with open_text(path) as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); compressed?") from None


def count_of(raw: dict[str, Any], name: str, place: str) -> int:
    """The count raw[name]; raises InputError naming place and field if it is none."""
    return integer(field(raw, name, place), name, place)


def counts_of(raw: dict[str, Any], name: str, place: str) -> list[int]:
    """The list of counts raw[name]; raises InputError naming place and field if it is none."""
    return [int(count) for count in integers(field(raw, name, place), name, place)]
