"""Devices that run out of memory or go away, as one line that says what to try."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from traces.errors import InputError


class DeviceLost(InputError):
    """The device failed under us; nothing more can run on it in this process."""


def out_of_memory(error: BaseException) -> bool:
    """True for the ways in which torch says that memory is short."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)


@contextlib.contextmanager
def device_faults(doing: str, remedy: str) -> Iterator[None]:
    """Translate faults of the device while `doing` something into InputError, naming the remedy.

    Raises DeviceLost if the device itself failed (driver reset, unplugged, a failed kernel), after
    which the process must be started again.
    """
    try:
        yield
    except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            raise InputError(f"out of memory {doing}; try {remedy}") from None
        lost = isinstance(error, getattr(torch, "AcceleratorError", ()))
        if not lost and "CUDA error" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise DeviceLost(
            f"the device failed {doing} ({reason}); what was finished is saved - check the device "
            "and run the same command again"
        ) from None
