"""The shelf: every policy by name, and the notation `name:field=value,field=value`."""

from __future__ import annotations

import dataclasses
import difflib

from policies.bandits import UCB
from policies.base import Policy, field_values
from policies.confidence import HFConfidence, HFRocConfidence, TailPruning
from policies.fixed import Fixed, Never
from policies.gammatune import GammaTune, GammaTunePlus
from policies.goodput import CensoredGoodput
from policies.heuristic import HFHeuristic
from traces.errors import InputError

SHELF: dict[str, type[Policy]] = {
    cls.name: cls
    for cls in (
        Never,
        Fixed,
        GammaTune,
        GammaTunePlus,
        HFHeuristic,
        HFConfidence,
        HFRocConfidence,
        TailPruning,
        UCB,
        CensoredGoodput,
    )
}


def _suggest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? " if near else ""


def find_policy(name: str) -> type[Policy]:
    """The class of that name; raises InputError with the nearest name."""
    if name not in SHELF:
        raise InputError(
            f"unknown policy {name!r}; {_suggest(name, list(SHELF))}known: {', '.join(SHELF)}"
        )
    return SHELF[name]


def short_field(field: str) -> str:
    """A field as it is written on the command line: without its unit (gamma_tokens -> gamma)."""
    return field.removesuffix("_tokens")


def _parse_value(text: str, like: int | float | bool, where: str) -> int | float | bool:
    try:
        if isinstance(like, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return int(text) if isinstance(like, int) else float(text)
    except (KeyError, ValueError):
        raise InputError(f"{where} must be {type(like).__name__}, not {text!r}") from None


def parse_policy(spec: str) -> Policy:
    """A policy from `name` or `name:field=value,...`; raises InputError naming what is wrong."""
    name, _, settings = spec.strip().partition(":")
    cls = find_policy(name)
    defaults = field_values(cls())
    fields = {short_field(f): f for f in defaults} | {f: f for f in defaults}
    chosen: dict[str, int | float | bool] = {}
    for setting in filter(None, settings.split(",")):
        key, equals, text = setting.partition("=")
        if not equals or key not in fields:
            known = ", ".join(short_field(f) for f in defaults) or "it has none"
            raise InputError(
                f"policy {name!r} has no field {key!r}; {_suggest(key, list(fields))}"
                f"fields: {known}"
            )
        field = fields[key]
        chosen[field] = _parse_value(text, defaults[field], f"{name}:{key}")
    policy = cls(**chosen)
    try:
        policy.new_state(1)
    except (ValueError, OverflowError, MemoryError):
        raise InputError(f"policy {spec!r}: its fields are out of range") from None
    return policy


def parse_policies(text: str) -> list[Policy]:
    """Several specs, separated by commas; a comma inside a spec's settings stays with it.

    `fixed:gamma=3,gammatune:eta=0.3,delta=2` is two policies: a piece without a colon that holds an
    equals sign continues the one before it.
    """
    specs: list[str] = []
    for piece in filter(None, (p.strip() for p in text.split(","))):
        if specs and "=" in piece and ":" not in piece:
            specs[-1] += "," + piece
        else:
            specs.append(piece)
    if not specs:
        raise InputError("no policy given; `gammalab policies` lists them")
    return [parse_policy(spec) for spec in specs]


def label(policy: Policy) -> str:
    """The shortest spec that parse_policy turns back into this policy."""
    defaults = {f.name: f.default for f in dataclasses.fields(policy)}
    shown = [
        f"{short_field(field)}={str(value).lower() if isinstance(value, bool) else value}"
        for field, value in field_values(policy).items()
        if value != defaults[field] or field == "gamma_tokens"
    ]
    return policy.name + (":" + ",".join(shown) if shown else "")


def file_name(policy: str) -> str:
    """A policy's label as part of a file name: fixed:gamma=3 -> fixed-gamma-3."""
    return "".join(c if c.isalnum() or c in "+-." else "-" for c in policy)
