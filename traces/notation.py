"""Settings in one line of text, `field=value,field=value`, as options and files have them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from traces.errors import InputError


def parse_fields(
    text: str, kinds: Mapping[str, type], short: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """The values by field. kinds: of the known fields, int, float, str or bool; short: other names
    of theirs.

    Raises InputError naming the piece: no field=value, an unknown field, one given twice, or a
    value of another kind.
    """
    found: dict[str, Any] = {}
    for piece in filter(None, (part.strip() for part in text.split(","))):
        said, equals, value = (part.strip() for part in piece.partition("="))
        name = short.get(said, said)
        if not equals or name not in kinds:
            shown = {field: said for said, field in short.items()}
            known = ", ".join(f"{shown.get(field, field)}=" for field in kinds)
            raise InputError(f"{piece!r} is not known; it takes {known}")
        if name in found:
            raise InputError(f"{piece!r} gives {name} a second time; drop one")
        found[name] = parse_value(value, kinds[name], f"{piece!r}: {name}")
    return found


def parse_value(text: str, kind: type, where: str) -> Any:
    """One value; raises InputError naming `where`."""
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise InputError(f"{where} must be true or false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise InputError(f"{where} must be {wanted}") from None
