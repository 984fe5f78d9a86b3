"""Rounds that every draft length would take for the same replies, from one recorded length.

Letters: R replies, K lengths, D draws. From recorded rounds: each says of every position that it
passed whether the draft agreed there, so that any other length can be replayed on them; the
positions of bonus tokens, where nobody drafted, are drawn (traces.censoring.imputation). From
counts alone: a curve of two numbers through the tokens per round of the lengths that were played.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from experiments.servers.answers import Answer, trace_of_answers
from policies.round import settle
from traces.censoring.imputation import imputations
from traces.schema import Trace

FloatArray = npt.NDArray[np.float64]
IDLE = 0.01  # share of rounds without a draft from which on the drafter is one that looks up


@dataclasses.dataclass(frozen=True, eq=False)
class Rounds:
    """Rounds of R replies at K lengths.

    lengths [K]; requests [R], their names; tokens [R], that rounds brought.
    drafting, plain [D, K, R]: rounds with a draft and without one, a draw each.
    """

    lengths: tuple[int, ...]
    requests: tuple[str, ...]
    tokens: FloatArray
    drafting: FloatArray
    plain: FloatArray

    def of(self, length: int) -> tuple[FloatArray, FloatArray]:
        """[D, R] twice: drafting and plain rounds of a length."""
        place = self.lengths.index(length)
        return self.drafting[:, place], self.plain[:, place]


def looks_up(answers: Sequence[Answer]) -> bool:
    """The drafter has nothing to offer at times: rounds without a draft, before the last two of a
    reply, which the reply's limit may have left without one.
    """
    steps = [step for answer in answers for step in (answer.steps or ())[:-2]]
    return sum(drafted == 0 for drafted, _ in steps) > IDLE * len(steps)


def replayed(
    answers: Sequence[Answer], lengths: Sequence[int], *, draws: int = 8, seed: int = 0
) -> Rounds:
    """Rounds of every length, from answers whose rounds are known, all drafted alike.

    Raises InputError if no reply has rounds.
    """
    unsaid = looks_up(answers)
    trace = trace_of_answers(answers, max(1, *lengths), unsaid=unsaid)
    offered = _offered(answers, trace) if unsaid else np.ones(trace.positions, dtype=np.bool_)
    filled = imputations(trace, draws, seed) if trace.censored is not None else [trace]
    counts = np.array([[_count(one, offered, length) for length in lengths] for one in filled])
    return Rounds(
        tuple(lengths),
        trace.request_id,
        trace.reply_tokens.astype(np.float64),
        drafting=counts[:, :, 0],
        plain=counts[:, :, 1],
    )


def _offered(answers: Sequence[Answer], trace: Trace) -> npt.NDArray[np.bool_]:
    """[N] false where a round began and the drafter had nothing."""
    by_name = {answer.request_id: answer for answer in answers}
    offered = np.ones(trace.positions, dtype=np.bool_)
    for row, name in enumerate(trace.request_id):
        at = int(trace.offsets[row])
        end = int(trace.offsets[row + 1])
        for drafted, accepted in by_name[name].steps or ():
            if at < end and drafted == 0:
                offered[at] = False
            at += accepted + 1
    return offered


def _count(trace: Trace, offered: npt.NDArray[np.bool_], length: int) -> list[list[int]]:
    """Rounds of each reply at a length: those that draft, and those that do not."""
    drafting, plain = [], []
    accept_len, can = trace.accept_len.tolist(), offered.tolist()
    for begin, end in zip(trace.offsets[:-1].tolist(), trace.offsets[1:].tolist(), strict=True):
        at, with_draft, without = begin, 0, 0
        while at < end:
            drafted = length if can[at] else 0
            at += settle(drafted, accept_len[at], end - at).emitted
            with_draft, without = with_draft + (drafted > 0), without + (drafted == 0)
        drafting.append(with_draft)
        plain.append(without)
    return [drafting, plain]


def fitted(
    answers: dict[int, Sequence[Answer]], lengths: Sequence[int], weights: FloatArray
) -> FloatArray:
    """[B, K] tokens per round of every length, from what each played length counted.

    answers: by length, the same requests in the same order. weights [B, R] of the requests. The
    chance that d drafted tokens are all accepted is taken as first x later^(d - 1).
    """
    played = {
        length: (
            np.array([answer.decoded for answer in found], dtype=np.float64),
            np.array([answer.rounds for answer in found], dtype=np.float64),
        )
        for length, found in answers.items()
        if length > 0
    }
    known = sorted(played)
    per_round = np.stack(
        [(weights @ played[n][0]) / (weights @ played[n][1]) for n in known], axis=1
    )
    return np.stack([tokens_at(known, row, lengths) for row in per_round])


def tokens_at(known: Sequence[int], per_round: FloatArray, lengths: Sequence[int]) -> FloatArray:
    """[K] tokens per round at `lengths`, of the curve 1 + first (1 + later + ...) that comes
    closest, relatively, to `per_round` at the lengths `known`.

    One known length leaves first = later. A length that is known is not changed by the curve.
    """
    from scipy.optimize import least_squares

    def curve(shape: FloatArray, at: npt.NDArray[np.int64]) -> FloatArray:
        first, later = shape[0], shape[-1]
        powers = later ** np.arange(max(1, int(at.max())))
        return np.asarray(1.0 + first * np.concatenate([[0.0], np.cumsum(powers)])[at])

    places = np.asarray(known, dtype=np.int64)
    start = np.full(1 if len(known) == 1 else 2, 0.5)
    found = least_squares(
        lambda shape: curve(shape, places) / per_round - 1.0, start, bounds=(0.0, 1.0)
    )
    told = dict(zip(known, per_round, strict=True))
    drawn = curve(found.x, np.asarray(lengths, dtype=np.int64))
    return np.array([told.get(length, value) for length, value in zip(lengths, drawn, strict=True)])
