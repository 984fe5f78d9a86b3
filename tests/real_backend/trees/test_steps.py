"""Trees on a tiny pair: the replies of plain decoding, and every round that of the replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policies.fixed import Fixed, Never
from policies.registry import parse_policy
from real_backend.decoding.engine import Engine
from real_backend.load_pair import load_pair
from real_backend.pair_spec import resolve_pair
from real_backend.prompts import EMBEDDED_PROMPTS, read_questions, requests_of_trace
from real_backend.recording.capture import capture
from real_backend.recording.coupling import CaptureSettings
from real_backend.trees.steps import TreeSteps, walk
from simulator.replay.menus import replay_menu
from simulator.replay.replay import replay_interpreted
from tests.simulator.replay.test_menus import TakesTurns
from tests.specimens import few_or_slow, write_prompts
from traces.costs.of_trace import prices_of_levels, prices_of_menu
from traces.costs.pricing import tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.schema import Trace
from traces.shapes.menu import menu_of
from traces.shapes.shape import Shape, chain, parse_shape
from traces.shapes.unfold import under
from traces.shipped import GREEDY, TIMING
from traces.split import spread_rows
from traces.store import read_trace
from traces.timing import read_timing

SHAPES = ["1x1x1x1", "2x1x1", "3x2x1", "4x2x1x1", "16", "p0.0.0.1.1.2.4.4.7.8.8"]
COLUMNS = ("context_tokens", "gamma", "drafted", "accepted", "emitted", "ended")


@pytest.fixture(scope="module")
def costs() -> Any:
    return tabulate(Table(read_timing(TIMING)), max_context=1024, width=34)


@pytest.fixture(scope="module")
def recorded(pair: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, list[Any]]:
    folder = tmp_path_factory.mktemp("greedy")
    questions = read_questions(write_prompts(folder / "p.jsonl", questions=4, turns=2))
    trace = capture(
        pair, questions, folder / "t.parquet", CaptureSettings(max_new_tokens=40, depth=8)
    )
    return trace, requests_of_trace(questions, trace, pair)


def differing(pair: Any, costs: Any, trace: Trace, requests: Any, shape: Shape, policy: Any) -> int:
    """Rounds of the engine that are not the replay's, after the replies were found the same."""
    limit = trace.meta.max_new_tokens
    capacity = int(trace.prompt_tokens.max()) + limit + shape.depth + 1
    engine = Engine(pair, prices_of_levels(costs, shape), max_gamma=shape.depth)
    engine.use(TreeSteps(pair, capacity, shape))
    run = engine.decode(policy, requests, max_new_tokens=limit, clock="model")
    assert trace.token_ids is not None
    assert run.tokens == [part.tolist() for part in np.split(trace.token_ids, trace.offsets[1:-1])]
    log = replay_interpreted(policy, under(trace, shape), prices_of_levels(costs, shape))
    assert len(run.log) == len(log) and run.log.nodes is not None and log.nodes is not None
    assert run.log.shape is None and run.log.nodes.tolist() == log.nodes.tolist()
    return int(sum((getattr(run.log, column) != getattr(log, column)).sum() for column in COLUMNS))


@pytest.mark.parametrize("text", SHAPES)
def test_every_round_is_the_replays(
    pair: Any, costs: Any, recorded: tuple[Trace, list[Any]], text: str
) -> None:
    shape = parse_shape(text)
    assert differing(pair, costs, *recorded, shape, Fixed(shape.depth)) == 0
    accepted = under(recorded[0], shape).accept_len
    assert (accepted != np.minimum(recorded[0].accept_len, shape.depth)).any() != shape.is_chain


@pytest.mark.parametrize(
    "name", ["gammatune", "hf-confidence:threshold=0.3", "payback", "ucb", "never", "hf-heuristic"]
)
def test_any_controller_decides_the_depth(
    pair: Any, costs: Any, recorded: tuple[Trace, list[Any]], name: str
) -> None:
    shape = parse_shape("3x2x1x1")
    assert differing(pair, costs, *recorded, shape, parse_policy(name)) == 0


@pytest.mark.parametrize("text", few_or_slow(SHAPES, ["4x2x1x1"]))
def test_the_embedded_pair(costs: Any, text: str) -> None:
    """One question of every task, as shipped."""
    embedded = load_pair(resolve_pair("embedded", None, None), device="cpu", dtype="float32")
    trace = read_trace(GREEDY)
    rows = spread_rows(trace, 7)
    asked = requests_of_trace(read_questions(EMBEDDED_PROMPTS), trace, embedded)
    requests = [asked[row] for row in rows]
    shape = parse_shape(text)
    assert differing(embedded, costs, trace.select(rows), requests, shape, Fixed(shape.depth)) == 0


def test_the_way_down_by_hand() -> None:
    """Root 0 has 1 and 2; 1 has 3; 2 has 4 and 5. The target says 8, then 6 behind node 2."""
    shape = Shape((0, 0, 1, 2, 2))
    tokens, choices = [0, 7, 8, 5, 5, 6], [8, 5, 6, 1, 1, 9]
    assert walk(shape, 5, tokens, choices) == [2, 5]
    assert walk(shape, 2, tokens, choices) == [2]  # only the first level was drafted
    assert walk(shape, 5, tokens, [4, *choices[1:]]) == []


def test_rounds_of_a_menu_are_the_replays(
    pair: Any, costs: Any, recorded: tuple[Trace, list[Any]]
) -> None:
    """Chain, tree, wide tree in turn, in one cache."""
    trace, requests = recorded
    shapes = [chain(3), parse_shape("3x2x1"), parse_shape("p0.0.1.3"), parse_shape("8")]
    menu, limit = prices_of_menu(costs, shapes), trace.meta.max_new_tokens
    engine = Engine(pair, menu, max_gamma=3)
    engine.use(TreeSteps(pair, int(trace.prompt_tokens.max()) + limit + 4, *shapes))
    run = engine.decode(TakesTurns(), requests, max_new_tokens=limit, clock="model")
    assert trace.token_ids is not None
    assert run.tokens == [part.tolist() for part in np.split(trace.token_ids, trace.offsets[1:-1])]
    log = replay_menu(TakesTurns(), menu_of(trace, shapes), menu)
    for column in (*COLUMNS, "shape", "nodes"):
        assert getattr(run.log, column).tolist() == getattr(log, column).tolist()
    assert log.shape is not None and set(log.shape.tolist()) == {0, 1, 2, 3}


def test_what_does_not_draft_trees_is_one_line(
    pair: Any, pair_folder: Path, recorded: tuple[Trace, list[Any]], costs: Any
) -> None:
    shape, (_, requests) = parse_shape("2x1"), recorded
    general = load_pair(resolve_pair(str(pair_folder), None, None), device="cpu", lean=False)
    with pytest.raises(InputError, match="lean forward"):
        TreeSteps(general, 100, shape)
    for settings, depth, word in (({"temperature": 1.0}, 2, "temperature"), ({}, 3, "2 levels")):
        engine = Engine(pair, costs, max_gamma=depth)
        engine.use(TreeSteps(pair, 400, shape))
        with pytest.raises(InputError, match=word):
            engine.decode(Never(), requests, **settings)  # type: ignore[arg-type]
    engine = Engine(pair, costs, max_gamma=2)
    engine.use(TreeSteps(pair, 400, shape))
    with pytest.raises(InputError, match="drops"):
        engine.decode(parse_policy("llama-p-min:p_min=1"), requests)
