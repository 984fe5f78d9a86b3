"""Workload: what to send and in which rhythm, as settings; every field is checked.

Letters: Q requests of the workload. An open loop sends at times of its own (a Poisson process,
gamma-distributed gaps, bursts, recorded timestamps); in a closed loop each user waits for the
reply, thinks, and sends the next request.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from traces.errors import InputError

ORDERS = ("drawn", "recorded")
THINK_LAWS = ("exponential", "fixed")

FIELDS_OF = {
    "poisson": ("rate_per_s",),
    "gamma": ("rate_per_s", "cv"),
    "bursts": ("on_rate_per_s", "off_rate_per_s", "on_s", "off_s"),
    "recorded": ("arrival_s",),
    "closed": ("users", "think_s", "think"),
}
PROCESSES = tuple(FIELDS_OF)
_PROCESS_FIELDS = tuple(dict.fromkeys(name for names in FIELDS_OF.values() for name in names))

# Wide enough for every machine, narrow enough that no sum or quotient overflows.
_LIMITS = {
    "rate_per_s": (1e-9, 1e9),
    "cv": (1e-3, 1e2),
    "on_rate_per_s": (1e-9, 1e9),
    "off_rate_per_s": (0.0, 1e9),
    "on_s": (1e-9, 1e9),
    "off_s": (1e-9, 1e9),
    "think_s": (0.0, 1e9),
}
_LATEST_S = 1e12
_MOST_REQUESTS = 1_000_000  # as many as the command line takes
_LEAST_PER_CYCLE = 0.01  # requests; below, bursts are a Poisson process drawn at great cost


@dataclasses.dataclass(frozen=True)
class Workload:
    """A load; every field is checked, InputError names the one that is wrong.

    requests: Q.
    process: one of PROCESSES; fields of another process keep their defaults. poisson, gamma:
        rate_per_s.
    cv: coefficient of variation of the gaps (1: Poisson). bursts: an on-off Markov-modulated
        Poisson process, stationary from time 0, with exponential stays of mean on_s and off_s,
        seconds; off_rate_per_s may be 0. recorded: arrival_s, Q timestamps, seconds, ascending.
        closed: users.
    think_s: mean seconds between the end of a reply and its user's next request.
    think: "exponential" or "fixed".
    order: "drawn" (rows of the trace with replacement) or "recorded" (rows 0, 1, 2, ... over and
        over).
    weights: category -> weight, shared equally by its rows; categories not named get 0; no weights:
        every row alike.
    priorities: category -> priority, the smaller is served first; 0 if not named.
    """

    requests: int
    process: str
    rate_per_s: float = 0.0
    cv: float = 1.0
    on_rate_per_s: float = 0.0
    off_rate_per_s: float = 0.0
    on_s: float = 0.0
    off_s: float = 0.0
    arrival_s: tuple[float, ...] = ()
    users: int = 0
    think_s: float = 0.0
    think: str = "exponential"
    order: str = "drawn"
    weights: tuple[tuple[str, float], ...] = ()
    priorities: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        _whole("requests", self.requests, 1, _MOST_REQUESTS)
        one_of("process", self.process, PROCESSES)
        one_of("order", self.order, ORDERS)
        _refuse_foreign_fields(self)
        for name in FIELDS_OF[self.process]:
            if name in _LIMITS:
                _number(name, getattr(self, name), *_LIMITS[name])
        if self.process == "bursts":
            _check_bursts(self)
        elif self.process == "recorded":
            _check_timestamps(self)
        elif self.process == "closed":
            _whole("users", self.users, 1, _MOST_REQUESTS)
            one_of("think", self.think, THINK_LAWS)
        _check_mix(self)


def mean_rate_per_s(workload: Workload) -> float:
    """Requests per second in the long run; NaN where there is no such thing: in a closed loop and
    for timestamps without extent.
    """
    if workload.process == "closed":
        return math.nan
    if workload.process == "bursts":
        cycle_s = workload.on_s + workload.off_s
        return _per_cycle(workload) / cycle_s
    if workload.process == "recorded":
        extent_s = workload.arrival_s[-1] - workload.arrival_s[0]
        return (workload.requests - 1) / extent_s if extent_s > 0 else math.nan
    return workload.rate_per_s


def title(workload: Workload) -> str:
    """The arrivals in a few words, for tables; the mix is left out."""
    w = workload
    if w.process == "bursts":
        on, off = f"{w.on_rate_per_s:g}/s for {w.on_s:g} s", f"{w.off_rate_per_s:g}/s"
        return f"bursts {on}, {off} for {w.off_s:g} s"
    if w.process == "closed":
        users = f"closed, {w.users} user{'s' if w.users > 1 else ''}"
        law = "" if w.think == "exponential" else f" {w.think}"
        return f"{users}, think {w.think_s:g} s{law}" if w.think_s else users
    if w.process == "recorded":
        rate_per_s = mean_rate_per_s(w)
        return "recorded" if math.isnan(rate_per_s) else f"recorded {rate_per_s:.3g}/s"
    cv = f", cv {w.cv:g}" if w.process == "gamma" else ""
    return f"{w.process} {w.rate_per_s:g}/s{cv}"


def default_of(name: str) -> Any:
    """The default of a field."""
    return Workload.__dataclass_fields__[name].default


def _number(name: str, value: Any, low: float, high: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and low <= value <= high):  # NaN fails the comparison
        raise InputError(f"{name} must be a number between {low:g} and {high:g}, not {value!r}")


def _whole(name: str, value: Any, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise InputError(f"{name} must be a whole number between {low} and {high}, not {value!r}")


def one_of(name: str, value: Any, known: Iterable[str]) -> None:
    """Raise InputError unless a value is one of these."""
    if value not in known:
        raise InputError(f"{name} {value!r} is not known; known: {', '.join(known)}")


def _refuse_foreign_fields(workload: Workload) -> None:
    own = FIELDS_OF[workload.process]
    for name in _PROCESS_FIELDS:
        value = getattr(workload, name)
        if name not in own and (isinstance(value, bool) or value != default_of(name)):
            raise InputError(
                f"{name} does not belong to process {workload.process!r}; leave it out (its "
                f"fields: {', '.join(own)})"
            )


def _per_cycle(workload: Workload) -> float:
    """Mean requests of one stay on and one stay off."""
    on = workload.on_rate_per_s * workload.on_s
    return on + workload.off_rate_per_s * workload.off_s


def _check_bursts(workload: Workload) -> None:
    if _per_cycle(workload) < _LEAST_PER_CYCLE:
        raise InputError(
            f"on_s and off_s are so short that one on and one off bring "
            f"{_per_cycle(workload):.3g} requests; lengthen them until it is {_LEAST_PER_CYCLE:g}"
        )


def _check_timestamps(workload: Workload) -> None:
    times = workload.arrival_s
    if not isinstance(times, tuple) or len(times) != workload.requests:
        count = len(times) if isinstance(times, tuple) else repr(times)
        raise InputError(
            f"arrival_s must be a tuple of {workload.requests} timestamps, one per request, "
            f"has {count}; change requests or arrival_s"
        )
    previous = 0.0
    for index, time_s in enumerate(times):
        _number(f"arrival_s[{index}]", time_s, 0.0, _LATEST_S)
        if time_s < previous:
            raise InputError(
                f"arrival_s[{index}] is {time_s:g} s, before the {previous:g} s of the request in "
                "front of it; sort the timestamps"
            )
        previous = time_s


def _check_mix(workload: Workload) -> None:
    for name, kind in (("weights", "weight"), ("priorities", "priority")):
        pairs: Any = getattr(workload, name)
        if not isinstance(pairs, tuple) or not all(_is_named(pair) for pair in pairs):
            raise InputError(f"{name} must be a tuple of (category, {kind}) pairs, not {pairs!r}")
        seen: set[str] = set()
        for category, _ in pairs:
            if category in seen:
                raise InputError(f"{name} names category {category!r} twice; drop one")
            seen.add(category)
    for category, weight in workload.weights:
        _number(f"weights[{category!r}]", weight, 0.0, 1e9)
    for category, priority in workload.priorities:
        _whole(f"priorities[{category!r}]", priority, -(2**31), 2**31 - 1)
    if workload.weights and not any(weight for _, weight in workload.weights):
        raise InputError("weights are all 0; give one category a positive weight")
    if workload.weights and workload.order != "drawn":
        raise InputError("weights need order 'drawn'; leave out weights or order")


def _is_named(pair: Any) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)
