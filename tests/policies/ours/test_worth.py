"""`worth` by hand: bins, prices, what is dropped; and the budget that nothing can break."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.base import Draft, Outcome, View
from policies.fixed import Never
from policies.ours.worth import BINS, GO, KEEP, PROBE, PURSE, RISK_S, Worth, bin_of, read_prices
from policies.randomness import Rng
from simulator.replay.replay import replay_interpreted
from traces import synthetic
from traces.costs.pricing import make_step_costs

VERIFY_S = np.array([0.0, 10.0, 19.0, 20.0, 21.0])  # the second token is dear, others are not


def view(room: int = 3) -> View:
    return View(9, 1, 0, room, 1.0, VERIFY_S)


def test_bins_halve_the_doubt() -> None:
    shown = (0.0, 0.2, 0.25, 0.49, 0.5, 0.74, 0.75, 0.874, 0.875, 1.0)
    assert [bin_of(p) for p in shown] == [0, 0, 1, 1, 2, 2, 3, 3, 4, BINS - 1]
    middles = Worth().new_state(1).chance[0]
    assert middles[:4].tolist() == [0.125, 0.375, 0.625, 0.8125]


def test_prices_by_hand() -> None:
    """w = 10 s a token, the next one passes with chance 1/2, a step costs 1 s."""
    state = Worth(gamma_max=4).new_state(1)
    state.now[:3] = 1.0, 10.0, 0.5
    read_prices(state, view(), 4)
    price = state.price
    # Token 1: alone 9 / 10; with 2: (10 + 1) / 15; with 3: (11 + 2) / 17.5.
    assert price[KEEP, 1:].tolist() == pytest.approx([11 / 15, 1 / 10, 1 / 10, 2.0])
    # Behind 1, token 2: (1 + 1) / 5; with 3: (2 + 2) / 7.5. Behind 2: 2 / 5.
    assert price[GO, 1:].tolist() == pytest.approx([2 / 5, 2 / 5, 2.0, 2.0])
    assert price[RISK_S, 1:4].tolist() == [9 + 1, 10 + 2, 11 + 3]


def test_a_doubtful_token_is_dropped_but_for_one_in_sixteen() -> None:
    policy = Worth(gamma_max=3)
    state = policy.new_state(1)
    policy.admit(state, 0)
    state.now[:3] = 1.0, 10.0, 0.5
    assert policy.gamma(state, 0, view(), Rng(0)) == 0  # nothing saved yet that could be lost
    state.now[3] = 11.0
    assert policy.gamma(state, 0, view(), Rng(0)) == 1  # 10 s may be lost, not 12
    state.now[3] = 100.0
    assert policy.gamma(state, 0, view(), Rng(0)) == 3
    assert policy.retain(state, 0, Draft(1, 0.8, 0.5))  # 0.8125 is above 11 / 15
    assert policy.proceed(state, 0, Draft(1, 0.8, 0.5))
    kept = [policy.retain(state, 0, Draft(1, 0.6, 0.5)) for _ in range(2 * PROBE)]
    assert [k + 1 for k, here in enumerate(kept) if here] == [PROBE, 2 * PROBE]


def test_what_was_judged_is_learned_and_a_stretch_that_never_pays_is_left_alone() -> None:
    policy = Worth(gamma_max=3)
    state = policy.new_state(1)
    policy.admit(state, 0)
    drafts = 0
    for index in range(400):
        state.now[3] = 1e9
        cap = policy.gamma(state, 0, view(), Rng(index))
        drafts += cap > 0
        kept = cap > 0 and policy.retain(state, 0, Draft(1, 0.99, 0.0))
        seconds = 20.0 if kept else 10.0 + (cap > 0)
        outcome = Outcome(cap, int(kept), 0, 1, False, seconds, seconds)
        policy.learn(state, 0, view(), outcome)
    assert drafts < 60  # one in seventeen, after the first few
    assert state.chance[:4, bin_of(0.99)].min() < 0.7 < Worth().new_state(1).chance[0, -1]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.floats(0.05, 5.0), st.floats(0.0, 1.0), st.integers(1, 12))
@pytest.mark.long
def test_no_acceptance_and_no_signal_breaks_the_budget(
    seed: int, step: float, sure: float, flips: int
) -> None:
    """The draft knows nothing, acceptance turns round every `flips` tokens; any prices."""
    generator = np.random.default_rng(seed)
    trace = synthetic.constant(0.5, generator, requests=3, reply_tokens=150, depth=8, signals=True)
    assert trace.top1_prob is not None
    eager = np.where((np.arange(trace.positions) // flips) % 2 == 0, 0, 8)
    left = np.concatenate([np.arange(n, 0, -1) for n in trace.reply_tokens])
    shown = np.full(trace.top1_prob.shape, sure, dtype=np.float32)
    trace = dataclasses.replace(
        trace, accept_len=np.minimum(eager, left).astype(np.int16), top1_prob=shown
    )
    verify = np.concatenate([[0.0, 1.0], generator.uniform(0.5, 4.0, 8)])
    draft = np.where(np.arange(10) == 0, 0.0, step)
    costs = make_step_costs(draft[None], verify[None], own_s=None)
    policy = Worth(gamma_max=8)
    log = replay_interpreted(policy, trace, costs)
    plain = replay_interpreted(Never(), trace, costs).elapsed_s.sum()
    assert log.elapsed_s.sum() <= (1.0 + policy.allowance) * plain + PURSE * 1.0 + 1e-9
    running = np.cumsum(log.elapsed_s) - (1.0 + policy.allowance) * np.cumsum(log.emitted)
    assert running.max() <= PURSE + 1e-9  # at every moment, not only at the end
