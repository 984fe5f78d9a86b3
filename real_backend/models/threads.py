"""How many threads a forward on the CPU should have: tried, since a busy neighbour can make two
threads twenty times slower than one.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import torch

_SMALL_PARAMETERS = 50_000_000  # below, more threads only add waiting
_TOKENS, _REPEATS = 5, 3
_WORTH = 0.9  # more threads must bring at least a tenth


def candidates(cores: int) -> list[int]:
    """1, 2, 4, ... and all of the cores."""
    return sorted({1 << k for k in range(cores.bit_length()) if 1 << k < cores} | {cores})


def choose_threads(model: Any) -> tuple[int, dict[int, float]]:
    """Threads for this transformers model, and the seconds of a short forward by threads tried.

    A small model gets one without a trial. Leaves torch set to the choice.
    """
    if model.num_parameters() < _SMALL_PARAMETERS:
        torch.set_num_threads(1)
        return 1, {}
    tried: dict[int, float] = {}
    best = 1
    for threads in candidates(_cores()):
        torch.set_num_threads(threads)
        tried[threads] = forward_s(model)
        if tried[threads] < _WORTH * tried[best]:
            best = threads
        elif tried[threads] > 3 * tried[best]:
            break  # more would only be slower
    torch.set_num_threads(best)
    return best, tried


def _cores() -> int:
    """Of those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@torch.inference_mode()
def forward_s(model: Any) -> float:
    """Median seconds of a forward over a few tokens, the first not counted."""
    tokens = torch.zeros((1, _TOKENS), dtype=torch.long)
    spent = []
    for _ in range(1 + _REPEATS):
        began = time.perf_counter()
        model(input_ids=tokens, use_cache=False)
        spent.append(time.perf_counter() - began)
    return statistics.median(spent[1:])
