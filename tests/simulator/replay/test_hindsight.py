"""The clairvoyant schedule against brute force, and against everything that must not beat it."""

from __future__ import annotations

import dataclasses
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from policies.fixed import Never
from policies.registry import REGISTRY
from simulator.replay.hindsight import best_fixed, clairvoyant, plan
from simulator.replay.metrics import per_request, regret_s
from simulator.replay.replay import check_inputs, replay_interpreted, tape_of
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.pricing import StepCosts, lag_after, make_step_costs, prices_of, tabulate
from traces.schema import Trace, TraceMeta


def tiny_trace(generator: np.random.Generator) -> Trace:
    lengths = generator.integers(1, 7, 3)
    remaining = np.concatenate([np.arange(n, 0, -1) for n in lengths])
    meta = TraceMeta(
        "p", "t", "d", "", "none", "none", "synthetic",
        depth=3, max_new_tokens=int(lengths.max()), max_context=int(generator.choice([0, 9])),
    )  # fmt: skip
    return Trace(
        meta=meta,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompt_tokens=generator.integers(0, 6, 3).astype(np.int32),
        request_id=("a", "b", "c"),
        category=("x",) * 3,
        accept_len=np.minimum(remaining, generator.integers(0, 5, remaining.size)).astype(np.int16),
    )


def tiny_costs(generator: np.random.Generator) -> StepCosts:
    draft = generator.exponential(0.5, (3, 5))
    verify = generator.exponential(1.0, (3, 5))
    draft[:, 0] = verify[:, 0] = 0.0
    return make_step_costs(draft, verify, bucket_tokens=4, prefill_s=np.ones(3), signal_s=0.5)


def brute_force(trace: Trace, costs: StepCosts, request: int) -> float:
    """The least seconds over every sequence of gammas, priced here and not by the simulator."""
    prompt, meta = int(trace.prompt_tokens[request]), trace.meta
    begin, end = int(trace.offsets[request]), int(trace.offsets[request + 1])

    @cache
    def least(i: int, lag: int) -> float:
        if begin + i >= end:
            return 0.0
        row = min((prompt + i) // costs.bucket_tokens, 2)
        room = min(meta.depth, meta.max_new_tokens - i - 1)
        if meta.max_context:
            room = min(room, meta.max_context - prompt - i - 1)
        found = []
        for gamma in range(max(0, room) + 1):
            accepted = min(gamma, int(trace.accept_len[begin + i]))
            price = float(costs.verify_s[0, row, gamma + 1])
            if gamma:
                first = costs.draft_s[0, row, min(lag, 4)]
                price += float(first + (gamma - 1) * costs.draft_s[0, row, 1])
            # Lags are not capped here: only their price is.
            then = lag + 1 if gamma == 0 else 2 if accepted == gamma else 1
            found.append(price + least(min(i + accepted + 1, end - begin), then))
        return min(found)

    return least(0, 1)


@pytest.mark.parametrize("world", range(40))
def test_clairvoyant_is_the_minimum_over_all_schedules(world: int) -> None:
    generator = np.random.default_rng(world)
    trace, costs = tiny_trace(generator), tiny_costs(generator)
    log = clairvoyant(trace, costs)
    best = [brute_force(trace, costs, request) for request in range(3)]
    assert per_request(log).decode_s == pytest.approx(best, rel=1e-12)
    assert int(log.emitted.sum()) == trace.positions


def test_plan_by_hand() -> None:
    # Two tokens, both acceptable; drafting one costs 1, or 5 if the cache lags by two.
    draft = np.asarray([[0.0, 1.0, 5.0]])
    verify = np.asarray([[0.0, 10.0, 12.0]])
    costs = make_step_costs(draft, verify, bucket_tokens=64)
    meta = TraceMeta("p", "t", "d", "", "n", "n", "synthetic", depth=1, max_new_tokens=3)
    trace = Trace(
        meta=meta,
        offsets=np.asarray([0, 3]),
        prompt_tokens=np.zeros(1, dtype=np.int32),
        request_id=("r",),
        category=("c",),
        accept_len=np.asarray([1, 1, 0], dtype=np.int16),
    )
    # gamma 1 at 0: 13, emits 2, then 10 -> 23. gamma 0 at 0: 10, then lag 2: 5 + 12 -> 27.
    log = clairvoyant(trace, costs)
    assert log.gamma.tolist() == [1, 0] and log.elapsed_s.tolist() == [13.0, 10.0]
    choice = np.zeros((3, 3), dtype=np.int64)
    plan(
        tape_of(trace, False),
        prices_of(costs, signals=False),
        check_inputs(Never(), trace, costs),
        choice,
    )
    # At 1, drafting (1 + 12 or 5 + 12) beats two plain rounds (20) at either lag. At 0 with lag 2
    # drafting costs 17 + 10, not drafting 10 + 17: a tie, which goes to the smaller gamma.
    assert choice.tolist() == [[0, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_nobody_beats_the_clairvoyant() -> None:
    generator = np.random.default_rng(3)
    trace = synthetic.bursty(0.95, 0.4, generator, requests=6, reply_tokens=80, signals=True)
    # Free signals: the ceiling holds even for controllers that pay nothing for reading them.
    model = Affine(draft_fixed=2e-3, draft_token=5e-4, target_token=2e-4, context_token=1e-6)
    costs = tabulate(model)
    best = clairvoyant(trace, costs)
    for cls in REGISTRY.values():
        assert regret_s(replay_interpreted(cls(), trace, costs), best).min() >= -1e-12
    assert regret_s(best_fixed(trace, costs)[1], best).max() > 0


def test_the_ceiling_is_no_lower_with_more_depth() -> None:
    trace = synthetic.constant(0.9, np.random.default_rng(0), requests=2, reply_tokens=60)
    costs = tabulate(Affine())
    seconds = [clairvoyant(trace, costs, max_gamma=g).elapsed_s.sum() for g in range(9)]
    assert all(more <= less + 1e-12 for less, more in pairwise(seconds))
    assert seconds[8] < seconds[0]


def test_best_fixed_is_the_argmin_and_ties_go_down() -> None:
    trace = synthetic.constant(0.8, np.random.default_rng(2), requests=3, reply_tokens=200)
    costs = tabulate(Affine(draft_fixed=1e-3, target_fixed=6e-3))
    gamma, log = best_fixed(trace, costs)
    seconds = [best_fixed(trace, costs, [g])[1].elapsed_s.sum() for g in range(17)]
    assert gamma == int(np.argmin(seconds)) and 0 < gamma < 16
    assert log.elapsed_s.sum() == min(seconds)
    hopeless = dataclasses.replace(trace, accept_len=np.zeros_like(trace.accept_len))
    assert best_fixed(hopeless, costs)[0] == 0
    assert best_fixed(hopeless, tabulate(Affine(draft_fixed=0.0)), [3, 2])[0] == 2


def test_lag_states_are_those_of_the_round() -> None:
    assert [lag_after(1, 0, 0, False), lag_after(4, 0, 0, False)] == [2, 5]
    assert [lag_after(3, 2, 2, False), lag_after(3, 2, 1, False), lag_after(1, 1, 0, False)] == [
        2,
        1,
        1,
    ]
