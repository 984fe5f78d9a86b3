"""Small runs of `gammalab serve`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from policies.fixed import Fixed
from simulator.serving.options import Server
from simulator.serving.result import ServingResult
from simulator.serving.server import serve
from tests.command import Outcome, gammalab
from tests.results import lively_trace, make_timing, make_trace
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate
from traces.schema import Trace
from traces.store import write_trace
from traces.workload.arrivals import Demand

REQUESTS, SEEDS = 20, (0, 1)
POLICIES = {"never": "never", "fixed:gamma=2": "fixed-gamma-2"}


class Inputs(NamedTuple):
    """Files of a trace and of a timing of batches 1 and 2."""

    trace: Path
    timing: Path

    def serve(self, *more: object, **options: object) -> Outcome:
        """A small run; options replace those given here."""
        given: dict[str, object] = {
            "trace": self.trace, "timing": self.timing, "workload": "poisson:rate=0.006",
            "requests": REQUESTS, "policies": ",".join(POLICIES), "server": "slots=2",
            "seeds": len(SEEDS),
        }  # fmt: skip
        argv = [(f"--{name}", value) for name, value in (given | options).items()]
        return gammalab("serve", *(part for pair in argv for part in pair), *more)


def save_inputs(folder: Path) -> Inputs:
    timing = make_timing()
    cells = [dataclasses.replace(cell, batch=b) for cell in timing.cells for b in (1, 2)]
    dataclasses.replace(timing, cells=tuple(cells)).write(folder / "timing.json")
    write_trace(lively_trace(), folder / "trace.parquet")
    return Inputs(folder / "trace.parquet", folder / "timing.json")


def save_bare(folder: Path) -> tuple[object, ...]:
    """A trace without signals."""
    write_trace(make_trace([[1, 0, 1]] * 2, ["1", "2"], ["a"] * 2), folder / "bare.parquet")
    return ("--trace", folder / "bare.parquet")


def by_hand(log: bool = True, **server: Any) -> tuple[ServingResult, Trace]:
    """Four requests, two drafts a round, every iteration 12 s: see test_service."""
    trace = make_trace([[2, 1, 0, 0], [0, 0, 0], [0], [1, 0]], ["a", "b", "c", "d"], ["x"] * 4)
    costs = tabulate(Affine(draft_fixed=1, target_fixed=10), range(1, 3), width=6)
    zeros = np.zeros(4, dtype=np.int32)
    wanted = Demand(
        np.arange(4, dtype=np.int32), np.asarray([0.0, 0.0, 5.0, 50.0]), np.zeros(4), zeros, 0
    )
    settings = Server(**({"slots": 2} | server))
    trace = dataclasses.replace(trace, meta=dataclasses.replace(trace.meta, max_new_tokens=100))
    ran = serve(Fixed(2), trace, wanted, costs, settings, log=log, compiled=False)
    return ran, trace
