"""Timing: measured seconds of prefill, draft step and verify by batch, tokens and context."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import InputError
from traces.store import write_atomically

OPERATIONS = ("prefill", "first", "draft", "verify")
TIMING_VERSION = 1

FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Cell:
    """Seconds of one operation at one grid point: median and quartiles over `repeats` runs.

    operation: "prefill" (target and draft read a prompt of `tokens`), "first" (the first draft
    forward of a round, which reads the `tokens` that the draft's cache lacks and picks the next
    token), "draft" (a further one, tokens = 1), "verify" (one target forward over `tokens` and the
    accept decision). context: tokens already in the caches.
    """

    operation: str
    batch: int
    tokens: int
    context: int
    median_s: float
    q25_s: float
    q75_s: float
    repeats: int


@dataclasses.dataclass(frozen=True)
class Grid:
    """Medians of one operation on a full grid of batch [B], context [C] and tokens [T].

    seconds [B, C, T].
    """

    batch: FloatArray
    context: FloatArray
    tokens: FloatArray
    seconds: FloatArray


@dataclasses.dataclass(frozen=True)
class StepCosts:
    """Seconds of the steps of a round at one batch size, tabulated for kernels and views.

    Letters: C context buckets of `bucket_tokens` each (the last one is open), W = widest step + 1.
    prefill_s [C]: both models read a prompt whose length falls into the bucket.
    draft_s [C, W]: one draft forward that reads n = index tokens (n > 1: its cache lags).
    verify_s [C, W]: the target step over n = index tokens, with the engine's fixed cost per round
    and, for n > 1, what the first draft step of a round costs beyond a further one. Column 0 is 0.
    signal_s: reading top-1 probability and entropy of one drafted token.
    """

    batch: int
    bucket_tokens: int
    prefill_s: FloatArray
    draft_s: FloatArray
    verify_s: FloatArray
    signal_s: float

    def __post_init__(self) -> None:
        for name in ("draft_s", "verify_s"):
            table = getattr(self, name)
            if table.ndim != 2 or table.dtype != np.float64 or not table.flags.c_contiguous:
                raise ValueError(f"{name} must be a C-contiguous [C, W] float64 array")
            if not bool((np.isfinite(table) & (table >= 0)).all()):
                raise InputError(f"{name} holds a negative or infinite time")


@dataclasses.dataclass(frozen=True)
class Timing:
    """What `gammalab measure` found on one machine for one pair.

    meta: pair, target, draft, weights ("loaded" or "random"), device, device_name, dtype, engine,
    threads, versions and fingerprints. signal_s: seconds that a drafted token costs more if its
    top-1 probability and entropy are read; control_s: the engine's own fixed seconds per round with
    a trivial controller.
    """

    meta: dict[str, Any]
    cells: tuple[Cell, ...]
    signal_s: float
    control_s: float

    def grid(self, operation: str) -> Grid:
        """The cells of one operation as a full grid; raises InputError if a grid point is
        missing.
        """
        found = {
            (c.batch, c.context, c.tokens): c.median_s
            for c in self.cells
            if c.operation == operation
        }
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

    def write(self, path: Path, *, overwrite: bool = False) -> None:
        """One JSON file, atomically."""
        raw = {"kind": "timing", "version": TIMING_VERSION, **dataclasses.asdict(self)}
        raw["cells"] = [dataclasses.astuple(cell) for cell in self.cells]
        raw["cell_fields"] = [f.name for f in dataclasses.fields(Cell)]
        text = json.dumps(raw, indent=1).replace(",\n   ", ", ").replace("[\n   ", "[")
        write_atomically(path, lambda temporary: temporary.write_text(text + "\n"), overwrite)


def read_timing(path: Path) -> Timing:
    """Inverse of Timing.write; raises InputError naming file and field."""
    if not path.is_file():
        raise InputError(f"{path}: no such timing file; make one with `gammalab measure`")
    try:
        raw = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not JSON ({error}); truncated?") from None
    if not isinstance(raw, dict) or raw.get("kind") != "timing":
        raise InputError(f"{path} is JSON, but not a GammaLab timing")
    if raw.get("version") != TIMING_VERSION:
        raise InputError(f"{path} has timing version {raw.get('version')}; measure again")
    try:
        cells = tuple(_cell(row) for row in raw["cells"])
        timing = Timing(
            dict(raw["meta"]), cells, _seconds(raw["signal_s"]), _seconds(raw["control_s"])
        )
        for operation in OPERATIONS:
            timing.grid(operation)
    except KeyError as error:
        raise InputError(f"{path}: field {error} is missing; measure again") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}") from None
    return timing


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not (math.isfinite(seconds) and seconds >= 0):
        raise InputError(f"a time of {value} seconds is not possible")
    return seconds


def _cell(row: Iterable[Any]) -> Cell:
    operation, batch, tokens, context, median, q25, q75, repeats = row
    if operation not in OPERATIONS:
        raise InputError(f"unknown operation {operation!r}; known: {', '.join(OPERATIONS)}")
    return Cell(
        operation,
        int(batch),
        int(tokens),
        int(context),
        _seconds(median),
        _seconds(q25),
        _seconds(q75),
        int(repeats),
    )
