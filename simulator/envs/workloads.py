"""Workloads that an episode of gammalab/Serve-v0 serves, and those it draws from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from traces.errors import InputError
from traces.workload.arrivals import Demand
from traces.workload.files import parse_workload
from traces.workload.workload import FIELDS_OF, Workload

LOADS = {"users": "users", "rate": "rate_per_s"}  # options of reset: fields of a Workload


def as_workload(source: Workload | str, requests: int) -> Workload:
    """A workload, or the one that a short notation or a file means; requests: of the notation."""
    return source if isinstance(source, Workload) else parse_workload(source, requests)


def workloads_of(workload: Workload, options: Mapping[str, Any]) -> list[Workload]:
    """The workloads that options of reset let an episode draw from.

    Raises InputError for options that do not fit the workload.
    """
    own = FIELDS_OF[workload.process]
    known = [name for name, field in LOADS.items() if field in own]
    for name in options:
        if name not in known:
            raise InputError(
                f"unknown option {name!r} of reset; a {workload.process} workload takes "
                f"{', '.join(known) or 'none'}"
            )
    found = [workload]
    for name, given in options.items():
        values = np.asarray(given).reshape(-1).tolist()
        if not values:
            raise InputError(f"option {name!r} of reset is empty; name at least one")
        found = [dataclasses.replace(workload, **{LOADS[name]: value}) for value in values]
    return found


def every_row(rows: int) -> Demand:
    """Every request of a trace once, to see whether the server can hold it."""
    zeros = np.zeros(rows)
    return Demand(np.arange(rows, dtype=np.int32), zeros, zeros, np.zeros(rows, dtype=np.int32), 0)
