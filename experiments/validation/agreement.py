"""Did the real run take the decisions of the replay? Round by round, and where the seconds differ.

Letters: K rounds. Rounds are matched by (request, context_tokens): both runs start a round there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from traces.roundlog import RoundLog

FloatArray = npt.NDArray[np.float64]

REASONS = {
    "gamma": "the controller chose another gamma (it reads the clock, or its past differed)",
    "stop": "the controller stopped drafting elsewhere (a draft signal at its threshold)",
    "acceptance": "another number of drafted tokens was accepted (a tie between two tokens)",
    "end": "the reply ended elsewhere",
}


@dataclasses.dataclass(frozen=True)
class Agreement:
    """The rounds of a real run against those of its replay.

    rounds: of the real run.
    same: as replayed.
    other: at the same place, but another (drafted, accepted, emitted).
    displaced: at a place where the replay starts no round, a consequence of an earlier difference.
    missing: replayed rounds at places where the real run started none.
    requests: that hold any difference.
    first: their first one by REASONS.
    """

    rounds: int
    same: int
    other: int
    displaced: int
    missing: int
    requests: int
    first: dict[str, int]

    @property
    def differing(self) -> int:
        """Rounds that are not as replayed."""
        return self.other + max(self.displaced, self.missing)


def agree(real: RoundLog, replayed: RoundLog) -> Agreement:
    """Compare two runs of the same requests."""
    expected = {
        key: value
        for key, value in zip(
            _columns(replayed, "request", "context_tokens"),
            _columns(replayed, "gamma", "drafted", "accepted", "emitted"),
            strict=True,
        )
    }
    same = other = displaced = 0
    first = dict.fromkeys(REASONS, 0)
    diverged: set[int] = set()
    for key, ours in zip(
        _columns(real, "request", "context_tokens"),
        _columns(real, "gamma", "drafted", "accepted", "emitted"),
        strict=True,
    ):
        theirs = expected.pop(key, None)
        if theirs is not None and ours[1:] == theirs[1:]:
            same += 1
            continue
        if theirs is None:
            displaced += 1
        else:
            other += 1
        if key[0] not in diverged:
            diverged.add(key[0])
            first[_reason(ours, theirs)] += 1
    for request, _ in expected:  # the real run ended a reply, or stepped over these
        if request not in diverged:
            diverged.add(request)
            first["end"] += 1
    return Agreement(len(real), same, other, displaced, len(expected), len(diverged), first)


def _columns(log: RoundLog, *names: str) -> list[tuple[int, ...]]:
    return list(zip(*(getattr(log, name).tolist() for name in names), strict=True))


def _reason(ours: tuple[int, ...], theirs: tuple[int, ...] | None) -> str:
    if theirs is None:
        return "end"
    if ours[1] != theirs[1]:
        return "gamma" if ours[0] != theirs[0] else "stop"
    return "acceptance" if ours[2] != theirs[2] else "end"


@dataclasses.dataclass(frozen=True)
class RoundKind:
    """Rounds of one kind: with or without signals, `drafted` tokens, equally many of them verified.
    Seconds are medians, the residual the difference of the two.
    """

    signals: bool
    drafted: int
    rounds: int
    measured_s: float
    priced_s: float
    residual_s: float


def residual_cells(
    measured: Sequence[RoundLog], priced: Sequence[FloatArray], signals: Sequence[bool]
) -> list[RoundKind]:
    """Measured minus priced seconds per round, by what the round did."""
    groups: dict[tuple[bool, int, int], list[tuple[FloatArray, FloatArray]]] = {}
    for log, price_s, reads in zip(measured, priced, signals, strict=True):
        kinds = np.stack([log.drafted, log.verified], axis=1)
        for drafted, verified in np.unique(kinds, axis=0).tolist():
            pick = (log.drafted == drafted) & (log.verified == verified)
            # Without a draft there is nothing to signal: both kinds of policy share that cell.
            groups.setdefault((reads and drafted > 0, drafted, verified), []).append(
                (log.elapsed_s[pick], price_s[pick])
            )
    cells = []
    for (reads, drafted, _), parts in sorted(groups.items()):
        elapsed, expected = (np.concatenate(side) for side in zip(*parts, strict=True))
        measured_s, priced_s = float(np.median(elapsed)), float(np.median(expected))
        cells.append(
            RoundKind(reads, drafted, len(elapsed), measured_s, priced_s, measured_s - priced_s)
        )
    return cells


@dataclasses.dataclass(frozen=True)
class Residual:
    """Seconds the cost model misses per round, per drafted token, per token whose signals are read
    (least squares over the cells, weighted by rounds); negative: it charges too much.
    """

    round_s: float
    draft_s: float
    signal_s: float


def fit_residual(cells: Sequence[RoundKind]) -> Residual:
    """Where the cost model is off; terms the cells cannot tell apart share the blame evenly."""
    weight = np.sqrt([cell.rounds for cell in cells])
    design = np.asarray([[1.0, c.drafted, c.drafted * c.signals] for c in cells])
    target = np.asarray([cell.residual_s for cell in cells])
    solution = np.linalg.lstsq(design * weight[:, None], target * weight, rcond=None)[0]
    return Residual(*(float(term) for term in solution))
