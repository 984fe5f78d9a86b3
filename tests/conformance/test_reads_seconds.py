"""Who reads seconds decides by the cost of steps, and who does not decides the same at any cost."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import numpy as np
import pytest

from policies.base import Outcome, Policy, State, View, reads_seconds
from policies.fixed import Fixed
from policies.randomness import Rng
from policies.registry import REGISTRY, parse_policy
from simulator.replay.replay import replay_interpreted
from tests.specimens import random_costs, random_trace
from traces.costs.pricing import StepCosts
from traces.schema import Trace

DEPTH = 12
COUNTING = (
    "never", "fixed", "gammatune", "gammatune+", "hf-heuristic", "hf-heuristic+", "hf-confidence",
)  # fmt: skip


def decisions(policy: Policy, trace: Trace, costs: StepCosts) -> list[list[int]]:
    log = replay_interpreted(policy, trace, costs, seed=5)
    return [log.gamma.tolist(), log.drafted.tolist()]


def worlds(seed: int) -> tuple[Trace, StepCosts, StepCosts]:
    """A trace and two cost tables: in one drafting is all but free, in the other it never pays."""
    generator = np.random.default_rng(seed)
    trace, costs = random_trace(generator, 24, DEPTH), random_costs(generator, DEPTH)
    draft, verify = costs.draft_s, costs.verify_s
    cheap = costs._replace(draft_s=1e-3 * draft, verify_s=10 * verify, signal_s=0.0)
    dear = costs._replace(draft_s=1e3 * draft, signal_s=1.0)
    return trace, cheap, dear


@pytest.mark.parametrize("name", REGISTRY)
def test_decisions_hang_on_costs_only_where_seconds_are_read(name: str) -> None:
    policy = parse_policy(name)
    if reads_seconds(policy):
        assert name not in COUNTING
        return
    for seed in range(2):
        trace, cheap, dear = worlds(seed)
        assert decisions(policy, trace, cheap) == decisions(policy, trace, dear)


@pytest.mark.parametrize("name", ["ucb", "goodput"])
def test_these_worlds_tell_the_readers_of_seconds_apart(name: str) -> None:
    policy = parse_policy(name)
    assert reads_seconds(policy)
    trace, cheap, dear = worlds(0)
    assert decisions(policy, trace, cheap) != decisions(policy, trace, dear)


@pytest.mark.parametrize("name", REGISTRY)
def test_a_machine_slower_than_its_timing_takes_the_same_decisions(name: str) -> None:
    """Twice as slow, a factor that rounds nothing: seconds are compared on one clock or not at
    all.
    """
    policy, halves = parse_policy(name), {"draft_s": 0.5, "verify_s": 0.5, "signal_s": 0.5}
    for seed in range(2):
        generator = np.random.default_rng(seed)
        trace, costs = random_trace(generator, 24, DEPTH), random_costs(generator, DEPTH)
        half = {field: factor * getattr(costs, field) for field, factor in halves.items()}
        believed = costs._replace(**half)
        right, wrong = (
            replay_interpreted(policy, trace, costs, believed=b) for b in (None, believed)
        )
        assert right.same_rounds(wrong)


def dear(view: View) -> bool:
    return view.draft_step_s > 1e-3


def through_another(view: View) -> bool:
    return dear(view)


@dataclasses.dataclass(frozen=True)
class Asks(Policy):
    """Reads a cost two functions away."""

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        return 1 if through_another(view) else 5


@dataclasses.dataclass(frozen=True)
class Learns(Policy):
    """Reads what a round took."""

    def learn(self, state: State, slot: int, view: View, outcome: Outcome) -> None:
        state.unused[0] = int(1e6 * outcome.elapsed_s)


def inner_gamma(self: Any, state: State, slot: int, view: View, rng: Rng) -> int:
    return 3


def wrapped(name: str, inner: Any) -> type[Policy]:
    """A policy whose hook finds `inner_gamma` in globals of its own."""

    def gamma(self: Any, state: State, slot: int, view: View, rng: Rng) -> int:
        return inner_gamma(self, state, slot, view, rng)

    hook = types.FunctionType(gamma.__code__, {"inner_gamma": inner})
    return dataclasses.dataclass(frozen=True)(type(name, (Policy,), {"gamma": hook}))


def closing_over(inner: Any) -> type[Policy]:
    def gamma(self: Any, state: State, slot: int, view: View, rng: Rng) -> int:
        return int(inner(self, state, slot, view, rng))

    return dataclasses.dataclass(frozen=True)(type("Closing", (Policy,), {"gamma": gamma}))


def test_seconds_are_found_through_calls_wrappers_and_closures() -> None:
    assert reads_seconds(Asks()) and reads_seconds(Learns())
    assert not reads_seconds(Fixed())
    for make in (lambda inner: wrapped("Wrapper", inner), closing_over):
        assert reads_seconds(make(Asks.gamma)())
        assert not reads_seconds(make(inner_gamma)())
