"""Seconds of a round by draft length, from the few lengths that were played.

Letters: B resamples of the questions (row 0: as they are), M lengths whose rounds were timed, R
requests. A length is timed where it was played, and by the last rounds of the replies of longer
ones, whose limit left no room for more than that: so the steps of an engine's kernels show. Between
two timed lengths the curve is a line, and beyond them the line through the ends goes on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from experiments.common.statistics import divide
from experiments.servers.answers import Answer
from traces.errors import InputError

FloatArray = npt.NDArray[np.float64]
KINK, SURE = 0.05, 0.95  # a round off the line through its neighbours is a kernel's step

MEASURED, TAILS, BETWEEN, BEYOND = "measured", "ends", "between", "beyond"
FEWEST_TAILS = 10  # rounds, to time a length by


class Played(NamedTuple):
    """A length as it was played on R requests. seconds, drafting, plain, tokens [R]: decoding
    seconds, rounds with and without a draft, tokens that they brought.
    """

    length: int
    seconds: FloatArray
    drafting: FloatArray
    plain: FloatArray
    tokens: FloatArray


class Tails(NamedTuple):
    """Rounds of one length at the ends of replies. seconds, rounds [R]."""

    length: int
    seconds: FloatArray
    rounds: FloatArray


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """Seconds of a round. plain [B]: without a draft; lengths [M] ascending; drafting [B, M];
    played: those of the lengths that were.
    """

    plain: FloatArray
    lengths: tuple[int, ...]
    drafting: FloatArray
    played: frozenset[int] = frozenset()

    def at(self, length: int) -> FloatArray:
        """[B] seconds of a round that drafts `length` tokens."""
        if length == 0 or not self.lengths:
            return self.plain
        if length in self.lengths:
            found: FloatArray = self.drafting[:, self.lengths.index(length)]
            return found
        points, seconds = self.lengths, self.drafting
        if len(points) == 1:  # plain decoding is the other; a jump at the first token is unknown
            points = (0, *points)
            seconds = np.column_stack([self.plain, seconds])
        if points[0] < length < points[-1]:
            right = int(np.searchsorted(points, length))
            left = right - 1
        else:
            # Kernels' steps bend the curve on a small scale: the ends tell its slope.
            left, right = self._ends(points)
        share = (length - points[left]) / (points[right] - points[left])
        line = seconds[:, left] + share * (seconds[:, right] - seconds[:, left])
        return np.asarray(np.maximum(line, self.plain))

    def _ends(self, points: tuple[int, ...]) -> tuple[int, int]:
        """Places of the shortest and the longest length that were played, else timed."""
        places = [place for place, length in enumerate(points) if length in self.played]
        return (places[0], places[-1]) if len(places) > 1 else (0, len(points) - 1)

    def basis(self, length: int) -> str:
        """How the seconds of a length are known."""
        if length == 0 or length in self.played:
            return MEASURED
        if length in self.lengths:
            return TAILS
        first = self.lengths[0] if len(self.lengths) > 1 else 0
        return BETWEEN if first < length < max(self.lengths, default=0) else BEYOND

    def kinks(self) -> list[tuple[int, float]]:
        """Lengths whose rounds cost KINK more or less than the line through their neighbours, more
        surely than by chance (95 % of the resamples on that side), and by how much.
        """
        found = []
        for place in range(1, len(self.lengths) - 1):
            without = Curve(
                self.plain,
                self.lengths[:place] + self.lengths[place + 1 :],
                np.delete(self.drafting, place, axis=1),
                self.played,
            )
            off = self.drafting[:, place] / without.at(self.lengths[place]) - 1.0
            value = float(off[0])
            sure = float((np.sign(off[1:]) == np.sign(value)).mean()) if len(off) > 1 else 1.0
            if abs(value) > KINK and sure >= SURE:
                found.append((self.lengths[place], value))
        return found


def played_of(length: int, answers: Sequence[Answer]) -> Played:
    """A length as these requests, one a row, were answered.

    Raises InputError if the answers do not tell how many rounds they took."""
    every, plain = [], []
    drafts = [drafted for answer in answers for drafted, _ in answer.steps or ()]
    deepest = max(drafts, default=0)
    if length and 0 < deepest < length and len(drafts) >= FEWEST_TAILS:
        raise InputError(
            f"at length {length} the server never drafted more than {deepest} tokens; it was not "
            f"set so: observe that length again into another folder"
        )
    for answer in answers:
        if answer.rounds is None:
            raise InputError(
                f"the server did not tell what it accepted at length {length}: without it nothing "
                "can be said of other lengths"
            )
        every.append(answer.rounds)
        idle = sum(drafted == 0 for drafted, _ in answer.steps or ())
        plain.append(idle if length else answer.rounds)
    return Played(
        length,
        np.array([answer.decode_s for answer in answers]),
        np.subtract(every, plain, dtype=np.float64),
        np.array(plain, dtype=np.float64),
        np.array([answer.decoded for answer in answers], dtype=np.float64),
    )


def tails_of(chosen: Mapping[int, Sequence[Answer]], context_s: float, longest: int) -> list[Tails]:
    """Rounds that drafted less than their server's length, by what they drafted, up to `longest`.

    They are the last of their replies, where the context is longest: context_s, seconds per token
    of it, is taken off (NaN: not known, nothing is).
    """
    slope = context_s if np.isfinite(context_s) else 0.0
    requests = len(next(iter(chosen.values())))
    seconds, rounds = np.zeros((2, longest + 1, requests))
    for length, answers in chosen.items():
        for row, answer in enumerate(answers):
            if length == 0 or answer.steps is None or answer.step_s is None:
                continue
            at = 1
            for (drafted, accepted), step_s in zip(answer.steps, answer.step_s, strict=True):
                if 0 < drafted < length:
                    seconds[drafted, row] += step_s - slope * (at - answer.tokens / 2)
                    rounds[drafted, row] += 1
                at += accepted + 1
    share = average_over_full(chosen)
    if not share:
        return []
    known, ratios = list(share), list(share.values())
    return [
        Tails(n, seconds[n] * float(np.interp(n, known, ratios)), rounds[n])
        for n in range(1, longest + 1)
    ]


def curve_of(played: Sequence[Played], weights: FloatArray, tails: Sequence[Tails] = ()) -> Curve:
    """The curve of what was played. weights [B, R]. tails: of lengths that were not.

    A round without a draft costs what it costs in plain decoding; where that was not played, 0.
    """
    plain = np.zeros(len(weights))
    for one in played:
        if one.length == 0:
            plain = divide(weights @ one.seconds, weights @ one.plain)
    timed: dict[int, FloatArray] = {}
    for one in played:
        if one.length > 0 and one.drafting.any():  # engines throw short drafts away
            spent = weights @ one.seconds - (weights @ one.plain) * plain
            timed[one.length] = divide(spent, weights @ one.drafting)
    for tail in tails:
        if tail.length not in timed and tail.rounds.sum() >= FEWEST_TAILS:
            # A resample without one of these rounds has the seconds of all.
            found = divide(weights @ tail.seconds, weights @ tail.rounds)
            timed[tail.length] = np.where(np.isfinite(found), found, found[0])
    lengths = tuple(sorted(timed))
    columns = [timed[length] for length in lengths]
    return Curve(
        plain,
        lengths,
        np.column_stack(columns) if columns else np.empty((len(weights), 0)),
        frozenset(one.length for one in played if one.length in timed),
    )


def context_share(chosen: Mapping[int, Sequence[Answer]]) -> float:
    """Seconds that a round costs more per token of context: least squares over rounds of the same
    draft, each length with a level of its own. NaN unless it is two standard errors from nothing.
    """
    above = below = squares = 0.0
    centred: list[tuple[FloatArray, FloatArray]] = []
    for length, answers in chosen.items():
        context, seconds = [], []
        for answer in answers:
            at = (answer.prompt_tokens or 0) + 1
            for (drafted, accepted), step_s in zip(
                answer.steps or (), answer.step_s or (), strict=False
            ):
                if drafted == length:
                    context.append(at)
                    seconds.append(step_s)
                at += accepted + 1
        if len(context) > 1:
            x, y = (np.array(v, dtype=np.float64) - np.mean(v) for v in (context, seconds))
            centred.append((x, y))
            above, below = above + float(x @ y), below + float(x @ x)
    if below == 0.0:
        return float("nan")
    slope = above / below
    count = sum(len(x) for x, _ in centred) - len(centred) - 1
    squares = sum(float(((y - slope * x) ** 2).sum()) for x, y in centred)
    error = np.sqrt(squares / max(1, count) / below)
    return slope if abs(slope) > max(2 * error, 1e-9) else float("nan")


def average_over_full(chosen: Mapping[int, Sequence[Answer]]) -> dict[int, float]:
    """By length, the mean seconds of all its drafting rounds over those of the ones that drafted
    that much: the last ones of a reply draft less. The seconds of a played length are the former,
    those of the ends the latter.
    """
    found = {}
    for length, answers in chosen.items():
        steps = [
            (drafted, step_s)
            for answer in answers
            for (drafted, _), step_s in zip(answer.steps or (), answer.step_s or (), strict=False)
            if drafted > 0
        ]
        full = [step_s for drafted, step_s in steps if drafted == length]
        if length and full and sum(full) > 0.0:
            found[length] = float(np.mean([step_s for _, step_s in steps]) / np.mean(full))
    return found
