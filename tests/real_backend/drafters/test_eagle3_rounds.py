"""Traces and rounds of an EAGLE-3 head that was trained a little: its capture is a draft from every
position, its rounds are the replay's, and what it decodes is the target's.

Letters: V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from policies.base import Policy, State, View
from policies.overhead import charged
from policies.randomness import Rng
from policies.registry import REGISTRY
from real_backend.decoding import engine
from real_backend.decoding.bench import LAGS, Bench, Samples
from real_backend.decoding.engine import Engine
from real_backend.decoding.verify import distribution
from real_backend.load_pair import Pair
from real_backend.prompts import Request
from real_backend.recording.coupling import CaptureSettings, decode_coupled
from real_backend.recording.heads import of_eagle3
from real_backend.recording.offers import ranks
from simulator.replay.replay import replay_interpreted
from tests.real_backend.drafters.plain_eagle3 import Plain, pair_with, replies_of
from traces import synthetic
from traces.costs.log_prices import price_log
from traces.costs.pricing import StepCosts
from traces.errors import InputError
from traces.schema import RANK_UNKNOWN, Trace


def test_the_specimen_is_lively(recorded: tuple[Trace, list[Request]]) -> None:
    trace, _ = recorded
    assert trace.meta.drafter == "eagle3"
    assert 0.2 < (trace.accept_len > 0).mean() < 0.95
    assert trace.accept_len.max() >= 2


@torch.inference_mode()
def test_a_dense_rollout_is_a_draft_from_every_position_afresh(
    trained: tuple[Pair, Plain], recorded: tuple[Trace, list[Request]]
) -> None:
    """Against the plain reading, and against new caches that are fed token by token."""
    (pair, plain), (trace, requests) = trained, recorded
    assert trace.top1_prob is not None and trace.entropy is not None
    assert trace.target_rank is not None
    depth, unknown = trace.meta.depth, 0
    for index, (request, reply) in enumerate(zip(requests[:3], replies_of(trace), strict=False)):
        begin = int(trace.offsets[index])
        for i in range(len(reply)):
            ids = request.prompt_ids + reply[:i]
            drafted, logits = plain.draft(ids, depth)
            same = [a == b for a, b in zip(drafted, reply[i:], strict=False)]
            assert trace.accept_len[begin + i] == [*same, False].index(False)
            laws = logits.softmax(-1)
            entropy = torch.special.entr(laws).sum(-1)
            assert trace.top1_prob[begin + i] == pytest.approx(laws.amax(-1).numpy(), abs=1e-4)
            assert trace.entropy[begin + i] == pytest.approx(entropy.numpy(), abs=1e-3)
            rank = ranks(logits[:1], torch.tensor(reply[i : i + 1]))
            assert trace.target_rank[begin + i] == rank[0]
            unknown += int(rank[0]) == RANK_UNKNOWN
            if i % 9 == 0:
                assert fed_one_by_one(pair, plain.target_states(ids), ids, depth) == drafted
    assert unknown > 0  # tokens that the head cannot propose


def fed_one_by_one(pair: Pair, states: Tensor, ids: list[int], depth: int) -> list[int]:
    """The draft behind ids of a new cache that has read them one at a time."""
    rows, tokens = pair.drafter.rows(1, 256), torch.tensor(ids)
    for at in range(1, len(ids)):
        rows.verified(0, at - 1, states[at - 1 : at])
        logits = rows.first([(0, at, 1)], tokens[at : at + 1])
    drafted = [int(logits.argmax())]
    while len(drafted) < depth:
        span = (0, len(ids) + len(drafted) - 1, 1)
        drafted.append(int(rows.further([span], torch.tensor(drafted[-1:])).argmax()))
    return drafted


SAMPLED = {"temperature": 0.9, "top_p": 0.9}


@torch.inference_mode()
@pytest.mark.slow
def test_sampled_flags_have_the_law_of_speculative_sampling(
    trained: tuple[Pair, Plain], recorded: tuple[Trace, list[Request]]
) -> None:
    """P(first draft taken) is the sum of min(p, q), P(second | first) that of the laws behind it;
    a rejected one is of the law (q - p)+, the reply of the law p.
    """
    (pair, plain), prompt = trained, recorded[1][3].prompt_ids
    runs, settings = 800, CaptureSettings(max_new_tokens=2, depth=2, **SAMPLED)
    requests = [Request(str(k), "qa", prompt) for k in range(runs)]
    decoded = decode_coupled(pair, requests, settings)
    lengths = np.zeros(3)
    seen = np.zeros(64)
    rejected: list[float] = []
    for request, one in zip(requests, decoded, strict=True):
        offers = of_eagle3(pair, pair.drafter, request, one, settings)
        lengths[int(offers.accept_len[0])] += 1
        seen[one.tokens[0]] += 1
        assert offers.accept_prob is not None
        if offers.accept_len[0] == 0:
            rejected.append(float(offers.accept_prob[0, 0]))

    p, (q, behind) = law_of(plain.module, prompt), own_laws(plain, prompt)
    both = torch.minimum(p, q)
    first = float(both.sum())
    second = 0.0
    for token in both.nonzero()[:, 0].tolist():
        if token not in pair.eos_ids:  # it ends the reply
            laws = torch.minimum(law_of(plain.module, [*prompt, token]), behind(token))
            second += float(both[token] * laws.sum())
    assert 0.1 < second < first < 0.97
    for observed, law in ((lengths[1] + lengths[2], first), (lengths[2], second)):
        assert abs(observed - runs * law) < 4 * math.sqrt(runs * law * (1 - law))
    left = (q - p).clamp(min=0.0)  # the law of a rejected draft
    mean = float((left * p / q.clamp(min=1e-9)).sum() / left.sum())
    assert abs(np.mean(rejected) - mean) < 4 * np.std(rejected) / math.sqrt(len(rejected))
    assert mean < 0.9 * first  # a draft of q would show
    assert_law(seen, p.numpy(), runs)


def law_of(module: Any, ids: list[int]) -> Tensor:
    """[V] the target's."""
    logits = module(torch.tensor([ids])).logits[0, -1]
    return distribution(logits, SAMPLED["temperature"], SAMPLED["top_p"]).double()


def own_laws(plain: Plain, ids: list[int]) -> tuple[Tensor, Any]:
    """[V] the head's law of the first drafted token, and of the second behind any first."""
    features, tokens = plain.features(plain.target_states(ids)[:-1]), torch.tensor(ids[1:])
    logits, states = plain.read(features, tokens)

    def law(logits: Tensor) -> Tensor:
        return distribution(logits[-1], SAMPLED["temperature"], SAMPLED["top_p"]).double()

    def behind(token: int) -> Tensor:
        more = torch.cat([tokens, torch.tensor([token])])
        return law(plain.read(torch.cat([features, states[-1:]]), more)[0])

    return law(logits), behind


def assert_law(seen: np.ndarray, law: np.ndarray, runs: int) -> None:
    """Counts `seen` of `runs` draws fit the law; rare ones together."""
    assert seen[law == 0].sum() == 0 and seen.sum() == runs
    often = law * runs >= 5
    observed = np.append(seen[often], seen[~often].sum())
    expected = np.append(law[often], law[~often].sum()) * runs
    keep = expected > 1e-9
    fit = stats.chisquare(observed[keep], expected[keep] * runs / expected[keep].sum())
    assert fit.pvalue > 1e-3


@pytest.mark.slow
def test_sampling_has_the_targets_law(
    trained: tuple[Pair, Plain], recorded: tuple[Trace, list[Request]], costs: StepCosts
) -> None:
    """The first two tokens of many short replies against the target's joint law."""
    (pair, plain), prompt = trained, recorded[1][3].prompt_ids
    runs = 1_500
    run = Engine(pair, costs, max_gamma=4).decode(
        REGISTRY["fixed"](gamma_tokens=2),
        [Request(str(k), "qa", prompt) for k in range(runs)],
        max_new_tokens=3, seed=11, batch=20, **SAMPLED,
    )  # fmt: skip
    assert (run.log.accepted > 0).mean() > 0.1 and (run.log.accepted < run.log.drafted).any()
    seen, ended = np.zeros((64, 64)), np.zeros(64)
    for tokens in run.tokens:
        if len(tokens) > 1:
            seen[tokens[0], tokens[1]] += 1
        else:
            ended[tokens[0]] += 1
    with torch.inference_mode():
        first = law_of(plain.module, prompt)
        joint = torch.stack([first[a] * law_of(plain.module, [*prompt, a]) for a in range(64)])
        ends = torch.zeros(64, dtype=torch.double)
        for token in pair.eos_ids:
            joint[token], ends[token] = 0.0, first[token]
        law = torch.cat([joint.flatten(), ends]).numpy()
    assert_law(np.append(seen.ravel(), ended), law, runs)


@dataclasses.dataclass(frozen=True)
class Seldom(Policy):
    """Drafts nothing in some rounds, so that the head falls behind."""

    name = "seldom"

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        return (0, 3, 0, 0, 5)[view.context_tokens % 5]


POLICIES = {name: REGISTRY[name] for name in ("fixed", "gammatune", "hf-confidence")}
POLICIES["seldom"] = Seldom


@pytest.mark.parametrize("name", POLICIES)
def test_greedy_rounds_are_the_replays(
    trained: tuple[Pair, Plain],
    recorded: tuple[Trace, list[Request]],
    costs: StepCosts,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    (pair, _), (trace, requests) = trained, recorded
    priced: list[float] = []
    kept_seconds = engine.kept_seconds

    def noted(*arguments: Any) -> float:
        priced.append(kept_seconds(*arguments))
        return priced[-1]

    monkeypatch.setattr("real_backend.decoding.engine.kept_seconds", noted)
    costs, policy = costs._replace(reads_states=True), POLICIES[name]()
    run = Engine(pair, costs, max_gamma=6).decode(
        policy, requests, max_new_tokens=40, clock="model"
    )
    assert run.tokens == replies_of(trace)
    log = replay_interpreted(policy, trace, costs)
    for column in ("request", "context_tokens", "gamma", "drafted", "accepted", "emitted", "ended"):
        assert np.array_equal(getattr(run.log, column), getattr(log, column)), column
    assert priced == log.elapsed_s.tolist()
    assert price_log(run.log, charged(policy, costs)).tolist() == priced
    drafting = log.drafted > 0
    assert (log.accepted[drafting] > 0).any() and (log.accepted < log.drafted).any()
    assert name != "seldom" or not drafting.all()


@pytest.mark.parametrize(
    ("name", "lean"), [*((name, True) for name in POLICIES), ("seldom", False)]
)
def test_a_ragged_batch_decodes_what_single_rows_do(
    trained: tuple[Pair, Plain],
    recorded: tuple[Trace, list[Request]],
    costs: StepCosts,
    name: str,
    lean: bool,
) -> None:
    """And that is what the target alone would say."""
    (pair, _), (trace, requests) = trained, recorded
    if not lean:
        pair = pair_with(Path(pair.spec.target), Path(pair.spec.draft), lean=False)
    runtime = Engine(pair, costs, max_gamma=6)
    run = runtime.decode(POLICIES[name](), requests, max_new_tokens=40, batch=3)
    assert run.tokens == replies_of(trace) and run.log.batch_size.max() == 3
    ids = torch.tensor([requests[0].prompt_ids])
    plainly = pair.target.module.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40
    )
    assert plainly[0, ids.shape[1] :].tolist() == run.tokens[0]
    single = runtime.decode(POLICIES[name](), requests, max_new_tokens=40).log
    for column in ("gamma", "drafted", "accepted", "emitted"):
        order = np.argsort(run.log.request, kind="stable")
        assert np.array_equal(getattr(run.log, column)[order], getattr(single, column)), column


def test_a_prompt_of_one_token(
    trained: tuple[Pair, Plain], recorded: tuple[Trace, list[Request]], costs: StepCosts
) -> None:
    """There is nothing to draft from in its first round, whatever stood in the row before."""
    pair, _ = trained
    requests = [recorded[1][0], Request("one", "", [17]), recorded[1][1]]
    run = Engine(pair, costs, max_gamma=6).decode(REGISTRY["fixed"](), requests, max_new_tokens=20)
    ids = torch.tensor([[17]])
    plainly = pair.target.module.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20
    )
    assert plainly[0, 1:].tolist() == run.tokens[1]
    drafted = run.log.drafted[run.log.request == 1]
    assert drafted[0] == 0 and (drafted[1:3] > 0).all()
    settings = CaptureSettings(max_new_tokens=4)
    with pytest.raises(InputError, match="request one: heads need a prompt of two tokens"):
        [one] = decode_coupled(pair, requests[1:2], settings)
        of_eagle3(pair, pair.drafter, requests[1], one, settings)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_recorded_acceptance_may_stand_in_for_the_heads(
    trained: tuple[Pair, Plain], costs: StepCosts, batch: int
) -> None:
    """The trace takes more of a draft than the target would have: the head reads on all the
    same.
    """
    trace = synthetic.bursty(
        0.9, 0.4, np.random.default_rng(3), requests=5, reply_tokens=37, signals=True, depth=6
    )
    pair, generator = trained[0], np.random.default_rng(0)
    requests = [
        Request(request_id, "", generator.integers(64, size=int(n)).tolist())
        for request_id, n in zip(trace.request_id, trace.prompt_tokens, strict=True)
    ]
    run = Engine(pair, costs, max_gamma=trace.meta.depth).decode(
        REGISTRY["gammatune"](),
        requests,
        max_new_tokens=trace.meta.max_new_tokens,
        acceptance=trace,
        batch=batch,
    )
    assert [len(reply) for reply in run.tokens] == trace.reply_tokens.tolist()
    assert run.log.accepted.max() > 2


def test_rounds_of_any_lag_can_be_timed(trained: tuple[Pair, Plain]) -> None:
    samples: Samples = {}
    bench = Bench(trained[0], 2, 100, samples)
    bench.block(2, LAGS[:2], 40)
    bench.block(1, LAGS[-1:], 40)
    firsts = {tokens for operation, _, tokens, _ in samples if operation == "first"}
    assert firsts == {*LAGS[:2], LAGS[-1]}
