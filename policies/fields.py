"""The hyper-parameters of a policy: default, domain and origin of each, declared in one place.

A file of its own because policies.base, the contract, is full.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import reprlib
from typing import Any, NamedTuple, TypeVar

from traces.errors import InputError

Number = TypeVar("Number", int, float, bool)


class Domain(NamedTuple):
    """Where a number may lie: low..high, both included, and above `above`; None: no bound there.

    NaN and infinity lie in none. Whole numbers need both bounds, for state and loops have 64 bits.
    """

    low: int | None = None
    high: int | None = None
    above: int | None = None

    def holds(self, value: float) -> bool:
        """True if the value is inside."""
        return (
            -math.inf < value < math.inf
            and (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
        )

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.low:,} to {self.high:,}"
        words = (("from", self.low), ("above", self.above), ("at most", self.high))
        bounds = [f"{word} {bound:,}" for word, bound in words if bound is not None]
        return ", ".join(bounds) or "finite"


GAMMA = Domain(0, 1_000)  # tokens drafted in a round
DRAFT = Domain(1, 1_000)  # the same, where none would be no rule: `never` is one
COUNT = Domain(0, 1_000_000_000)  # rounds, tokens, rows of a batch
SOME = Domain(1, 1_000_000_000)  # of those at least one
RING = Domain(1, 10_000)  # rounds that are kept one by one, often for every request
SHARE = Domain(0, 1)  # probabilities, rates, weights of an average
DISCOUNT = Domain(high=1, above=0)  # what is left of the past after a round
FACTOR = Domain(0, 1_000_000)
WEIGHT = Domain(-1_000_000, 1_000_000)  # of a model
SWITCH = Domain(0, 1)  # true or false
INT64 = Domain(-(1 << 63), (1 << 63) - 1)  # of whole numbers whose field declares none


def hyper(default: Number, domain: Domain, origin: str) -> Number:
    """A field of a policy. origin: where its default comes from: "primary" (read in the authors'
    code or paper), "secondary" (a port or a citation), "unconfirmed", "ours" (chosen by this
    project), and whatever else there is to say.
    """
    declared: Any = dataclasses.field(
        default=default, metadata={"domain": domain, "origin": origin}
    )
    return declared  # type: ignore[no-any-return]


def origins(policy: Any) -> dict[str, str]:
    """Of a policy or its class: declared field -> where its default comes from."""
    fields = dataclasses.fields(policy)
    return {f.name: f.metadata["origin"] for f in fields if "origin" in f.metadata}


def short_field(field: str) -> str:
    """A field as it is written on the command line: without its unit (gamma_tokens -> gamma)."""
    return field.removesuffix("_tokens")


def allowed(field: dataclasses.Field[Any]) -> str:
    """The domain of a field, in words."""
    if "domain" not in field.metadata:
        return "finite, and 64 bits if whole"
    if isinstance(field.default, bool):
        return "true or false"
    kind = "float" if isinstance(field.default, float) else "int"
    return f"{kind}, {field.metadata['domain']}"


def fits(value: Any, field: dataclasses.Field[Any]) -> bool:
    """True if a field may have this value. Where no domain is declared, any finite number will do,
    and what is no number is not looked at.
    """
    if "domain" not in field.metadata:
        unbounded = INT64 if isinstance(value, int) else Domain()
        return not isinstance(value, int | float) or unbounded.holds(value)
    kind = type(field.default)
    right = isinstance(value, int | float if kind is float else kind)
    right = right and isinstance(value, bool) == (kind is bool)
    return right and bool(field.metadata["domain"].holds(value))


def check_fields(policy: Any) -> None:
    """Raise InputError naming policy, field, value and what is allowed."""
    for field in dataclasses.fields(policy):
        value = getattr(policy, field.name)
        if not fits(value, field):
            raise InputError(
                f"policy {policy.name!r}: field {short_field(field.name)} must be "
                f"{allowed(field)}, not {reprlib.repr(value)}"
            )
    conflict = policy.conflict()
    if conflict:
        raise InputError(f"policy {policy.name!r}: {conflict}")


def disorder(policy: Any, *names: str) -> str:
    """The first of these fields that is above the next, in words; empty if they ascend."""
    for name, following in itertools.pairwise(names):
        low, high = getattr(policy, name), getattr(policy, following)
        if low > high:
            return f"{short_field(name)} {low} is above {short_field(following)} {high}"
    return ""
