"""The real engine on tiny random pairs: lossless, truthful to the policy, equal to the replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from policies.fixed import Fixed
from policies.shelf import SHELF
from real_backend.capture import capture
from real_backend.coupled import Settings
from real_backend.engine import Engine
from real_backend.models import load_pair, resolve_pair
from real_backend.prompts import read_questions, requests_of_trace
from real_backend.verify import distribution
from tests.specimens import save_pair, write_prompts
from traces.errors import InputError
from traces.schema import Trace
from traces.timing import StepCosts


@pytest.fixture(scope="module")
def recorded(pair: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, list[Any]]:
    """A greedy two-turn trace of the tiny pair and the requests it recorded."""
    folder = tmp_path_factory.mktemp("greedy")
    questions = read_questions(write_prompts(folder / "p.jsonl", questions=6, turns=2))
    trace = capture(pair, questions, folder / "t.parquet", Settings(max_new_tokens=40, depth=8))
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
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40
        )
        assert generated[0, ids.shape[1] :].tolist() == reply


@pytest.mark.parametrize("name", SHELF)
def test_every_policy_is_lossless_and_takes_the_replays_decisions(
    pair: Any, costs: StepCosts, recorded: tuple[Trace, list[Any]], name: str
) -> None:
    from simulator.replay import replay_interpreted

    trace, requests = recorded
    policy = SHELF[name]()
    run = Engine(pair, costs, max_gamma=8).decode(
        policy, requests, max_new_tokens=40, clock="model"
    )
    assert run.tokens == replies(trace)
    log = replay_interpreted(policy, trace, costs)
    for column in ("request", "context_tokens", "gamma", "drafted", "accepted", "emitted"):
        assert np.array_equal(getattr(run.log, column), getattr(log, column)), column
    assert (run.log.elapsed_s > 0).all()


def test_general_path_decodes_the_same(
    pair_folder: Path, costs: StepCosts, recorded: tuple[Trace, list[Any]]
) -> None:
    trace, requests = recorded
    general = load_pair(resolve_pair(str(pair_folder), None, None), device="cpu", lean=False)
    assert general.target.lean is None and general.describe()["engine"] == "general"
    run = Engine(general, costs, max_gamma=8).decode(Fixed(3), requests, max_new_tokens=40)
    assert run.tokens == replies(trace)


def test_sampling_has_the_targets_law(pair: Any, costs: StepCosts) -> None:
    """The first two tokens of many short replies against the target's exact joint law."""
    from real_backend.prompts import Request

    prompt, runs, temperature = [0, 9, 30, 12], 4_000, 0.7
    requests = [Request(str(k), "qa", prompt) for k in range(runs)]
    run = Engine(pair, costs, max_gamma=8).decode(
        Fixed(2), requests, temperature=temperature, top_p=0.9, seed=11, max_new_tokens=3
    )
    seen = np.zeros((64, 64))
    ended = np.zeros(64)
    for tokens in run.tokens:
        if len(tokens) > 1:
            seen[tokens[0], tokens[1]] += 1
        else:
            ended[tokens[0]] += 1
    module = pair.target.module

    def law(ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            logits = module(torch.tensor([ids])).logits[0, -1]
        return distribution(logits, temperature, 0.9).double().numpy()

    first = law(prompt)
    joint = np.stack([first[a] * law([*prompt, a]) for a in range(64)])
    joint[1] = 0.0  # the end token ends the reply
    seen_flat = np.append(seen.ravel(), ended[1])
    law_flat = np.append(joint.ravel(), first[1])
    assert seen_flat[law_flat == 0].sum() == 0
    big = law_flat * runs >= 5
    observed = np.append(seen_flat[big], seen_flat[~big].sum())
    expected = np.append(law_flat[big], law_flat[~big].sum()) * runs
    keep = expected > 0
    assert (
        stats.chisquare(
            observed[keep], expected[keep] * observed.sum() / expected[keep].sum()
        ).pvalue
        > 1e-3
    )


def test_vocabularies_padded_differently(tmp_path: Path, costs: StepCosts) -> None:
    folder = save_pair(tmp_path / "padded", draft_changes={"vocab_size": 72})
    padded = load_pair(resolve_pair(str(folder), None, None), device="cpu")
    assert padded.vocab_size == 64
    questions = read_questions(write_prompts(tmp_path / "p.jsonl", questions=3))
    trace = capture(padded, questions, tmp_path / "t.parquet", Settings(max_new_tokens=24, depth=4))
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
    run = engine.decode(Fixed(4), [Request("a", "qa", prompt)], max_new_tokens=40)
    assert len(prompt) + len(run.tokens[0]) <= 256
    with pytest.raises(InputError, match="context holds 256"):
        engine.decode(Fixed(4), [Request("a", "qa", [10] * 256)], max_new_tokens=4)
