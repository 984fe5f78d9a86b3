"""A server's Prometheus counters before and after: what it counted in between.

Text format 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats). A counter that fell was
reset by a restart: what it counted since is then all that is known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

Samples = Mapping[str, float]

_LINE = re.compile(
    r"^(?P<name>(?:vllm|sglang|llamacpp):\w+)(?P<labels>\{[^}]{0,4096}\})?\s+"
    r"(?P<value>[+-]?(?:\d{1,20}(?:\.\d{1,20})?(?:[eE][+-]?\d{1,3})?))(?!\S)",
    re.M,
)
_MODEL = re.compile(r'model_name="([^"]{1,400})"')


class Difference(NamedTuple):
    """grown: by sample, counters alone; reset: names of those that fell."""

    grown: dict[str, float]
    reset: list[str]


def samples_of(text: str) -> dict[str, float]:
    """Counters of the three engines in a scrape, by name and labels."""
    return {
        found["name"] + (found["labels"] or ""): float(found["value"])
        for found in _LINE.finditer(text)
        if found["name"].endswith("_total")
    }


def models_in(text: str) -> list[str]:
    """The models whose counters stand in a scrape."""
    return sorted(set(_MODEL.findall(text)))


def difference(before: Samples, after: Samples) -> Difference:
    """The growth of counters between two scrapes; unchanged ones are left out."""
    grown, reset = {}, []
    for name, value in after.items():
        old = before.get(name, 0.0)
        if value < old:
            reset.append(name)
            old = 0.0
        if value != old:
            grown[name] = value - old
    return Difference(grown, reset)
