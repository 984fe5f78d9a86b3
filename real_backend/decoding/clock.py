"""The clock that a neighbour does not move: processor time, or events in a GPU's stream."""

from __future__ import annotations

import time
from typing import Any

import torch


def wait_for(device: str) -> None:
    """Return when the device has done all it was given; at once on a CPU."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


class ProcessorClock:
    """Seconds of stretches of work: start, stop, start, stop, ...

    On a CPU the processor time of the calling thread, which stands still while another process has
    the core; helper threads of torch are not in it. On a GPU what passed between two events in its
    stream; nothing is synchronised before `seconds`. Elsewhere NaN.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._cuda, self._cpu = device.startswith("cuda"), device == "cpu"
        self._started: Any = None
        self._stretches: list[tuple[Any, Any, int]] = []

    def _now(self) -> Any:
        if self._cpu:
            return time.thread_time()
        if not self._cuda:
            return None
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def start(self) -> None:
        """Work begins."""
        self._started = self._now()

    def stop(self, times: int = 1) -> None:
        """It is done; its seconds count for so many rows of the result."""
        self._stretches.append((self._started, self._now(), times))

    def seconds(self) -> list[float]:
        """Of every stretch, in order."""
        if self._cuda:
            wait_for(self.device)
        return [
            self._between(start, stop)
            for start, stop, times in self._stretches
            for _ in range(times)
        ]

    def _between(self, start: Any, stop: Any) -> float:
        if self._cpu:
            return float(stop - start)
        return float(start.elapsed_time(stop)) / 1e3 if self._cuda else float("nan")
