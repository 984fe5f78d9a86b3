"""A streamed reply: its events, its text, and whether it came to an end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from traces.importers.streams import object_of


class Event(NamedTuple):
    """One event of a stream. at_s: seconds after the request was sent."""

    at_s: float
    raw: dict[str, Any]


def text_in(events: Sequence[Event]) -> str:
    """The reply's text."""
    pieces = []
    for event in events:
        delta = object_of(object_of(event.raw.get("choices")).get("delta"))
        pieces.append(delta.get("content") or delta.get("reasoning_content") or "")
    return "".join(piece for piece in pieces if isinstance(piece, str))


def finish_in(events: Sequence[Event]) -> str:
    """Why the reply ended, "" if the stream does not say: it was cut."""
    for event in reversed(events):
        if reason := object_of(event.raw.get("choices")).get("finish_reason"):
            return str(reason)
    return ""
