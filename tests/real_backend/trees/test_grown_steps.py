"""Trees that grow: as a draft without caches grows them, and every round that of the replay."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policies.fixed import Fixed
from policies.registry import parse_policy
from real_backend.decoding.engine import Engine
from real_backend.options import GrowOptions, PairOptions
from real_backend.prompts import read_questions, requests_of_trace
from real_backend.recording.capture import capture
from real_backend.recording.coupling import CaptureSettings
from real_backend.trees import grow
from real_backend.trees.grown_steps import Level, pick
from real_backend.trees.load import steps_of
from real_backend.trees.steps import ancestors
from simulator.replay.replay import replay_interpreted
from tests.specimens import few_or_slow, write_prompts
from traces.costs.of_trace import prices_of_levels
from traces.costs.pricing import tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.schema import Trace
from traces.shapes.growth import OUTSIDE, Growth, read_growth
from traces.shapes.shape import Grown
from traces.shapes.unfold import under
from traces.shipped import TIMING
from traces.timing import read_timing

BEAM, DEPTH = 3, 4
COLUMNS = ("context_tokens", "gamma", "drafted", "accepted", "emitted", "ended")
RULES = [Grown(BEAM, depth, nodes) for depth in (1, 3, 4) for nodes in (0, 1, 2, 5, 11, 40)]


@pytest.fixture(scope="module")
def recorded(pair: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, list[Any]]:
    folder = tmp_path_factory.mktemp("greedy")
    questions = read_questions(write_prompts(folder / "p.jsonl", questions=4, turns=1))
    settings = CaptureSettings(max_new_tokens=30, depth=8)
    trace = capture(pair, questions, folder / "t.parquet", settings)
    return trace, requests_of_trace(questions, trace, pair)


@pytest.fixture(scope="module")
def grown(pair: Any, recorded: tuple[Trace, list[Any]]) -> Growth:
    trace, requests = recorded
    return grow.grow(pair, requests, trace, BEAM, DEPTH)


def naive(pair: Any, ids: list[int]) -> list[dict[tuple[int, ...], float]]:
    """Candidates of every level by the tokens on the way, each from a forward of its own."""
    levels: list[dict[tuple[int, ...], float]] = []
    beam: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(DEPTH):
        found = {}
        for way, prob in beam.items():
            tokens = torch.tensor([[*ids, *way]])
            lean = pair.draft.lean
            cache = lean.new_cache(tokens.shape[1] + 1)
            with torch.inference_mode():
                said = lean.forward(tokens, cache, 0, last=1)[0, -1, : pair.vocab_size]
            probs = torch.softmax(said.float(), -1)
            best = probs.topk(BEAM)
            for p, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                found[(*way, token)] = prob * p
        levels.append(found)
        likeliest = sorted(found, key=lambda way: -found[way])[:BEAM]
        beam = {way: found[way] for way in likeliest}
    return levels


def test_growth_is_that_of_a_draft_without_caches(
    pair: Any, recorded: tuple[Trace, list[Any]], grown: Growth
) -> None:
    trace, requests = recorded
    assert trace.token_ids is not None
    found = 0
    for at in (0, 1, 7, 20, int(trace.offsets[1]) - 2):  # all of the first reply
        reply = trace.token_ids[at : int(trace.offsets[1])].tolist()[:DEPTH]
        ids = [*requests[0].prompt_ids, *trace.token_ids[:at].tolist()]
        levels = naive(pair, ids)
        mass = 1.0
        for level, candidates in enumerate(levels):
            best = sorted(candidates.values(), reverse=True)[:BEAM]
            assert grown.share[at, level] == pytest.approx(sum(best) / mass, rel=1e-4)
            mass = sum(best)
            own = candidates.get(tuple(reply[: level + 1])) if level < len(reply) else None
            if own is None:
                assert (grown.before[at, level] == OUTSIDE).all()
                continue
            found += 1
            likelier = [sum(p > own for p in other.values()) for other in levels]
            assert grown.before[at, level].tolist() == likelier
    assert found > 3


@pytest.mark.parametrize("rule", few_or_slow(RULES, [RULES[6], RULES[9], RULES[16]]), ids=str)
def test_every_round_is_the_replays(
    pair: Any, recorded: tuple[Trace, list[Any]], grown: Growth, rule: Grown
) -> None:
    assert differing(pair, recorded, grown, rule, Fixed(rule.depth)) == 0


@pytest.mark.parametrize("name", ["hf-confidence:threshold=0.3", "tail-pruning", "payback"])
def test_rules_by_confidence_decide_the_depth(
    pair: Any, recorded: tuple[Trace, list[Any]], grown: Growth, name: str
) -> None:
    assert differing(pair, recorded, grown, Grown(BEAM, DEPTH), parse_policy(name)) == 0


@pytest.mark.parametrize("rule", [Grown(BEAM, DEPTH), Grown(BEAM, DEPTH, 5)], ids=str)
@pytest.mark.parametrize("lean", few_or_slow([True, False], [False]))
def test_rows_of_a_batch(
    pair: Any,
    general_pair: Any,
    recorded: tuple[Trace, list[Any]],
    grown: Growth,
    lean: bool,
    rule: Grown,
) -> None:
    """Three rows at once, of either kind of model: of each the replay's rounds."""
    (trace, requests), policy = recorded, Fixed(DEPTH)
    if not rule.nodes_wanted:
        policy = parse_policy("hf-confidence:threshold=0.3")
    costs = tabulate(Table(read_timing(TIMING)), max_context=1024, width=44)
    prices, limit = prices_of_levels(costs, rule), trace.meta.max_new_tokens
    ours = pair if lean else general_pair
    engine = Engine(ours, prices, max_gamma=rule.depth, make=steps_of([rule]))
    run = engine.decode(policy, requests, max_new_tokens=limit, batch=3)
    assert trace.token_ids is not None
    assert run.tokens == [part.tolist() for part in np.split(trace.token_ids, trace.offsets[1:-1])]
    log = replay_interpreted(policy, under(trace, rule, grown), prices)
    order = np.argsort(run.log.request, kind="stable")
    for column in COLUMNS:
        assert getattr(run.log, column)[order].tolist() == getattr(log, column).tolist()


def differing(
    pair: Any, recorded: tuple[Trace, list[Any]], grown: Growth, rule: Grown, policy: Any
) -> int:
    """Rounds of the engine that are not the replay's, after the replies were found the same."""
    trace, requests = recorded
    costs = tabulate(Table(read_timing(TIMING)), max_context=1024, width=44)
    limit = trace.meta.max_new_tokens
    prices = prices_of_levels(costs, rule)
    engine = Engine(pair, prices, max_gamma=rule.depth, make=steps_of([rule]))
    run = engine.decode(policy, requests, max_new_tokens=limit, clock="model")
    assert trace.token_ids is not None
    assert run.tokens == [part.tolist() for part in np.split(trace.token_ids, trace.offsets[1:-1])]
    seen = under(trace, rule, grown)
    log = replay_interpreted(policy, seen, prices_of_levels(costs, rule))
    assert len(run.log) == len(log)
    return int(sum((getattr(run.log, column) != getattr(log, column)).sum() for column in COLUMNS))


def test_nodes_are_picked_by_hand() -> None:
    """Root: .6 .4; behind .6: .5, behind .4: .1 and .3 of the whole."""
    first = Level(np.array([7, 8]), np.array([0.6, 0.4], np.float32), np.array([0, 0]))
    second = Level(
        np.array([5, 9, 6, 4]), np.array([0.5, 0.3, 0.1, 0.05], np.float32), np.array([0, 1, 1, 0])
    )
    nodes = pick([first, second], Grown(2, 2, 3))
    assert [x.tolist() for x in nodes] == [[1, 1, 2], [0, 1, 0], [0, 0, 1]]
    nodes = pick([first, second], Grown(2, 2, 5))
    assert [x.tolist() for x in nodes] == [[1, 1, 2, 2, 2], [0, 1, 0, 1, 2], [0, 0, 1, 2, 2]]
    assert ancestors(nodes.parent.tolist())[4].tolist() == [True, False, True, False, True, False]
    assert [len(x) for x in pick([first, second], Grown(2, 2))] == [4, 4, 4]
    assert [len(x) for x in pick([], Grown(2, 2, 3))] == [0, 0, 0]


def test_what_comes_first_by_hand() -> None:
    """As above; the reply goes 8, 6. The last two are as likely: the earlier level comes first."""
    first = Level(np.array([7, 8]), np.array([0.6, 0.1], np.float32), np.array([0, 0]))
    second = Level(
        np.array([5, 9, 6, 4]), np.array([0.5, 0.1, 0.1, 0.05], np.float32), np.array([0, 1, 1, 0])
    )
    assert grow.ranks([first, second], [8, 6]).tolist() == [[1, 1], [2, 2]]
    assert grow.ranks([first, second], [8]).tolist() == [[1, 1], [OUTSIDE, OUTSIDE]]
    assert grow.ranks([first, second], [3, 6]).tolist() == [[OUTSIDE] * 2, [OUTSIDE] * 2]


def test_the_command_goes_on_where_it_was_stopped(
    pair: Any,
    pair_folder: Path,
    recorded: tuple[Trace, list[Any]],
    grown: Growth,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from traces.store import write_trace

    write_trace(recorded[0], tmp_path / "t.parquet")
    prompts = write_prompts(tmp_path / "p.jsonl", questions=4, turns=1)
    options = GrowOptions(
        pair=PairOptions(name=str(pair_folder), threads=1),
        trace=tmp_path / "t.parquet",
        prompts=prompts,
        beam=BEAM,
        levels=DEPTH,
        out=tmp_path / "grown.npz",
    )
    done, whole = list[int](), grow._along

    def twice(*given: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(0)
        return whole(*given)

    monkeypatch.setattr(grow, "_along", twice)
    with pytest.raises(KeyboardInterrupt):
        grow.run(options)
    done.clear()
    assert "4 replies" in grow.run(options).text
    assert len(done) == 2
    found = read_growth(options.out, recorded[0])
    assert (found.before == grown.before).all() and (found.share == grown.share).all()
    assert list(tmp_path.glob("*.partial")) == []
    with pytest.raises(InputError, match="exists"):
        grow.run(options)
    wide = dataclasses.replace(options, beam=600, out=tmp_path / "wide.npz")
    with pytest.raises(InputError, match="at most 512"):
        grow.run(wide)
    assert list(tmp_path.glob("wide*")) == []
