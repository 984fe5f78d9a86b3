"""acc-len: per output position, the tokens that a round started there would emit.

JSON lines with `id`, `prompt_token_ids`, `generated_token_ids` and one or more objects that hold
`acc_len`: a list with one number per generated token, accepted tokens and the bonus token together,
so at least 1. Such files come from running a drafter over finished replies, and may end before the
reply does: their authors then replay it as far as the list goes, and so does the trace.

Every number is taken at its word: accept_len is acc_len - 1, clipped at the end of the reply. Where
a position's successor does not continue it (accept_len one less), the drafter sees more than tokens
(EAGLE and its kin); such positions are counted. The longest draft of the recording is unknown; the
trace may be replayed to the depth of the longest acceptance. A greater depth makes the positions
that reach it censored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import InputError
from traces.importers.common import Options, Reply, field, integers, json_lines, label, trace_of
from traces.importers.flags import ACCEPTED, REJECTED, UNKNOWN
from traces.schema import Trace

NAME = "acc-len"
_LIST = "acc_len"
_ITSELF = "."  # the --key of a list that stands in the row itself

Lengths = npt.NDArray[np.int32]


def read(path: Path, options: Options) -> Trace:
    """The rows of an acc-len file as a Trace; raises InputError naming file and line.

    A list longer than its reply is cut. One that is shorter cuts the reply or, with options.pad, is
    padded with unknown positions. Both are counted; with options.strict they are errors.
    """
    options.only(NAME, "key", "pad")
    key = options.key
    replies: list[Reply] = []
    lengths: list[Lengths] = []
    padded: list[npt.NDArray[np.bool_]] = []
    mended: Counter[str] = Counter()
    for where, raw in json_lines(path):
        key = key or _only_key(raw, where)
        name = label(field(raw, "id", where), "id", where)
        prompt, tokens = (
            integers(field(raw, part, where), part, where)
            for part in ("prompt_token_ids", "generated_token_ids")
        )
        emitted = integers(_object_at(raw, key, where)[_LIST], _LIST, where, low=1)
        if options.strict and len(emitted) != len(tokens):
            raise InputError(
                f"{where}: {_LIST} has {len(emitted)} entries for {len(tokens)} generated tokens"
            )
        surplus = len(emitted) - len(tokens)
        if surplus > 0:
            mended.update(cut_lists=1, cut_entries=surplus)
        elif surplus < 0 and options.pad:
            mended.update(padded_replies=1, padded_positions=-surplus)
        elif surplus < 0:
            mended.update(cut_replies=1, cut_positions=-surplus)
            tokens = tokens[: len(emitted)]
        if not len(tokens):
            mended["empty_replies_left_out"] += 1
            continue
        accept_len, unknown = _fit(emitted, len(tokens), mended)
        flags = np.where(unknown, UNKNOWN, np.where(accept_len > 0, ACCEPTED, REJECTED))
        category = label(raw.get("category", raw.get("task", "all")), "category", where)
        replies.append(Reply(name, category, len(prompt), flags.astype(np.int8), tokens))
        lengths.append(accept_len)
        padded.append(unknown)
    source: dict[str, Any] = {"format": NAME, "files": [path.name], "key": key}
    if not replies:
        raise InputError(f"{path} holds no reply with a token")
    depth = max(1, max(int(part.max()) for part in lengths))
    runs = _runs(lengths, padded, depth if options.depth > depth else 0)
    source |= {
        "mended": {k: n for k, n in mended.items() if n},
        "off_chain": _off_chain(lengths, padded, depth),
    }
    return trace_of(replies, options, source, depth=depth, runs=runs)


def _only_key(raw: dict[str, Any], where: str) -> str:
    """The path of the only object that holds acc_len."""
    found = list(_keys(raw))
    if not found:
        raise InputError(f"{where}: no object holds {_LIST!r}")
    if len(found) > 1:
        raise InputError(f"{where}: several objects hold {_LIST!r}; --key {' or '.join(found)}?")
    return found[0]


def _keys(raw: dict[str, Any], path: str = "") -> Iterator[str]:
    if _LIST in raw:
        yield path or _ITSELF
    for name, value in raw.items():
        if isinstance(value, dict):
            yield from _keys(value, f"{path}.{name}" if path else name)


def _object_at(raw: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    """The object at a dotted path, which holds acc_len; a name with dots in it works as well."""
    found: Any = raw
    if key in raw:
        found = raw[key]
    elif key != _ITSELF:
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
    if not isinstance(found, dict) or _LIST not in found:
        raise InputError(f"{where}: no {_LIST!r} at key {key!r}")
    return found


def _fit(
    emitted: Lengths, tokens: int, mended: Counter[str]
) -> tuple[Lengths, npt.NDArray[np.bool_]]:
    """accept_len [tokens], and where it is padding; acceptances behind the end are counted."""
    accept_len = np.zeros(tokens, dtype=np.int32)
    known = min(len(emitted), tokens)
    accept_len[:known] = emitted[:known] - 1
    left = np.arange(tokens, 0, -1)
    mended["clipped_positions"] += int((accept_len > left).sum())
    return np.minimum(accept_len, left).astype(np.int32), np.arange(tokens) >= known


def _runs(
    lengths: list[Lengths], padded: list[npt.NDArray[np.bool_]], longest: int
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_]]:
    """accept_len and censored of all replies: padding, and acceptances of `longest` (0: none)."""
    censored = []
    for accept_len, unknown in zip(lengths, padded, strict=True):
        left = np.arange(len(accept_len), 0, -1)
        bound = (accept_len == longest) & (accept_len < left) & (longest > 0)
        censored.append(unknown | bound)
    joined = np.minimum(np.concatenate(lengths), np.iinfo(np.int16).max)
    return joined.astype(np.int16), np.concatenate(censored)


def _off_chain(lengths: list[Lengths], padded: list[npt.NDArray[np.bool_]], longest: int) -> int:
    """Positions that accept something, but whose successor does not accept exactly the rest.

    Behind the longest acceptance the successor may accept as much again.
    """
    odd = 0
    for accept_len, unknown in zip(lengths, padded, strict=True):
        here, after = accept_len[:-1], accept_len[1:]
        free = (here == longest) & (after >= here - 1)
        odd += int(((here > 0) & (after != here - 1) & ~free & ~unknown[1:]).sum())
    return odd
