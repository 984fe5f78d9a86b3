"""Answers of servers as clients keep them: JSON lines, lists, wrapped in `data`, or streamed.

One answer is one record, however many chunks it came in. A chunk is a line "data: {...}" of an
event stream, or an object whose `object` ends in ".chunk" (OpenAI's protocol, a chunk a line).
Chunks of one `id` are one answer, also where several streams are interleaved; those without an id
(llama.cpp's /completion) are one up to "data: [DONE]", `stop: true` or `metrics`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from traces.errors import InputError
from traces.json_text import parse_json

_ANSWER = ("choices", "outputs", "meta_info", "timings", "usage")  # fields of an answer itself
_ABOUT = ("category", "task")  # what a wrapper may say of the answers in it
_WRAPPERS = 4  # one in the other, at most
_SSE = re.compile(r":|(event|id|retry):")  # lines of an event stream that carry no data


class Records(NamedTuple):
    """rows: (place for messages, answer). cut_lines: lines of a stream that broke off, 0 or 1."""

    rows: list[tuple[str, dict[str, Any]]]
    cut_lines: int


class _Line(NamedTuple):
    """place: for messages; value: JSON, None for the end of a stream; streamed: behind "data:"."""

    place: str
    value: Any
    streamed: bool


def records(text: str, file: str, sought: str) -> Records:
    """The answers in a file; sought: what a log would hold.

    Raises InputError naming the line that is no JSON object, what was sought if no line begins
    like JSON, or the line where the only stream breaks off.
    """
    if not re.search(r"^\s*(data:\s*)?[{\[]", text, re.M):
        raise InputError(f"{file} holds neither JSON nor {sought}; is it the right log?")
    cut = 0
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        lines, cut = _lines(text, file)
    else:
        whole = parse_json(text, file)
        rows = whole if isinstance(whole, list) else [whole]
        lines = [_Line(f"{file}, object {n}", row, False) for n, row in enumerate(rows, start=1)]
    found = list(_answers(lines))
    if cut and not found:
        raise InputError(f"{file}: the stream breaks off in its first chunk; record it to its end")
    return Records(found, cut)


def _lines(text: str, file: str) -> tuple[list[_Line], int]:
    """JSON lines and lines of event streams; and 1 if a stream breaks off in the last line."""
    found: list[_Line] = []
    numbered = [(n, line.strip()) for n, line in enumerate(text.split("\n"), start=1)]
    numbered = [(n, line) for n, line in numbered if line]
    for number, line in numbered:
        place, streamed = f"{file}, line {number}", line.startswith("data:")
        body = line.removeprefix("data:").strip()
        if streamed and body == "[DONE]":
            found.append(_Line(place, None, True))
        elif streamed or not _SSE.match(line):
            try:
                found.append(_Line(place, parse_json(body, place), streamed))
            except InputError:
                in_stream = streamed or (found and found[-1].streamed)
                if in_stream and number == numbered[-1][0]:
                    return found, 1
                raise
    return found, 0


def _answers(lines: Sequence[_Line]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The answers, a stream where its first chunk stands."""
    whole: dict[Any, list[dict[str, Any]]] = {}  # in order of appearance; chunks by answer
    places: dict[Any, str] = {}
    nameless = 0
    for line in lines:
        if line.value is None and line.streamed:
            nameless += 1
            continue
        for number, (place, row) in enumerate(_unwrapped(line.place, line.value, _WRAPPERS)):
            chunk = line.streamed or str(row.get("object")).endswith(".chunk")
            name = row.get("id") or object_of(row.get("meta_info")).get("id")
            key: Any = (line.place, number)
            if chunk:
                key = ("id", str(name)) if name else nameless
            whole.setdefault(key, []).append(row)
            places[key] = place
            last = row.get("stop") is True or row.get("metrics") is not None
            nameless += chunk and not name and last
    for key, rows in whole.items():
        yield places[key], rows[0] if len(rows) == 1 else _joined(rows)


def _unwrapped(place: str, row: Any, most: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The row, or the answers in its `data` where it is none itself.

    Raises InputError if it is no JSON object.
    """
    if not isinstance(row, dict):
        raise InputError(f"{place} must be a JSON object")
    inner = row.get("data")
    parts = inner if isinstance(inner, list) else [inner]
    wrapper = bool(parts) and all(isinstance(part, dict) for part in parts)
    if not wrapper or most == 0 or any(row.get(name) is not None for name in _ANSWER):
        yield place, row
        return
    about = {name: row[name] for name in _ABOUT if name in row}
    for number, part in enumerate(parts, start=1):
        where = place if part is inner else f"{place}, data {number}"
        yield from _unwrapped(where, about | part, most - 1)


def _joined(chunks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One answer: of every field the last value said, token ids one behind the other."""
    whole = _latest(chunks)
    choices = [
        choice
        for chunk in chunks
        if isinstance(chunk.get("choices"), list)
        for choice in chunk["choices"]
        if isinstance(choice, dict) and choice.get("index", 0) == 0
    ]
    if choices:
        whole["choices"] = [_latest(choices) | _tokens(choices, "token_ids")]
    # SGLang repeats the reply in every chunk or, with --incremental-streaming-output, goes on.
    joined = _tokens(chunks, "output_ids").get("output_ids", [])
    if len(joined) == object_of(whole.get("meta_info")).get("completion_tokens"):
        whole["output_ids"] = joined
    return whole


def _latest(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {k: v for part in parts for k, v in part.items() if v is not None and v != []}


def _tokens(parts: Sequence[dict[str, Any]], name: str) -> dict[str, list[Any]]:
    """The lists of that name as one; nothing if there is none or one is no list."""
    lists = [part[name] for part in parts if part.get(name) is not None]
    if not lists or not all(isinstance(tokens, list) for tokens in lists):
        return {}
    return {name: [token for tokens in lists for token in tokens]}


def object_of(value: Any) -> dict[str, Any]:
    """The JSON object, or for anything else an empty one; of a list its first entry counts."""
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, dict) else {}
