"""RoundLog: one row per speculative round, the common currency of every runtime and all
analysis.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from traces.schema import TraceError
from traces.store import check_column, read_table, write_atomically

VERSION = 3
ROUND_DTYPES: dict[str, type] = {
    "request": np.int32,
    "slot": np.int32,
    "start_s": np.float64,
    "context_tokens": np.int32,
    "batch_size": np.int32,
    "gamma": np.int32,
    "drafted": np.int32,
    "verified": np.int32,
    "accepted": np.int32,
    "emitted": np.int32,
    "ended": np.bool_,
    "elapsed_s": np.float64,
}
OPTIONAL: dict[str, type] = {"cpu_s": np.float64, "nodes": np.int32, "shape": np.int32}
"""Columns that only some logs have."""
ADDED = ("ended", "verified")  # columns that older files lack
ROUND = np.dtype(list(ROUND_DTYPES.items()), align=True)
"""A row of a RoundLog, laid out as C would: what a runtime writes of a finished round."""
_COLUMNS = pa.schema(
    [
        (name, pa.from_numpy_dtype(dtype))
        for name, dtype in ROUND_DTYPES.items()
        if name not in ADDED
    ]
)


@dataclasses.dataclass(frozen=True, eq=False)
class RoundLog:
    """K rounds in the order in which they ran.

    request [K] int32: row of the trace or of the prompt list.
    slot [K] int32: row of the batch.
    start_s [K] float64: seconds since the run began.
    context_tokens [K] int32: prompt and output fixed before the round.
    batch_size [K] int32: rows that ran together.
    gamma [K] int32: cap in force.
    drafted, verified, accepted, emitted [K] int32: tokens; verified: drafted ones that the target
        read, not all of them where a policy or a budget dropped some.
    ended [K] bool: the reply ended at a drafted token or before it, see policies.base.Outcome.
    elapsed_s [K] float64: seconds of the round.
    prefill_s [R] float64: seconds from the start of each request to its first round.
    meta: policy, clock ("simulated" or "measured"), device and so on.
    cpu_s [K] float64 or None: processor seconds of the deciding thread, on a GPU seconds between
        events in its stream.
    nodes [K] int32 or None: nodes that the target read, where trees are drafted, whose levels are
        what drafted and verified count.
    shape [K] int32 or None: the entry of a menu that the round drafted.
    """

    request: npt.NDArray[np.int32]
    slot: npt.NDArray[np.int32]
    start_s: npt.NDArray[np.float64]
    context_tokens: npt.NDArray[np.int32]
    batch_size: npt.NDArray[np.int32]
    gamma: npt.NDArray[np.int32]
    drafted: npt.NDArray[np.int32]
    verified: npt.NDArray[np.int32]
    accepted: npt.NDArray[np.int32]
    emitted: npt.NDArray[np.int32]
    ended: npt.NDArray[np.bool_]
    elapsed_s: npt.NDArray[np.float64]
    prefill_s: npt.NDArray[np.float64]
    meta: dict[str, Any]
    cpu_s: npt.NDArray[np.float64] | None = None
    nodes: npt.NDArray[np.int32] | None = None
    shape: npt.NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.request)

    def same_rounds(self, other: RoundLog) -> bool:
        """Bit-equality of every column, seconds included; meta is not compared."""
        names = (*ROUND_DTYPES, "prefill_s")
        return all(getattr(self, n).tobytes() == getattr(other, n).tobytes() for n in names)


def log_of(
    rows: npt.NDArray[np.void],
    prefill_s: npt.NDArray[np.float64],
    meta: dict[str, Any],
    cpu_s: npt.NDArray[np.float64] | None = None,
) -> RoundLog:
    """The log of finished rounds; rows: [K] ROUND."""
    columns = {name: np.ascontiguousarray(rows[name]) for name in ROUND_DTYPES}
    return RoundLog(**columns, prefill_s=prefill_s, meta=meta, cpu_s=cpu_s)


def join_logs(logs: Sequence[RoundLog], *, one_clock: bool = False) -> RoundLog:
    """One log of runs one after another, their requests numbered on; joules add up.

    one_clock: all start_s are seconds since the same moment; else each run begins where the one
    before it ended.
    """
    columns: dict[str, list[npt.NDArray[np.generic]]] = {name: [] for name in ROUND_DTYPES}
    requests, clock = 0, 0.0
    for log in logs:
        for name, parts in columns.items():
            column = getattr(log, name)
            if name == "request":
                column = (column + requests).astype(column.dtype)
            elif name == "start_s" and not one_clock:
                column = column + clock
            parts.append(column)
        requests += len(log.prefill_s)
        clock += float(log.elapsed_s.sum() + log.prefill_s.sum())
    joined: dict[str, Any] = {name: np.concatenate(parts) for name, parts in columns.items()}
    prefill = np.concatenate([log.prefill_s for log in logs])
    for name in OPTIONAL:
        present = [getattr(log, name) for log in logs if getattr(log, name) is not None]
        joined[name] = np.concatenate(present) if len(present) == len(logs) else None
    meta = dict(logs[0].meta)
    for field, together in (("energy_j", sum), ("peak_memory_bytes", max)):
        values = [log.meta[field] for log in logs if field in log.meta]
        if len(values) == len(logs):
            meta[field] = together(values)
        else:
            meta.pop(field, None)
    return RoundLog(**joined, prefill_s=prefill, meta=meta)


def write_roundlog(log: RoundLog, path: Path, *, overwrite: bool = False) -> None:
    """One Parquet file, atomically; prefill_s and meta travel in the schema metadata."""
    table = pa.table({name: getattr(log, name) for name in ROUND_DTYPES})
    for name in OPTIONAL:
        if (column := getattr(log, name)) is not None:
            table = table.append_column(name, pa.array(column))
    header = {
        b"gammalab": json.dumps(
            {
                "kind": "roundlog",
                "version": VERSION,
                "meta": log.meta,
                "prefill_s": log.prefill_s.tolist(),
            }
        ).encode()
    }
    table = table.replace_schema_metadata(header)
    write_atomically(
        path, lambda temporary: pq.write_table(table, temporary, compression="zstd"), overwrite
    )


def read_roundlog(path: Path) -> RoundLog:
    """Inverse of write_roundlog; raises TraceError naming the file if it is not one.

    Version 1 has no column `ended`: none of its rounds drafted ahead, so there emitted <= accepted
    says it. Version 2 has no column `verified`: it stands for all that was drafted.
    """
    table, header = read_table(path, "roundlog", range(1, VERSION + 1), _COLUMNS)
    if "ended" not in table.column_names:
        ended = pc.less_equal(table.column("emitted"), table.column("accepted"))
        table = table.append_column("ended", ended)
    if "verified" not in table.column_names:
        table = table.append_column("verified", table.column("drafted"))
    for name in ADDED:
        check_column(table, pa.field(name, pa.from_numpy_dtype(ROUND_DTYPES[name])), path)
    columns = {
        name: table.column(name).to_numpy().astype(dtype) for name, dtype in ROUND_DTYPES.items()
    }
    try:
        meta, prefill = dict(header["meta"]), np.asarray(header["prefill_s"], dtype=np.float64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise TraceError(f"{path}: its header lacks meta or prefill_s ({error})") from None
    for name in [name for name in OPTIONAL if name in table.column_names]:
        check_column(table, pa.field(name, pa.from_numpy_dtype(OPTIONAL[name])), path)
        columns[name] = table.column(name).to_numpy().astype(OPTIONAL[name])
    log = RoundLog(**columns, prefill_s=prefill, meta=meta)
    if wrong := _fault(log):
        raise TraceError(f"{path}: {wrong}; the file was altered or damaged")
    return log


def _fault(log: RoundLog) -> str:
    """The first column that no run leaves; "" if there is none."""
    if log.prefill_s.ndim != 1 or not (np.isfinite(log.prefill_s) & (log.prefill_s >= 0)).all():
        return "prefill_s must be a list of seconds"
    names = ("drafted", "verified", "accepted", "emitted", "context_tokens", "gamma", "slot")
    counts = [getattr(log, name) for name in (*names, "nodes", "shape") if _has(log, name)]
    sound = {
        "request": (log.request >= 0) & (log.request < len(log.prefill_s)),
        "a count": np.logical_and.reduce([count >= 0 for count in counts]),
        "batch_size": log.batch_size >= 1,
        "verified": log.verified <= log.drafted,
        "accepted": log.accepted <= log.verified,
        "emitted": log.emitted <= log.accepted + 1,
        "elapsed_s": np.isfinite(log.elapsed_s) & (log.elapsed_s >= 0),
        "start_s": np.isfinite(log.start_s),
    }
    if log.nodes is not None:
        sound["nodes"] = log.nodes >= log.verified
    bad = [f"{name} is out of range in a round" for name, good in sound.items() if not good.all()]
    return bad[0] if bad else ""


def _has(log: RoundLog, name: str) -> bool:
    return getattr(log, name) is not None
