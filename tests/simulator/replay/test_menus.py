"""A policy that chooses among draft trees: each entry's rounds at its prices, compiled as not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.base import Draft, IntArray, MenuView, Policy, State, View, chooses_shapes
from policies.fields import SOME, hyper
from policies.fixed import Fixed
from policies.randomness import Rng
from policies.registry import parse_policy
from policies.round import menu_view_at
from simulator.replay.menus import replay_menu, replay_menu_interpreted
from simulator.replay.replay import replay
from tests.traces.shapes.test_shapes import random_shape, ranked
from traces.costs.affine import Affine
from traces.costs.of_trace import prices_of_levels, prices_of_menu
from traces.costs.pricing import StepCosts, tabulate
from traces.errors import InputError
from traces.roundlog import join_logs, read_roundlog, write_roundlog
from traces.schema import Trace
from traces.shapes.menu import menu_of
from traces.shapes.shape import MOST_NODES, Shape, chain, parse_draft, parse_shape
from traces.shapes.unfold import reach, under


class Turns(NamedTuple):
    """rounds [1]: asked so far."""

    rounds: IntArray


@dataclasses.dataclass(frozen=True)
class TakesTurns(Policy):
    """Entry (round x stride) - 1 in turn, out of range now and then, and all levels there are."""

    stride: int = hyper(1, SOME, "of a test")

    name: ClassVar[str] = "takes-turns"

    def new_state(self, slots: int) -> State:
        return Turns(np.zeros(1, dtype=np.int64))

    def shape(self, state: State, slot: int, view: MenuView, rng: Rng) -> int:
        state.rounds[0] = int(state.rounds[0]) + 1
        return (int(state.rounds[0]) * self.stride) % (view.levels.shape[0] + 2) - 1

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        return view.room


@dataclasses.dataclass(frozen=True)
class StopsByTurns(TakesTurns):
    """The same, stopped by signals."""

    name: ClassVar[str] = "stops-by-turns"

    def proceed(self, state: State, slot: int, draft: Draft) -> bool:
        return draft.top1_prob > 0.4


PRICES = Affine(target_token=1e-3, draft_fixed=2e-3, target_fixed=1e-2, draft_token=3e-4)


def wide(trace: Trace) -> StepCosts:
    return tabulate(PRICES, max_context=trace.longest_context + 32, width=MOST_NODES + 2)


def test_every_round_is_of_the_entry_that_was_chosen() -> None:
    trace = ranked([[0, 1, 0, 0, 2, 0, 0, 0], [1, 0, 3]])
    shapes = [chain(2), parse_shape("3x1"), chain(1)]
    costs = wide(trace)
    log = replay_menu(TakesTurns(), menu_of(trace, shapes), prices_of_menu(costs, shapes))
    # asked: 1, 2, ... times 1, mod 5, less 1: 0 1 2 3 -1 0 1 2 ..., clamped to 0..2
    assert log.shape is not None and log.shape.tolist() == [0, 1, 2, 2, 0, 0]
    # At 0 a chain of two takes one token (rank 0, then 1) and the target's own; at 2, three by one
    # take both; at 5 one of one; at 7 there is no room. Then 1, 0, 3: a chain takes none, then one.
    assert log.accepted.tolist() == [1, 2, 1, 0, 0, 1]
    assert log.emitted.tolist() == [2, 3, 2, 1, 1, 2]
    assert log.nodes is not None and log.nodes.tolist() == [2, 6, 1, 0, 2, 2]
    for k, shape in enumerate([chain(2), shapes[1], chain(1), chain(1), chain(2), chain(2)]):
        alone = prices_of_levels(costs, shape)
        levels = int(log.drafted[k])
        lag = 1 if k in (0, 4) else 1 + int(log.accepted[k - 1] == log.drafted[k - 1])
        read = alone.draft_s[0, 0, lag] + alone.draft_s[0, 0, 1] * (levels - 1) if levels else 0.0
        assert log.elapsed_s[k] == pytest.approx(float(read + alone.verify_s[0, 0, levels + 1]))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(2, 5), st.integers(1, 7), st.booleans())
def test_compiled_is_plain(world: int, entries: int, stride: int, stops: bool) -> None:
    generator = np.random.default_rng(world)
    ranks = [generator.geometric(0.6, int(generator.integers(1, 40))) - 1 for _ in range(4)]
    trace = ranked([reply.tolist() for reply in ranks], depth=8)
    shapes = [chain(8) if stops else random_shape(generator, int(generator.integers(1, 9)))]
    shapes += [chain(int(generator.integers(1, 9))) for _ in range(entries - 1)]
    menu, costs = menu_of(trace, shapes), prices_of_menu(wide(trace), shapes)
    policy = (StopsByTurns if stops else TakesTurns)(stride=stride)
    log = replay_menu(policy, menu, costs, seed=world)
    plain = replay_menu_interpreted(policy, menu, costs, seed=world)
    assert log.same_rounds(plain)
    assert log.shape is not None and plain.shape is not None and log.nodes is not None
    assert log.shape.tolist() == plain.shape.tolist()
    emitted = np.bincount(log.request, weights=log.emitted, minlength=trace.requests)
    assert emitted.tolist() == trace.reply_tokens.tolist()
    where = trace.offsets[log.request] + log.context_tokens - trace.prompt_tokens[log.request]
    reaches = np.stack([reach(trace, shape) for shape in shapes])[log.shape, where]
    assert (log.accepted == np.minimum(log.drafted, reaches)).all()
    levels = np.array([shape.depth for shape in shapes])[log.shape]
    assert (log.drafted <= levels).all() and (log.nodes >= log.drafted).all()


@pytest.mark.parametrize("name", ["gammatune", "payback", "fixed:gamma=3", "ucb"])
def test_a_menu_of_one_is_its_recording(name: str) -> None:
    """And who chooses no shape drafts the first of many."""
    generator = np.random.default_rng(3)
    trace = ranked([(generator.geometric(0.7, 60) - 1).tolist() for _ in range(3)], depth=8)
    shapes = [parse_shape("2x1x1"), chain(4)]
    policy, costs = parse_policy(name), wide(trace)
    alone = replay(policy, under(trace, shapes[0]), prices_of_levels(costs, shapes[0]), seed=2)
    for menu in (shapes[:1], shapes):
        log = replay_menu(policy, menu_of(trace, menu), prices_of_menu(costs, menu), seed=2)
        assert log.same_rounds(alone) and alone.nodes is not None
        assert log.nodes is not None and log.nodes.tolist() == alone.nodes.tolist()
    assert not chooses_shapes(type(policy)) and chooses_shapes(TakesTurns)


@dataclasses.dataclass(frozen=True)
class CountsQuestions(TakesTurns):
    """As many levels as it was asked for shapes, and one."""

    name: ClassVar[str] = "counts-questions"

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        return int(state.rounds[0]) + 1


@pytest.mark.parametrize("played", [replay_menu, replay_menu_interpreted])
def test_nobody_is_asked_where_there_is_one_shape(played: Any) -> None:
    """As in the engine, or the state would differ between them."""
    trace, shapes = ranked([[0] * 12]), [parse_shape("2x1x1")]
    log = played(CountsQuestions(), menu_of(trace, shapes), prices_of_menu(wide(trace), shapes))
    assert log.gamma[:-1].tolist() == [1] * (len(log) - 1) and log.shape is None
    assert log.nodes.tolist() == (2 * log.drafted).tolist()


def test_nodes_and_shapes_are_kept(tmp_path: Path) -> None:
    trace = ranked([[0, 1, 0, 0, 2, 0, 0, 0], [1, 0, 3]])
    shapes = [chain(2), parse_shape("3x1")]
    log = replay_menu(TakesTurns(), menu_of(trace, shapes), prices_of_menu(wide(trace), shapes))
    write_roundlog(log, tmp_path / "log.parquet")
    read = read_roundlog(tmp_path / "log.parquet")
    assert read.same_rounds(log) and read.shape is not None and read.nodes is not None
    assert log.nodes is not None and log.shape is not None
    assert read.shape.tolist() == log.shape.tolist() and read.nodes.tolist() == log.nodes.tolist()
    both = join_logs([log, read])
    assert both.nodes is not None and len(both.nodes) == 2 * len(log)
    chains = dataclasses.replace(log, nodes=None, shape=None)
    assert join_logs([log, chains]).nodes is None
    few = dataclasses.replace(log, nodes=log.nodes - 3)
    write_roundlog(few, tmp_path / "few.parquet")
    with pytest.raises(InputError, match="a count is out of range"):
        read_roundlog(tmp_path / "few.parquet")


def test_what_does_not_fit_is_refused() -> None:
    trace = ranked([[0, 1, 0, 0, 2, 0, 0, 0]])
    shapes: list[Shape] = [chain(2), parse_shape("3x1")]
    menu, costs = menu_of(trace, shapes), prices_of_menu(wide(trace), shapes)
    with pytest.raises(InputError, match="one request at a time"):
        replay_menu(TakesTurns(), menu, prices_of_levels(wide(trace), shapes[0]))
    with pytest.raises(InputError, match="drops drafted tokens"):
        replay_menu(parse_policy("worth"), menu, costs)
    with pytest.raises(InputError, match="an entry of the menu lacks"):
        no_path = [chain(2), parse_shape("p0.0.2")]  # its likeliest token has no child
        replay_menu(StopsByTurns(), menu_of(trace, no_path), prices_of_menu(wide(trace), no_path))
    with pytest.raises(InputError, match="1 to 64 shapes, not 0"):
        menu_of(trace, [])
    with pytest.raises(InputError, match="picked among all levels"):
        menu_of(trace, [parse_draft("g4x4x8")])
    with pytest.raises(InputError, match="a menu is of one request"):
        prices_of_menu(tabulate(PRICES, (1, 2), max_context=64, width=10), shapes)
    assert len(replay_menu(Fixed(0), menu.select([0]), costs)) == 8


def test_the_view_of_a_menu_by_hand() -> None:
    """A draft step is that of the first entry, prices are those of all, of the bucket alone."""
    entries, buckets, width = 2, 3, 4
    steps = np.arange(entries * buckets * width, dtype=float).reshape(entries, buckets, width)
    costs = wide(ranked([[0]]))._replace(draft_s=steps, verify_s=steps + 100.0, signal_s=0.5)
    view = menu_view_at(costs, 1, 40, 2, np.array([1, 2]))
    assert view.draft_step_s == 5.5 and view.verify_s.tolist() == [
        [104.0, 105.0, 106.0, 107.0],
        [116.0, 117.0, 118.0, 119.0],
    ]
    assert (view.context_tokens, view.batch_size, view.waiting, view.room) == (40, 1, 0, 2)
