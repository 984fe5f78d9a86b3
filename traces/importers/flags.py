"""From one flag per output position to what a Trace holds: accept_len and censored.

Letters: R requests, N output positions in all. A flag says whether the draft's token at a position
was accepted, was rejected, or is unknown because no token was proposed there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

ACCEPTED, REJECTED, UNKNOWN = 1, 0, -1

Flags = npt.NDArray[np.int8]


def accept_lengths(
    flags: Flags, offsets: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_]]:
    """accept_len [N] and censored [N] of flags [N] (1, 0, -1) in replies offsets [R+1]; O(N).

    accept_len is the run of accepted flags from a position, up to the first other flag or the end
    of the reply; censored is true where that other flag is unknown: the run is a lower bound.
    Runs longer than int16 holds are cut there: no draft is that long.
    """
    positions = np.arange(len(flags))
    end = np.repeat(offsets[1:], np.diff(offsets))
    other = np.where(flags == ACCEPTED, len(flags), positions)
    stop = np.minimum(np.minimum.accumulate(other[::-1])[::-1], end)
    padded = np.append(flags, np.int8(ACCEPTED))
    censored = (stop < end) & (padded[stop] == UNKNOWN)
    longest = np.iinfo(np.int16).max
    return np.minimum(stop - positions, longest).astype(np.int16), censored


def round_flags(drafted: Sequence[int], accepted: Sequence[int]) -> Flags:
    """Flags of one reply from its rounds, each of which emits accepted + 1 tokens.

    A round that starts at position i and accepts n tokens gives: i..i+n-1 accepted; i+n rejected if
    fewer were accepted than drafted (the target's own token stands there), unknown if not (the
    bonus token: nobody proposed anything there).
    """
    flags = np.full(sum(accepted) + len(accepted), ACCEPTED, dtype=np.int8)
    at = -1
    for d, n in zip(drafted, accepted, strict=True):
        at += n + 1
        flags[at] = REJECTED if n < d else UNKNOWN
    return flags


def merge_flags(first: Flags, second: Flags) -> tuple[Flags, int, int]:
    """Two recordings of the same reply as one: what the second knows fills what the first does not.

    Returns the flags and how many positions were resolved and were in conflict; the first recording
    wins a conflict, so that it can still be replayed.
    """
    unknown = first == UNKNOWN
    resolved = unknown & (second != UNKNOWN)
    conflicts = ~unknown & (second != UNKNOWN) & (first != second)
    merged = np.where(unknown, second, first).astype(np.int8)
    return merged, int(resolved.sum()), int(conflicts.sum())
