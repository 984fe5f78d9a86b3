"""TapOut: its stopping rules, and the bandit over them by hand."""

from __future__ import annotations

import math

import pytest

from policies.bandits.tapout import CONFIDENCE, ENTROPY_HIGH, ENTROPY_LOW, LONG, SHORT, SVIP, TapOut
from policies.base import Draft, Outcome
from tests.policies.bandits.outcomes import choose, feed, outcome, view


@pytest.mark.parametrize(
    ("rule", "continues", "stops"),
    [
        (ENTROPY_LOW, Draft(1, 0.1, 0.69), Draft(1, 0.9, 0.70)),  # 1 bit
        (ENTROPY_HIGH, Draft(1, 0.1, 1.38), Draft(1, 0.9, 1.39)),  # 2 bits
        (SVIP, Draft(1, 0.1, 0.59), Draft(1, 0.9, 0.61)),  # sqrt(0.15 * 0.6) = 0.3
        (CONFIDENCE, Draft(1, 0.8, 9.0), Draft(1, 0.79, 0.0)),
    ],
)
def test_tapout_rules(rule: int, continues: Draft, stops: Draft) -> None:
    policy = TapOut()
    state = policy.new_state(1)
    state.rule[0] = rule
    assert policy.proceed(state, 0, continues) and not policy.proceed(state, 0, stops)
    for other in (LONG, SHORT):
        state.rule[0] = other
        assert policy.proceed(state, 0, stops)


def test_tapout_by_hand() -> None:
    policy = TapOut()
    state = policy.new_state(1)
    asked = []
    for _ in range(6):
        asked.append(choose(policy, state))
        feed(policy, state, Outcome(asked[-1], 2, 1, 2, False, 1.0, 1.0))
    assert asked == [8, 2, 8, 8, 8, 8]
    # 0.5 * 1 / 8 + 0.5 * 1 / 2 each.
    assert state.rewards.tolist() == [0.3125] * 6
    state.rule[0] = SVIP
    feed(policy, state, Outcome(8, 5, 4, 5, False, 1.0, 1.0))  # 0.5 * 4 / 8 + 0.5 * 4 / 5 = 0.65
    assert float(state.rewards[SVIP]) == pytest.approx(0.9625)
    # SVIP: 0.481 + 2 sqrt(ln 8 / 2) = 2.521; the others: 0.3125 + 2 sqrt(ln 8) = 3.197.
    assert choose(policy, state) == 8 and int(state.rule[0]) == LONG
    feed(policy, state, outcome(0, 0), seen=view(room=0))
    assert state.plays.tolist() == [1, 1, 1, 1, 2, 1]
    feed(
        TapOut(blend=0.25), state, Outcome(8, 5, 4, 5, False, 1.0, 1.0)
    )  # 0.25 * 4 / 8 + 0.75 * 4 / 5
    assert float(state.rewards[LONG]) == pytest.approx(0.3125 + 0.725)


def test_tapout_explores_with_weight_two() -> None:
    policy = TapOut()
    state = policy.new_state(1)
    state.plays[:] = [20, 9, 18, 18, 18, 17]
    state.rewards[:2] = [20.0, 9 * 0.6]
    # t = 101. LONG: 1 + 2 * 0.480 = 1.961; SHORT: 0.6 + 2 * 0.716 = 2.032; with the weight sqrt(2)
    # 1.679 and 1.613.
    assert choose(policy, state) == 2
    assert choose(TapOut(exploration=math.sqrt(2.0)), state) == 8
