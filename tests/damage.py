"""What can happen to a file: bytes cut and flipped, JSON fields lost, doubled, retyped, columns
swapped, and damage that a content hash does not show.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.valid_files import Kind
from traces.store import read_trace, write_trace

Generator = np.random.Generator
_TWICE, _DEEP = "<twice>", "<deep>"
RETYPED: tuple[Any, ...] = (None, True, "x", "", 0, 1, -1, 1.5, [], {}, [None], [[]], {"a": 1})
EXTREME: tuple[Any, ...] = (
    *(0, -1, 1e300, -1e300, 1e-320, 10**400, -(10**30), 2**31 - 1, 2**31, 2**63, 40_000),
    *(float("nan"), float("inf"), -float("inf")),
)
REALS = (float("nan"), float("inf"), -1.0, 1e30)
ODD = (
    "w1 " * 400,
    "x" * 100_000,
    "\ud800",
    "a\nb",
    "\x1b[31m",
    "../..",
    "\x00",
    "é" * 300,
    "nan",
    "%s{}",
    _DEEP,
)


def pick(generator: Generator, choices: Any) -> Any:
    return choices[int(generator.integers(len(choices)))]


def damaged(path: Path, whole: bytes, kind: Kind, generator: Generator) -> str:
    """Write a damaged version of the file to `path`; says in a word what was done."""
    if generator.random() < 0.3:
        name = pick(generator, sorted(BYTES))
        path.write_bytes(BYTES[name](whole, generator))
        return name
    path.write_bytes(whole)
    return {"parquet": _parquet, "safetensors": _safetensors}.get(kind.layout, _text)(
        path, kind, generator
    )


# ---- bytes


def _cut(whole: bytes, generator: Generator) -> bytes:
    return whole[: int(generator.integers(len(whole)))]


def _flipped(whole: bytes, generator: Generator) -> bytes:
    data = bytearray(whole)
    for at in generator.integers(len(data), size=int(generator.integers(1, 9))):
        data[at] ^= 1 << int(generator.integers(8))
    return bytes(data)


def _doubled(whole: bytes, generator: Generator) -> bytes:
    begin, end = sorted(generator.integers(len(whole), size=2).tolist())
    return whole[:end] + whole[begin:]


def _spliced(whole: bytes, generator: Generator) -> bytes:
    at = int(generator.integers(len(whole)))
    return whole[:at] + pick(generator, (b"\xed\xa0\x80", b"\0", b"\r", b"\xff" * 9)) + whole[at:]


BYTES: dict[str, Callable[[bytes, Generator], bytes]] = {
    "cut": _cut,
    "cut at the end": lambda whole, generator: whole[: -int(generator.integers(1, 40))],
    "flipped": _flipped,
    "doubled": _doubled,
    "spliced": _spliced,
    "empty": lambda whole, generator: b"",
    "mark": lambda whole, generator: b"\xef\xbb\xbf" + whole,
    "utf-16": lambda whole, generator: whole.decode("latin-1").encode("utf-16"),
    "magic": lambda whole, generator: b"PK\x03\x04" + whole[4:],
    "noise": lambda whole, generator: generator.bytes(300),
}


# ---- JSON


def _slots(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a JSON value."""
    keys = value if isinstance(value, dict) else range(len(value))
    found = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], dict | list):
            found += _slots(value[key])
    return found


def mangled(value: Any, generator: Generator) -> tuple[Any, str]:
    """A JSON value with one to three things wrong, and what."""
    root, told = [copy.deepcopy(value)], []
    for _ in range(int(generator.integers(1, 3))):
        slots = _slots(root)
        container, key = slots[int(generator.integers(len(slots)))]
        name = pick(generator, ("delete", "double", "retype", "extreme", "odd", "text", "swap"))
        told.append(f"{name} {str(key)[:30]}")
        if name == "delete":
            del container[key]
        elif name == "double" and isinstance(container, dict):
            container[f"{_TWICE}{key}"] = pick(generator, (container[key], *RETYPED))
        elif name == "double":
            container.insert(key, copy.deepcopy(container[key]))
        elif name == "swap":
            other = pick(generator, list(container) if isinstance(container, dict) else [0, -1])
            container[key], container[other] = container[other], container[key]
        elif name == "text":
            container[key] = str(container[key])
        else:
            values = {"retype": RETYPED, "extreme": EXTREME, "odd": ODD}[name]
            container[key] = copy.deepcopy(pick(generator, values))
        if not root:
            break
    return root[0] if root else None, ", ".join(told)


def dumped(value: Any) -> str:
    """JSON with doubled fields, deep nests, NaN and halves of characters."""
    text = json.dumps(value).replace(f'"{_TWICE}', '"')
    return text.replace(f'"{_DEEP}"', "[" * 3000 + "]" * 3000)


def _text(path: Path, kind: Kind, generator: Generator) -> str:
    """JSON, or one line of JSON lines; a log without JSON gets other words."""
    text = path.read_text("utf-8")
    if kind.layout == "log":
        words = text.split(" ")
        words[int(generator.integers(len(words)))] = str(pick(generator, (*EXTREME, *ODD[2:])))
        path.write_text(" ".join(words), "utf-8", errors="surrogatepass")
        return "a word"
    lines = text.splitlines() if kind.layout == "lines" else [text]
    at = int(generator.integers(len(lines)))
    value, told = mangled(json.loads(lines[at]), generator)
    lines[at] = dumped(value)
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return told


# ---- Parquet and safetensors


def _parquet(path: Path, kind: Kind, generator: Generator) -> str:
    table = pq.read_table(path)
    names = list(table.column_names)
    first, second = (int(k) for k in generator.integers(len(names), size=2))
    name = pick(generator, ("header", "lose", "swap", "nulls", "retype", "few", "sign", "sign"))
    if name == "sign" and kind.name == "trace":
        return _signed(path, generator)
    if name == "header":
        header, told = mangled(json.loads(table.schema.metadata[b"gammalab"]), generator)
        table = table.replace_schema_metadata({b"gammalab": dumped(header).encode()})
        name = f"header {told}"
    elif name == "lose":
        table = table.drop_columns([names[first]])
    elif name == "swap":
        names[first], names[second] = names[second], names[first]
        table = table.rename_columns(names)
    elif name == "few":
        table = table.slice(0, int(generator.integers(3)))
    elif name == "sign":
        name = "value"
        values = table.column(first).to_pylist()
        values[int(generator.integers(len(values)))] = pick(generator, (0, -1, 1, 2**31 - 1))
        python = type(values[-1])
        column = pa.array([python(value) for value in values], table.schema.field(first).type)
        table = table.set_column(first, names[first], column)
    else:
        rows = table.num_rows
        column = pa.nulls(rows) if name == "nulls" else pa.array(["x"] * rows)
        if generator.random() < 0.5:  # nulls in some rows only
            column = pa.array([*table.column(first).to_pylist()[:-1], None])
        table = table.set_column(first, names[first], column)
    pq.write_table(table, path)
    return f"{name} of {names[first]}"


def _signed(path: Path, generator: Generator) -> str:
    """A trace with a wrong value and the right hash."""
    trace = copy.copy(read_trace(path))
    meta = copy.copy(trace.meta)
    if generator.random() < 0.6:
        raw, told = mangled(meta.__dict__, generator)
        meta.__dict__.update(
            {k: v for k, v in (raw if isinstance(raw, dict) else {}).items() if k in meta.__dict__}
        )
        trace.__dict__["meta"] = meta
    else:
        told = pick(generator, ("accept_len", "prompt_tokens", "top1_prob", "entropy", "token_ids"))
        array = getattr(trace, told).copy()
        numbers = (0, -1, 30_000, np.iinfo(array.dtype).max) if array.dtype.kind == "i" else REALS
        array.flat[int(generator.integers(array.size))] = value = pick(generator, numbers)
        trace.__dict__[told], told = array, f"{told} {value}"
    try:
        write_trace(trace, path, overwrite=True)
    except (
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        RuntimeWarning,
    ):  # what no writer could write
        path.write_bytes(b"PAR1")
    return f"signed {told}"


def _safetensors(path: Path, kind: Kind, generator: Generator) -> str:
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header, told = mangled(json.loads(data[8:end]), generator)
    text = dumped(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    return told
