"""The measurements of a sitting, and the folder it lies in, DIR/measured/: a log per seat and
repeat, and the anchors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from policies.registry import file_name
from traces.errors import InputError
from traces.json_text import read_json
from traces.roundlog import RoundLog, read_roundlog, write_roundlog
from traces.store import write_atomically

PLACEBO = "placebo"


class Anchor(NamedTuple):
    """One step of the timing, measured again: seconds since the sitting began, the cell, and the
    median seconds of a block of it by the wall and by the processor's clock (NaN without one).
    """

    at_s: float
    operation: str
    tokens: int
    context: int
    wall_s: float
    cpu_s: float


class Measured(NamedTuple):
    """The logs of a sitting, by seat: one log per repeat. A seat is a policy's label, or PLACEBO, a
    second copy of `baseline`.
    """

    timed: dict[str, list[RoundLog]]
    baseline: str
    anchors: list[Anchor]


def timed_path(folder: Path, seat: str, repeat: int) -> Path:
    """Where repeat number `repeat` (from 0) of a seat lies."""
    return folder / "measured" / f"{file_name(seat)}-{repeat + 1}.parquet"


def anchors_path(folder: Path) -> Path:
    """Where the anchors of a sitting lie."""
    return folder / "measured" / "anchors.json"


def write_rounds(logs: Iterable[tuple[Path, RoundLog]]) -> None:
    """Each log to its file, atomically."""
    for path, log in logs:
        write_roundlog(log, path, overwrite=True)


def write_measured(measured: Measured, folder: Path) -> None:
    """All logs and anchors into a folder, in place of those of an earlier sitting; read_measured
    reads them back. The logs come last: what has them all has the anchors.
    """
    for old in (folder / "measured").glob("*"):
        if old.suffix in (".parquet", ".json"):
            old.unlink()
    rows = [
        [None if isinstance(x, float) and math.isnan(x) else x for x in row]
        for row in measured.anchors
    ]
    text = json.dumps({"kind": "anchors", "fields": list(Anchor._fields), "rows": rows})
    write_atomically(
        anchors_path(folder),
        lambda temporary: temporary.write_text(text + "\n", "utf-8"),
        overwrite=True,
    )
    write_rounds(
        (timed_path(folder, seat, repeat), log)
        for seat, logs in measured.timed.items()
        for repeat, log in enumerate(logs)
    )


def read_measured(folder: Path) -> Measured:
    """All of a folder; raises InputError if it has no logs or they are not of one sitting."""
    timed: dict[str, list[RoundLog]] = {}
    for path in sorted((folder / "measured").glob("*.parquet"), key=_repeat_of):
        log = read_roundlog(path)
        if not all(isinstance(log.meta.get(field), str) for field in ("seat", "baseline")):
            raise InputError(f"{path} is not of a sitting; run `validate --out` again")
        timed.setdefault(log.meta["seat"], []).append(log)
    if not timed:
        raise InputError(f"{folder}/measured holds no round logs; make them with `validate --out`")
    logs = [log for some in timed.values() for log in some]
    same = ("baseline", "trace_sha256", "requests", "block", "carries", "seed")
    for field in (*same, "started_unix_s", "device_name", "dtype", "pair"):
        if any(log.meta.get(field) != logs[0].meta.get(field) for log in logs):
            raise InputError(f"{folder}: its round logs differ in {field}; they are of two runs")
    if len({len(some) for some in timed.values()}) > 1:
        raise InputError(f"{folder}: some policies lack a repeat; they are of two runs")
    baseline = logs[0].meta["baseline"]
    for seat in (PLACEBO, baseline):
        if seat not in timed:
            raise InputError(f"{folder}/measured lacks the rounds of {seat}; copy the whole folder")
    return Measured(timed, baseline, read_anchors(anchors_path(folder)))


def read_anchors(path: Path) -> list[Anchor]:
    """The anchors of a sitting, none if there is no file; raises InputError if it is damaged."""
    if not path.exists():
        return []
    try:
        raw = read_json(path)
        return [_anchor(*row) for row in raw["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no anchors ({error}); run `validate --out` again") from None


def _anchor(
    at_s: Any, operation: Any, tokens: Any, context: Any, wall_s: Any, cpu_s: Any
) -> Anchor:
    cpu = float("nan") if cpu_s is None else float(cpu_s)
    return Anchor(float(at_s), str(operation), int(tokens), int(context), float(wall_s), cpu)


def _repeat_of(path: Path) -> int:
    number = path.stem.rpartition("-")[2]
    return int(number) if number.isdigit() else 0
