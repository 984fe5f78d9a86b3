"""The real engine on tiny random pairs: lossless, truthful to the policy, equal to the replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policies.base import STEP_COSTS, Policy, reads_seconds
from policies.confidence.thresholds import LlamaPMin
from policies.fixed import Fixed
from policies.registry import REGISTRY
from real_backend.decoding.cuda_graphs import eagerly
from real_backend.decoding.eager import EagerSteps
from real_backend.decoding.engine import Engine
from real_backend.decoding.graphs import GraphSteps
from real_backend.decoding.solo import SoloSteps
from real_backend.load_pair import load_pair
from real_backend.pair_spec import resolve_pair
from real_backend.prompts import read_questions, requests_of_trace
from real_backend.recording.capture import capture
from real_backend.recording.coupling import CaptureSettings
from tests.real_backend.laws import fit_of_law
from tests.specimens import few_or_slow, save_pair, write_prompts
from traces.costs.pricing import StepCosts
from traces.errors import InputError
from traces.schema import Trace

WEIGH_STEP_COSTS = [
    name
    for name, cls in REGISTRY.items()
    if reads_seconds(cls(), STEP_COSTS) and not reads_seconds(cls(), {"elapsed_s"})
]


@pytest.fixture(scope="module")
def recorded(pair: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, list[Any]]:
    """A greedy two-turn trace of the tiny pair and the requests it recorded."""
    folder = tmp_path_factory.mktemp("greedy")
    questions = read_questions(write_prompts(folder / "p.jsonl", questions=4, turns=2))
    trace = capture(
        pair, questions, folder / "t.parquet", CaptureSettings(max_new_tokens=32, depth=8)
    )
    return trace, requests_of_trace(questions, trace, pair)


def replies(trace: Trace) -> list[list[int]]:
    assert trace.token_ids is not None
    return [
        trace.token_ids[trace.offsets[r] : trace.offsets[r + 1]].tolist()
        for r in range(trace.requests)
    ]


def test_specimen_is_lively(recorded: tuple[Trace, list[Any]]) -> None:
    trace, _ = recorded
    accepted = (trace.accept_len > 0).mean()
    assert 0.2 < accepted < 0.95 and trace.accept_len.max() >= 4


def test_trace_is_plain_greedy_decoding_and_generate(
    pair: Any, recorded: tuple[Trace, list[Any]]
) -> None:
    trace, requests = recorded
    for request, reply in zip(requests, replies(trace), strict=True):
        ids = torch.tensor([request.prompt_ids])
        generated = pair.target.module.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=32
        )
        assert generated[0, ids.shape[1] :].tolist() == reply


@pytest.mark.parametrize("name", few_or_slow(REGISTRY))
def test_every_policy_is_lossless_and_takes_the_replays_decisions(
    pair: Any, costs: StepCosts, recorded: tuple[Trace, list[Any]], name: str
) -> None:
    from simulator.replay.replay import replay_interpreted

    trace, requests = recorded
    policy = REGISTRY[name]()
    run = Engine(pair, costs, max_gamma=8).decode(
        policy, requests, max_new_tokens=32, clock="model"
    )
    assert run.tokens == replies(trace)
    log = replay_interpreted(policy, trace, costs)
    columns = ("request", "context_tokens", "gamma", "drafted", "verified", "accepted", "emitted")
    for column in (*columns, "ended"):
        assert np.array_equal(getattr(run.log, column), getattr(log, column)), column
    assert (run.log.elapsed_s > 0).all()


@pytest.mark.parametrize("name", WEIGH_STEP_COSTS)
def test_no_interruption_reaches_who_weighs_step_costs(
    pair: Any, costs: StepCosts, recorded: tuple[Trace, list[Any]], name: str
) -> None:
    """Told the wall clock's seconds too, they decide by priced_s as in a replay."""
    from simulator.replay.replay import replay_interpreted

    trace, requests = recorded
    run = Engine(pair, costs, max_gamma=8).decode(REGISTRY[name](), requests, max_new_tokens=32)
    log = replay_interpreted(REGISTRY[name](), trace, costs)
    for column in ("gamma", "drafted", "accepted", "emitted", "ended"):
        assert np.array_equal(getattr(run.log, column), getattr(log, column)), column


def test_general_path_decodes_the_same(
    general_pair: Any, costs: StepCosts, recorded: tuple[Trace, list[Any]]
) -> None:
    trace, requests = recorded
    assert general_pair.target.lean is None and general_pair.describe()["engine"] == "general"
    run = Engine(general_pair, costs, max_gamma=8).decode(Fixed(3), requests, max_new_tokens=32)
    assert run.tokens == replies(trace)


@pytest.mark.parametrize("lean", few_or_slow([True, False], [True]), ids=["lean", "general"])
@pytest.mark.parametrize("batch", few_or_slow([2, 3, 8], [3]))
@pytest.mark.parametrize("name", ["never", "fixed", "gammatune", "hf-confidence", "llama-p-min"])
def test_a_ragged_batch_decodes_what_single_rows_do(
    pair: Any,
    general_pair: Any,
    costs: StepCosts,
    recorded: tuple[Trace, list[Any]],
    name: str,
    batch: int,
    lean: bool,
) -> None:
    trace, requests = recorded
    engine, policy = Engine(pair if lean else general_pair, costs, max_gamma=8), REGISTRY[name]()
    run = engine.decode(policy, requests, max_new_tokens=32, batch=batch)
    assert run.tokens == replies(trace)
    assert run.log.batch_size.max() == batch and set(run.log.slot.tolist()) == set(range(batch))
    single = engine.decode(policy, requests, max_new_tokens=32).log
    for column in ("gamma", "drafted", "verified", "accepted", "emitted"):  # by request
        order = np.argsort(run.log.request, kind="stable")
        assert np.array_equal(getattr(run.log, column)[order], getattr(single, column)), column
    if name == "hf-confidence":  # rows drafted different numbers of tokens in one round
        both = run.log.drafted[run.log.batch_size == batch].reshape(-1, batch)
        assert (both.min(1) != both.max(1)).any()


STEPPING = ["never", "fixed", "gammatune", "hf-confidence", "goodput"]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", few_or_slow(STEPPING, ["hf-confidence"]))
@pytest.mark.parametrize("temperature", few_or_slow([0.0, 0.8], [0.0]))
def test_steps_of_fixed_shape_decode_the_same(
    pair: Any,
    costs: StepCosts,
    recorded: tuple[Trace, list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    batch: int,
    temperature: float,
) -> None:
    """What CUDA graphs replay, run eagerly: padded widths, spare rows, device-side chains."""
    _, requests = recorded
    settings = {"temperature": temperature, "top_p": 0.9, "max_new_tokens": 32, "batch": batch}
    eager = Engine(pair, costs, max_gamma=8).decode(REGISTRY[name](), requests, **settings)
    monkeypatch.setattr("real_backend.decoding.leanest_steps.recorder_of", lambda _: eagerly)
    monkeypatch.setattr("real_backend.decoding.graphs.SHORTEST_SPAN", 32)  # several spans in play
    engine = Engine(pair, costs, max_gamma=8)
    fixed = engine.decode(REGISTRY[name](), requests, **settings)
    assert isinstance(engine.steps(batch, 1), GraphSteps)
    assert fixed.tokens == eager.tokens
    for column in ("request", "gamma", "drafted", "accepted", "emitted"):
        assert np.array_equal(getattr(fixed.log, column), getattr(eager.log, column)), column


@pytest.mark.parametrize("lean", few_or_slow([True, False], [True]))
@pytest.mark.parametrize("name", few_or_slow(STEPPING, ["hf-confidence"]))
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_row_alone_takes_the_steps_of_a_batch(
    pair: Any,
    general_pair: Any,
    costs: StepCosts,
    recorded: tuple[Trace, list[Any]],
    name: str,
    temperature: float,
    lean: bool,
) -> None:
    _, requests = recorded
    pair = pair if lean else general_pair
    settings = {"temperature": temperature, "top_p": 0.9, "max_new_tokens": 32}
    alone, packed = (Engine(pair, costs, max_gamma=8) for _ in range(2))
    packed.use(EagerSteps(pair, 1, 256))
    ours, theirs = (e.decode(REGISTRY[name](), requests, **settings) for e in (alone, packed))
    assert isinstance(alone.steps(1, 1), SoloSteps)
    assert ours.tokens == theirs.tokens
    for column in ("request", "gamma", "drafted", "accepted", "emitted"):
        assert np.array_equal(getattr(ours.log, column), getattr(theirs.log, column)), column


def test_a_row_alone_sends_only_what_is_not_there(
    pair: Any, costs: StepCosts, recorded: tuple[Trace, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target's choices are the reply: after the prompt no greedy round sends a token."""
    sent: list[int] = []
    real = torch.tensor

    def noted(ids: list[int], **how: Any) -> Any:
        sent.append(len(ids))
        return real(ids, **how)

    monkeypatch.setattr("real_backend.decoding.solo.torch.tensor", noted)
    _, requests = recorded
    Engine(pair, costs, max_gamma=8).decode(Fixed(3), requests, max_new_tokens=32)
    assert len(sent) == 2 * len(requests)  # the prompt, and its last token for the first round


@pytest.mark.parametrize("batch", [1, 4])
def test_sampled_rows_do_not_depend_on_their_neighbours(
    pair: Any, costs: StepCosts, recorded: tuple[Trace, list[Any]], batch: int
) -> None:
    _, requests = recorded
    settings = {"temperature": 0.8, "top_p": 0.95, "seed": 5, "max_new_tokens": 30}
    engine = Engine(pair, costs, max_gamma=8)
    together = engine.decode(REGISTRY["gammatune+"](), requests, batch=batch, **settings)
    alone = [
        engine.decode(REGISTRY["gammatune+"](), [request], **settings).tokens[0]
        for request in requests
    ]
    assert together.tokens == alone
    assert len({tuple(tokens) for tokens in alone}) > 3


@pytest.mark.parametrize("name", few_or_slow(REGISTRY))
def test_replayed_acceptance_is_the_replay_on_any_models(
    pair: Any, costs: StepCosts, name: str
) -> None:
    """A made-up trace, recorded with nobody's models, decides; the forwards are real."""
    from real_backend.prompts import Request
    from simulator.replay.replay import replay_interpreted
    from traces import synthetic

    trace = synthetic.bursty(
        0.9, 0.4, np.random.default_rng(3), requests=5, reply_tokens=37, signals=True, depth=8
    )
    generator = np.random.default_rng(0)
    requests = [
        Request(request_id, "", generator.integers(64, size=int(n)).tolist())
        for request_id, n in zip(trace.request_id, trace.prompt_tokens, strict=True)
    ]
    run = Engine(pair, costs, max_gamma=trace.meta.depth).decode(
        REGISTRY[name](),
        requests,
        max_new_tokens=trace.meta.max_new_tokens,
        clock="model",
        acceptance=trace,
    )
    log = replay_interpreted(REGISTRY[name](), trace, costs)
    for column in ("request", "context_tokens", "gamma", "drafted", "accepted", "emitted"):
        assert np.array_equal(getattr(run.log, column), getattr(log, column)), column
    assert [len(reply) for reply in run.tokens] == trace.reply_tokens.tolist()
    assert run.log.meta["acceptance"] == f"trace of {trace.meta.pair}"


def test_a_listener_sees_every_token_and_may_end_a_reply(
    pair: Any, costs: StepCosts, recorded: tuple[Trace, list[Any]]
) -> None:
    trace, requests = recorded
    heard: dict[int, list[int]] = {0: [], 1: []}

    def emit(index: int, tokens: list[int]) -> bool:
        heard[index] += tokens
        return index == 0 and len(heard[0]) >= 5

    engine, policy = Engine(pair, costs, max_gamma=8), REGISTRY["ucb"]()
    state = policy.new_state(1)
    run = engine.decode(policy, requests[:2], max_new_tokens=32, emit=emit, state=state)
    assert list(heard.values()) == run.tokens
    assert 5 <= len(run.tokens[0]) < len(replies(trace)[0])
    assert run.tokens[0] == replies(trace)[0][: len(run.tokens[0])]
    fresh = policy.new_state(1)
    assert any(not np.array_equal(a, b) for a, b in zip(state, fresh, strict=True))


@pytest.mark.parametrize(
    ("policy", "batch"),
    [
        pytest.param(Fixed(2), 1, id="fixed", marks=pytest.mark.slow),
        pytest.param(LlamaPMin(2, 0.4), 1, id="dropping", marks=pytest.mark.slow),
        pytest.param(LlamaPMin(2, 0.4), 50, id="dropping-batch"),
    ],
)
def test_sampling_has_the_targets_law(
    pair: Any, costs: StepCosts, policy: Policy, batch: int
) -> None:
    """The first two tokens of many short replies against the target's exact joint law."""
    from real_backend.prompts import Request

    prompt, runs, temperature = [0, 9, 30, 12], 1_500, 0.7
    requests = [Request(str(k), "qa", prompt) for k in range(runs)]
    run = Engine(pair, costs, max_gamma=8).decode(
        policy, requests, temperature=temperature, top_p=0.9, seed=11, max_new_tokens=3, batch=batch
    )
    dropped = run.log.drafted - run.log.verified
    assert set(dropped.tolist()) == ({0, 1} if policy.name == "llama-p-min" else {0})
    assert fit_of_law(pair, run.tokens, prompt, temperature, 0.9) > 1e-3


def test_vocabularies_padded_differently(tmp_path: Path, costs: StepCosts) -> None:
    folder = save_pair(tmp_path / "padded", draft_changes={"vocab_size": 72})
    padded = load_pair(resolve_pair(str(folder), None, None), device="cpu")
    assert padded.vocab_size == 64
    questions = read_questions(write_prompts(tmp_path / "p.jsonl", questions=3))
    trace = capture(
        padded, questions, tmp_path / "t.parquet", CaptureSettings(max_new_tokens=24, depth=4)
    )
    run = Engine(padded, costs, max_gamma=4).decode(
        Fixed(4), requests_of_trace(questions, trace, padded), max_new_tokens=24
    )
    assert run.tokens == replies(trace)


def test_context_limit_ends_a_reply_and_a_long_prompt_is_refused(
    pair: Any, costs: StepCosts
) -> None:
    from real_backend.prompts import Request

    engine = Engine(pair, costs, max_gamma=8)
    prompt = [2] + [10] * 249
    run = engine.decode(Fixed(4), [Request("a", "qa", prompt)], max_new_tokens=32)
    assert len(prompt) + len(run.tokens[0]) <= 256
    with pytest.raises(InputError, match="context holds 256"):
        engine.decode(Fixed(4), [Request("a", "qa", [10] * 256)], max_new_tokens=4)
