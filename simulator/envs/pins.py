"""Call a compiled step over lanes at the price of one argument.

Unboxing an array costs a call 70 ns, and a step takes twenty of them: as much as the step itself.
So the addresses of the arrays are noted once, in one array, and compiled code finds them there. The
arrays must outlive every call and never move: Pinned keeps them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, config
from numba.core import types
from numba.extending import intrinsic

from policies.base import IntArray
from simulator.envs.kernel import LANE, OUTCOME, Lanes, reset_lanes, step_rounds, step_tokens
from simulator.replay.kernels import compiled


@intrinsic  # type: ignore[untyped-decorator]  # numba ships no types
def pointer(context: Any, address: Any) -> Any:
    """An integer as the pointer that it is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


def unpin(n: IntArray) -> Lanes:
    """The arrays, in compiled code; n [22, 4]: address and lengths of the axes of each."""
    return Lanes(
        carray(pointer(n[0, 0]), (n[0, 1], n[0, 2]), np.int64),
        carray(pointer(n[1, 0]), (n[1, 1],), np.int16),
        carray(pointer(n[2, 0]), (n[2, 1],), np.int16),
        carray(pointer(n[3, 0]), (n[3, 1], n[3, 2]), np.float32),
        carray(pointer(n[4, 0]), (n[4, 1], n[4, 2]), np.float32),
        carray(pointer(n[5, 0]), (n[5, 1], n[5, 2], n[5, 3]), np.float64),
        carray(pointer(n[6, 0]), (n[6, 1], n[6, 2], n[6, 3]), np.float64),
        carray(pointer(n[7, 0]), (n[7, 1], n[7, 2]), np.float64),
        carray(pointer(n[8, 0]), (n[8, 1], n[8, 2], n[8, 3]), np.float32),
        carray(pointer(n[9, 0]), (n[9, 1],), np.int64),
        carray(pointer(n[10, 0]), (n[10, 1],), np.int64),
        carray(pointer(n[11, 0]), (n[11, 1],), LANE),
        carray(pointer(n[12, 0]), (n[12, 1], n[12, 2]), np.float64),
        carray(pointer(n[13, 0]), (n[13, 1], n[13, 2]), np.float32),
        carray(pointer(n[14, 0]), (n[14, 1],), np.int64),
        carray(pointer(n[15, 0]), (n[15, 1], n[15, 2]), np.float32),
        carray(pointer(n[16, 0]), (n[16, 1], n[16, 2]), np.float32),
        carray(pointer(n[17, 0]), (n[17, 1],), np.float64),
        carray(pointer(n[18, 0]), (n[18, 1],), np.uint8),
        carray(pointer(n[19, 0]), (n[19, 1],), np.uint8),
        carray(pointer(n[20, 0]), (n[20, 1],), np.uint8),
        carray(pointer(n[21, 0]), (n[21, 1],), OUTCOME),
    )


def pinned_rounds(pins: IntArray) -> int:
    """simulator.envs.kernel.step_rounds."""
    return step_rounds(unpin(pins))


def pinned_tokens(pins: IntArray) -> int:
    """simulator.envs.kernel.step_tokens."""
    return step_tokens(unpin(pins))


def pinned_reset(pins: IntArray) -> int:
    """simulator.envs.kernel.reset_lanes."""
    return reset_lanes(unpin(pins))


RECORDS = ("lanes", "outcomes")  # of Lanes: as plain Python their fields are attributes of a view


class Pinned:
    """The compiled steps of one set of arrays, as in simulator.envs.kernel; call(pins) is step().

    Replacing an array (not its contents) needs another Pinned.
    """

    def __init__(self, arrays: Lanes, *, tokens: bool) -> None:
        self.arrays = arrays
        self.pins = np.zeros((len(arrays), 4), dtype=np.int64)
        for k, array in enumerate(arrays):
            if not array.flags.c_contiguous:
                raise ValueError(f"{Lanes._fields[k]} is not contiguous")
            self.pins[k, 0] = array.ctypes.data
            self.pins[k, 1 : 1 + array.ndim] = array.shape
        self.call: Callable[[IntArray], int]
        self._reset: Callable[[IntArray], int]
        if config.DISABLE_JIT:  # for a debugger, and for coverage
            records = {name: getattr(arrays, name).view(np.recarray) for name in RECORDS}
            plain, step = arrays._replace(**records), step_tokens if tokens else step_rounds
            self.call, self._reset = (lambda _: step(plain)), (lambda _: reset_lanes(plain))
        else:
            self.call = compiled(pinned_tokens if tokens else pinned_rounds, self.pins)
            self._reset = compiled(pinned_reset, self.pins)

    def step(self) -> int:
        """One step in every lane."""
        return self.call(self.pins)

    def reset(self) -> int:
        """Begin an episode in the lanes whose `actions` entry is 1."""
        return self._reset(self.pins)
