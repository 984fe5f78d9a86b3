"""Compiled and interpreted replay take the same decisions and the same seconds, bit for bit.

The kernels of the suite are compiled with bounds checks (tests/conftest.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.base import Policy, State, View, uses_signals
from policies.learned.neural import neural_policy
from policies.randomness import Rng
from policies.registry import REGISTRY, parse_policy
from simulator.replay import kernels
from simulator.replay.replay import replay, replay_interpreted
from tests.policies.learned.test_neural import KINDS, random_network
from tests.specimens import few_or_long, few_or_slow, random_costs, random_trace
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.pricing import StepCosts, tabulate
from traces.roundlog import RoundLog
from traces.schema import Trace

VARIANTS = [
    "fixed:gamma=0",
    "fixed:gamma=11",
    "gammatune:gamma0=1,eta=0.9,delta=1",
    "gammatune:clip_expansion=false",
    "gammatune+:tau=0.7,gamma_max=4",
    "gammatune+:early_stop=1",
    "gammatune+:early_stop=2",
    "hf-heuristic:gamma0=2,transient=false",
    "hf-heuristic+:threshold=0.7,transient=false",
    "smartspec:decide_every=1,probe_every=3",
    "batch-table:bound1=0,bound2=0,bound3=0,gamma_above=-1",
    "beg-mab:gamma_max=3,window=4,epsilon=0.5,refresh=1.0",
    "arbiter/gammatune:arbiter_window_rounds=2,arbiter_floor_tokens=40,arbiter_draft_tokens=9",
    "hf-confidence:threshold=0.75",
    "hf-roc:history=12,miss_weight=1",
    "tail-pruning:theta=0.5",
    "ucb:gamma_min=0,gamma_max=3,exploration=1.4",
    "goodput:gamma_max=3,probe_every=2",
]


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Kernels as they ship: without bounds checks, and optimised."""
    assert numba.config.OPT == 3, "numba has read NUMBA_OPT: `make test-long` sets it"
    before, numba.config.BOUNDSCHECK = numba.config.BOUNDSCHECK, 0
    kept = dict(kernels._kernels)
    kernels._kernels.clear()
    yield
    numba.config.BOUNDSCHECK = before
    kernels._kernels.clear()
    kernels._kernels.update(kept)


def same(policy: Policy, trace: Trace, costs: StepCosts, seed: int) -> RoundLog:
    compiled = replay(policy, trace, costs, seed=seed)
    assert compiled.same_rounds(replay_interpreted(policy, trace, costs, seed=seed))
    return compiled


@pytest.mark.parametrize("spec", [*few_or_long(REGISTRY), *few_or_slow(VARIANTS, ())])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 24), st.integers(-(2**70), 2**70))
def test_random_traces(spec: str, world: int, requests: int, depth: int, seed: int) -> None:
    generator = np.random.default_rng(world)
    trace, costs = random_trace(generator, requests, depth), random_costs(generator, depth)
    log = same(parse_policy(spec), trace, costs, seed)
    emitted = np.bincount(log.request, weights=log.emitted, minlength=requests)
    assert emitted.tolist() == trace.reply_tokens.tolist()


@pytest.mark.parametrize("spec", [*few_or_long(REGISTRY), *few_or_slow(VARIANTS, ())])
def test_synthetic_traces(spec: str) -> None:
    generator = np.random.default_rng(5)
    costs = tabulate(Affine(context_token=1e-6, signal=1e-4, control=2e-4, prefill_token=1e-4))
    size = {"requests": 3, "reply_tokens": 90, "signals": True}
    for trace in (
        synthetic.constant(0.8, generator, **size),
        synthetic.drifting(0.2, 0.95, generator, **size),
        synthetic.bursty(0.95, 0.3, generator, **size),
    ):
        log = same(parse_policy(spec), trace, costs, seed=3)
        assert int(log.emitted.sum()) == trace.positions


@pytest.mark.long
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("spec", REGISTRY)
def test_kernels_as_they_ship(spec: str) -> None:
    generator = np.random.default_rng(6)
    same(parse_policy(spec), random_trace(generator, 4, 8), random_costs(generator, 8), seed=3)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(1, 24), st.integers(1, 128), st.integers(1, 128))
def test_networks(kind: tuple[int, int], world: int, depth: int, one: int, two: int) -> None:
    """They come from files, not from the registry; layers of any two widths."""
    generator = np.random.default_rng(world)
    trace, costs = random_trace(generator, 2, depth), random_costs(generator, depth)
    policy = neural_policy(random_network(kind, world, (one, two)), round_s=3e-5)
    log = same(policy, trace, costs, seed=world)
    assert int(log.emitted.sum()) == trace.positions


def test_both_kinds_of_hooks_are_covered() -> None:
    kinds = {uses_signals(cls()) for cls in REGISTRY.values()}
    assert kinds == {True, False}


@dataclasses.dataclass(frozen=True)
class OutOfBounds(Policy):
    """Reads behind the end of an array."""

    name = "out-of-bounds"

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        return int(state.unused[view.context_tokens + 1])


def test_bounds_are_checked_here() -> None:
    trace = synthetic.constant(0.5, np.random.default_rng(0), requests=1, reply_tokens=4)
    for play in (replay, replay_interpreted):
        with pytest.raises(IndexError):
            play(OutOfBounds(), trace, tabulate(Affine()))
