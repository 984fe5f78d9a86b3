"""Numbers as every command line reads them, within bounds; argparse only: --help stays light."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable

MOST_SEED = 2**31 - 1  # what every library that is seeded here takes
MOST_THREADS = 1024  # far beyond, torch dies without a word


def whole(least: int, most: int = 2**31 - 1, why: str = "") -> Callable[[str], int]:
    """A whole number from `least` to `most`, for argparse. why: the reason of the upper bound."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} must be at least {least}")
        if value > most:
            raise argparse.ArgumentTypeError(f"{text} must be at most {most}{why and f': {why}'}")
        return value

    return read


def number(
    least: float, most: float = math.inf, why: str = "", *, above: bool = True
) -> Callable[[str], float]:
    """A finite number from `least`, left out itself if `above`, to `most`, for argparse."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not least <= value < math.inf or (above and value == least):
            words = "above" if above else "of at least"
            raise argparse.ArgumentTypeError(f"{text} must be a finite number {words} {least:g}")
        if value > most:
            raise argparse.ArgumentTypeError(f"{text} must be at most {most:g}{why and f': {why}'}")
        return value

    return read


count = whole(1)
positive = number(0.0)
temperature = number(0.0, 100.0, "beyond, every token is as likely", above=False)
top_p = number(0.0, 1.0, "it is a share")
repeats = whole(1, 10_000, "medians settle long before")


def integers(text: str) -> list[int]:
    """A comma-separated list of positive integers such as 1,2,4, for argparse."""
    return [count(piece) for piece in text.split(",")]


def workers() -> Callable[[str], int]:
    """Local processes, for argparse."""
    cores = os.cpu_count() or 1
    why = f"each is a process of some 0.5 GiB, and {cores} cores are here"
    return whole(1, max(8, 2 * cores), why)
