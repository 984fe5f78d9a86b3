"""Trees that heads over the target's states draft: ranks by level, and every round the replay's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from policies.fixed import Fixed
from policies.registry import parse_policy
from real_backend.decoding.engine import Engine
from real_backend.load_pair import Pair, load_pair
from real_backend.pair_spec import resolve_pair
from real_backend.prompts import EMBEDDED_PROMPTS, Request, read_questions, requests_of_trace
from real_backend.recording.capture import capture
from real_backend.recording.coupling import CaptureSettings
from real_backend.recording.offers import ranks
from real_backend.trees.grow import grow
from real_backend.trees.load import steps_of
from simulator.replay.replay import replay_interpreted
from tests.real_backend.drafters.plain_eagle3 import Plain, replies_of
from tests.specimens import few_or_slow
from traces.costs.affine import Affine
from traces.costs.of_trace import prices_of_levels
from traces.costs.pricing import StepCosts, tabulate
from traces.errors import InputError
from traces.schema import RANK_UNKNOWN, Trace
from traces.shapes.fit import most_frequent, rank_profile
from traces.shapes.growth import Growth
from traces.shapes.shape import Grown, Shape, parse_shape
from traces.shapes.unfold import under

COLUMNS = ("context_tokens", "gamma", "drafted", "accepted", "emitted", "ended")
Recorded = tuple[Pair, Trace, list[Request]]


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """The shipped heads, prompts of five tasks."""
    pair = load_pair(resolve_pair("embedded+block", None, None), device="cpu", threads=1)
    questions = list({q.task: q for q in read_questions(EMBEDDED_PROMPTS)}.values())[:5]
    out = tmp_path_factory.mktemp("block") / "t.parquet"
    trace = capture(pair, questions, out, CaptureSettings(max_new_tokens=24))
    return pair, trace, requests_of_trace(questions, trace, pair)


@pytest.fixture(scope="module")
def eagle3(trained: tuple[Pair, Plain], recorded: tuple[Trace, list[Request]]) -> Recorded:
    """A head that was trained a little."""
    return trained[0], *recorded


@pytest.fixture(params=["block", "eagle3"])
def heads(request: pytest.FixtureRequest) -> Recorded:
    found: Recorded = request.getfixturevalue(request.param)
    return found


def differing(
    heads: Recorded,
    costs: StepCosts,
    shape: Shape | Grown,
    policy: Any,
    growth: Growth | None = None,
    batch: int = 1,
) -> int:
    """Rounds of the engine that are not the replay's, after the replies were found the same."""
    pair, trace, requests = heads
    prices = prices_of_levels(costs, shape)
    engine = Engine(pair, prices, max_gamma=shape.depth, make=steps_of([shape]))
    how: dict[str, Any] = {"clock": "model"} if batch == 1 else {"batch": batch}
    run = engine.decode(policy, requests, max_new_tokens=trace.meta.max_new_tokens, **how)
    assert run.tokens == replies_of(trace)
    log = replay_interpreted(policy, under(trace, shape, growth), prices)
    assert len(run.log) == len(log)
    order = np.argsort(run.log.request, kind="stable")
    return int(sum((getattr(run.log, c)[order] != getattr(log, c)).sum() for c in COLUMNS))


TREES = ["3x2x1", "1x1x1", "8x2", "p0.0.0.1.1.2.4.4"]


@pytest.mark.parametrize("text", few_or_slow(TREES, TREES[3:]))
def test_every_round_is_the_replays(heads: Recorded, costs: StepCosts, text: str) -> None:
    shape = parse_shape(text)
    assert under(heads[1], shape).accept_len.max() > 1
    assert differing(heads, costs, shape, Fixed(shape.depth)) == 0


def test_more_children_than_a_head_can_propose(eagle3: Recorded) -> None:
    """Forty of the target's tokens are in its vocabulary; the others are no damage."""
    costs = tabulate(Affine(draft_fixed=1e-3, target_fixed=1e-2), max_context=320, width=60)
    assert differing(eagle3, costs, parse_shape("50"), Fixed(1)) == 0


@pytest.mark.parametrize(
    "name", few_or_slow(["gammatune", "payback", "never", "ucb"], ["gammatune", "payback"])
)
@pytest.mark.long
def test_rules_decide_the_depth(heads: Recorded, costs: StepCosts, name: str) -> None:
    assert differing(heads, costs, parse_shape("3x2x1"), parse_policy(name)) == 0


@pytest.mark.long
def test_rows_of_a_batch(heads: Recorded, costs: StepCosts) -> None:
    policy = parse_policy("hf-confidence:threshold=0.3")
    assert differing(heads, costs, parse_shape("3x2x1"), policy, batch=3) == 0


def test_trees_that_grow(heads: Recorded, costs: StepCosts) -> None:
    """As EAGLE-2 grows them, of a head's own probabilities."""
    pair, trace, requests = heads
    growth = grow(pair, requests, trace, 3, 3)
    assert differing(heads, costs, Grown(3, 3, 5), Fixed(3), growth) == 0
    assert differing(heads, costs, Grown(3, 3), parse_policy("payback"), growth) == 0
    assert differing(heads, costs, Grown(3, 3), Fixed(2), growth, batch=3) == 0


def test_a_chain_is_the_recording(heads: Recorded) -> None:
    _, trace, _ = heads
    chained = under(trace, parse_shape("1x1x1"))
    assert chained.accept_len.tolist() == np.minimum(trace.accept_len, 3).tolist()
    wider = under(trace, parse_shape("2x2x2")).accept_len
    assert (wider >= chained.accept_len).all() and (wider > chained.accept_len).any()
    # Further levels than the first: ranks hang on where the draft began.
    assert trace.level_rank is not None and trace.target_rank is not None
    assert (trace.level_rank[:, 0] == trace.target_rank).all()
    assert (trace.level_rank[:-1, 1] != trace.target_rank[1:]).any()


@torch.inference_mode()
def test_ranks_by_level_are_those_of_a_fresh_draft(
    trained: tuple[Pair, Plain], eagle3: Recorded
) -> None:
    """A new cache, fed the reply in the place of what it would have drafted."""
    (pair, trace, requests), (_, plain) = eagle3, trained
    assert trace.level_rank is not None
    reply, prompt = replies_of(trace)[0], requests[0].prompt_ids
    for i in range(0, len(reply), 5):
        ids = [*prompt, *reply[:i]]
        rows, tokens = pair.drafter.rows(1, 256), torch.tensor(ids)  # type: ignore[attr-defined]
        rows.prefill(0, 0, tokens, plain.target_states(ids))
        logits = rows.first([(0, len(ids) - 1, 1)], tokens[-1:])
        for level, token in enumerate(reply[i : i + trace.meta.depth]):
            rank = int(ranks(logits, torch.tensor([token]))[0])
            assert trace.level_rank[i, level] == rank
            logits = rows.further([(0, len(ids) + level, 1)], torch.tensor([token]))
        assert (trace.level_rank[i, len(reply) - i :] == RANK_UNKNOWN).all()


def test_a_damaged_head_is_found_out(block: Recorded, costs: StepCosts) -> None:
    """Its NaN is in no cache: the first level of two is told, too."""
    pair, _, requests = block
    weight = pair.drafter.modules[0].blocks[0]["layers"][0].weight
    kept, shape = weight.clone(), parse_shape("3x2")
    weight.data[3] = torch.nan
    try:
        engine = Engine(pair, costs, max_gamma=2, make=steps_of([shape]))
        with pytest.raises(InputError, match="NaN"):
            engine.decode(Fixed(2), requests[:1], max_new_tokens=6)
    finally:
        weight.data.copy_(kept)


def test_which_tree_of_heads(heads: Recorded) -> None:
    """Found on the ranks by level; none deeper than they are known."""
    _, trace, _ = heads
    assert trace.level_rank is not None
    assert rank_profile(trace)[0] == (trace.level_rank[:, 0] == 0).mean()
    shape = most_frequent(trace, 12, 4)
    assert shape.depth <= 4 and not shape.is_chain
    chosen = under(trace, shape).accept_len.mean()
    assert chosen >= under(trace, parse_shape("12")).accept_len.mean()
    for depth in (2, 16):  # as deep as a path goes, and deeper than ranks are known
        found = most_frequent(trace, 64, depth)
        assert 2 <= found.depth <= trace.meta.depth and under(trace, found).accept_len.max() > 1
    with pytest.raises(InputError, match="record it deeper"):
        under(trace, parse_shape("x".join("1" * (trace.meta.depth + 1))))
