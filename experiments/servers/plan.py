"""Which requests are sent in which order: blocks of questions, in each every setting in turn.

Settings played one after the other would be told apart by the hour at which they ran. So the
questions are dealt into blocks, and every block is played by all settings before the next begins,
in an order drawn anew: neighbours share the machine's moods (the sitting of `gammalab validate`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from real_backend.prompts import Question
from traces.split import named_generator


class Seat(NamedTuple):
    """A setting that is played. name: of its own, two seats may have one length (a placebo)."""

    name: str
    length: int


class Turn(NamedTuple):
    """One start of the server. block: number of the block."""

    block: int
    seat: Seat
    questions: Sequence[Question]


def turns_of(
    questions: Sequence[Question], seats: Sequence[Seat], blocks: int, seed: int
) -> Iterator[Turn]:
    """All turns in order. blocks: at most so many, every one with a question at least."""
    count = min(blocks, len(questions))
    order = named_generator(seed, "seats")
    for block in range(count):
        # Dealt out like cards, so that every block has of every task.
        chosen = questions[block::count]
        for place in order.permutation(len(seats)):
            yield Turn(block, seats[int(place)], chosen)


def gaps_of(rate: float, count: int, seed: int) -> list[float]:
    """Seconds between Poisson arrivals, `count` of them, at `rate` a second."""
    generator = named_generator(seed, "arrivals")
    return [float(gap) for gap in generator.exponential(1.0 / rate, count)]
