"""The shipped pair, traces and timing, on the real engine: what the README promises, in small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.validation.agreement import agree
from experiments.validation.in_law import check_law
from policies.fixed import Fixed
from policies.registry import REGISTRY
from real_backend.decoding.engine import Engine
from real_backend.load_pair import load_pair
from real_backend.pair_spec import resolve_pair
from real_backend.prompts import EMBEDDED_PROMPTS, Question, read_questions, requests_of_trace
from real_backend.recording.capture import capture
from real_backend.recording.coupling import CaptureSettings
from simulator.replay.replay import replay
from tests.specimens import few_or_slow
from traces.costs.pricing import StepCosts, tabulate
from traces.costs.table import Table
from traces.schema import Trace
from traces.shipped import GREEDY, SAMPLED, TIMING
from traces.split import spread_rows
from traces.store import read_trace
from traces.timing import read_timing

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def embedded() -> Any:
    return load_pair(resolve_pair("embedded", None, None), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return read_questions(EMBEDDED_PROMPTS)


@pytest.fixture(scope="module")
def few(embedded: Any, questions: list[Question]) -> tuple[Trace, list[Any]]:
    """One question of every task, as recorded, and its requests."""
    trace = read_trace(GREEDY)
    rows = spread_rows(trace, 7)
    requests = requests_of_trace(questions, trace, embedded)
    return trace.select(rows), [requests[row] for row in rows]


@pytest.fixture(scope="module")
def shipped_costs() -> StepCosts:
    return tabulate(Table(read_timing(TIMING)), max_context=1024)


def test_shipped_data_is_what_it_says(questions: list[Question]) -> None:
    turns = sum(len(question.turns) for question in questions)
    by_task = {q.task for q in questions}
    assert len(questions) >= 120 and len(by_task) == 6
    for path, exactness in ((GREEDY, "exact"), (SAMPLED, "in-law")):
        trace = read_trace(path)
        assert trace.requests == turns and trace.meta.exactness == exactness
        assert trace.has_signals and trace.meta.depth == 16
        assert set(trace.category) == by_task
        for task in by_task:  # a useful specimen: neither hopeless nor solved
            picked = np.repeat(np.asarray(trace.category) == task, trace.reply_tokens)
            assert 0.4 < (trace.accept_len[picked] > 0).mean() < 0.92


@pytest.mark.parametrize("name", few_or_slow(REGISTRY, ["gammatune", "hf-confidence"]))
def test_engine_takes_the_replays_decisions(
    embedded: Any, few: tuple[Trace, list[Any]], shipped_costs: StepCosts, name: str
) -> None:
    trace, requests = few
    policy, tokens = REGISTRY[name](), trace.token_ids
    assert tokens is not None
    run = Engine(embedded, shipped_costs).decode(policy, requests, clock="model")
    assert run.tokens == [part.tolist() for part in np.split(tokens, trace.offsets[1:-1])]
    verdict = agree(run.log, replay(policy, trace, shipped_costs))
    assert verdict.differing == 0 and verdict.rounds == len(run.log) > 30


def test_replies_are_those_of_generate(embedded: Any, few: tuple[Trace, list[Any]]) -> None:
    trace, requests = few
    assert trace.token_ids is not None
    replies = np.split(trace.token_ids, trace.offsets[1:-1])
    for request, reply in list(zip(requests, replies, strict=True))[:2]:
        ids = torch.tensor([request.prompt_ids])
        generated = embedded.target.module.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=128
        )
        assert generated[0, ids.shape[1] :].tolist() == reply.tolist()


def test_capture_reproduces_the_shipped_trace(
    embedded: Any, questions: list[Question], tmp_path: Path
) -> None:
    """Other processors round otherwise, so a tie may fall elsewhere; here nearly all must agree."""
    chosen = [questions[k] for k in range(0, len(questions), 30)]
    fresh = capture(embedded, chosen, tmp_path / "t.parquet", CaptureSettings())
    shipped = read_trace(GREEDY)
    rows = [shipped.request_id.index(name) for name in fresh.request_id]
    same = []
    for mine, theirs in enumerate(rows):
        old = shipped.accept_len[shipped.offsets[theirs] : shipped.offsets[theirs + 1]]
        new = fresh.accept_len[fresh.offsets[mine] : fresh.offsets[mine + 1]]
        same.append(len(old) == len(new) and bool((old == new).all()))
    assert np.mean(same) > 0.7


@pytest.mark.slow
def test_sampled_runs_have_the_law_of_the_replay(
    embedded: Any, questions: list[Question], shipped_costs: StepCosts
) -> None:
    trace = read_trace(SAMPLED)
    rows = spread_rows(trace, 16)
    requests = requests_of_trace(questions, trace, embedded)
    engine = Engine(embedded, shipped_costs)
    policy = Fixed(3)
    real = engine.decode(policy, [requests[row] for row in rows], temperature=1.0, seed=77)
    check = check_law("fixed", [real.log], [replay(policy, trace.select(rows), shipped_costs)])
    assert check.real_rounds > 300 and check.permutation_p > 1e-3
