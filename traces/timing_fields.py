"""Fields of a timing file: JSON values in, checked, arguments of traces.timing's classes out; and
back, as text.

Every function that checks raises InputError naming the field (`where`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from traces.errors import InputError

CELL = ("operation", "batch", "tokens", "context", "median_s", "q25_s", "q75_s", "repeats")
BLOCKS = ("blocks_s", "cpu_blocks_s")  # since version 2
LEAST = {"batch": 1, "tokens": 1, "context": 0, "repeats": 1}
LONGEST_S = 86_400.0  # a day; no step of any pair takes one
_LARGEST = 2**31 - 1
_TEXTS = (
    *("pair", "target", "draft", "tokenizer_sha256", "weights", "device", "device_name", "dtype"),
    *("engine", "drafter"),
)
_NUMBERS = ("threads", "temperature", "top_p")
_NEEDED = ("pair", "device")
_SHAPE = ("target", "draft", "dtype", "device_name")  # what a note on random weights says


def is_number(value: Any) -> bool:
    """True for a JSON number that a float holds; NaN and infinity are none."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def _number(value: Any, where: str) -> float:
    if not is_number(value):
        raise InputError(f"{where} must be a number of seconds, not {value!r}")
    if abs(value) > LONGEST_S:
        raise InputError(f"{where}: a time of {value:g} seconds is not possible; measure again")
    return float(value)


def seconds_of(value: Any, where: str) -> float:
    """A time of a timing file, seconds; raises InputError naming `where`."""
    seconds = _number(value, where)
    if seconds < 0:
        raise InputError(f"{where}: a time of {value} seconds is not possible; measure again")
    return seconds


def meta_fields(meta: Any, kinds: Sequence[str]) -> dict[str, Any]:
    """The facts that every command may rely on: a pair and a device, texts and numbers where known;
    kinds: of drafts.
    """
    if not isinstance(meta, dict):
        raise InputError("field meta must be an object")
    for name in (*_NEEDED, *(_SHAPE if meta.get("weights") == "random" else ())):
        if name not in meta:
            raise InputError(f"field meta: {name!r} is missing; measure again")
    for name in _TEXTS:
        if not isinstance(meta.get(name, ""), str):
            raise InputError(f"field meta: {name!r} must be a text, not {meta[name]!r}")
    for name in _NUMBERS:
        if not is_number(meta.get(name, 0)):
            raise InputError(f"field meta: {name!r} must be a number, not {meta[name]!r}")
    if meta.get("draft_kind", "step") not in kinds:
        raise InputError(
            f"field meta: 'draft_kind' must be {', '.join(kinds)}, not {meta['draft_kind']!r}"
        )
    return meta


def _blocks(values: Any, where: str) -> tuple[float, ...]:
    """One number a sweep, null where the sweep missed the cell."""
    if not isinstance(values, list):
        raise InputError(f"{where} must be a list of seconds, not {values!r}")
    found = tuple(math.nan if value is None else seconds_of(value, where) for value in values)
    if found and all(math.isnan(block) for block in found):
        raise InputError(f"{where} has no sweep at all")
    return found


def repeats_fields(raw: Any, where: str) -> dict[str, tuple[float, ...]]:
    """A difference of two measurements may come out below 0."""
    if not isinstance(raw, dict) or set(raw) != {"wall_s", "cpu_s"}:
        raise InputError(f"{where} must have wall_s and cpu_s, not {raw!r}")
    for name, values in raw.items():
        if not isinstance(values, list):
            raise InputError(f"{where}: {name} must be a list of seconds, not {values!r}")
    found = {
        name: tuple(_number(value, f"{where}: {name}") for value in values)
        for name, values in raw.items()
    }
    if len(found["cpu_s"]) not in (0, len(found["wall_s"])):
        raise InputError(
            f"{where}: cpu_s has {len(found['cpu_s'])} repeats, wall_s {len(found['wall_s'])}"
        )
    return found


def own_fields(raw: Any) -> dict[str, tuple[float, float]]:
    """Seconds of each rule's own arithmetic, per round and per token; raises InputError."""
    if not isinstance(raw, dict):
        raise InputError(f"field own_s must be an object of policy names, not {raw!r}")
    found: dict[str, tuple[float, float]] = {}
    for name, pair in raw.items():
        if not isinstance(pair, list) or len(pair) != 2:
            raise InputError(
                f"own_s[{name!r}] must be two numbers, seconds per round and per token, not {pair}"
            )
        round_s, token_s = (seconds_of(value, f"own_s[{name!r}]") for value in pair)
        found[name] = (round_s, token_s)
    return found


def _whole(value: Any, where: str, low: int) -> int:
    if type(value) is not int or not low <= value <= _LARGEST:
        raise InputError(f"{where} must be a whole number of at least {low}, not {value!r}")
    return value


def columns(raw: Any) -> tuple[str, ...]:
    """The names of a cell's entries in their order: the first eight, or all; None: as we write it.

    Raises InputError if a name is missing, unknown or there twice.
    """
    if raw is None:
        return ()
    known = [sorted(CELL), sorted(CELL + BLOCKS)]
    texts = isinstance(raw, list) and all(isinstance(name, str) for name in raw)
    if not texts or sorted(raw) not in known:
        raise InputError(f"field cell_fields must be {', '.join(CELL + BLOCKS)}, not {raw!r}")
    return tuple(raw)


def cell_fields(
    row: Any, operations: Sequence[str], where: str, names: Sequence[str]
) -> dict[str, Any]:
    """A cell of either version, as a list; names: of its entries, empty if nobody says."""
    wanted = {len(names)} if names else {len(CELL), len(CELL + BLOCKS)}
    if not isinstance(row, list) or len(row) not in wanted:
        raise InputError(f"{where} must be a list of {', '.join(names or CELL + BLOCKS)}")
    raw = dict(zip(names or CELL + BLOCKS, row, strict=False))
    operation = raw["operation"]
    if operation not in operations:
        raise InputError(
            f"{where}: unknown operation {operation!r}; known: {', '.join(operations)}"
        )
    found: dict[str, Any] = {"operation": operation}
    for name, low in LEAST.items():
        found[name] = _whole(raw[name], f"{where}: {name}", low)
    for name in ("median_s", "q25_s", "q75_s"):
        found[name] = seconds_of(raw[name], f"{where}: {name}")
    for name in BLOCKS:
        found[name] = _blocks(raw.get(name, []), f"{where}: {name}")
    return found


def timing_text(
    head: dict[str, Any],
    repeats: Mapping[str, Any],
    own_s: Mapping[str, Any],
    cells: Sequence[Any],
) -> str:
    """The file: head, repeats of the overheads by name, a rule and a cell a line."""
    fields = [
        *(f' "{name}_repeats": {_line(found)}' for name, found in repeats.items()),
        _lines("own_s", "{}", [f"{_line(name)}: {_line(pair)}" for name, pair in own_s.items()]),
        _lines("cells", "[]", [_line(cell) for cell in cells]),
    ]
    text = json.dumps(head, indent=1).removesuffix("\n}")
    return ",\n".join([text, *fields]) + "\n}\n"


def _line(value: Any) -> str:
    """JSON of one line, null for NaN."""
    return json.dumps(_nan_as(None, value), allow_nan=False)


def _lines(name: str, brackets: str, entries: list[str]) -> str:
    body = ",\n".join(f"  {entry}" for entry in entries)
    return f' "{name}": {brackets[0]}\n{body}\n {brackets[1]}'


def _nan_as(other: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nan_as(other, one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_nan_as(other, one) for one in value]
    return other if isinstance(value, float) and math.isnan(value) else value
