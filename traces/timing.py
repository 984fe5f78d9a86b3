"""Timing: measured seconds of prefill, draft step and verify by batch, tokens and context."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import InputError, warn
from traces.json_text import read_json
from traces.store import write_atomically
from traces.timing_check import refuse_impossible, unlikely
from traces.timing_fields import (
    cell_fields,
    columns,
    meta_fields,
    own_fields,
    repeats_fields,
    seconds_of,
    timing_text,
)
from traces.timing_grid import Grid, grid_of

OPERATIONS = ("prefill", "first", "draft", "verify")
TREES = ("level", "tree")  # operations of draft trees, which few timings have
STEP, BLOCK, HOST = DRAFT_KINDS = ("step", "block", "host")
"""Kinds of draft by their price. step: a forward per token (an independent model, EAGLE); block:
one forward whatever the length (DFlash, Medusa), so that a further token is free; host: no forward
(look-up), only the processor's time, row by row.
"""
PRICES = {"model": STEP, "eagle3": STEP, "block": BLOCK, "lookup": HOST, "suffix": HOST}
FEATURE_HEADS = ("eagle3",)  # steps that read every fixed token with the target's state of it
WALL, CPU = "wall", "cpu"
TIMING_VERSION = 2
READABLE = (1, 2)

FloatArray = npt.NDArray[np.float64]
OwnSeconds = Mapping[str, tuple[float, float]]
"""Of a rule's own arithmetic by policy name: (seconds per round, seconds per drafted token)."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """Seconds of one operation at one grid point.

    operation: "prefill" (target and draft read a prompt of `tokens`), "first" (the first draft
        forward of a round, which reads the `tokens` that the draft's cache lacks and picks the next
        token), "draft" (a further one, tokens = 1), "verify" (one target forward over `tokens` and
        the accept decision), and those of draft trees, see traces.costs.pricing.TreeCosts.
    context: tokens already in the caches.
    median_s: of the sweeps' medians, on the clock of the timing (Timing.chosen).
    q25_s, q75_s: quartiles of all `repeats`, wall.
    blocks_s: the median within each sweep of `measure`, wall or, on a GPU, the stream's own; NaN
        where a sweep missed the cell.
    cpu_blocks_s: the same on the processor's clock of the thread. Number k is the same sweep in all
        cells; empty where unknown.
    """

    operation: str
    batch: int
    tokens: int
    context: int
    median_s: float
    q25_s: float
    q75_s: float
    repeats: int
    blocks_s: tuple[float, ...] = ()
    cpu_blocks_s: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Repeats:
    """Independent measurements of one overhead, seconds, on both clocks; empty where unknown."""

    wall_s: tuple[float, ...] = ()
    cpu_s: tuple[float, ...] = ()

    def on(self, clock: str) -> tuple[float, ...]:
        """Those of one clock."""
        return self.cpu_s if clock == CPU else self.wall_s

    def drawn(self, generator: np.random.Generator) -> Repeats:
        """As many of them, drawn with replacement, the same ones on both clocks."""
        draw = generator.integers(max(1, len(self.wall_s)), size=len(self.wall_s)).tolist()
        return Repeats(_drawn(self.wall_s, draw), _drawn(self.cpu_s, draw))


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds that `gammalab measure` found on one machine for one pair.

    meta: pair, target, draft, draft_kind, weights ("loaded" or "random"), device, device_name,
        dtype, engine, threads, versions and fingerprints.
    signal_s: seconds that a drafted token costs more if its top-1 probability and entropy are read.
    control_s: the engine's own fixed seconds per round. Both without any rule's arithmetic.
    own_s: a rule's own arithmetic by policy name; empty in files of version 1.
    chosen: the clock of median_s, signal_s and control_s, if `on` has chosen one; None: as read,
        which is wall.
    """

    meta: dict[str, Any]
    cells: tuple[Cell, ...]
    signal_s: float
    control_s: float
    own_s: OwnSeconds = dataclasses.field(default_factory=dict)
    signal_repeats: Repeats = Repeats()
    control_repeats: Repeats = Repeats()
    chosen: str | None = None

    @property
    def draft_kind(self) -> str:
        """One of DRAFT_KINDS; "step" where the file says nothing."""
        return str(self.meta.get("draft_kind", STEP))

    @property
    def drafter(self) -> str:
        """One of traces.schema.DRAFTERS, "" where the file says nothing."""
        return str(self.meta.get("drafter", ""))

    @property
    def operations(self) -> tuple[str, ...]:
        """Those that must have been timed: all OPERATIONS, or without "draft" where no draft runs a
        further forward; and TREES, where there is one of them.
        """
        names = OPERATIONS + (TREES if self.knows_trees else ())
        return tuple(name for name in names if self.draft_kind == STEP or name != "draft")

    @property
    def knows_trees(self) -> bool:
        """True if steps of draft trees were timed."""
        return any(cell.operation in TREES for cell in self.cells)

    @property
    def clocks(self) -> tuple[str, ...]:
        """("wall",), or ("wall", "cpu") if every cell has been timed on the processor's too."""
        both = bool(self.cells) and all(cell.cpu_blocks_s for cell in self.cells)
        return (WALL, CPU) if both else (WALL,)

    @property
    def clock(self) -> str:
        """The clock that predictions are made on by default: "cpu" where one processor thread did
        all the work, since then nothing else on the machine leaves a trace in it, else "wall".
        """
        alone = self.meta.get("device") == "cpu" and self.meta.get("threads") == 1
        return CPU if alone and CPU in self.clocks else WALL

    @property
    def sweeps(self) -> int:
        """How many sweeps of `measure` are known one by one; 0: the spread is unknown."""
        return len(self.cells[0].blocks_s) if self.cells else 0

    def on(self, clock: str) -> Timing:
        """The same with the medians of this clock; raises InputError if it was not timed on it."""
        if clock not in self.clocks:
            raise InputError(
                f"this timing has no {clock!r} clock, only {', '.join(self.clocks)}; measure again"
            )
        cells = tuple(
            dataclasses.replace(cell, median_s=_median(blocks)) if blocks else cell
            for cell in self.cells
            for blocks in [cell.cpu_blocks_s if clock == CPU else cell.blocks_s]
        )
        signal, control = self.signal_repeats.on(clock), self.control_repeats.on(clock)
        return dataclasses.replace(
            self,
            cells=cells,
            signal_s=max(0.0, _median(signal)) if signal else self.signal_s,
            control_s=max(0.0, _median(control)) if control else self.control_s,
            chosen=clock,
        )

    def settled(self) -> Timing:
        """On the clock that `on` chose, else on the default one. Whatever prices steps comes
        through traces.costs.table.Table, and Table through here.
        """
        return self if self.chosen else self.on(self.clock)

    def resampled(self, generator: np.random.Generator) -> Timing:
        """As if measured again: sweeps drawn with replacement, the same ones for all cells; an
        overhead's repeats likewise; own_s stays. On the clock that `on` chose, else on the default
        one.

        Raises InputError where the sweeps are not known one by one.
        """
        if not self.sweeps:
            raise InputError("this timing keeps no sweeps, so its spread is unknown; measure again")
        draw = generator.integers(self.sweeps, size=self.sweeps).tolist()
        cells = tuple(
            dataclasses.replace(
                cell,
                blocks_s=_drawn(cell.blocks_s, draw),
                cpu_blocks_s=_drawn(cell.cpu_blocks_s, draw),
            )
            for cell in self.cells
        )
        again = dataclasses.replace(
            self,
            cells=cells,
            signal_repeats=self.signal_repeats.drawn(generator),
            control_repeats=self.control_repeats.drawn(generator),
        )
        return again.on(self.chosen or self.clock)

    def grid(self, operation: str) -> Grid:
        """The cells of one operation as a full grid; raises InputError if a grid point is
        missing.
        """
        found = [cell for cell in self.cells if cell.operation == operation]
        seconds = {(c.batch, c.context, c.tokens): c.median_s for c in found}
        return grid_of(operation, seconds)

    def write(self, path: Path, *, overwrite: bool = False) -> None:
        """One JSON file, atomically; a cell or a rule a line."""
        text = self._text()
        write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8"), overwrite)

    def sha256(self) -> str:
        """Of what is measured and of its meta, whatever file it lies in."""
        return hashlib.sha256(self._text().encode()).hexdigest()

    def _text(self) -> str:
        timing = self.on(WALL) if self.chosen else self
        head = {
            "kind": "timing",
            "version": TIMING_VERSION,
            "meta": timing.meta,
            "signal_s": timing.signal_s,
            "control_s": timing.control_s,
            "cell_fields": [field.name for field in dataclasses.fields(Cell)],
        }
        repeats = {"signal": timing.signal_repeats, "control": timing.control_repeats}
        return timing_text(
            head,
            {name: dataclasses.asdict(found) for name, found in repeats.items()},
            timing.own_s,
            [dataclasses.astuple(cell) for cell in timing.cells],
        )


def _median(values: tuple[float, ...]) -> float:
    return float(np.nanmedian(values))


def _drawn(blocks: tuple[float, ...], draw: list[int]) -> tuple[float, ...]:
    """The blocks of the drawn sweeps; all blocks if the drawn ones missed the cell."""
    drawn = tuple(blocks[k] for k in draw) if blocks else ()
    return blocks if all(math.isnan(block) for block in drawn) else drawn


_warn_once = functools.cache(warn)  # a study reads its timing more than once


def read_timing(path: Path) -> Timing:
    """Inverse of Timing.write, version 1 too; raises InputError naming file and field, and says on
    stderr what is possible, but odd.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such timing file; make one with `gammalab measure`")
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("kind") != "timing":
        raise InputError(f"{path} is JSON, but not a GammaLab timing")
    if type(raw.get("version")) is not int or raw["version"] not in READABLE:
        raise InputError(f"{path} has timing version {raw.get('version')!r}; measure again")
    try:
        timing = _timing(raw)
    except KeyError as error:
        raise InputError(f"{path}: field {error} is missing; measure again") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if odd := unlikely(timing):
        more = f"; {len(odd) - 1} more like it" if odd[1:] else ""
        _warn_once(f"{path}: {odd[0]}{more}")
    return timing


def _timing(raw: dict[str, Any]) -> Timing:
    if not isinstance(raw["cells"], list):
        raise InputError("field cells must be a list")
    names = columns(raw.get("cell_fields"))
    known, rows = OPERATIONS + TREES, list(enumerate(raw["cells"]))
    cells = [Cell(**cell_fields(row, known, f"cells[{k}]", names)) for k, row in rows]
    fields: dict[str, Any] = {n: seconds_of(raw[n], n) for n in ("signal_s", "control_s")}
    if raw["version"] >= 2:
        fields["own_s"] = own_fields(raw["own_s"])
        for name in ("signal_repeats", "control_repeats"):
            fields[name] = Repeats(**repeats_fields(raw[name], name))
    timing = Timing(meta_fields(raw["meta"], DRAFT_KINDS), tuple(cells), **fields)
    refuse_impossible(timing)
    for operation in timing.operations:
        timing.grid(operation)
    return timing
