"""Tokens/s of every draft length on a server, from the few lengths that were played there.

Letters: R requests that every played length answered, K lengths of the table, B resamples of the
questions behind row 0, which has them as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.common.statistics import Estimate, bootstrap_weights, divide, enough, estimate
from experiments.servers.acceptance import FloatArray, Rounds, fitted, replayed
from experiments.servers.answers import Answer
from experiments.servers.curve import (
    BETWEEN,
    BEYOND,
    MEASURED,
    Curve,
    context_share,
    curve_of,
    played_of,
    tails_of,
)
from traces.errors import InputError
from traces.split import question_of

FURTHER = 2  # lengths beyond the longest that was played
RESAMPLES = 500
CONTENDER = 0.05  # share of resamples in which a length must be the best to be worth a run
ROUNDS, COUNTS = "rounds in order", "counts"


@dataclasses.dataclass(frozen=True)
class LengthRow:
    """One length.

    tokens_per_round: accepted tokens and the target's own.
    round_ms: seconds of a round, those without a draft included, in ms.
    tokens_per_s: of one reply, from its first token on.
    gain: tokens/s over those of the present length.
    best: share of resamples in which it is the fastest.
    basis: how its seconds are known, see experiments.servers.curve.
    played: its tokens/s were measured, and are not predicted.
    """

    length: int
    tokens_per_round: Estimate
    round_ms: Estimate
    tokens_per_s: Estimate
    gain: Estimate
    best: float
    basis: str
    played: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """Every length at one concurrency.

    rows: by length.
    requests: R names.
    seconds: by length, [R] modelled decoding seconds of each reply.
    speeds: by length, [1 + B] tokens/s.
    evidence: ROUNDS or COUNTS.
    present, best: lengths.
    kinks, context_s: see experiments.servers.curve.
    check: by played length but the deepest, replayed over counted tokens per round.
    idle: played lengths at which the server drafted nothing.
    """

    rows: list[LengthRow]
    requests: tuple[str, ...]
    seconds: dict[int, FloatArray]
    speeds: dict[int, FloatArray]
    evidence: str
    present: int
    best: int
    kinks: list[tuple[int, float]]
    context_s: float
    check: dict[int, float]
    idle: tuple[int, ...]

    def row(self, length: int) -> LengthRow:
        """The row of a length."""
        return self.rows[length]

    def surer(self) -> int | None:
        """The length whose run would tell most: of those that were not played, the one that is the
        best in most resamples, inside the curve before beyond it; None if none may be the best.
        """
        unknown = (BETWEEN, BEYOND)
        open_ = [row for row in self.rows if row.basis in unknown and row.best >= CONTENDER]
        inside = [row for row in open_ if row.basis == BETWEEN] or open_
        return max(inside, key=lambda row: row.best).length if inside else None


def by_length(answers: Sequence[Answer]) -> dict[int, dict[str, Answer]]:
    """Answers by length and request; of seats with one length the first that was played.

    Raises InputError if there is none.
    """
    found: dict[int, dict[str, Answer]] = {}
    for answer in answers:
        if answer.decoded > 0:
            found.setdefault(answer.length, {}).setdefault(answer.request_id, answer)
    if not found:
        raise InputError("no answers yet; run `gammalab observe` first")
    return found


def predict(
    answers: Mapping[int, Mapping[str, Answer]],
    present: int | None = None,
    longest: int | None = None,
    seed: int = 0,
    *,
    alone: bool = True,
) -> Prediction:
    """Every length from 0 on.

    answers: by length and request. present: the length of today (default: the shortest played).
    longest: of the table (default: FURTHER beyond the longest played). alone: one request at a
    time; else a round's seconds are those of a batch whose other rows draft what they draft, and
    the ends of replies time nothing.

    A length that was played is told as it was measured. Raises InputError if fewer than two were,
    they share no request, or nothing tells of acceptance.
    """
    if len(answers) < 2:
        raise InputError(
            f"only length {', '.join(map(str, answers))} was observed; a curve of costs needs "
            "another, and no drafting (0) above all"
        )
    names = _common(answers)
    chosen = {length: [answers[length][name] for name in names] for length in sorted(answers)}
    last = max(max(chosen), longest or max(chosen) + FURTHER)
    present = min(chosen) if present is None else present
    if present == 0 and 0 not in answers:
        raise InputError("--present 0: no drafting was not observed; observe length 0, too")
    if present > last:
        raise InputError(f"--present {present} lies beyond the table; raise --longest")
    model = _Model(chosen, tuple(range(last + 1)), seed, alone)
    return model.judge(present)


def _common(answers: Mapping[int, Mapping[str, Answer]]) -> list[str]:
    """Requests that every length answered."""
    first, *others = answers.values()
    names = [name for name in first if all(name in found for found in others)]
    if not names:
        raise InputError("no request was answered at every length; let `gammalab observe` finish")
    counted = [n for n in names if all(found[n].rounds is not None for found in answers.values())]
    traced = [n for n in counted if all(f[n].traced for length, f in answers.items() if length)]
    # A few replies whose events came together must not cost the rounds of all others.
    return traced if 2 * len(traced) >= len(names) else counted or names


class _Model:
    """Rounds and seconds of every length. chosen: by length, the answers of the same requests."""

    def __init__(
        self,
        chosen: Mapping[int, Sequence[Answer]],
        lengths: tuple[int, ...],
        seed: int,
        alone: bool,
    ) -> None:
        deepest = chosen[max(chosen)]
        self.chosen, self.lengths = chosen, lengths
        self.names = tuple(answer.request_id for answer in deepest)
        questions = [question_of(name) for name in self.names]
        drawn = bootstrap_weights(questions, seed=seed, resamples=RESAMPLES)
        self.weights = np.vstack([np.ones(len(questions)), drawn])
        self.judgeable = enough(len(set(questions)))
        known = max(chosen) > 0 and all(answer.traced for answer in deepest)
        self.rounds: Rounds | None = replayed(deepest, lengths, seed=seed) if known else None
        self.played = [played_of(length, found) for length, found in chosen.items()]
        self.context_s = context_share(chosen)
        tails = tails_of(chosen, self.context_s, max(chosen)) if alone else []
        self.curve: Curve = curve_of(self.played, self.weights, tails)

    def per_round_and_speeds(self) -> tuple[FloatArray, FloatArray]:
        """[1 + B, K] tokens per round and tokens/s."""
        if self.rounds is None:
            drafted = {length: found for length, found in self.chosen.items() if length}
            per_round = fitted(drafted, self.lengths, self.weights)
            seconds = np.column_stack([self.curve.at(length) for length in self.lengths])
            speeds = divide(per_round, seconds)
        else:
            tokens = self.weights @ self.rounds.tokens
            per_round, speeds = np.empty((2, len(tokens), len(self.lengths)))
            for place, length in enumerate(self.lengths):
                drafting, plain = (self._resampled(part) for part in self.rounds.of(length))
                per_round[:, place] = divide(tokens, drafting + plain)
                speeds[:, place] = divide(tokens, self._seconds(length, drafting, plain))
        for one in self.played:  # what was played needs no model
            tokens = self.weights @ one.tokens
            per_round[:, one.length] = divide(tokens, self.weights @ (one.drafting + one.plain))
            speeds[:, one.length] = divide(tokens, self.weights @ one.seconds)
        return per_round, speeds

    def _resampled(self, counts: FloatArray) -> FloatArray:
        """[1 + B] rounds of all requests, of counts [D, R]: row 0 the mean of the draws, the others
        a draw each, so that both chances are in the interval.
        """
        drawn = self.weights @ counts.T
        row = np.arange(1, len(drawn))
        return np.append(drawn[0].mean(), drawn[row, row % drawn.shape[1]])

    def _seconds(self, length: int, drafting: FloatArray, plain: FloatArray) -> FloatArray:
        """Of rounds [1 + B]."""
        return drafting * self.curve.at(length) + np.where(plain > 0, plain * self.curve.plain, 0.0)

    def _by_request(self, length: int, speed: float) -> FloatArray:
        """[R] modelled seconds of each reply."""
        if self.rounds is None:
            return np.asarray(self.played[0].tokens / speed)
        drafting, plain = (part.mean(axis=0) for part in self.rounds.of(length))
        idle = np.where(plain > 0, plain * self.curve.plain[0], 0.0)
        return np.asarray(drafting * self.curve.at(length)[0] + idle)

    def _check(self) -> dict[int, float]:
        """Replayed over counted tokens per round, of every length that can be held against it."""
        found = {}
        for one in self.played:
            if self.rounds is not None and 0 < one.length < max(self.chosen) and one.drafting.any():
                drafting, plain = self.rounds.of(one.length)
                replay = self.rounds.tokens.sum() / (drafting + plain).mean(axis=0).sum()
                counted = one.tokens.sum() / (one.drafting + one.plain).sum()
                found[one.length] = float(replay / counted)
        return found

    def judge(self, present: int) -> Prediction:
        """The rows, held against the length of today."""
        per_round, speeds = self.per_round_and_speeds()
        idle = tuple(one.length for one in self.played if one.length and not one.drafting.any())
        running = np.nan_to_num(speeds)
        running[:, list(idle)] = 0.0  # plain decoding under another name
        running[:, 1 : max(idle, default=0)] = 0.0  # and shorter drafts are thrown away as well
        wins = np.argmax(running[1:], axis=1)
        rows = [
            LengthRow(
                length,
                self._estimate(per_round[:, length]),
                self._estimate(1e3 * divide(per_round[:, length], speeds[:, length])),
                self._estimate(speeds[:, length]),
                self._estimate(divide(speeds[:, length], speeds[:, present])),
                best=float((wins == length).mean()),
                basis=MEASURED if length in self.chosen else self.curve.basis(length),
                played=length in self.chosen,
            )
            for length in self.lengths
        ]
        return Prediction(
            rows=rows,
            requests=self.names,
            seconds={n: self._by_request(n, speeds[0, n]) for n in self.lengths},
            speeds={n: speeds[:, n] for n in self.lengths},
            evidence=COUNTS if self.rounds is None else ROUNDS,
            present=present,
            best=int(np.argmax(running[0])),
            kinks=self.curve.kinks(),
            context_s=self.context_s,
            check=self._check(),
            idle=idle,
        )

    def _estimate(self, values: FloatArray) -> Estimate:
        """Row 0 with the interval of the others; without one if there are too few questions."""
        if not self.judgeable:
            return Estimate(float(values[0]), float("nan"), float("nan"))
        return estimate(float(values[0]), values[1:])
