"""Seconds of a round by draft length, from the few lengths that were played.

Letters: B resamples of the questions (row 0: as they are), M lengths played with a draft. Between
two of them the curve is a line, and beyond them the line goes on: a draft costs a step a token, and
verification is flat or linear, but for the steps of an engine's kernels. Those are looked for where
three lengths lie beside each other, and named where they may hide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from experiments.common.statistics import divide

FloatArray = npt.NDArray[np.float64]
KINK = 0.05  # a round this much dearer than the line through its neighbours is a kernel's step

MEASURED, BETWEEN, BEYOND = "measured", "between", "beyond"


class Played(NamedTuple):
    """A length as it was played on R requests. seconds, drafting, plain, tokens [R]: decoding
    seconds, rounds with and without a draft, tokens that they brought.
    """

    length: int
    seconds: FloatArray
    drafting: FloatArray
    plain: FloatArray
    tokens: FloatArray


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """Seconds of a round. plain [B]: without a draft; lengths [M] ascending; drafting [B, M]."""

    plain: FloatArray
    lengths: tuple[int, ...]
    drafting: FloatArray

    def at(self, length: int) -> FloatArray:
        """[B] seconds of a round that drafts `length` tokens."""
        if length == 0 or not self.lengths:
            return self.plain
        if length in self.lengths:
            found: FloatArray = self.drafting[:, self.lengths.index(length)]
            return found
        if len(self.lengths) == 1:
            # Two points: plain decoding and the one length; a jump at the first token is unknown.
            points: tuple[int, ...] = (0, *self.lengths)
            seconds = np.column_stack([self.plain, self.drafting])
        else:
            points, seconds = self.lengths, self.drafting
        right = int(np.clip(np.searchsorted(points, length), 1, len(points) - 1))
        share = (length - points[right - 1]) / (points[right] - points[right - 1])
        line = seconds[:, right - 1] + share * (seconds[:, right] - seconds[:, right - 1])
        return np.asarray(np.maximum(line, self.plain))

    def basis(self, length: int) -> str:
        """How the seconds of a length are known."""
        if length in (0, *self.lengths):
            return MEASURED
        inside = self.lengths and self.lengths[0] < length < self.lengths[-1]
        return BETWEEN if inside else BEYOND

    def kinks(self) -> list[tuple[int, float]]:
        """Lengths whose rounds cost KINK more or less than the line through their neighbours, and
        by how much.
        """
        found = []
        for place in range(1, len(self.lengths) - 1):
            without = Curve(
                self.plain,
                self.lengths[:place] + self.lengths[place + 1 :],
                np.delete(self.drafting, place, axis=1),
            )
            off = float(self.drafting[0, place] / without.at(self.lengths[place])[0] - 1.0)
            if abs(off) > KINK:
                found.append((self.lengths[place], off))
        return found


def curve_of(played: Sequence[Played], weights: FloatArray) -> Curve:
    """The curve of what was played. weights [B, R].

    A round without a draft costs what it costs in plain decoding. Where that was not played it is
    NaN, and with it everything that needs it.
    """
    plain = np.full(len(weights), np.nan)
    drafting, lengths = [], []
    for one in sorted(played, key=lambda one: one.length):
        if one.length == 0:
            plain = divide(weights @ one.seconds, weights @ one.plain)
    for one in sorted(played, key=lambda one: one.length):
        if one.length > 0:
            idle = weights @ one.plain
            spent = weights @ one.seconds - np.where(idle > 0, idle * plain, 0.0)
            drafting.append(divide(spent, weights @ one.drafting))
            lengths.append(one.length)
    columns = np.column_stack(drafting) if drafting else np.empty((len(weights), 0))
    if np.isnan(plain).all() and drafting:
        plain = np.zeros(len(weights))
    return Curve(plain, tuple(lengths), columns)


def context_share(played: Sequence[Played], context: FloatArray) -> float:
    """Seconds that a round costs more per token of context, of all lengths together; NaN where the
    contexts hardly differ. context [R]: mean tokens before a round of each request.

    Least squares over requests, each length with a level of its own.
    """
    if context.std() < 0.1 * context.mean():
        return float("nan")
    rows, seconds = [], []
    for place, one in enumerate(played):
        rounds = one.drafting + one.plain
        level = np.zeros((len(rounds), len(played)))
        level[:, place] = rounds
        rows.append(np.column_stack([level, rounds * context]))
        seconds.append(one.seconds)
    found, *_ = np.linalg.lstsq(np.concatenate(rows), np.concatenate(seconds), rcond=None)
    return float(found[-1])
