"""Censored traces completed: every unknown flag drawn from a model of the regimes.

Whether a position is unknown follows from the flags that the recorder saw before it, by the
recorder's own rule. It is therefore ignorable for a model of each flag given *all* flags before it
(missing at random, Rubin 1976), and not for averages that forget them: unknown positions sit behind
runs of accepted tokens, in easy text. What no model can know is a position that the recorder never
looks at; see docs/censoring.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from traces.censoring import regimes
from traces.censoring.known import completed, flags_of
from traces.censoring.regimes import FloatArray, Regimes, Replies
from traces.importers.flags import UNKNOWN, Flags, accept_lengths
from traces.schema import Trace
from traces.split import named_generator, question_of

IntArray = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

REHEARSED = ((1, False), (2, False), (3, False), (5, False), (5, True))  # recorders: gamma, follow
_CELLS = 20_000_000  # numbers held at once


class BonusSpread(NamedTuple):
    """Standard deviations by which bonus positions miss the model, in log-odds of acceptance: of
    each task on its own, and of all tasks together.
    """

    task: float
    common: float


@dataclasses.dataclass(frozen=True, eq=False)
class ImputationModel:
    """The filling of a trace: `fitted` regimes, and how far to trust them (see `rehearse`)."""

    fitted: Regimes
    spread: BonusSpread
    replies: Replies


def learn(trace: Trace, seed: int = 0) -> ImputationModel:
    """Fit the regimes to the known flags of a trace, and test them by hiding some of those."""
    flags = flags_of(trace)
    replies = regimes.lay_out(flags[None], trace.offsets, trace.category)
    ones = np.ones((1, trace.requests))
    fitted = regimes.fit(replies, ones, regimes.first_guess(len(replies.tasks)), 40)
    return ImputationModel(fitted, rehearse(trace, replies, fitted, seed), replies)


def rehearse(trace: Trace, replies: Replies, fitted: Regimes, seed: int) -> BonusSpread:
    """How far off the model is at bonus positions, beyond chance.

    The known flags where recorders of fixed length 1, 2, 3 and 5 and one that follows the text
    would have had their bonus tokens are hidden as well, the model is fitted again without them,
    and its chances are held against what was hidden.
    """
    flags = flags_of(trace)
    untilted = np.zeros((1, trace.requests))
    drawn = regimes.draw(replies, fitted, untilted, named_generator(seed, "rehearse"))
    filled = np.where(flags == UNKNOWN, replies.flat(drawn)[0], flags)
    hidden = np.stack([bonus_positions(filled, trace.offsets, *rule) for rule in REHEARSED])
    hidden &= flags != UNKNOWN
    fewer = regimes.lay_out(
        np.where(hidden, np.int8(UNKNOWN), flags), trace.offsets, trace.category
    )
    again = regimes.fit(fewer, np.ones((len(hidden), trace.requests)), fitted, 15)
    chance = fewer.flat(regimes.chances(fewer, again))
    task = np.repeat([replies.tasks.index(c) for c in trace.category], trace.reply_tokens)
    missed, noise = np.zeros((2, len(hidden), len(replies.tasks)))
    for row, mask in enumerate(hidden):
        p = chance[row, mask]
        missed[row] = np.bincount(task[mask], flags[mask] - p, len(replies.tasks))
        noise[row] = np.bincount(task[mask], p * (1 - p), len(replies.tasks))
    return spread_of(missed, noise)


def spread_of(missed: FloatArray, noise: FloatArray) -> BonusSpread:
    """Moment estimates from [recorders, T] sums of (flag - chance) and of chance (1 - chance).

    A shift x of log-odds moves a sum by x times its noise, so (missed / noise)^2 is x^2 + 1 / noise
    on average. What the tasks' own shifts leave in a recorder's sum over all tasks is taken off.
    """
    task = max(0.0, _over(missed**2 - noise, noise**2))
    left = missed.sum(axis=1) ** 2 - noise.sum(axis=1) - task * (noise**2).sum(axis=1)
    common = max(0.0, _over(left, noise.sum(axis=1) ** 2))
    return BonusSpread(float(np.sqrt(task)), float(np.sqrt(common)))


def _over(above: FloatArray, below: FloatArray) -> float:
    """Mean of above / below, each weighed by the root of below; 0 where nothing was hidden."""
    seen = below > 0
    weight = np.sqrt(below[seen])
    return float((above[seen] / weight).sum() / weight.sum()) if seen.any() else 0.0


def bonus_positions(flags: Flags, offsets: IntArray, gamma: int, follow: bool = False) -> Mask:
    """[N] true where a recorder has its bonus tokens; flags all known.

    It drafts gamma tokens; if it follows, then next (gamma + accepted + 1) / 2, rounded up.
    """
    accept_len, _ = accept_lengths(flags, offsets)
    runs = accept_len.tolist()
    bonus = np.zeros(len(flags), dtype=np.bool_)
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        at, drafted = begin, gamma
        while at < end:
            accepted = min(drafted, runs[at])
            if accepted == drafted and at + drafted < end:
                bonus[at + drafted] = True
            at += accepted + 1
            drafted = (drafted + accepted + 2) // 2 if follow else gamma
    return bonus


def imputations(
    trace: Trace, draws: int, seed: int = 0, *, model: ImputationModel | None = None
) -> list[Trace]:
    """`draws` completed traces: every unknown flag drawn, no known flag touched.

    Each draw has regimes of its own, fitted to a resample of the questions, and shifts of its own
    of the unknown flags, by task and in common, with the model's spread. So the draws differ by
    what the model does not know as well as by chance (proper multiple imputation, Rubin 1987).
    Equal seeds give equal bytes. A trace without unknown flags is its own completion.
    """
    model = learn(trace, seed) if model is None else model
    flags, replies = flags_of(trace), model.replies
    unknown = flags == UNKNOWN
    cells = replies.flags.size * model.fitted.start.shape[-1]
    weights = _resampled(trace, draws, seed)
    made = []
    for first in range(0, draws, max(1, _CELLS // cells)):
        batch = weights[first : first + max(1, _CELLS // cells)]
        generator = named_generator(seed, f"impute {first}")
        fitted = regimes.fit(replies, batch, model.fitted, 15)
        shift = generator.normal(0.0, model.spread.task, (len(batch), len(replies.tasks)))
        shift += generator.normal(0.0, model.spread.common, (len(batch), 1))
        drawn = replies.flat(regimes.draw(replies, fitted, shift[:, replies.task], generator))
        for row, values in enumerate(drawn):
            how = {"rule": "hidden regimes", "seed": seed, "draw": first + row, "of": draws}
            how |= {"unknown": int(unknown.sum()), "spread": [round(s, 4) for s in model.spread]}
            made.append(completed(trace, np.where(unknown, values, flags).astype(np.int8), how))
    return made


def impute(trace: Trace, seed: int = 0) -> Trace:
    """One completed trace, seeded and marked; see `imputations`."""
    return imputations(trace, 1, seed)[0]


def _resampled(trace: Trace, draws: int, seed: int) -> FloatArray:
    """[draws, R] how often each reply occurs when the questions are drawn with replacement."""
    names: Sequence[str] = [question_of(request_id) for request_id in trace.request_id]
    index = np.unique(np.asarray(names), return_inverse=True)[1]
    count = int(index.max()) + 1
    generator = named_generator(seed, "questions")
    drawn = generator.multinomial(count, np.full(count, 1.0 / count), draws)
    return np.asarray(drawn[:, index], dtype=np.float64)
