"""Compiled and interpreted replay take the same decisions and the same seconds, bit for bit.

The kernels of this module are compiled with bounds checking.
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
from policies.randomness import Rng
from policies.shelf import SHELF, parse_policy
from simulator import kernels
from simulator.costs import Affine
from simulator.replay import replay, replay_interpreted
from traces import synthetic
from traces.costs import tabulate
from traces.roundlog import RoundLog
from traces.schema import Trace, TraceMeta
from traces.timing import StepCosts

VARIANTS = [
    "fixed:gamma=0",
    "fixed:gamma=11",
    "gammatune:gamma0=1,eta=0.9,delta=1",
    "gammatune+:tau=0.7,gamma_max=4",
    "hf-heuristic:gamma0=2,transient=false",
    "hf-confidence:threshold=0.75",
    "hf-roc:history=12,miss_weight=1",
    "tail-pruning:theta=0.5",
    "ucb:gamma_min=0,gamma_max=3,exploration=1.4",
    "goodput:gamma_max=3,probe_every=2",
]


@pytest.fixture(scope="module", autouse=True)
def bounds_checked() -> Iterator[None]:
    before, numba.config.BOUNDSCHECK = numba.config.BOUNDSCHECK, 1
    kept = dict(kernels._kernels)
    kernels._kernels.clear()
    yield
    numba.config.BOUNDSCHECK = before
    kernels._kernels.clear()
    kernels._kernels.update(kept)


def random_trace(generator: np.random.Generator, requests: int, depth: int) -> Trace:
    """Any accept_len the schema allows, any signals, replies of 1 token and more."""
    lengths = generator.integers(1, 30, requests)
    lengths[0] = 1
    remaining = np.concatenate([np.arange(n, 0, -1) for n in lengths])
    easy = generator.random()
    accept_len = np.minimum(remaining, generator.geometric(1.0 - 0.95 * easy, remaining.size) - 1)
    # Thresholds of the shelf are among the values, where float32 and float64 disagree most.
    values = np.asarray([0.0, 0.2, 0.4, 0.5, 0.7, 0.75, 1.0])
    noise = generator.random((remaining.size, depth))
    chosen = generator.choice(values, noise.shape)
    top1 = np.where(generator.random(noise.shape) < 0.3, chosen, noise)
    longest = int(lengths.max()) + int(generator.integers(0, 5))
    context = int(generator.integers(0, 2)) * (longest + int(generator.integers(1, 60)))
    meta = TraceMeta(
        "p", "t", "d", "", "none", "none", "synthetic",
        depth=depth, max_new_tokens=longest, max_context=context,
    )  # fmt: skip
    return Trace(
        meta=meta,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompt_tokens=generator.integers(0, 50, requests).astype(np.int32),
        request_id=tuple(str(r) for r in range(requests)),
        category=("c",) * requests,
        accept_len=accept_len.astype(np.int16),
        top1_prob=top1.astype(np.float32),
        entropy=generator.exponential(1.0, noise.shape).astype(np.float32),
    )


def random_costs(generator: np.random.Generator, depth: int) -> StepCosts:
    """Any costs, falling and rising, few buckets and many."""
    buckets, width = int(generator.integers(1, 6)), depth + 2 + int(generator.integers(0, 3))
    draft = generator.exponential(1e-3, (buckets, width))
    verify = generator.exponential(1e-2, (buckets, width)) + 1e-6
    draft[:, 0] = verify[:, 0] = 0.0
    prefill = generator.exponential(1e-1, buckets)
    return StepCosts(1, int(generator.integers(1, 40)), prefill, draft, verify, 1e-4)


def same(policy: Policy, trace: Trace, costs: StepCosts, seed: int) -> RoundLog:
    compiled = replay(policy, trace, costs, seed=seed)
    assert compiled.same_rounds(replay_interpreted(policy, trace, costs, seed=seed))
    return compiled


@pytest.mark.parametrize("spec", [*SHELF, *VARIANTS])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 24), st.integers(-(2**70), 2**70))
def test_random_traces(spec: str, world: int, requests: int, depth: int, seed: int) -> None:
    generator = np.random.default_rng(world)
    trace, costs = random_trace(generator, requests, depth), random_costs(generator, depth)
    log = same(parse_policy(spec), trace, costs, seed)
    emitted = np.bincount(log.request, weights=log.emitted, minlength=requests)
    assert emitted.tolist() == trace.reply_tokens.tolist()


@pytest.mark.parametrize("spec", [*SHELF, *VARIANTS])
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


def test_both_kinds_of_hooks_are_covered() -> None:
    kinds = {uses_signals(cls()) for cls in SHELF.values()}
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
