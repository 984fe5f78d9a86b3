"""Steps recorded as CUDA graphs, on a CPU that plays graphs operation by operation: the same tokens
and rounds as eager steps, whatever is asked of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from policies.base import Policy
from policies.fixed import Fixed
from policies.registry import parse_policy
from real_backend.decoding import cuda_graphs, engine, graph_check, graphs, leanest_steps
from real_backend.decoding.bench import LAGS, Bench
from real_backend.decoding.cuda_graphs import GraphRecorder
from real_backend.decoding.engine import Engine
from real_backend.decoding.graphs import LACKING, GraphSteps
from real_backend.decoding.steps import GREEDY, Feed, Sampling
from real_backend.load_pair import load_pair, pair_of
from real_backend.pair_spec import resolve_pair
from real_backend.prompts import Request
from tests.fake_cuda import FakeGraph, install
from tests.specimens import few_or_slow
from traces.costs.pricing import StepCosts

pytestmark = pytest.mark.long

CPU = torch.device("cpu")
NONE: list[list[float]] = [[]]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeGraph]:
    """Graphs of the fake device behind the real recorder, several spans in play."""
    found = install(monkeypatch)
    monkeypatch.setattr(cuda_graphs, "_primed", set())
    monkeypatch.setattr(leanest_steps, "recorder_of", lambda pair: GraphRecorder(CPU))
    monkeypatch.setattr(graphs, "SHORTEST_SPAN", 64)
    return found


def requests(pair: Any, count: int = 4, tokens: int = 20) -> list[Request]:
    random = np.random.default_rng(5)
    sizes = random.integers(2, tokens, size=count)
    prompts = [random.integers(3, pair.vocab_size, size=n).tolist() for n in sizes]
    return [Request(f"r{k}", "", prompt) for k, prompt in enumerate(prompts)]


def both(
    pair: Any,
    costs: StepCosts,
    make: Callable[[], Policy],
    max_gamma: int = 8,
    reference: Any = None,
    count: int = 2,
    **settings: Any,
) -> tuple[Any, Any]:
    """The same requests with recorded steps and with eager ones. reference: what makes these, None
    for EagerSteps. count: how many requests.
    """
    asked = requests(pair, count)
    recorded = Engine(pair, costs, max_gamma=max_gamma).decode(make(), asked, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leanest_steps, "recorder_of", lambda pair: reference)
        eager = Engine(pair, costs, max_gamma=max_gamma).decode(make(), asked, **settings)
    return recorded, eager


def same(recorded: Any, eager: Any) -> None:
    assert recorded.tokens == eager.tokens
    for column in ("request", "gamma", "drafted", "accepted", "emitted"):
        assert np.array_equal(getattr(recorded.log, column), getattr(eager.log, column)), column


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "name",
    few_or_slow(
        [
            "never",
            "fixed:gamma=4",
            "hf-confidence",
            "gammatune",
            "payback",
            "llama-p-min:p_min=0.4",
        ],
        ["llama-p-min:p_min=0.4"],
    ),
)
@pytest.mark.parametrize("temperature", few_or_slow([0.0, 0.8], [0.8]))
def test_recorded_steps_decode_what_eager_ones_do(
    pair: Any, costs: StepCosts, fake: Any, name: str, batch: int, temperature: float
) -> None:
    settings = {"temperature": temperature, "top_p": 0.9, "max_new_tokens": 40, "batch": batch}
    same(*both(pair, costs, lambda: parse_policy(name), count=4, **settings))
    assert sum(graph.replays for graph in fake.made) > 40


class Late(Fixed):
    """Drafts nothing for a long while, then a little."""

    name = "late"

    def gamma(self, state: Any, slot: int, view: Any, rng: Any) -> int:
        return 0 if view.context_tokens < 84 else 3


@pytest.mark.parametrize(
    "make",
    [pytest.param(lambda: parse_policy("payback"), marks=pytest.mark.slow), lambda: Late(3)],
)
def test_nothing_is_recorded_inside_a_round(
    pair: Any, costs: StepCosts, fake: Any, make: Callable[[], Policy]
) -> None:
    """Drafts of up to 18 tokens, and one that lags by more than a step holds: every graph that is
    needed is there before the clock runs.
    """
    made: list[int] = []
    real = engine._Loop.run

    def watched(self: Any, *args: Any) -> None:
        made.append(len(fake.made))
        real(self, *args)
        made.append(len(fake.made))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._Loop, "run", watched)
        same(*both(pair, costs, make, 18, max_new_tokens=96))
    assert made[0] == made[1] > 20


@torch.inference_mode()
def test_nothing_is_recorded_inside_a_timed_block(pair: Any, fake: Any) -> None:
    bench = Bench(pair, 1, 80, {}, GREEDY, 8)
    made = len(fake.made)
    for drafted in (0, 1, 3, 8):
        bench.block(drafted, LAGS[:2], 40)
    bench.block(1, LAGS[-1:], 40)
    assert len(fake.made) == made > 20


@pytest.mark.parametrize(("name", "per_token"), [("fixed:gamma=4", 0), ("hf-confidence", 1)])
def test_a_round_waits_for_the_device_once(
    pair: Any,
    costs: StepCosts,
    fake: Any,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    per_token: int,
) -> None:
    """For its verdict, and for every drafted token whose signals a rule wants to see."""
    waits: list[int] = []
    real = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: (waits.append(1), real(self))[1])
    log = (
        Engine(pair, costs, max_gamma=8)
        .decode(parse_policy(name), requests(pair, 2), max_new_tokens=30)
        .log
    )
    assert len(waits) == len(log.request) + per_token * int(log.drafted.sum())


@pytest.mark.parametrize("batch", [1, 2])
def test_a_draft_that_lags_more_than_a_step_holds(
    pair: Any, costs: StepCosts, fake: Any, batch: int
) -> None:
    recorded, eager = both(pair, costs, lambda: Late(3), max_new_tokens=96, batch=batch)
    same(recorded, eager)
    first = np.flatnonzero(recorded.log.drafted)[0]
    lag = recorded.log.context_tokens[first] - min(len(r.prompt_ids) for r in requests(pair, 2))
    assert lag > LACKING[-1]


@pytest.mark.parametrize(
    ("target", "draft"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)]
)
def test_target_and_draft_of_different_formats(
    pair_folder: Path, costs: StepCosts, fake: Any, target: torch.dtype, draft: torch.dtype
) -> None:
    parts = [
        AutoModelForCausalLM.from_pretrained(pair_folder / part, dtype=dtype).eval()
        for part, dtype in (("target", target), ("draft", draft))
    ]
    mixed = pair_of(*parts, resolve_pair(str(pair_folder), None, None))
    # The same functions: in 16 bit another padding rounds otherwise.
    same(*both(mixed, costs, lambda: Fixed(3), reference=cuda_graphs.eagerly, max_new_tokens=24))


def test_policies_may_change_in_mid_reply(pair: Any, fake: Any) -> None:
    """Another law and another look at signals between two rounds of the same caches."""
    answers = []
    for record in (GraphRecorder(CPU), cuda_graphs.eagerly):
        steps, found = GraphSteps(pair, 1, 128, record), []
        ids = list(range(3, 15))
        steps.prefill(Feed(0, ids[:-1], 0))
        for reads_signals, sampling in (
            (False, Sampling()),
            (True, Sampling()),
            (True, Sampling(0.7, 0.9)),
            (False, Sampling()),
        ):
            uniforms = [[0.3, 0.6, 0.9]] if sampling.temperature else NONE
            seen = steps.draft_first(
                [Feed(0, ids[-1:], len(ids) - 1)], sampling, reads_signals, uniforms
            )
            steps.draft_next([0])
            verdict = steps.verify([Feed(0, ids[-1:], len(ids) - 1)], sampling, uniforms)[0]
            found += [seen, verdict]
            ids += [*verdict.drafted[: verdict.accepted], verdict.extra]
        answers.append(found)
    assert answers[0] == answers[1]


def test_longer_rotary_tables_do_not_free_the_recorded_ones(pair: Any, fake: Any) -> None:
    """A graph knows addresses only: the tables it was recorded on live as long as it does."""
    lean = pair.target.lean
    steps = GraphSteps(pair, 1, 128, GraphRecorder(CPU))
    lean._cos, lean._sin = lean._cos.clone(), lean._sin.clone()  # another's longer tables
    steps.verify([Feed(0, [5], 4)], Sampling(), NONE)  # recorded on these
    recorded = lean._cos, lean._sin
    lean.new_cache(lean._cos.shape[0] + 64)
    assert lean._cos is not recorded[0]
    assert any(cos is recorded[0] and sin is recorded[1] for cos, sin in steps._tables)


def test_batches_keep_their_graphs(pair: Any, costs: StepCosts, fake: Any) -> None:
    one = Engine(pair, costs, max_gamma=4)
    asked = requests(pair)
    for batch in (1, 3, 1, 3):
        one.decode(Fixed(2), asked, max_new_tokens=8, batch=batch)
        made = len(fake.made) if batch == 3 else None
    assert made is not None and len(fake.made) == made
    kept = {len(one.steps(batch, 1)._graphs) for batch in (1, 3)}  # type: ignore[attr-defined]
    assert all(kept)


def check_of(pair: Any) -> graph_check.GraphCheck:
    return graph_check.check(pair, GraphRecorder(CPU))


def test_the_check_finds_no_difference_where_there_is_none(pair: Any, fake: Any) -> None:
    assert check_of(pair) == (0.0, check_of(pair).allowed, "")


def decode_checked(
    pair_folder: Path, costs: StepCosts, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, Engine]:
    """A freshly loaded pair on the fake device, asked as the engine asks."""
    fresh = load_pair(resolve_pair(str(pair_folder), None, None), device="cpu")
    monkeypatch.setattr(leanest_steps, "recorder_of", graph_check.recorder_of)
    monkeypatch.setattr(graph_check, "graphs_possible", lambda pair: True)
    ran = Engine(fresh, costs, max_gamma=8)
    return ran.decode(Fixed(3), requests(fresh), max_new_tokens=20), ran


def test_a_good_device_is_told_in_one_line(
    pair_folder: Path,
    costs: StepCosts,
    fake: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, ran = decode_checked(pair_folder, costs, monkeypatch)
    assert isinstance(ran.steps(1, 1), GraphSteps)
    assert capsys.readouterr().err == (
        "CUDA graphs: a recorded round differs from an eager one by 0\n"
    )
    assert ran.pair.describe()["steps"] == "graphs"


@pytest.mark.parametrize("fault", ["one weight", "refused"])
def test_a_bad_device_decodes_eagerly_and_says_so_in_one_line(
    pair_folder: Path,
    costs: StepCosts,
    fake: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    fake.wrong, fake.refuses = (1.01, False) if fault == "one weight" else (1.0, True)
    monkeypatch.setattr(cuda_graphs, "_prime", lambda device: None)
    found, ran = decode_checked(pair_folder, costs, monkeypatch)
    warned = capsys.readouterr().err
    assert warned.count("\n") == 1 and warned.startswith("warning: CUDA graphs are off: ")
    assert not isinstance(ran.steps(1, 1), GraphSteps) and ran.pair.describe()["steps"] == "eager"
    with monkeypatch.context() as patch:
        patch.setattr(leanest_steps, "recorder_of", lambda pair: None)
        eager = Engine(ran.pair, costs, max_gamma=8).decode(
            Fixed(3), requests(ran.pair), max_new_tokens=20
        )
    same(found, eager)


def test_the_fake_device_is_as_strict_as_a_real_one(fake: Any) -> None:
    """Work in a capture does not happen; a value read back there is refused."""
    total, two = torch.zeros(1), torch.full((1,), 2.0)
    replay = GraphRecorder(CPU)(lambda: total.add_(two * two), (total,))
    assert float(total) == 0.0
    two.fill_(3.0)
    replay()
    replay()
    assert float(total) == 18.0
    with pytest.raises(RuntimeError, match="capturing"):
        graph = fake()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            (total + 1).tolist()
