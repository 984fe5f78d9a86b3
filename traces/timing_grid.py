"""Seconds of one operation on a full grid of batch, context and tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from traces.errors import InputError

FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Grid:
    """Medians of one operation on a full grid of batch [B], context [C] and tokens [T].

    seconds [B, C, T].
    """

    batch: FloatArray
    context: FloatArray
    tokens: FloatArray
    seconds: FloatArray


def grid_of(operation: str, found: Mapping[tuple[int, int, int], float]) -> Grid:
    """The grid of these seconds, by (batch, context, tokens); raises InputError if a point of it is
    missing. operation: its name, for the message.
    """
    if not found:
        raise InputError(f"the timing has no {operation!r} cells; measure again")
    axes = [sorted({key[axis] for key in found}) for axis in range(3)]
    seconds = np.empty([len(axis) for axis in axes])
    for b, batch in enumerate(axes[0]):
        for c, context in enumerate(axes[1]):
            for t, tokens in enumerate(axes[2]):
                if (batch, context, tokens) not in found:
                    raise InputError(
                        f"the timing lacks {operation} at batch {batch}, context {context}, "
                        f"{tokens} tokens; measure again"
                    )
                seconds[b, c, t] = found[batch, context, tokens]
    arrays = [np.asarray(axis, dtype=np.float64) for axis in axes]
    return Grid(arrays[0], arrays[1], arrays[2], seconds)
