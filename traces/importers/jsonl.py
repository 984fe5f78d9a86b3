"""jsonl: the format for recordings that have none of their own; see docs/importing.md.

One request per line: {"id", "task"?, "prompt_tokens"?, "token_ids"?} and one of
"rounds": [[drafted, accepted], ...] with "tokens"?, the reply's length if the last round was cut;
"accepts": [1, 0, -1, ...], one flag per output position: accepted, rejected, unknown.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from traces.errors import InputError
from traces.importers.common import (
    Options,
    Reply,
    field,
    integer,
    integers,
    json_lines,
    label,
    reply_length,
    trace_of,
)
from traces.importers.flags import UNKNOWN, Flags, accept_lengths, round_flags
from traces.schema import Trace

NAME = "jsonl"
_FIELDS = ("id", "task", "prompt_tokens", "token_ids", "rounds", "tokens", "accepts")


def read(path: Path, options: Options) -> Trace:
    """The requests of a file in our own format; raises InputError naming file and line.

    Nothing is mended: whoever writes this format can write it right.
    """
    options.only(NAME)
    replies: list[Reply] = []
    counts: Counter[str] = Counter()
    depth = 1
    for where, raw in json_lines(path):
        strange = sorted(set(raw) - set(_FIELDS))
        if strange:
            raise InputError(f"{where}: unknown field {strange[0]!r}; known: {', '.join(_FIELDS)}")
        flags, deepest, rounds = _flags(raw, where)
        counts["rounds"] += rounds
        if not len(flags):
            raise InputError(f"{where}: the reply is empty")
        tokens = None
        if "token_ids" in raw:
            tokens = integers(raw["token_ids"], "token_ids", where)
            if len(tokens) != len(flags):
                raise InputError(
                    f"{where}: token_ids has {len(tokens)} entries, the reply {len(flags)} tokens"
                )
        prompt = integer(raw.get("prompt_tokens", 0), "prompt_tokens", where)
        name, task = field(raw, "id", where), raw.get("task", "all")
        about = label(name, "id", where), label(task, "task", where), prompt
        replies.append(Reply(*about, flags, tokens))
        depth = max(depth, deepest)
    with_tokens = sum(reply.token_ids is not None for reply in replies)
    if with_tokens not in (0, len(replies)):
        raise InputError(f"{path}: {with_tokens} of {len(replies)} requests have token_ids; or all")
    source: dict[str, Any] = {"format": NAME, "files": [path.name], **counts, "violations": 0}
    return trace_of(replies, options, source, depth=depth)


def _flags(raw: dict[str, Any], where: str) -> tuple[Flags, int, int]:
    """The flags of a request, its deepest draft (or acceptance), and how many rounds it has."""
    if ("rounds" in raw) == ("accepts" in raw):
        raise InputError(f"{where}: give either 'rounds' or 'accepts'")
    if "accepts" in raw:
        flags = integers(raw["accepts"], "accepts", where, low=UNKNOWN).astype(np.int8)
        if (np.asarray(raw["accepts"]) > 1).any():
            raise InputError(f"{where}: 'accepts' may hold 1, 0 and -1 only")
        runs, _ = accept_lengths(flags, np.array([0, len(flags)]))
        return flags, int(runs.max(initial=0)), 0
    rounds = raw["rounds"]
    pairs = isinstance(rounds, list) and all(isinstance(r, list) and len(r) == 2 for r in rounds)
    if not pairs:
        raise InputError(f"{where}: 'rounds' must be a list of [drafted, accepted]")
    drafted, accepted = (integers([r[k] for r in rounds], "rounds", where).tolist() for k in (0, 1))
    for number, (d, n) in enumerate(zip(drafted, accepted, strict=True), start=1):
        if n > d:
            raise InputError(f"{where}: round {number} accepted {n} of {d} drafted tokens")
    reply_length(sum(accepted) + len(accepted), where)
    flags = round_flags(drafted, accepted)
    if "tokens" in raw:
        tokens = integer(raw["tokens"], "tokens", where, low=1)
        if not rounds or not len(flags) - accepted[-1] - 1 < tokens <= len(flags):
            raise InputError(f"{where}: the rounds emit {len(flags)} tokens, 'tokens' is {tokens}")
        flags = flags[:tokens]
    return flags, max(drafted, default=0), len(rounds)
