"""Joules and memory of a run, where the device reports them."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from real_backend.models.device import nvml_of


class Meter:
    """Energy and peak memory between entering and leaving; absent figures are left out.

    Energy comes from the device's own counter (NVML, package nvidia-ml-py; from Volta on). It
    covers the whole board and moves in steps of some 20 to 100 ms, so it means little for runs
    under a second. Peak memory is what torch's allocator held, models and caches included.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.device = device
        opened: tuple[Any, Any] = nvml_of(device) if self.cuda else (None, None)
        self._nvml, self._handle = opened
        self._joules: float | None = None
        self._peak: int | None = None

    def __enter__(self) -> Meter:
        if self.cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        self._before = self._read()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if not self.cuda or kind is not None:  # a device that failed has nothing more to say
            return
        torch.cuda.synchronize(self.device)
        after = self._read()
        if self._before is not None and after is not None:
            self._joules = after - self._before
        self._peak = torch.cuda.max_memory_allocated(self.device)

    def report(self) -> dict[str, Any]:
        """energy_j and peak_memory_bytes, as far as known."""
        found = {"energy_j": self._joules, "peak_memory_bytes": self._peak}
        return {name: value for name, value in found.items() if value is not None}

    def _read(self) -> float | None:
        """Joules since the driver was loaded."""
        if self._nvml is None:
            return None
        with contextlib.suppress(self._nvml.NVMLError):
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        return None
