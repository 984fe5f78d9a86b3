"""Sums and step counts against the log of the same replay."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.base import Outcome, Policy, State, View, reads_seconds
from policies.counts.gammatune import GammaTune, GammaTunePlus
from policies.fixed import Fixed
from policies.randomness import Rng, uniform
from policies.registry import REGISTRY, parse_policy
from simulator.replay import kernels
from simulator.replay.metrics import per_request
from simulator.replay.replay import (
    check_inputs,
    replay,
    replay_interpreted,
    run_interpreted,
    tape_of,
)
from simulator.replay.rounds import Place
from simulator.replay.totals import (
    DRAFT,
    VERIFY,
    Tally,
    add_steps,
    add_up,
    count_steps,
    price_steps,
    tally,
    tally_many,
)
from tests.specimens import few_or_slow, random_costs, random_trace
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.pricing import StepCosts, prices_of, tabulate
from traces.errors import InputError
from traces.roundlog import RoundLog

SAME_COSTS = [name for name, cls in REGISTRY.items() if not reads_seconds(cls())]


def same_sums(sums: Tally, log: RoundLog) -> bool:
    """Bit for bit, types included."""
    found = per_request(log)
    expected = Tally(found.decode_s, found.rounds, found.drafted, found.accepted)
    return all(a.tobytes() == b.tobytes() for a, b in zip(sums, expected, strict=True))


@pytest.mark.parametrize("name", few_or_slow(REGISTRY))
@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 20), st.integers(-(2**70), 2**70))
def test_sums_are_those_of_the_log(
    name: str, world: int, requests: int, depth: int, seed: int
) -> None:
    generator = np.random.default_rng(world)
    trace, costs = random_trace(generator, requests, depth), random_costs(generator, depth)
    policy, cap = parse_policy(name), int(generator.integers(0, depth + 1))
    sums = tally(policy, trace, costs, seed=seed, max_gamma=cap)
    assert same_sums(sums, replay(policy, trace, costs, seed=seed, max_gamma=cap))


@dataclasses.dataclass(frozen=True)
class Dice(Policy):
    """A random gamma."""

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        return int(6 * uniform(rng, 0))


@pytest.mark.parametrize("seed", [0, 7, -(2**70) + 3])
def test_the_seed_reaches_the_hooks(seed: int) -> None:
    trace, costs = synthetic.constant(0.7, np.random.default_rng(0)), tabulate(Affine())
    log = replay(Dice(), trace, costs, seed=seed)
    assert same_sums(tally(Dice(), trace, costs, seed=seed), log)
    counts = count_steps(Dice(), trace, costs, seed=seed).counts
    assert counts[VERIFY].sum(axis=0).tolist() == np.bincount(log.drafted + 1, None, 34).tolist()


def test_recorders_run_as_plain_python_too() -> None:
    generator = np.random.default_rng(4)
    trace, costs = random_trace(generator, 5, 6), random_costs(generator, 6)
    policy = GammaTunePlus(tau=0.5)
    limits = check_inputs(policy, trace, costs)
    prices = prices_of(costs, signals=True)
    inputs = (tape_of(trace, True), prices, prices, limits, 0)
    sums = Tally(np.zeros(5), *(np.zeros(5, dtype=np.int64) for _ in range(3)))
    rounds = run_interpreted(policy, add_up, policy.new_state(1), *inputs, sums)
    assert same_sums(sums, replay_interpreted(policy, trace, costs))
    assert rounds == int(sums.rounds.sum())
    counts = np.zeros((3, costs.buckets, costs.width), dtype=np.int64)
    run_interpreted(policy, add_steps, policy.new_state(1), *inputs, counts)
    assert np.array_equal(counts, count_steps(policy, trace, costs).counts)


def configurations() -> list[Policy]:
    policies: list[Policy] = [GammaTune(gamma0=g, delta=d) for g in (1, 3, 9) for d in (1, 2, 4)]
    return [*policies, Fixed(4), GammaTunePlus(tau=0.6), parse_policy("ucb"), Fixed(0)]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(threads: int) -> None:
    trace = synthetic.bursty(0.9, 0.3, np.random.default_rng(1), signals=True)
    costs = tabulate(Affine(signal=1e-4, context_token=1e-6))
    found = tally_many(configurations(), trace, costs, threads=threads)
    for sums, policy in zip(found, configurations(), strict=True):
        assert same_sums(sums, replay(policy, trace, costs))


@pytest.mark.long
def test_threads_may_compile_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAMMALAB_CACHE", str(tmp_path))
    monkeypatch.setattr(kernels, "_kernels", {})
    trace = synthetic.constant(0.5, np.random.default_rng(1))
    policies = [Fixed(1), parse_policy("never"), Fixed(2), Fixed(0)]
    found = tally_many(policies, trace, tabulate(Affine()), threads=4)
    assert len(list(tmp_path.glob("*.py"))) == 2  # one kernel per class
    assert found[3].rounds.tolist() == found[1].rounds.tolist() == trace.reply_tokens.tolist()
    assert found[2].rounds.sum() < found[0].rounds.sum() < found[1].rounds.sum()


def test_errors_are_those_of_a_replay() -> None:
    trace = synthetic.constant(0.5, np.random.default_rng(0))
    with pytest.raises(InputError, match="reads the draft's signals"):
        tally_many([Fixed(1), GammaTunePlus()], trace, tabulate(Affine()))
    with pytest.raises(InputError, match="max_gamma is 99"):
        count_steps(Fixed(1), trace, tabulate(Affine()), max_gamma=99)


def test_steps_by_hand() -> None:
    # W = 4: a draft forward over 9 lagging tokens is charged as one over 3, the last column.
    counts = np.zeros((3, 2, 4), dtype=np.int64)
    for bucket, lag, drafted in [(0, 1, 2), (0, 2, 1), (1, 9, 2), (1, 3, 0), (1, 1, 1)]:
        place = Place(0, 0, 0.0, 7, bucket, lag, drafted, 0)
        add_steps(counts, place, Outcome(drafted, drafted, 0, 1, False, 1.0, 1.0))
    # Bucket 0: 2 drafted at lag 1: two forwards over one token; 1 at lag 2: one over two.
    assert counts[DRAFT].tolist() == [[0, 2, 1, 0], [0, 2, 0, 1]]
    assert counts[VERIFY].tolist() == [[0, 0, 1, 1], [0, 1, 1, 1]]


def shaken(costs: StepCosts, generator: np.random.Generator) -> StepCosts:
    """Other costs in the same layout."""
    draft, verify = (
        table * generator.exponential(1.0, table.shape) for table in (costs.draft_s, costs.verify_s)
    )
    signal_s = float(generator.exponential(1e-3))
    return costs._replace(draft_s=draft, verify_s=verify, signal_s=signal_s)


@pytest.mark.parametrize("name", few_or_slow(SAME_COSTS))
def test_one_replay_prices_every_cost_model(name: str) -> None:
    policy = parse_policy(name)
    for world in range(6):
        generator = np.random.default_rng(world)
        trace, costs = random_trace(generator, 20, 9), random_costs(generator, 9)
        models = [shaken(costs, generator) for _ in range(5)]
        seconds = price_steps(count_steps(policy, trace, costs), models)
        expected = [tally(policy, trace, model).decode_s.sum() for model in models]
        np.testing.assert_allclose(seconds, expected, rtol=1e-12, atol=0)


def test_steps_of_a_policy_that_reads_seconds_are_refused() -> None:
    trace, costs = synthetic.constant(0.5, np.random.default_rng(0)), tabulate(Affine())
    with pytest.raises(InputError, match="'ucb' reads seconds"):
        count_steps(parse_policy("ucb"), trace, costs)


@pytest.mark.parametrize("layout", [{"width": 33}, {"bucket_tokens": 16, "max_context": 2048}])
def test_models_laid_out_otherwise_are_refused(layout: dict[str, int]) -> None:
    trace, costs = synthetic.constant(0.5, np.random.default_rng(0)), tabulate(Affine())
    steps = count_steps(Fixed(2), trace, costs)
    other = tabulate(Affine(), **layout)
    with pytest.raises(InputError, match="cost model 1 are not laid out"):
        price_steps(steps, [costs, other])
