"""Arrivals: a workload drawn over a trace - when requests come, and which ones.

Letters: Q requests of the workload, R rows of the trace they are drawn from.

Randomness has one stream each for gaps, mix, think times and stays: another mix leaves the arrivals
alone, another rate scales the same arrivals (common random numbers).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from traces.errors import InputError
from traces.workload.workload import Workload

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int32]


class Demand(NamedTuple):
    """A workload drawn: what is sent and when.

    row [Q] int32: trace row of each request. arrival_s [Q] float64: ascending; in a closed loop 0
    for the first min(users, Q) and +inf for the others, which come when a user is ready. think_s
    [Q] float64: seconds between the end of a user's reply and this request; 0 in an open loop and
    for the first `users`. priority [Q] int32: the smaller is served first. users: 0 in an open
    loop. Request q of a closed loop is the q-th to be sent, whoever sends it.
    """

    row: IndexArray
    arrival_s: FloatArray
    think_s: FloatArray
    priority: IndexArray
    users: int


def demand(workload: Workload, categories: Sequence[str], seed: int) -> Demand:
    """Draw the workload over a trace; equal arguments give equal bytes.

    categories [R]: category of each trace row. Raises InputError if the workload names a category
    that the trace lacks.
    """
    _check_categories(workload, categories)
    if seed < 0:
        raise InputError(f"seed must not be negative, is {seed}")
    children = np.random.SeedSequence(seed).spawn(4)
    gaps, mix, think, stays = (np.random.default_rng(child) for child in children)
    row = _rows(workload, categories, mix)
    priorities = dict(workload.priorities)
    by_row = np.asarray([priorities.get(category, 0) for category in categories], dtype=np.int32)
    return Demand(
        row=row,
        arrival_s=_arrival_s(workload, gaps, stays),
        think_s=_think_s(workload, think),
        priority=by_row[row],
        users=workload.users,
    )


def _arrival_s(
    workload: Workload, gaps: np.random.Generator, stays: np.random.Generator
) -> FloatArray:
    """[Q] seconds; the arrivals of an open loop begin with a whole gap."""
    count = workload.requests
    if workload.process == "closed":
        at_once: FloatArray = np.where(np.arange(count) < workload.users, 0.0, np.inf)
        return at_once
    if workload.process == "recorded":
        return np.asarray(workload.arrival_s, dtype=np.float64)
    shape = workload.cv**-2.0  # of a Poisson process and of bursts: 1, an exponential gap
    unit_rate = np.cumsum(gaps.standard_gamma(shape, count)) / shape
    if workload.process == "bursts":
        return _modulated(workload, unit_rate, stays)
    scaled: FloatArray = unit_rate / workload.rate_per_s
    return scaled


def _modulated(
    workload: Workload, unit_rate: FloatArray, generator: np.random.Generator
) -> FloatArray:
    """Arrivals [Q] where the cumulative intensity reaches the points of a unit-rate process [Q]."""
    share_on = workload.on_s / (workload.on_s + workload.off_s)
    begins_on = generator.random() < share_on  # exponential stays: its rest is a whole stay again
    stays = generator.standard_exponential(64)
    while True:
        is_on = (np.arange(len(stays)) % 2 == 0) == begins_on
        rate_per_s = np.where(is_on, workload.on_rate_per_s, workload.off_rate_per_s)
        length_s = stays * np.where(is_on, workload.on_s, workload.off_s)
        reached = np.concatenate([[0.0], np.cumsum(length_s * rate_per_s)])
        if reached[-1] > unit_rate[-1]:
            break
        stays = np.concatenate([stays, generator.standard_exponential(len(stays))])
    change_s = np.concatenate([[0.0], np.cumsum(length_s)])
    stay = np.searchsorted(reached, unit_rate, side="right") - 1  # never one of rate 0
    found = change_s[stay] + (unit_rate - reached[stay]) / rate_per_s[stay]
    arrival_s: FloatArray = np.minimum(found, change_s[stay + 1])  # no rounding past the stay's end
    return arrival_s


def _think_s(workload: Workload, generator: np.random.Generator) -> FloatArray:
    """[Q] seconds before each request; all zeros in an open loop, whose think_s is 0."""
    if workload.think == "fixed":
        pauses = np.full(workload.requests, workload.think_s, dtype=np.float64)
    else:
        pauses = generator.standard_exponential(workload.requests) * workload.think_s
    pauses[: workload.users] = 0.0
    return pauses


def _rows(
    workload: Workload, categories: Sequence[str], generator: np.random.Generator
) -> IndexArray:
    """[Q] trace rows, by inversion: request q moves little if a weight does."""
    count = workload.requests
    if workload.order == "recorded":
        return (np.arange(count) % len(categories)).astype(np.int32)
    names, category, sizes = np.unique(
        np.asarray(categories, dtype=object), return_inverse=True, return_counts=True
    )
    weight = np.ones(len(categories), dtype=np.float64)
    if workload.weights:
        given = dict(workload.weights)
        heaviest = max(given.values())
        share = np.asarray([given.get(name, 0.0) / heaviest for name in names]) / sizes
        weight = share[category]
    below = np.cumsum(weight)
    drawn = np.searchsorted(below / below[-1], generator.random(count), side="right")
    return drawn.astype(np.int32)


def _check_categories(workload: Workload, categories: Sequence[str]) -> None:
    there = sorted(set(categories))
    if not there:
        raise InputError("categories are empty: the trace has no requests to send")
    for name in ("weights", "priorities"):
        for category, _ in getattr(workload, name):
            if category not in there:
                raise InputError(
                    f"{name} names category {category!r}, which is not in the trace; it has "
                    f"{', '.join(map(repr, there))}"
                )
