"""A workload of every process, and the draw of one."""

from __future__ import annotations

import numpy as np
import pytest

from traces.workload.arrivals import Demand, demand
from traces.workload.workload import Workload

CATEGORIES = ("chat", "chat", "chat", "code", "math", "math")
SAMPLES = {
    "poisson": Workload(50, "poisson", rate_per_s=4.0),
    "gamma": Workload(50, "gamma", rate_per_s=4.0, cv=2.5),
    "bursts": Workload(50, "bursts", on_rate_per_s=8.0, off_rate_per_s=1.0, on_s=10.0, off_s=30.0),
    "silence": Workload(50, "bursts", on_rate_per_s=8.0, on_s=0.5, off_s=2.0),
    "recorded": Workload(3, "recorded", arrival_s=(0.0, 1.5, 1.5), order="recorded"),
    "closed": Workload(50, "closed", users=8, think_s=0.5, think="fixed"),
    "mix": Workload(
        50,
        "poisson",
        rate_per_s=1.0,
        weights=(("chat", 3.0), ("math", 1.0)),
        priorities=(("code", 2), ("math", -1)),
    ),
}
EVERY = pytest.mark.parametrize("workload", SAMPLES.values(), ids=SAMPLES.keys())


def draw(workload: Workload, seed: int = 0) -> Demand:
    return demand(workload, CATEGORIES, seed)


def same_bytes(one: Demand, two: Demand) -> bool:
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(one, two, strict=True)
    )
