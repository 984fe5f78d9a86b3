"""Fields of a timing file, checked: JSON values in, arguments of traces.timing's classes out.

Every function raises InputError naming the field (`where`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from traces.errors import InputError

CELL = ("operation", "batch", "tokens", "context", "median_s", "q25_s", "q75_s", "repeats")
BLOCKS = ("blocks_s", "cpu_blocks_s")  # since version 2


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where} must be a number of seconds, not {value!r}")
    return float(value)


def seconds_of(value: Any, where: str) -> float:
    seconds = _number(value, where)
    if seconds < 0:
        raise InputError(f"{where}: a time of {value} seconds is not possible")
    return seconds


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


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{where} must be a whole number, not {value!r}")
    return value


def cell_fields(row: Any, operations: Sequence[str], where: str) -> dict[str, Any]:
    """A cell of either version, as a list: the first eight fields, or all."""
    if not isinstance(row, list) or len(row) not in (len(CELL), len(CELL + BLOCKS)):
        raise InputError(f"{where} must be a list of {', '.join(CELL + BLOCKS)}")
    raw = dict(zip(CELL + BLOCKS, row, strict=False))
    operation = raw["operation"]
    if operation not in operations:
        raise InputError(
            f"{where}: unknown operation {operation!r}; known: {', '.join(operations)}"
        )
    found: dict[str, Any] = {"operation": operation}
    for name in ("batch", "tokens", "context", "repeats"):
        found[name] = _whole(raw[name], f"{where}: {name}")
    for name in ("median_s", "q25_s", "q75_s"):
        found[name] = seconds_of(raw[name], f"{where}: {name}")
    for name in BLOCKS:
        found[name] = _blocks(raw.get(name, []), f"{where}: {name}")
    return found
