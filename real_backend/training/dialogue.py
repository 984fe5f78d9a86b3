"""The result of a generator of task text, and the few phrases they share."""

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from real_backend.training import words as cw

REASONS = [
    "that is where most people lose their patience",
    "small steps add up faster than you think",
    "it keeps the whole thing simple",
    "nobody gets it right on the first day",
    "good habits beat good intentions",
    "you will notice the difference within a week",
    "it saves a lot of trouble later",
    "this is what experienced people do without thinking",
]
QUALITIES = cw.words(
    "rewarding, demanding, underrated, relaxing, surprising, honest, slow, expensive, "
    "social, lonely, "
    "creative, healthy, messy, precise, addictive, humbling"
)


class Dialogue(NamedTuple):
    """User turns and the replies to them, in order; ``keys`` has one content key a turn."""

    category: str
    turns: tuple[str, ...]
    replies: tuple[str, ...]
    keys: tuple[str, ...]


class DocEntry(NamedTuple):
    """A standard-library docstring: dotted name, kind (``function``, ``class`` ...), sentences."""

    name: str
    kind: str
    sentences: tuple[str, ...]


Generator = Callable[[Random, Sequence[DocEntry]], Dialogue]


def lower_first(text: str) -> str:
    """With a small first letter, unless a capital word begins it."""
    return text if len(text) < 2 or text[1].isupper() else text[0].lower() + text[1:]


def upper_first(text: str) -> str:
    """With a capital first letter."""
    return text[:1].upper() + text[1:]


def some(rng: Random, items: Sequence[str], count: int) -> list[str]:
    """Up to `count` of the items, without repetition."""
    return rng.sample(list(items), min(count, len(items)))


def doc_text(entry: DocEntry) -> str:
    """The sentences of an entry as one text."""
    return " ".join(entry.sentences)
