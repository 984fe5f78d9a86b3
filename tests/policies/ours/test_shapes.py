"""shape-worth by hand: chances, worth of a tree, probes; and the better tree of a menu is found."""

from __future__ import annotations

import numpy as np
import pytest

from policies.base import MenuView, Outcome, View
from policies.conformance import check_policy
from policies.ours.shapes import ShapeWorth, chance
from policies.randomness import Rng
from simulator.replay.menus import replay_menu
from tests.traces.shapes.test_shapes import ranked
from traces.costs.affine import Affine
from traces.costs.of_trace import prices_of_menu
from traces.costs.pricing import tabulate
from traces.shapes.menu import menu_of
from traces.shapes.shape import chain, parse_shape

VERIFY = np.array([0.0, 10.0, 11.0, 12.0])
VIEW = View(9, 1, 0, 2, 1.0, VERIFY)
RNG = Rng(1)


def outcome(drafted: int, accepted: int, emitted: int, ended: bool = False) -> Outcome:
    return Outcome(drafted, drafted, accepted, emitted, ended, 13.0, 13.0)


def test_it_conforms() -> None:
    check_policy(ShapeWorth())
    check_policy(ShapeWorth(hope=0.0, doubt=0.5, memory=0.5, probe_every=2))


def test_depth_by_hand() -> None:
    """Before anything is known a second is worth 1 / 10 token: 1 - 1, 1.9 - 1.2, 2.71 - 1.4."""
    policy = ShapeWorth(hope=0.9)
    state = policy.new_state(1)
    state.turn[0] = 1
    assert policy.gamma(state, 0, VIEW, RNG) == 2
    assert policy.gamma(state, 0, VIEW._replace(room=1), RNG) == 1
    assert policy.gamma(state, 0, VIEW._replace(draft_step_s=20.0), RNG) == 0
    state.turn[0] = 64  # looks again
    assert policy.gamma(state, 0, VIEW._replace(draft_step_s=20.0), RNG) == 1
    assert policy.gamma(state, 0, VIEW._replace(room=0), RNG) == 0


def test_what_a_round_teaches() -> None:
    policy = ShapeWorth(hope=0.9, doubt=2.0, memory=0.5)
    state = policy.new_state(1)
    policy.learn(state, 0, VIEW, outcome(3, 1, 2))  # the second is rejected, the third unjudged
    assert state.reached[1, 0, :3].tolist() == [1.0, 1.0, 0.0]
    assert state.passed[1, 0, :3].tolist() == [1.0, 0.0, 0.0]
    assert chance(state, 1, 0, 0, 0.9, 2.0) == pytest.approx((1 + 1.8) / 3)
    assert chance(state, 1, 0, 1, 0.9, 2.0) == pytest.approx(1.8 / 3)
    assert chance(state, 1, 0, 2, 0.9, 2.0) == chance(state, 0, 5, 1, 0.9, 2.0) == 0.9
    assert state.clock.tolist() == [2.0, 13.0] and int(state.after[0]) == 1
    policy.learn(state, 0, VIEW, outcome(2, 2, 3))
    assert state.reached[1, 0, :2].tolist() == [1.5, 1.5] and int(state.after[0]) == 2
    assert state.clock.tolist() == [1.0 + 3.0, 6.5 + 13.0]
    policy.learn(state, 0, VIEW, outcome(2, 1, 1, ended=True))  # nothing was rejected
    assert state.reached[2, 0, :2].tolist() == [1.0, 0.0]
    policy.learn(state, 0, VIEW, outcome(0, 0, 1))  # no draft: what came before it still counts
    assert int(state.after[0]) == 1
    policy.admit(state, 0)
    assert (int(state.entry[0]), int(state.after[0])) == (0, 1)


def test_the_tree_by_hand_and_probes_in_turn() -> None:
    policy = ShapeWorth(hope=0.9)
    state = policy.new_state(1)
    state.turn[0] = 1
    prices = np.array([[0.0, 10.0, 11.0, 12.0], [0.0, 10.0, 12.0, 0.0], [0.0, 10.0, 10.5, 11.0]])
    view = MenuView(9, 1, 0, 3, np.array([2, 1, 2]), 1.0, prices)
    assert policy.shape(state, 0, view, RNG) == 2  # as deep as the first, and cheaper
    assert int(state.entry[0]) == 2
    state.reached[1, 2, 0] = 50.0  # never accepted there
    assert policy.shape(state, 0, view, RNG) == 0
    for turn, entry in ((64, 0), (65, 0), (128, 1), (192, 2), (256, 0)):
        state.turn[0] = turn
        assert policy.shape(state, 0, view, RNG) == entry


def test_the_better_tree_is_found() -> None:
    """The likeliest token is never right and the second always is."""
    trace = ranked([[1] * 400 for _ in range(3)], depth=4)
    shapes = [chain(3), parse_shape("2"), parse_shape("2x2")]
    wide = tabulate(Affine(target_token=1e-4, draft_fixed=1e-3, target_fixed=1e-2), width=9)
    log = replay_menu(ShapeWorth(), menu_of(trace, shapes), prices_of_menu(wide, shapes))
    assert log.shape is not None
    assert np.bincount(log.shape, minlength=3)[2] > 0.9 * len(log)
    assert log.emitted.mean() > 2.7
