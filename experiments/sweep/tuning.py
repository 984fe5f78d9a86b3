"""Where the settings of a policy come from: a grid, random draws or Optuna, over one description.

A field is searched between the first and the last of its grid points (`search_space.SPACES`).
Samplers work on *places*, 0 .. points - 1, and a place between two points is the value between
them: a spacing that suits the grid suits every sampler.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from experiments.sweep.search_space import SPACES, Points
from policies.base import Policy
from policies.registry import label
from traces.errors import InputError, missing
from traces.split import named_generator

SEARCHES = ("grid", "random", "optuna")
Judge = Callable[[Policy], float]


def value_at(points: Points, place: float) -> int | float | bool:
    """The value at a place of a field's points; integers are rounded, switches and words taken."""
    if isinstance(points[0], bool):
        return points[round(place)]
    low = min(int(place), len(points) - 1)
    high = min(low + 1, len(points) - 1)
    value = points[low] + (place - low) * (points[high] - points[low])
    return round(value) if isinstance(points[0], int) else float(value)


def with_values(base: Policy, values: dict[str, Any]) -> Policy | None:
    """The policy with these fields changed; None if they do not go together (gamma_min > max)."""
    try:
        return dataclasses.replace(base, **values)
    except InputError:
        return None


def grid(base: Policy, trials: int, seed: int) -> Iterator[Policy]:
    """Every combination of the points, the default first; a seeded sample if more than `trials`."""
    space = SPACES.get(base.name, {})
    sizes = [len(points) for points in space.values()]
    chosen: Sequence[int] | np.ndarray[Any, Any] = range(math.prod(sizes))
    if len(chosen) > trials - 1:
        generator = named_generator(seed, f"grid {base.name}")
        chosen = np.sort(generator.choice(len(chosen), trials - 1, replace=False))
    yield base
    combinations = itertools.product(*space.values()) if len(chosen) else iter(())
    wanted = set(map(int, chosen))
    for number, combination in enumerate(combinations):
        policy = with_values(base, dict(zip(space, combination, strict=True)))
        if number in wanted and policy is not None:
            yield policy


def random(base: Policy, trials: int, seed: int) -> Iterator[Policy]:
    """The default, then places drawn uniformly and independently."""
    space = SPACES.get(base.name, {})
    generator = named_generator(seed, f"random {base.name}")
    yield base
    for _ in range(trials - 1 if space else 0):
        places = generator.random(len(space))
        values = {
            field: value_at(points, float(place) * (len(points) - 1))
            for (field, points), place in zip(space.items(), places, strict=True)
        }
        policy = with_values(base, values)
        if policy is not None:
            yield policy


def optuna(base: Policy, trials: int, seed: int, judge: Judge) -> Iterator[Policy]:
    """The default, then what Optuna's TPE sampler asks for, told the seconds of every trial."""
    try:
        import optuna as library
    except ImportError:
        raise missing("--search optuna", "Optuna", "optuna>=4") from None
    library.logging.set_verbosity(library.logging.ERROR)
    space = SPACES.get(base.name, {})
    yield base
    if not space:
        return
    study = library.create_study(sampler=library.samplers.TPESampler(seed=seed))
    for _ in range(trials - 1):
        trial = study.ask()
        values = {
            field: value_at(points, trial.suggest_float(field, 0.0, len(points) - 1.0))
            for field, points in space.items()
        }
        policy = with_values(base, values)
        if policy is None:
            study.tell(trial, state=library.trial.TrialState.FAIL)
            continue
        yield policy
        study.tell(trial, judge(policy))


def candidates(
    base: Policy, search: str, trials: int, seed: int, judge: Judge
) -> Iterator[tuple[Policy, float]]:
    """Distinct settings of `base` with what `judge` says of each (seconds, the fewer the better).

    At most `trials`, the default among them. Raises InputError for an unknown search.
    """
    known: dict[str, float] = {}

    def judged(policy: Policy) -> float:
        name = label(policy)
        if name not in known:
            known[name] = judge(policy)
        return known[name]

    found = {
        "grid": lambda: grid(base, trials, seed),
        "random": lambda: random(base, trials, seed),
        "optuna": lambda: optuna(base, trials, seed, judged),
    }
    if search not in found:
        raise InputError(f"--search {search!r} is unknown; known: {', '.join(SEARCHES)}")
    seen: set[str] = set()
    for policy in found[search]():
        if label(policy) not in seen:
            seen.add(label(policy))
            yield policy, judged(policy)
