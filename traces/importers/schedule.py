"""The gamma in force in every recorded round, where a file has only what was accepted.

The rules are written here again because traces stands below policies; tests replay the policies
against them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from traces.errors import InputError

RULES = ("heuristic", "fixed")


class Schedule(NamedTuple):
    """rule: "fixed", always gamma0; or "heuristic", transformers' schedule, started afresh at every
    reply: all drafted tokens accepted: gamma + 2; else gamma - 1, at least 1.
    """

    rule: str
    gamma0: int

    def drafted(self, emitted: Sequence[int], limit: int) -> list[int]:
        """The tokens drafted in every round of a reply, from the tokens that each emitted.

        limit: the run's new tokens at most; nobody drafts beyond the one before it.
        """
        gamma, at, lengths = self.gamma0, 0, []
        for tokens in emitted:
            lengths.append(max(0, min(gamma, limit - at - 1)))
            if self.rule == "heuristic":
                full = tokens - 1 >= lengths[-1]
                gamma = gamma + 2 if full else max(1, gamma - 1)
            at += tokens
        return lengths


def parse_schedules(text: str, files: int) -> list[Schedule | None]:
    """One schedule per file from "heuristic:5" or "heuristic:5,fixed:7"; all None if empty.

    Raises InputError if the text is no schedule, or there are neither one nor `files` of them.
    """
    if not text:
        return [None] * files
    found = [_parse(part.strip()) for part in text.split(",")]
    if len(found) not in (1, files):
        raise InputError(f"--schedule names {len(found)} schedules for {files} file(s)")
    return [*found] if len(found) == files else [*(found * files)]


def _parse(text: str) -> Schedule:
    rule, _, number = text.partition(":")
    if rule not in RULES or not (number.isascii() and number.isdigit() and 0 < int(number) < 10000):
        raise InputError(
            f"--schedule {text!r} is unknown; write heuristic:5 or fixed:5, 5 being the first gamma"
        )
    return Schedule(rule, int(number))
