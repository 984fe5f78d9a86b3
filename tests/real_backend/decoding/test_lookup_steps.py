"""Looked-up drafts in the engine: lossless, equal to the replay of what was captured, in law."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from experiments.validation.in_law import check_law
from policies.fixed import Fixed
from policies.registry import REGISTRY, parse_policy
from real_backend.decoding.bench import Bench
from real_backend.decoding.engine import Engine
from real_backend.decoding.lookup_steps import LookupSteps
from real_backend.decoding.steps import GREEDY, Feed
from real_backend.decoding.verify import distribution
from real_backend.load_pair import load_pair
from real_backend.pair_spec import PairSpec
from real_backend.prompts import Request, read_questions, requests_of_trace
from real_backend.recording.capture import capture
from real_backend.recording.coupling import CaptureSettings
from simulator.replay.replay import replay_interpreted
from tests.specimens import few_or_slow
from traces.costs.pricing import StepCosts
from traces.schema import Trace

DRAFTERS = ("lookup", "suffix")
POLICIES = ("fixed", "gammatune", "hf-confidence", "svip", "goodput", "ucb", "payback")
COLUMNS = ("request", "context_tokens", "gamma", "drafted", "accepted", "emitted", "ended")


@pytest.fixture(scope="module")
def pairs(pair_folder: Path) -> dict[str, Any]:
    """The tiny target with each look-up."""
    target = str(pair_folder / "target")
    return {
        name: load_pair(PairSpec(f"tiny+{name}", target, name), device="cpu") for name in DRAFTERS
    }


def repetitive_questions(folder: Path, questions: int) -> list[Any]:
    """Prompts over six words, so that all of them repeat and go on in several ways."""
    generator = np.random.default_rng(3)
    lines = []
    for number in range(questions):
        words = " ".join(f"w{k}" for k in generator.choice(6, size=60))
        lines.append(json.dumps({"question_id": number, "category": "qa", "turns": [words]}))
    path = folder / "p.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return read_questions(path)


Recorded = dict[str, tuple[Trace, list[Any]]]


def record(pairs: dict[str, Any], folder: Path, questions: int, temperature: float) -> Recorded:
    asked = repetitive_questions(folder, questions)
    settings = CaptureSettings(max_new_tokens=40, depth=8, temperature=temperature)
    found = {}
    for name, pair in pairs.items():
        trace = capture(pair, asked, folder / f"{name}.parquet", settings)
        found[name] = (trace, requests_of_trace(asked, trace, pair))
    return found


@pytest.fixture(scope="module")
def greedy(pairs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record(pairs, tmp_path_factory.mktemp("greedy"), 6, 0.0)


def replies(trace: Trace) -> list[list[int]]:
    assert trace.token_ids is not None
    return [part.tolist() for part in np.split(trace.token_ids, trace.offsets[1:-1])]


@pytest.mark.parametrize("name", DRAFTERS)
def test_specimen_is_lively(greedy: Recorded, name: str) -> None:
    """Positions with nothing to offer, with drafts accepted as a whole, in part and not at all."""
    trace, _ = greedy[name]
    accepted, offered = trace.accept_len, trace.offered
    assert trace.draft_len is not None and trace.meta.drafter == name
    some = offered > 0
    kinds = (~some, some & (accepted == offered), some & (accepted == 0), accepted > 1)
    assert all(positions.sum() > 5 for positions in kinds)
    assert ((accepted > 0) & (accepted < offered)).sum() > 5
    assert trace.top1_prob is not None and len(np.unique(trace.top1_prob)) > 8


@pytest.mark.parametrize("name", DRAFTERS)
def test_replies_are_those_of_plain_decoding(
    pairs: dict[str, Any], greedy: Recorded, name: str
) -> None:
    trace, requests = greedy[name]
    for request, reply in zip(requests, replies(trace), strict=True):
        ids = torch.tensor([request.prompt_ids])
        generated = pairs[name].target.module.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40
        )
        assert generated[0, ids.shape[1] :].tolist() == reply


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("name", POLICIES)
def test_the_engine_takes_the_replays_decisions(
    pairs: dict[str, Any], costs: StepCosts, greedy: Recorded, drafter: str, name: str
) -> None:
    """Round by round; nobody drafts more than there was to offer."""
    trace, requests = greedy[drafter]
    policy = REGISTRY[name]()
    engine = Engine(pairs[drafter], costs, max_gamma=8)
    run = engine.decode(policy, requests, max_new_tokens=40, clock="model")
    assert isinstance(engine.steps(1, 1), LookupSteps)
    assert run.tokens == replies(trace)
    log = replay_interpreted(policy, trace, costs)
    for column in COLUMNS:
        assert np.array_equal(getattr(run.log, column), getattr(log, column)), column
    prompts = trace.prompt_tokens[run.log.request]
    at = trace.offsets[run.log.request] + run.log.context_tokens - prompts
    assert (run.log.gamma <= trace.offered[at]).all()
    assert (run.log.gamma == trace.offered[at]).any() and (run.log.gamma > 0).any()


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("name", ["fixed", "hf-confidence"])
def test_a_batch_decodes_what_single_rows_do(
    pairs: dict[str, Any], costs: StepCosts, greedy: Recorded, drafter: str, name: str
) -> None:
    trace, requests = greedy[drafter]
    engine, policy = Engine(pairs[drafter], costs, max_gamma=8), REGISTRY[name]()
    run = engine.decode(policy, requests, max_new_tokens=40, batch=3)
    assert run.tokens == replies(trace)
    assert run.log.batch_size.max() == 3
    single = engine.decode(policy, requests, max_new_tokens=40).log
    order = np.argsort(run.log.request, kind="stable")
    for column in ("gamma", "drafted", "accepted", "emitted"):
        assert np.array_equal(getattr(run.log, column)[order], getattr(single, column)), column
    assert 0 < single.accepted.sum() < single.drafted.sum()


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_sampled_rows_do_not_depend_on_their_neighbours(
    pairs: dict[str, Any], costs: StepCosts, greedy: Recorded, drafter: str
) -> None:
    _, requests = greedy[drafter]
    settings = {"temperature": 0.5, "top_p": 0.95, "seed": 5, "max_new_tokens": 30}
    engine = Engine(pairs[drafter], costs, max_gamma=8)
    together = engine.decode(Fixed(4), requests, batch=3, **settings)
    single = [engine.decode(Fixed(4), [r], **settings).tokens[0] for r in requests]
    assert together.tokens == single
    assert 0 < together.log.accepted.sum() < together.log.drafted.sum()


def steps_of(pair: Any, batch: int = 1) -> LookupSteps:
    steps = LookupSteps(pair, batch, 128)
    steps.prepare(GREEDY, True, 8, 1)
    return steps


def test_signals_are_those_of_a_trace(pairs: dict[str, Any]) -> None:
    """Of ten continuations seven agree: 0.7, in a trace the float32 below it, so that a threshold
    of 0.7 stops in the engine, too.
    """
    steps = steps_of(pairs["lookup"])
    prompt = [5, 9, 9] * 7 + [5, 8, 8] * 3 + [7, 5]
    steps.prefill(Feed(0, prompt[:-1], 0))
    assert steps.offers([(0, prompt)]) == [8]
    seen = steps.draft_first([Feed(0, prompt[-1:], len(prompt) - 1)], GREEDY, True, [[]])
    assert seen is not None and seen[0][0] == float(np.float32(0.7)) < 0.7
    assert seen[0][1] == float(np.float32(seen[0][1])) > 0.0


def test_a_threshold_that_is_a_share(
    pairs: dict[str, Any], costs: StepCosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replay and engine stop at the same token."""
    words = " ".join(["w5 w9 w9"] * 7 + ["w5 w8 w8"] * 3 + ["w7 w5"])
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"question_id": 1, "category": "qa", "turns": [words]}) + "\n")
    questions, pair = read_questions(path), pairs["lookup"]
    monkeypatch.setattr(pair.tokenizer, "chat_template", None)  # nothing behind the words
    settings = CaptureSettings(max_new_tokens=12, depth=8)
    trace = capture(pair, questions, tmp_path / "t.parquet", settings)
    requests = requests_of_trace(questions, trace, pair)
    policy = parse_policy("hf-confidence:threshold=0.7")
    run = Engine(pair, costs, max_gamma=8).decode(
        policy, requests, max_new_tokens=12, clock="model"
    )
    log = replay_interpreted(policy, trace, costs)
    assert log.drafted[0] == 1 and log.gamma[0] > 1
    assert np.array_equal(run.log.drafted, log.drafted)


def test_a_prompt_of_one_token_is_not_the_one_before(pairs: dict[str, Any]) -> None:
    """It is never prefilled, so that the row's index must see that its tokens are others."""
    steps = steps_of(pairs["lookup"])
    assert steps.offers([(0, [7])]) == [0]  # of a reply that ends in its first round
    assert steps.offers([(0, [9])]) == [0]
    assert steps.offers([(0, [9, 8])]) == [0]
    assert steps.offers([(0, [9, 8, 7])]) == [0]  # 7 stood in the other request
    assert steps.offers([(0, [9, 8, 7, 9])]) == [3]
    assert steps._found[0].tokens == [8, 7, 9]


def test_rows_keep_their_own_tokens(pairs: dict[str, Any]) -> None:
    """A prompt takes the place of what its row knew, however long that was."""
    steps = steps_of(pairs["lookup"], batch=2)
    steps.prefill(Feed(0, [5, 6, 5], 0))
    steps.prefill(Feed(1, [9, 8, 7], 0))
    assert steps.offers([(1, [9, 8, 7, 9]), (0, [5, 6, 5, 6])]) == [3, 2]
    steps.prefill(Feed(0, [9, 8, 7, 5, 6, 5], 0))
    assert steps.offers([(0, [9, 8, 7, 5, 6, 5, 6])]) == [2]
    assert [found.tokens for found in steps._found] == [[5, 6], [8, 7, 9]]


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_measurement_drafts_more_than_was_found(pairs: dict[str, Any], drafter: str) -> None:
    """Rounds that nobody looked up for are timed, those that read signals too."""
    samples: dict[Any, Any] = {}
    bench = Bench(pairs[drafter], 2, 40, samples, deepest=8)
    bench.block(8, (1,), 20)
    assert {key[0] for key in samples} == {"first", "verify"}
    assert np.isfinite(Bench(pairs[drafter], 1, 40, {}, deepest=8).signal_s(20)[0])


@pytest.mark.parametrize("drafter", few_or_slow(DRAFTERS, DRAFTERS[:1]))
@pytest.mark.slow
def test_sampling_has_the_targets_law(
    pairs: dict[str, Any], costs: StepCosts, drafter: str
) -> None:
    """The first two tokens of many short replies against the target's exact joint law."""
    pair, runs, temperature = pairs[drafter], 1_500, 1.0

    def law(ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            logits = pair.target.module(torch.tensor([ids])).logits[0, -1]
        return np.append(distribution(logits, temperature, 0.9).double().numpy(), 0.0)

    def asked(first: int, second: int) -> list[int]:
        return [0, 9, 30, 12, first, second, 9, 30, 12]

    likely = max(range(2, 64), key=lambda token: law(asked(token, 0))[token])
    then = max(range(2, 64), key=lambda token: law([*asked(likely, token), likely])[token])
    prompt = asked(likely, then)
    requests = [Request(str(k), "qa", prompt) for k in range(runs)]
    run = Engine(pair, costs, max_gamma=8).decode(
        Fixed(2), requests, temperature=temperature, top_p=0.9, seed=11, max_new_tokens=3
    )
    assert 0.05 < run.log.accepted.sum() / run.log.drafted.sum() < 0.95
    seen = np.zeros((65, 65))  # the last one: the reply has ended
    for tokens in run.tokens:
        seen[tokens[0], tokens[1] if len(tokens) > 1 else 64] += 1

    begin = law(prompt)
    joint = np.stack([begin[a] * law([*prompt, a]) for a in range(64)] + [np.zeros(65)])
    joint[1] = 0.0
    joint[1, 64] = begin[1]  # the end token ends the reply
    assert seen[joint == 0].sum() == 0
    large = joint * runs >= 5
    observed = np.append(seen[large], seen[~large].sum())
    expected = np.append(joint[large], joint[~large].sum()) * runs
    assert large.sum() > 10
    expected *= observed.sum() / expected.sum()
    assert stats.chisquare(observed[expected > 0], expected[expected > 0]).pvalue > 1e-3


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_sampled_acceptance_has_the_law_of_the_replay(
    pairs: dict[str, Any], costs: StepCosts, tmp_path: Path, drafter: str
) -> None:
    trace, requests = record({drafter: pairs[drafter]}, tmp_path, 40, 0.4)[drafter]
    assert trace.meta.exactness == "in-law"
    policy = Fixed(3)
    real = Engine(pairs[drafter], costs, max_gamma=8).decode(
        policy, requests, temperature=0.4, seed=77, max_new_tokens=40
    )
    check = check_law("fixed", [real.log], [replay_interpreted(policy, trace, costs)])
    assert check.real_rounds > 300 and 0.05 < check.replayed_mean < 1.0
    assert check.permutation_p > 1e-3
