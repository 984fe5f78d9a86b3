"""Devices that run out of memory or go away, as one line that says what to try."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from traces.errors import InputError

DEVICE_REMEDY = "fewer or shorter prompts, a smaller --batch, half precision, or another device"


_MEMORY_PHRASES = (  # libraries run out of memory in words of their own
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "status_alloc_failed",
    "memoryallocation",
)


class DeviceLost(InputError):
    """The device failed under us; nothing more can run on it in this process."""


def out_of_memory(error: BaseException) -> bool:
    """True for the ways in which torch says that memory is short."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error).lower() if isinstance(error, RuntimeError) else ""
    return any(phrase in said for phrase in _MEMORY_PHRASES)


def fault_of(error: BaseException, doing: str, remedy: str) -> InputError | None:
    """The line for the user on a fault of the device; None if it is something else.

    A DeviceLost means that the device itself failed (driver reset, unplugged, a failed kernel),
    after which the process must be started again.
    """
    if out_of_memory(error):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return InputError(f"out of memory {doing}; try {remedy}")
    lost = isinstance(error, getattr(torch, "AcceleratorError", ()))
    if not lost and not (isinstance(error, RuntimeError) and "CUDA error" in str(error)):
        return None
    reason = str(error).strip().splitlines()[0]
    return DeviceLost(
        f"the device failed {doing} ({reason}); what was finished is saved - check the device and "
        "run the same command again"
    )


@contextlib.contextmanager
def device_faults(doing: str, remedy: str) -> Iterator[None]:
    """Translate faults of the device while `doing` something into InputError; see fault_of."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        told = fault_of(error, doing, remedy)
        if told is None:
            raise
        raise told from None
