"""Traces in Parquet: one row per request, schema version, meta and content hash in the file's
header. Files of any kind are written through `write_atomically`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from traces.errors import InputError
from traces.json_text import parse_json
from traces.schema import OPTIONAL, Trace, TraceError, TraceMeta
from traces.shapes.shape import check_recorded

SCHEMA_VERSION = 1
_SIGNALS = ("top1_prob", "entropy", "accept_prob")
_SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("category", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("token_ids", pa.list_(pa.int32())),
        ("accept_len", pa.list_(pa.int16())),
        *((name, pa.list_(pa.float32())) for name in _SIGNALS),
    ]
)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise InputError if `path` cannot be made here: its folder is a file, or it exists and may
    not be overwritten. Ask before long work.
    """
    if path.parent.exists() and not path.parent.is_dir():
        raise InputError(f"{path.parent} is a file; name a folder")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; choose another name or pass --force")


def write_atomically(path: Path, write: Callable[[Path], object], overwrite: bool = False) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, then rename it into place.

    Raises InputError if `path` exists (unless overwrite), its folder cannot be written or the disk
    is full; nothing half-written stays behind.
    """
    refuse_existing(path, overwrite)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        full = error.errno == errno.ENOSPC
        reason = "the disk is full" if full else error.strerror or str(error)
        raise InputError(f"{path} could not be written: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_table(
    path: Path,
    kind: str,
    versions: Collection[int] = (SCHEMA_VERSION,),
    columns: pa.Schema | None = None,
) -> tuple[pa.Table, dict[str, Any]]:
    """A Parquet file of ours and its header {"kind", "version", ...}.

    columns: that it must have, of these types and without a hole; a list may be missing as a whole.
    Raises InputError if the file is missing, truncated, not Parquet, or of another kind, TraceError
    for a column.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with pq.ParquetFile(path) as file:  # read_table would load the whole dataset machinery
            table = file.read()
        text = (table.schema.metadata or {}).get(b"gammalab", b"null").decode()
        header = parse_json(text, "its header", once=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is not a readable Parquet file ({first[:120]}); truncated or foreign?"
        ) from None
    if not isinstance(header, dict) or header.get("kind") != kind:
        raise InputError(f"{path} is a Parquet file, but not a GammaLab {kind}")
    if header.get("version") not in versions:
        raise InputError(
            f"{path} has {kind} version {header.get('version')}; this GammaLab reads version "
            f"{' or '.join(map(str, versions))}"
        )
    for field in columns or ():
        check_column(table, field, path)
    return table, header


def check_column(table: pa.Table, wanted: pa.Field, path: Path) -> None:
    """Raise TraceError unless the column is there once, of its type and without holes."""
    name, kind = wanted.name, wanted.type
    if table.column_names.count(name) != 1:
        raise TraceError(f"{path}: column {name!r} is missing, or there twice")
    column = table.column(name)
    if column.type != kind:
        raise TraceError(f"{path}: column {name!r} holds {column.type}, not {kind}")
    holes = column.null_count
    if pa.types.is_list(kind):
        if 0 < holes < len(column):
            raise TraceError(f"{path}: {name} is missing in some requests but not in others")
        holes = column.combine_chunks().flatten().null_count
    if holes:
        raise TraceError(f"{path}: column {name!r} lacks {holes} of its values")


def content_hash(trace: Trace) -> str:
    """SHA-256 over meta and every array of the trace, independent of the file layout."""
    digest = hashlib.sha256(json.dumps(trace.meta.to_dict(), sort_keys=True).encode())
    digest.update("\0".join((*trace.request_id, *trace.category)).encode())
    arrays = (trace.offsets, trace.prompt_tokens, trace.accept_len, trace.token_ids)
    for array in (*arrays, *(getattr(trace, name) for name in _SIGNALS)):
        digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
    if trace.censored is not None:
        digest.update(trace.censored.tobytes())
    for name in OPTIONAL:  # each under its name: a file that lacks them has the hash it had
        if (column := getattr(trace, name)) is not None:
            digest.update(name.encode() + np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()


def _lists(values: npt.NDArray[Any], offsets: npt.NDArray[np.int64], kind: pa.DataType) -> pa.Array:
    """[R] list column over flat values; offsets index the flat array."""
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values, type=kind))


def _to_table(trace: Trace) -> pa.Table:
    columns: list[pa.Array] = [
        pa.array(trace.request_id, type=pa.string()),
        pa.array(trace.category, type=pa.string()),
        pa.array(trace.prompt_tokens, type=pa.int32()),
    ]
    empty = pa.nulls(trace.requests, type=pa.list_(pa.int32()))
    tokens = trace.token_ids
    columns.append(empty if tokens is None else _lists(tokens, trace.offsets, pa.int32()))
    columns.append(_lists(trace.accept_len, trace.offsets, pa.int16()))
    for name in _SIGNALS:
        array = getattr(trace, name)
        if array is None:
            columns.append(pa.nulls(trace.requests, type=pa.list_(pa.float32())))
        else:
            columns.append(_lists(array.ravel(), trace.offsets * trace.meta.depth, pa.float32()))
    table = pa.Table.from_arrays(columns, schema=_SCHEMA)
    if trace.censored is not None:
        column = _lists(trace.censored, trace.offsets, pa.bool_())
        table = table.append_column("censored", column)
    for name, dtype in OPTIONAL.items():
        if (values := getattr(trace, name)) is not None:
            offsets = trace.offsets * (values.shape[1] if values.ndim > 1 else 1)
            column = _lists(values.ravel(), offsets, pa.from_numpy_dtype(dtype))
            table = table.append_column(name, column)
    return table


def write_trace(trace: Trace, path: Path, *, overwrite: bool = False) -> None:
    """Write one Parquet file atomically; equal traces give equal bytes."""
    header = {
        "kind": "trace",
        "version": SCHEMA_VERSION,
        "meta": trace.meta.to_dict(),
        "content_sha256": content_hash(trace),
    }
    table = _to_table(trace).replace_schema_metadata({b"gammalab": json.dumps(header).encode()})
    # The exponents of a law's numbers repeat where the numbers do not, 6 % smaller; a look-up's
    # shares repeat whole.
    floats = [field.name for field in table.schema if field.type == pa.list_(pa.float32())]
    split = [f"{name}.list.element" for name in floats] if trace.draft_len is None else False
    write_atomically(
        path,
        lambda temporary: pq.write_table(
            table,
            temporary,
            compression="zstd",
            use_dictionary=False,
            use_byte_stream_split=split,
            row_group_size=256,
        ),
        overwrite,
    )


def _flat(table: pa.Table, name: str, dtype: type) -> npt.NDArray[Any] | None:
    """The flat values of a list column, or None if every row is null."""
    column = table.column(name).combine_chunks()
    if column.null_count:
        return None
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False), dtype=dtype)


def read_trace(path: Path, *, shaped: bool = False) -> Trace:
    """Inverse of write_trace. shaped: recordings under a draft tree are welcome, whose tokens are
    levels.

    Raises InputError naming the file if it is missing, truncated, foreign, breaks the schema or
    does not match its content hash, or is under a tree and not welcome.
    """
    table, header = read_table(path, "trace", columns=_SCHEMA)
    if "censored" in table.column_names:
        check_column(table, pa.field("censored", pa.list_(pa.bool_())), path)
    optional = {name: kind for name, kind in OPTIONAL.items() if name in table.column_names}
    for name, kind in optional.items():
        check_column(table, pa.field(name, pa.list_(pa.from_numpy_dtype(kind))), path)
    if table.num_rows == 0:
        raise TraceError(f"{path} holds no requests")
    try:
        meta = TraceMeta.from_dict(header["meta"])
        lengths = table.column("accept_len").combine_chunks().value_lengths().to_numpy()
        accept_len = _flat(table, "accept_len", np.int16)
        _ensure(accept_len is not None, "accept_len is missing")
        assert accept_len is not None
        positions = len(accept_len)

        def deep(name: str, kind: type = np.float32) -> npt.NDArray[Any] | None:
            flat = _flat(table, name, kind)
            if flat is None:
                return None
            _ensure(
                flat.size == positions * meta.depth, f"{name} must hold {meta.depth} per position"
            )
            return flat.reshape(positions, meta.depth)

        trace = Trace(
            meta=meta,
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            prompt_tokens=table.column("prompt_tokens").to_numpy().astype(np.int32),
            request_id=tuple(table.column("request_id").to_pylist()),
            category=tuple(table.column("category").to_pylist()),
            accept_len=accept_len,
            token_ids=_flat(table, "token_ids", np.int32),
            top1_prob=deep("top1_prob"),
            entropy=deep("entropy"),
            accept_prob=deep("accept_prob"),
            censored=(
                _flat(table, "censored", np.bool_) if "censored" in table.column_names else None
            ),
            **{
                name: deep(name, kind) if name == "level_rank" else _flat(table, name, kind)
                for name, kind in optional.items()
            },
        )
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise TraceError(f"{path}: {error}") from None
    if header.get("content_sha256") != content_hash(trace):
        raise TraceError(
            f"{path}: content does not match its hash; the file was altered or damaged"
        )
    if meta.shape:
        check_recorded(str(path), meta.shape, shaped)
    return trace


def _ensure(condition: bool, message: str) -> None:
    if not condition:
        raise TraceError(message)


def concatenate(traces: Sequence[Trace]) -> Trace:
    """One trace with the requests of all, in order. All must share the same meta and columns."""
    first = traces[0]
    if any(t.meta != first.meta for t in traces):
        raise TraceError("traces with different meta cannot be joined")

    def join(name: str) -> Any:
        arrays = [getattr(t, name) for t in traces]
        return None if arrays[0] is None else np.concatenate(arrays)

    lengths = np.concatenate([t.reply_tokens for t in traces])
    return Trace(
        meta=first.meta,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompt_tokens=join("prompt_tokens"),
        request_id=sum((t.request_id for t in traces), ()),
        category=sum((t.category for t in traces), ()),
        **{
            name: join(name)
            for name in ("accept_len", "token_ids", *_SIGNALS, "censored", *OPTIONAL)
        },
    )
