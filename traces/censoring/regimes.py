"""A hidden-regime model of acceptance: which drafts pass, where nobody looked.

A reply is a walk over K = 2S hidden states; S of them are positions whose draft is rejected, S are
accepted ones, so a known flag says which half the walk is in and an unknown one says nothing.
States let runs, easy stretches and hard stretches have their own lengths; every task has its own
steps, shrunk towards the steps of all. Fitted by expectation-maximisation, in which unknown flags
are summed over, never guessed.

Letters: B fits side by side (1 where they share), R replies sorted from long to short, L tokens of
the longest, T tasks, K states. Aggregated Markov chains: Fredkin & Rice, J. Appl. Prob. 23 (1986);
the recursions are Baum's (see Rabiner, Proc. IEEE 77, 1989).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from traces.importers.flags import ACCEPTED, UNKNOWN, Flags

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]

HALF = 3  # S: three kinds of accepted and three of rejected positions
SHRINK = 10.0  # pseudo-visits of every state of every task, at the shared steps
FLOOR = 0.5  # pseudo-visits of every state at uniform steps


@dataclasses.dataclass(frozen=True, eq=False)
class Replies:
    """Flags laid out by reply, long ones first, so that the first alive[t] rows reach position t.

    flags [B or 1, R, L] int8, unknown behind the end; alive [L]; task [R] 0..T-1; tasks: T names;
    index [R, L]: the place of each in the flat arrays of the trace, -1 behind the end.
    """

    flags: Flags
    alive: IntArray
    task: IntArray
    tasks: tuple[str, ...]
    index: IntArray
    order: IntArray

    def flat(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[B, R, L] -> [B, N], back in the order of the trace."""
        inside = self.index >= 0
        out = np.empty((len(values), int(inside.sum())), dtype=values.dtype)
        out[:, self.index[inside]] = values[:, inside]
        return out


class Regimes(NamedTuple):
    """start [B, T, K]: chance of each state at the first token; step [B, T, K, K]: of the next."""

    start: FloatArray
    step: FloatArray

    def pick(self, row: int) -> Regimes:
        """One of the B fits."""
        return Regimes(self.start[row : row + 1], self.step[row : row + 1])


class _Passed(NamedTuple):
    """Forward recursion: state chances given the flags up to t, and what each flag cost."""

    chance: list[FloatArray]  # L of [B, alive, K]
    norm: list[FloatArray]  # L of [B, alive]


def lay_out(flags: Flags, offsets: npt.NDArray[np.int64], category: Sequence[str]) -> Replies:
    """Flags [B, N] of replies offsets [R+1] with their tasks."""
    lengths = np.diff(offsets)
    order = np.argsort(-lengths, kind="stable")
    columns = np.arange(int(lengths.max()))
    inside = columns < lengths[order][:, None]
    index = np.where(inside, offsets[:-1][order][:, None] + columns, -1)
    tasks = tuple(dict.fromkeys(category))
    return Replies(
        flags=np.where(inside, flags[:, index], np.int8(UNKNOWN)),
        alive=inside.sum(axis=0),
        task=np.array([tasks.index(category[r]) for r in order], dtype=np.intp),
        tasks=tasks,
        index=index,
        order=order,
    )


def first_guess(tasks: int) -> Regimes:
    """Levels of acceptance 1/(S+1) ... S/(S+1) that mostly stay as they are."""
    level = np.arange(1, HALF + 1) / (HALF + 1)
    stay = np.full((HALF, HALF), 0.15 / (HALF - 1))
    np.fill_diagonal(stay, 0.85)
    half = np.concatenate([stay * (1 - level), stay * level], axis=1)
    step = np.concatenate([half, half])
    start = np.concatenate([1 - level, level]) / HALF
    return Regimes(np.tile(start, (1, tasks, 1)), np.tile(step, (1, tasks, 1, 1)))


def _evidence(flags: Flags, tilt: FloatArray | None) -> FloatArray:
    """[B, n, K] how well each state fits flags [B, n]; unknown flags favour acceptance by tilt [B,
    n] in log-odds.
    """
    accepted = np.repeat([False, True], HALF)
    fits = (flags[..., None] == ACCEPTED) == accepted
    unknown = flags[..., None] == UNKNOWN
    if tilt is None:
        return np.asarray(unknown | fits, dtype=np.float64)
    odds = np.where(accepted, np.exp(tilt)[..., None], 1.0)
    return np.where(unknown, odds, fits.astype(np.float64))


def _forward(replies: Replies, regimes: Regimes, tilt: FloatArray | None) -> _Passed:
    start, step = regimes.start[:, replies.task], regimes.step[:, replies.task]
    passed = _Passed([], [])
    for t, alive in enumerate(replies.alive):
        if t:
            ahead = np.einsum("brk,brkl->brl", passed.chance[-1][:, :alive], step[:, :alive])
        else:
            ahead = start
        lean = None if tilt is None else tilt[:, :alive]
        ahead = ahead * _evidence(replies.flags[:, :alive, t], lean)
        norm = ahead.sum(axis=2)
        passed.chance.append(ahead / norm[..., None])
        passed.norm.append(norm)
    return passed


def _grown(behind: FloatArray, alive: int) -> FloatArray:
    """`behind` with rows of ones for the replies that end here."""
    fits, rows, states = behind.shape
    return np.concatenate([behind, np.ones((fits, alive - rows, states))], axis=1)


def log_likelihood(replies: Replies, regimes: Regimes) -> FloatArray:
    """[B] of the known flags."""
    passed = _forward(replies, regimes, None)
    return np.asarray(np.sum([np.log(norm).sum(axis=1) for norm in passed.norm], axis=0))


def fit(replies: Replies, weights: FloatArray, guess: Regimes, rounds: int) -> Regimes:
    """`rounds` steps of expectation-maximisation from `guess`.

    weights [B, R]: how often each reply counts, in the order of the trace.
    """
    weights = weights[:, replies.order]
    member = (replies.task[:, None] == np.arange(len(replies.tasks))).astype(np.float64)
    regimes = guess
    for _ in range(rounds):
        passed = _forward(replies, regimes, None)
        step = regimes.step[:, replies.task]
        visits = np.zeros((len(weights), *step.shape[1:]))
        behind = np.ones((len(weights), int(replies.alive[-1]), step.shape[-1]))
        for t in range(len(replies.alive) - 1, 0, -1):
            alive = int(replies.alive[t])
            behind = _grown(behind, alive) * _evidence(replies.flags[:, :alive, t], None)
            behind /= passed.norm[t][..., None]
            before = passed.chance[t - 1][:, :alive]
            visits[:, :alive] += before[..., :, None] * behind[..., None, :]
            behind = np.einsum("brl,brkl->brk", behind, step[:, :alive])
        first = passed.chance[0] * _grown(behind, len(replies.task))
        regimes = Regimes(
            start=_shares(np.einsum("brk,br,rt->btk", first, weights, member), 2.0),
            step=_shares(np.einsum("brkl,br,rt->btkl", visits * step, weights, member), SHRINK),
        )
    return regimes


def _shares(counts: FloatArray, shrink: float) -> FloatArray:
    """Counts by task -> chances, `shrink` pseudo-counts at the chances over all tasks."""
    shared = counts.sum(axis=1, keepdims=True) + FLOOR / counts.shape[-1]
    counts = counts + shrink * shared / shared.sum(axis=-1, keepdims=True)
    return np.asarray(counts / counts.sum(axis=-1, keepdims=True))


def chances(replies: Replies, regimes: Regimes) -> FloatArray:
    """[B, R, L] chance that a draft passes there, given every known flag of the reply."""
    passed = _forward(replies, regimes, None)
    step = regimes.step[:, replies.task]
    found = np.zeros((len(passed.norm[0]), *replies.index.shape))
    behind = np.ones_like(passed.chance[-1])
    for t in range(len(replies.alive) - 1, -1, -1):
        alive = int(replies.alive[t])
        behind = _grown(behind, alive)
        both = passed.chance[t] * behind
        found[:, :alive, t] = both[..., HALF:].sum(axis=2) / both.sum(axis=2)
        behind = behind * _evidence(replies.flags[:, :alive, t], None) / passed.norm[t][..., None]
        behind = np.einsum("brl,brkl->brk", behind, step[:, :alive])
    return found


def draw(
    replies: Replies, regimes: Regimes, tilt: FloatArray, generator: np.random.Generator
) -> Flags:
    """[B, R, L] whole replies drawn given the known flags: filter forward, sample backward.

    tilt [B, R]: log-odds by which unknown flags are likelier accepted than the model says.
    """
    passed = _forward(replies, regimes, tilt)
    fits, rows, length = len(tilt), len(replies.task), len(replies.alive)
    drawn = np.zeros((fits, rows, length), dtype=np.int8)
    state = np.zeros((fits, 0), dtype=np.intp)
    fit_row = np.arange(fits)[:, None]
    for t in range(length - 1, -1, -1):
        alive, going = int(replies.alive[t]), state.shape[1]
        weight = passed.chance[t].copy()
        task = replies.task[:going]
        weight[:, :going] *= regimes.step[fit_row, task, :, state]
        edges = weight.cumsum(axis=2)
        at = generator.random((fits, alive)) * edges[..., -1]
        # Rounding may put a draw on the last edge; a state without weight is never taken.
        state = np.minimum((edges <= at[..., None]).sum(axis=2), weight.shape[2] - 1)
        drawn[:, :alive, t] = state >= HALF
    return drawn
