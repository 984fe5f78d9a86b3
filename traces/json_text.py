"""JSON in and out: every file and line of users is read here, so that all are refused alike, and
results are written without NaN.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from traces.errors import InputError

ENCODING = "utf-8-sig"  # with the byte order mark that some editors put in front, or without


def parse_json(text: str, where: str, once: bool = False) -> Any:
    """The value of a JSON text; raises InputError naming `where` if it is none, or holds text that
    no file could: half of a surrogate pair. once: no field may be given twice; not for long logs,
    which take half as long again with it.
    """

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(found)
        if len(fields) < len(found):
            names = [name for name, _ in found]
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"{where}: field {twice!r} is given twice")
        return fields

    try:
        value = json.loads(text, object_pairs_hook=pairs if once else None)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}); truncated?") from None
    if "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise InputError(f"{where} holds half a character ({half}); take it out") from None
    return value


def read_json(path: Path) -> Any:
    """The value of a JSON file; raises InputError naming it if it is no UTF-8 text or no JSON."""
    try:
        text = path.read_text(encoding=ENCODING)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); compressed?") from None
    return parse_json(text, str(path), once=True)


def jsonable(value: Any) -> Any:
    """Dataclasses and named tuples as dicts, numbers plain, NaN and infinity as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return {key: jsonable(item) for key, item in value._asdict().items()}
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def dumps(value: Any) -> str:
    """Indented JSON of any result."""
    return json.dumps(jsonable(value), indent=1, allow_nan=False)
