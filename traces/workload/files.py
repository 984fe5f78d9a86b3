"""Workloads as JSON files, and in the short notation of a command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from traces.errors import InputError
from traces.json_text import read_json
from traces.notation import parse_fields
from traces.store import write_atomically
from traces.workload.workload import FIELDS_OF, PROCESSES, Workload, default_of, one_of

WORKLOAD_VERSION = 1
_SHORT = {"rate": "rate_per_s", "on": "on_rate_per_s", "off": "off_rate_per_s"}


def parse_workload(text: str, requests: int) -> Workload:
    """A workload from a file (NAME.json) or from `process:field=value,...`, say `poisson:rate=4`.

    rate, on, off stand for rate_per_s, on_rate_per_s, off_rate_per_s. requests: Q of the
    short notation; a file has its own. Raises InputError naming the piece that is wrong.
    """
    text = text.strip()
    if text.endswith(".json"):
        return read_workload(Path(text))
    process, _, settings = text.partition(":")
    where = f"workload {text!r}"
    if process == "recorded":
        raise InputError(f"{where}: arrival_s does not fit here; write a file and pass NAME.json")
    try:
        one_of("process", process, PROCESSES)
        kinds = {name: type(default_of(name)) for name in (*FIELDS_OF[process], "order")}
        return Workload(requests, process, **parse_fields(settings, kinds, _SHORT))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def write_workload(workload: Workload, path: Path, overwrite: bool = False) -> None:
    """One JSON file, atomically; fields that have their defaults are left out."""
    raw: dict[str, Any] = {"kind": "workload", "version": WORKLOAD_VERSION}
    for field in dataclasses.fields(workload):
        value = getattr(workload, field.name)
        if value != field.default:
            raw[field.name] = dict(value) if field.name in ("weights", "priorities") else value
    text = json.dumps(raw, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8"), overwrite)


def read_workload(path: Path) -> Workload:
    """Inverse of write_workload; raises InputError naming file and field."""
    if not path.is_file():
        raise InputError(f"{path}: no such workload file")
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.pop("kind", None) != "workload":
        raise InputError(f"{path} is JSON, but not a workload (kind is not 'workload')")
    version = raw.pop("version", None)
    if type(version) is not int or version != WORKLOAD_VERSION:
        raise InputError(
            f"{path} has workload version {version!r}; this GammaLab reads version "
            f"{WORKLOAD_VERSION}"
        )
    try:
        return Workload(**_fields(raw))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _fields(raw: dict[str, Any]) -> dict[str, Any]:
    """The JSON fields of a file as arguments of Workload."""
    known = [field.name for field in dataclasses.fields(Workload)]
    for name in raw:
        if name not in known:
            raise InputError(f"field {name!r} is unknown; known: {', '.join(known)}")
    for name in ("requests", "process"):
        if name not in raw:
            raise InputError(f"field {name!r} is missing")
    for name, kind, words in (
        ("arrival_s", list, "a list of seconds"),
        ("weights", dict, "an object of categories and numbers"),
        ("priorities", dict, "an object of categories and whole numbers"),
    ):
        if name in raw:
            if not isinstance(raw[name], kind):
                raise InputError(f"field {name!r} must be {words}")
            raw[name] = tuple(raw[name] if kind is list else raw[name].items())
    return raw
