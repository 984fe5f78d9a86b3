"""Record a function of fixed shapes as a CUDA graph: one launch repeats all of its kernels, on what
the host has put into the same memory as before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Work = Callable[[], None]
Recorder = Callable[[Work, Sequence[Tensor]], Callable[[], object]]
"""(work, what it changes beyond writing the same again) -> its replay."""

_primed: set[torch.device] = set()


def eagerly(work: Work, state: Sequence[Tensor]) -> Callable[[], object]:
    """A recorder that records nothing: the function itself, to be run again."""
    return work


class GraphRecorder:
    """Graphs of one device in one pool of memory, so that they share what they need in between."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool: Any = torch.cuda.graph_pool_handle()
        _prime(device)

    def __call__(self, work: Work, state: Sequence[Tensor]) -> Callable[[], object]:
        """A graph of `work`. It runs twice before, since libraries set themselves up on the first
        call; `state` is what it was before each run and afterwards.
        """
        kept = [tensor.clone() for tensor in state]

        def restore() -> None:
            for tensor, before in zip(state, kept, strict=True):
                tensor.copy_(before)

        with torch.cuda.device(self.device):
            main: Any = torch.cuda.current_stream()
            side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(main)
            with torch.cuda.stream(side):
                for _ in range(2):
                    work()
                    restore()
            main.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Thread-local: an allocation of another thread must not break the capture.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                work()
        return graph.replay


def _prime(device: torch.device) -> None:
    """Record something outside inference mode, once a device.

    The first capture makes the state of the device's random generator; made under inference mode
    it could not be changed by anybody's later capture outside of it.
    """
    if device in _primed:
        return
    with torch.inference_mode(False), torch.cuda.device(device):
        one = torch.zeros(1, device=device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            one.add_(1.0)
    _primed.add(device)


class Inbox:
    """A tensor on the device that the host fills without waiting for the device.

    The host's copy is pinned, and is written again only after the round's read-back, when the
    transfer is long over.
    """

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, device: str) -> None:
        self.tensor = torch.zeros(shape, dtype=dtype, device=device)
        pinned = device.startswith("cuda")
        self._host = torch.zeros(shape, dtype=dtype, pin_memory=pinned)

    def put(self, lines: Sequence[Sequence[float]]) -> None:
        """Send rows of numbers, [B, ...] as the inbox is shaped."""
        self._host.copy_(torch.tensor(lines, dtype=self._host.dtype))
        self.tensor.copy_(self._host, non_blocking=True)
