"""Trees on a tiny pair: the replies of plain decoding, and every round that of the replay."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from policies.fixed import Fixed, Never
from policies.registry import parse_policy
from real_backend.decoding.engine import Engine
from real_backend.load_pair import load_pair
from real_backend.pair_spec import resolve_pair
from real_backend.prompts import EMBEDDED_PROMPTS, Request, read_questions, requests_of_trace
from real_backend.recording.capture import capture
from real_backend.recording.coupling import CaptureSettings
from real_backend.trees.load import steps_of
from real_backend.trees.steps import walk
from simulator.replay.menus import replay_menu
from simulator.replay.replay import replay_interpreted
from tests.real_backend.laws import fit_of_law
from tests.simulator.replay.test_menus import TakesTurns
from tests.specimens import few_or_slow, write_prompts
from traces.costs.of_trace import prices_of_levels, prices_of_menu
from traces.costs.pricing import tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.schema import Trace
from traces.shapes.menu import menu_of
from traces.shapes.shape import Grown, Shape, chain, parse_shape
from traces.shapes.unfold import under
from traces.shipped import GREEDY, TIMING
from traces.split import spread_rows
from traces.store import read_trace, write_trace
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


def engine_of(pair: Any, prices: Any, *shapes: Shape) -> Engine:
    """One that drafts these trees, as deep as the deepest."""
    deepest = max(shape.depth for shape in shapes)
    return Engine(pair, prices, max_gamma=deepest, make=steps_of(shapes))


def differing(pair: Any, costs: Any, trace: Trace, requests: Any, shape: Shape, policy: Any) -> int:
    """Rounds of the engine that are not the replay's, after the replies were found the same."""
    limit = trace.meta.max_new_tokens
    engine = engine_of(pair, prices_of_levels(costs, shape), shape)
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
@pytest.mark.long
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


@pytest.mark.parametrize("name", ["fixed:gamma=4", "hf-confidence:threshold=0.3"])
@pytest.mark.parametrize("lean", few_or_slow([True, False], [True]))
def test_rows_of_a_batch(
    pair: Any,
    general_pair: Any,
    costs: Any,
    recorded: tuple[Trace, list[Any]],
    lean: bool,
    name: str,
) -> None:
    """Three rows of uneven lengths and depths, the last requests fewer: of each the replay's
    rounds.
    """
    shape, policy, (trace, requests) = parse_shape("3x2x1x1"), parse_policy(name), recorded
    prices = prices_of_levels(costs, shape)
    engine = engine_of(pair if lean else general_pair, prices, shape)
    run = engine.decode(policy, requests, max_new_tokens=trace.meta.max_new_tokens, batch=3)
    assert trace.token_ids is not None
    assert run.tokens == [part.tolist() for part in np.split(trace.token_ids, trace.offsets[1:-1])]
    log = replay_interpreted(policy, under(trace, shape), prices)
    order = np.argsort(run.log.request, kind="stable")
    for column in COLUMNS:
        assert getattr(run.log, column)[order].tolist() == getattr(log, column).tolist()
    assert set(run.log.batch_size.tolist()) == {1, 2, 3}
    assert (run.log.drafted < run.log.gamma).any() == name.startswith("hf")


@pytest.mark.parametrize("text", few_or_slow([SHAPES[2], SHAPES[5]], SHAPES[5:]))
@pytest.mark.long
def test_models_of_the_general_path(
    general_pair: Any, costs: Any, recorded: tuple[Trace, list[Any]], text: str
) -> None:
    """Any model's cache gathers what is accepted."""
    shape = parse_shape(text)
    assert differing(general_pair, costs, *recorded, shape, Fixed(shape.depth)) == 0


@pytest.mark.parametrize("text", few_or_slow(["3x2x1", "1x1", "p0.0.1"], ["3x2x1"]))
def test_sampled_replies_have_the_targets_law(pair: Any, costs: Any, text: str) -> None:
    shape, prompt, runs = parse_shape(text), [0, 9, 30, 12], 2_000
    engine = engine_of(pair, prices_of_levels(costs, shape), shape)
    requests = [Request(str(k), "qa", prompt) for k in range(runs)]
    how: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "seed": 3, "max_new_tokens": 5}
    run = engine.decode(Fixed(shape.depth), requests, batch=50, **how)
    assert set(run.log.accepted.tolist()) == set(range(shape.depth + 1))
    assert fit_of_law(pair, run.tokens, prompt, 0.7, 0.9) > 1e-3
    # The same replies are not those of a law a little apart.
    assert fit_of_law(pair, run.tokens, prompt, 0.8, 0.9) < 1e-3


@pytest.mark.parametrize("name", ["fixed:gamma=3", "gammatune"])
def test_sampled_rounds_are_the_replays(
    pair: Any, costs: Any, sampled: tuple[Trace, list[Any], list[Any]], tmp_path: Path, name: str
) -> None:
    """Replies that the engine drew under a tree are recorded, and give the same rounds again."""
    shape, policy = parse_shape("4x2x1"), parse_policy(name)
    first, questions, requests = sampled
    prices = prices_of_levels(costs, shape)
    engine = engine_of(pair, prices, shape)
    run = engine.decode(policy, requests, temperature=0.6, seed=5, max_new_tokens=40, clock="model")
    write_trace(with_replies(first, run.tokens), tmp_path / "drawn.parquet")
    settings, replies = CaptureSettings(depth=4), tmp_path / "drawn.parquet"
    trace = capture(pair, questions, tmp_path / "t.parquet", settings, replies=replies)
    log = replay_interpreted(policy, under(trace, shape), prices)
    for column in COLUMNS:
        assert getattr(run.log, column).tolist() == getattr(log, column).tolist()
    # Others, that nobody drew under a tree, have rounds of the same law; those of a chain another.
    fresh = replay_interpreted(Fixed(3), under(first, shape), prices)
    chained = replay_interpreted(Fixed(3), under(first, chain(3)), prices)
    counts = [np.bincount(one.accepted, minlength=4) for one in (log, fresh, chained)]
    if name == "fixed:gamma=3":
        assert stats.chi2_contingency(counts[:2]).pvalue > 1e-3
        assert stats.chi2_contingency(counts[1:]).pvalue < 1e-3


@pytest.fixture(scope="module")
def sampled(
    pair: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Trace, list[Any], list[Any]]:
    """Thirty drawn replies, the questions, the requests."""
    folder = tmp_path_factory.mktemp("sampled")
    questions = read_questions(write_prompts(folder / "p.jsonl", questions=30, turns=1))
    settings = CaptureSettings(max_new_tokens=40, depth=4, temperature=0.6)
    trace = capture(pair, questions, folder / "t.parquet", settings)
    return trace, questions, requests_of_trace(questions, trace, pair)


def with_replies(trace: Trace, replies: list[list[int]]) -> Trace:
    """A recording of other replies to the same requests, of which nothing else is known."""
    offsets = np.cumsum([0, *map(len, replies)])
    none = dict.fromkeys(["top1_prob", "entropy", "accept_prob", "target_rank", "target_entropy"])
    return dataclasses.replace(
        trace,
        offsets=offsets,
        accept_len=np.zeros(offsets[-1], dtype=np.int16),
        token_ids=np.concatenate(replies).astype(np.int32),
        **none,
    )


def test_rounds_of_a_menu_are_the_replays(
    pair: Any, costs: Any, recorded: tuple[Trace, list[Any]]
) -> None:
    """Chain, tree, wide tree in turn, in one cache."""
    trace, requests = recorded
    shapes = [chain(3), parse_shape("3x2x1"), parse_shape("p0.0.1.3"), parse_shape("8")]
    menu, limit = prices_of_menu(costs, shapes), trace.meta.max_new_tokens
    engine = engine_of(pair, menu, *shapes)
    run = engine.decode(TakesTurns(), requests, max_new_tokens=limit, clock="model")
    assert trace.token_ids is not None
    assert run.tokens == [part.tolist() for part in np.split(trace.token_ids, trace.offsets[1:-1])]
    log = replay_menu(TakesTurns(), menu_of(trace, shapes), menu)
    for column in (*COLUMNS, "shape", "nodes"):
        assert getattr(run.log, column).tolist() == getattr(log, column).tolist()
    assert log.shape is not None and set(log.shape.tolist()) == {0, 1, 2, 3}


def test_what_does_not_draft_trees_is_one_line(
    pair: Any, recorded: tuple[Trace, list[Any]], costs: Any
) -> None:
    shape, (_, requests) = parse_shape("2x1"), recorded
    engine = Engine(pair, costs, max_gamma=3, make=steps_of([shape]))
    with pytest.raises(InputError, match="2 levels"):
        engine.decode(Never(), requests)
    with pytest.raises(InputError, match="one request at a time"):
        engine_of(pair, costs, shape, chain(2)).decode(Never(), requests, batch=2)
    with pytest.raises(InputError, match="do not grow"):
        steps_of([shape, Grown(2, 2)])
    engine = engine_of(pair, costs, shape)
    with pytest.raises(InputError, match="drops"):
        engine.decode(parse_policy("llama-p-min:p_min=1"), requests)
