"""Our own stopping rule and its gate, by hand and in worlds with a known answer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from policies.base import Draft, Outcome, View
from policies.fixed import Fixed, Never
from policies.ours.marginal import (
    SKIPPED,
    STEP_S,
    SURVIVAL,
    Marginal,
    Payback,
    context_after,
    logit,
)
from policies.randomness import Rng
from simulator.replay.hindsight import best_fixed
from simulator.replay.replay import replay
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate

RNG = Rng(1)


def view(room: int = 30, verify: tuple[float, ...] = (6.0,) * 40) -> View:
    """A draft step costs 1, a target step 6."""
    return View(100, 1, 0, room, 1.0, np.asarray([0.0, *verify]))


def sigmoid(z: float) -> float:
    return 1.0 / (1.0 + math.exp(-z))


def test_one_more_token_pays_or_not() -> None:
    policy = Marginal()
    state = policy.new_state(1)
    policy.admit(state, 0)
    assert policy.gamma(state, 0, view(), RNG) == 16
    # Worth of a token: 6, the plain step. S = sigmoid(0.5) = 0.622, next sigmoid(2.3) = 0.909:
    # 0.622 * 0.909 * 6 = 3.39 > 1.
    assert policy.proceed(state, 0, Draft(1, 0.5, 0.0))
    assert float(state.now[0, SURVIVAL]) == pytest.approx(0.62246, abs=1e-5)
    # logit(0.01) = -4.595: S = 0.622 * 0.0164 = 0.0102, next 0.940. Eight more tokens would bring
    # 6 * 0.0102 * (0.94 + ... + 0.94^8) = 0.38 in all: less than the first of them costs.
    assert not policy.proceed(state, 0, Draft(2, 0.01, 0.0))
    assert float(state.now[0, SURVIVAL]) == pytest.approx(0.010196, abs=1e-5)


def test_it_looks_beyond_a_step_of_the_price() -> None:
    # Verifying 3 tokens costs 4 more than 2, further ones nothing.
    stairs = view(verify=(6.0, 6.0, *(10.0,) * 40))
    decisions = []
    for look in (1, 8):
        policy = Marginal(look=look)
        state = policy.new_state(1)
        policy.gamma(state, 0, stairs, RNG)
        decisions.append(policy.proceed(state, 0, Draft(1, 0.5, 0.0)))
    # One token ahead: 3.39 < 1 + 4. Two: 3.39 + 3.09 = 6.48 > 2 + 4.
    assert decisions == [False, True]


def test_room_ends_a_draft() -> None:
    policy = Marginal()
    state = policy.new_state(1)
    policy.gamma(state, 0, view(room=8), RNG)
    policy.gamma(state, 0, view(room=1), RNG)  # no price of the wider round stays behind
    assert not policy.proceed(state, 0, Draft(1, 0.999, 0.0))


def test_what_a_round_teaches() -> None:
    policy = Marginal(memory=0.5)
    state = policy.new_state(1)
    policy.gamma(state, 0, view(), RNG)
    policy.proceed(state, 0, Draft(1, 0.5, 2.0))
    policy.proceed(state, 0, Draft(2, 0.5, 1.0))
    policy.learn(state, 0, view(), Outcome(16, 2, 1, 2, False, 8.0, 8.0))
    assert state.clock.tolist() == [0.5 * 1 + 2, 0.5 * 6 + 8]
    # Errors: token 1 passed, sigmoid(0.5) - 1 = -0.37754 at entropy 2; token 2 failed, 0.62246 at
    # entropy 1. The round's slopes: 0.24492, 0 (both logits were 0), -0.13262.
    base = 0.5 - 0.1 * 0.24492 / math.sqrt(1 + 0.24492**2)
    entropy = 0.1 * 0.13262 / math.sqrt(1 + 0.13262**2)
    assert state.weight[0].tolist() == pytest.approx([base, 1.0, entropy], abs=1e-5)
    # The model of the next token saw one case: behind token 1 (entropy 2), failed.
    error = sigmoid(2.3 - 0.5 * 2.0)
    expected = 2.3 - 0.1 * error / math.sqrt(1 + error**2)
    assert float(state.weight[1, 0]) == pytest.approx(expected, 1e-9)


def test_a_reply_that_ends_inside_a_draft_rejects_nothing() -> None:
    policy = Marginal()
    state = policy.new_state(1)
    policy.gamma(state, 0, view(), RNG)
    policy.proceed(state, 0, Draft(1, 0.5, 0.0))
    policy.proceed(state, 0, Draft(2, 0.5, 0.0))
    policy.learn(state, 0, view(), Outcome(16, 2, 1, 1, True, 8.0, 8.0))
    assert float(state.squares[0, 0]) == pytest.approx(1 + 0.37754**2, 1e-5)  # one token judged


def test_what_lies_behind_the_first_rejected_token_teaches_nothing() -> None:
    states = []
    for drafted in (2, 4):
        policy = Marginal()
        state = policy.new_state(1)
        policy.gamma(state, 0, view(), RNG)
        for depth in range(1, drafted + 1):
            policy.proceed(state, 0, Draft(depth, 0.5, 0.0))
        policy.learn(state, 0, view(), Outcome(16, drafted, 1, 2, False, 8.0, 8.0))
        states.append(state)
    assert states[0].weight.tolist() == states[1].weight.tolist()
    assert states[0].squares.tolist() == states[1].squares.tolist()


def test_in_a_batch_a_step_is_paid_by_those_who_take_it() -> None:
    policy = Marginal()
    state = policy.new_state(4)
    batch = view()._replace(batch_size=4)
    state.depth[2] = 0.5  # every other row drafts a second token
    policy.gamma(state, 1, batch, RNG)
    # First step: all four take it, 4 / (1 + 3) = 1. Second: 4 / (1 + 1.5) = 1.6 more.
    assert state.rest[1, 2:4].tolist() == pytest.approx([1 + 6, 2.6 + 6])
    assert float(state.now[1, STEP_S]) == 0.0
    policy.learn(state, 1, batch, Outcome(16, 1, 0, 1, False, 9.0, 9.0))
    assert state.depth[:3].tolist() == pytest.approx([1.0, 1.0, 0.4995])  # memory 0.999
    policy.learn(state, 1, view(), Outcome(16, 1, 0, 1, False, 9.0, 9.0))  # alone: nobody waits
    assert float(state.depth[2]) == pytest.approx(0.4995)


def test_the_gate_of_a_batch_counts_its_own_draft() -> None:
    for size, spent in ((1, 9.0), (4, 1 + 6.0)):  # alone: what passed; else what its draft cost
        policy = Payback(memory=1.0)
        state = policy.new_state(4)
        seen = view()._replace(batch_size=size)
        policy.gamma(state, 0, seen, RNG)
        policy.proceed(state, 0, Draft(1, 0.5, 0.0))
        policy.learn(state, 0, seen, Outcome(16, 1, 0, 1, False, 9.0, 9.0))
        # No token was gained; the mean begins as two rounds of gain 0.
        assert float(state.paid[0]) == pytest.approx(-(spent - 6.0) / 6.0 / 3.0)


def test_logit_is_bounded() -> None:
    assert [logit(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([-9.2102, 0.0, 9.2102], abs=1e-4)


def outcome(drafted: int, accepted: int) -> Outcome:
    return Outcome(drafted, drafted, accepted, accepted + 1, False, 6.0 + drafted, 6.0 + drafted)


def test_contexts() -> None:
    seen, at = [], 0
    for drafted, accepted in (
        (3, 0),
        (0, 0),
        (0, 0),
        (4, 0),
        (4, 0),
        (4, 0),
        (4, 1),
        (4, 0),
        (2, 2),
    ):
        at = context_after(at, outcome(drafted, accepted))
        seen.append(divmod(at, SKIPPED))
    assert seen == [
        (2, 0), (2, 1), (2, 2), (3, 0), (4, 0), (4, 0), (1, 0), (2, 0), (0, 0),
    ]  # fmt: skip


def gate(policy: Payback, state: Any, rounds: int) -> list[int]:
    """The gamma of each round when 2 tokens are drafted, if any, and none is accepted."""
    gammas = []
    for _ in range(rounds):
        gammas.append(policy.gamma(state, 0, view(), RNG))
        for k in range(2 if gammas[-1] else 0):
            policy.proceed(state, 0, Draft(k + 1, 0.5, 0.0))
        policy.learn(state, 0, view(), outcome(2 if gammas[-1] else 0, 0))
    return gammas


def test_the_gate_shuts_where_drafts_have_cost() -> None:
    policy = Payback(memory=1.0, doubt=0.5)
    state = policy.new_state(1)
    state.context[0] = 4 * SKIPPED  # three rejections in a row
    # A draft of 2 in vain costs 2/6 of a plain round. The mean, begun as two rounds of 0, goes
    # -1/9, -2/12, -3/15, -4/18, -5/21; the doubt is 0.5 / sqrt(0.1 + visits): 0.48, 0.35, 0.28,
    # 0.25, 0.22. So the sixth round is plain. It leads to another context, not yet known to be bad.
    assert gate(policy, state, 9) == [16, 16, 16, 16, 16, 0, 16, 0, 16]


def test_the_gate_looks_again() -> None:
    policy = Payback(probe_every=3)
    state = policy.new_state(1)
    state.paid[:], state.visits[:] = -0.2, 1e6
    assert gate(policy, state, 9) == [0, 0, 0, 16, 0, 0, 0, 16, 0]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.95])
def test_never_much_slower_than_the_best_fixed_length(alpha: float) -> None:
    """Signals say nothing here beyond the rate itself; with a dear draft, none pays at 0."""
    generator = np.random.default_rng(3)
    trace = synthetic.constant(
        alpha, generator, requests=40, reply_tokens=200, signals=True, depth=16
    )
    costs = tabulate(Affine(draft_fixed=3e-3, target_fixed=10e-3))
    _, best = best_fixed(trace, costs)
    ours = replay(Payback(), trace, costs)
    assert float(ours.elapsed_s.sum()) < 1.04 * float(best.elapsed_s.sum())


def test_the_gate_is_what_helps_in_bursts() -> None:
    """The first drafted token is dear, and rejections come together: skip while they do."""
    generator = np.random.default_rng(5)
    trace = synthetic.bursty(0.95, 0.05, generator, requests=40, reply_tokens=200, signals=True)

    class Stairs(Affine):
        def verify_s(self, tokens: float, batch: int, context_tokens: float) -> float:
            return 10e-3 if tokens == 1 else 17e-3

    costs = tabulate(Stairs())
    seconds = {
        policy.name: float(replay(policy, trace, costs).elapsed_s.sum())
        for policy in (Never(), Fixed(best_fixed(trace, costs)[0]), Marginal(), Payback())
    }
    assert seconds["payback"] < 0.97 * seconds["marginal"]
    assert seconds["payback"] < 0.9 * min(seconds["fixed"], seconds["never"])
