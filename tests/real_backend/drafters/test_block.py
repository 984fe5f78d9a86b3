"""Block heads: their arithmetic, what a capture says of them, the engine, the shipped ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import Tensor

from policies.fixed import Fixed
from policies.registry import parse_policy
from real_backend.decoding.bench import Bench
from real_backend.decoding.eager import EagerSteps
from real_backend.decoding.engine import Engine
from real_backend.decoding.verify import distribution, signals
from real_backend.drafters.block import BlockDrafter, MedusaHeads
from real_backend.drafters.load import is_model
from real_backend.load_pair import Pair, load_pair
from real_backend.options import PairOptions
from real_backend.pair_spec import EMBEDDED, PairSpec, resolve_pair
from real_backend.prompts import (
    EMBEDDED_PROMPTS,
    Question,
    Request,
    read_questions,
    requests_of_trace,
)
from real_backend.recording.capture import capture
from real_backend.recording.coupling import CaptureSettings, decode_coupled
from real_backend.recording.heads import of_block
from simulator.replay.replay import replay_interpreted
from tests.specimens import write_prompts
from traces.costs.pricing import StepCosts
from traces.errors import InputError
from traces.schema import RANK_UNKNOWN, Trace

K, E, V = 4, 32, 64
HEADS = EMBEDDED / "heads"
ROUND = ("request", "context_tokens", "gamma", "drafted", "accepted", "emitted", "ended")


def tiny_weights(own: int = 0, bias: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """Weights of K heads of one layer over the tiny target, with `own` outputs."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    found = {f"blocks.{k}.layers.0.weight": drawn(E, E) for k in range(K)}
    found |= {f"blocks.{k}.layers.0.bias": drawn(E) for k in range(K) if bias}
    return found | {f"lm_heads.{k}.weight": drawn(V, E) for k in range(own)}


def save_heads(folder: Path, weights: dict[str, Tensor], **changes: Any) -> Path:
    """A folder of heads."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["MedusaModel"], "num_heads": K, "num_hidden_layers": 1}
    text = json.dumps(config | {"hidden_size": E} | changes)
    (folder / "config.json").write_text(text)
    save_file(weights, folder / "model.safetensors")
    return folder


def load(pair_folder: Path, heads: Path, **how: Any) -> Pair:
    spec = PairSpec("tiny+block", str(pair_folder / "target"), str(heads))
    return load_pair(spec, device="cpu", threads=1, **how)


def module_of(pair: Pair) -> MedusaHeads:
    assert isinstance(pair.drafter, BlockDrafter)
    return pair.drafter.module


@pytest.fixture(scope="module")
def tiny(pair_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The tiny target under heads of random weights."""
    return load(pair_folder, save_heads(tmp_path_factory.mktemp("heads"), tiny_weights()))


@pytest.fixture(scope="module")
def shipped() -> Pair:
    return load_pair(resolve_pair("embedded+block", None, None), device="cpu", threads=1)


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    """One shipped prompt of every task."""
    return list({q.task: q for q in read_questions(EMBEDDED_PROMPTS)}.values())


@pytest.fixture(scope="module")
def recorded(
    shipped: Pair, questions: list[Question], tmp_path_factory: pytest.TempPathFactory
) -> Trace:
    out = tmp_path_factory.mktemp("trace") / "t.parquet"
    return capture(shipped, questions, out, CaptureSettings(max_new_tokens=24))


def replies(trace: Trace) -> list[list[int]]:
    assert trace.token_ids is not None
    return [part.tolist() for part in np.split(trace.token_ids, trace.offsets[1:-1])]


def by_hand(weights: dict[str, Tensor], output: Tensor, state: Tensor) -> Tensor:
    """Logits [K, V] of one state [E]."""
    said = []
    for k in range(K):
        turned = weights[f"blocks.{k}.layers.0.weight"].double() @ state.double()
        turned += weights.get(f"blocks.{k}.layers.0.bias", torch.zeros(E)).double()
        x = state.double() + turned / (1.0 + torch.exp(-turned))
        said.append(weights.get(f"lm_heads.{k}.weight", output).double() @ x)
    return torch.stack(said)


@pytest.mark.parametrize("own", [0, K])
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_heads_are_a_layer_added_to_the_state(
    pair_folder: Path, tmp_path: Path, own: int, bias: bool
) -> None:
    """vLLM's heads have a bias only where medusa_fc_bias says so, and so a tensor."""
    weights = tiny_weights(own, bias)
    pair = load(pair_folder, save_heads(tmp_path, weights))
    states = torch.randn(3, E, generator=torch.Generator().manual_seed(1))
    output = pair.target.module.lm_head.weight
    expected = torch.stack([by_hand(weights, output, state) for state in states])
    assert torch.allclose(module_of(pair)(states).double(), expected, atol=1e-4)


def test_names_and_shared_outputs_are_read_as_vllm_does(pair_folder: Path, tmp_path: Path) -> None:
    weights = tiny_weights(own=1)
    named = {f"medusa_heads.{name}": weight for name, weight in weights.items()}
    pair = load(pair_folder, save_heads(tmp_path / "one", named, original_lm_head=True))
    (only,) = module_of(pair).outputs
    assert torch.equal(only, weights["lm_heads.0.weight"])
    with pytest.raises(InputError, match="one for every head, or none"):
        load(pair_folder, save_heads(tmp_path / "two", weights))


def test_outputs_of_their_own_are_part_of_the_weights(pair_folder: Path, tmp_path: Path) -> None:
    weights = tiny_weights(own=K)
    one = load(pair_folder, save_heads(tmp_path / "one", weights))
    weights["lm_heads.2.weight"] = weights["lm_heads.2.weight"] + 1.0
    two = load(pair_folder, save_heads(tmp_path / "two", weights))
    assert one.weights_sha256 != two.weights_sha256


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("lean", [True, False], ids=["lean", "general"])
@torch.inference_mode()
def test_a_capture_is_the_heads_at_every_position(
    pair_folder: Path, tmp_path: Path, temperature: float, lean: bool
) -> None:
    weights = tiny_weights()
    pair = load(pair_folder, save_heads(tmp_path / "heads", weights), lean=lean)
    asked = read_questions(write_prompts(tmp_path / "p.jsonl", questions=3))
    settings = CaptureSettings(max_new_tokens=24, temperature=temperature, top_p=0.95, seed=3)
    trace = capture(pair, asked, tmp_path / "t.parquet", settings)
    assert trace.meta.depth == K and trace.meta.drafter == "block"
    assert trace.top1_prob is not None and trace.entropy is not None
    assert trace.target_rank is not None and (trace.offered == K).all()
    module, at, labels = pair.target.module, 0, 0
    output = module.lm_head.weight
    for request, reply in zip(requests_of_trace(asked, trace, pair), replies(trace), strict=True):
        for start in range(len(reply)):
            context = request.prompt_ids + reply[:start]
            output_of = module(torch.tensor([context[:-1]]), output_hidden_states=True)
            logits = by_hand(weights, output, output_of.hidden_states[-1][0, -1])
            rank = int((logits[0] > logits[0, reply[start]]).sum())
            assert trace.target_rank[at] == rank
            if temperature:
                laws = distribution(logits.float(), temperature, 0.95)
                assert trace.accept_prob is not None
                for k in range(int(trace.accept_len[at])):
                    ids = torch.tensor([context + reply[start : start + k]])
                    law = distribution(module(ids).logits[0, -1], temperature, 0.95)
                    token = reply[start + k]
                    label = min(1.0, float(law[token] / laws[k, token]))
                    assert trace.accept_prob[at, k] == pytest.approx(label, abs=1e-3)
                    labels += 1
            else:
                laws = torch.softmax(logits.float(), -1)
                taken = logits.argmax(-1)[: len(reply) - start] == torch.tensor(reply[start:][:K])
                assert trace.accept_len[at] == int(taken.long().cumprod(0).sum())
            seen = signals(laws).numpy()
            assert np.allclose(trace.top1_prob[at], seen[:, 0], atol=2e-4)
            assert np.allclose(trace.entropy[at], seen[:, 1], atol=2e-3)
            at += 1
    assert at == trace.positions > 40 and (labels > 0) == (temperature > 0)


@torch.inference_mode()
def test_a_batch_is_lossless(
    shipped: Pair, costs: StepCosts, questions: list[Question], recorded: Trace
) -> None:
    requests = requests_of_trace(questions, recorded, shipped)
    for request, reply in zip(requests, replies(recorded), strict=True):
        ids = torch.tensor([request.prompt_ids])
        plain = shipped.target.module.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24
        )
        assert plain[0, ids.shape[1] :].tolist() == reply
    run = Engine(shipped, costs).decode(Fixed(4), requests, max_new_tokens=24, batch=3)
    assert run.tokens == replies(recorded)
    assert run.log.batch_size.max() == 3 and run.log.accepted.sum() > 20


@pytest.mark.parametrize("policy", ["fixed:gamma=4", "gammatune", "hf-confidence"])
def test_rounds_are_those_of_the_replay(
    shipped: Pair, costs: StepCosts, questions: list[Question], recorded: Trace, policy: str
) -> None:
    requests = requests_of_trace(questions, recorded, shipped)
    engine = Engine(shipped, costs, max_gamma=recorded.meta.depth)
    run = engine.decode(parse_policy(policy), requests, max_new_tokens=24, clock="model")
    assert isinstance(engine.steps(1, 1), EagerSteps)
    assert run.tokens == replies(recorded)
    log = replay_interpreted(parse_policy(policy), recorded, costs)
    for column in ROUND:
        assert np.array_equal(getattr(run.log, column), getattr(log, column)), column


def test_a_draft_is_never_longer_than_the_heads(
    shipped: Pair, costs: StepCosts, questions: list[Question], recorded: Trace
) -> None:
    requests = requests_of_trace(questions, recorded, shipped)[:3]
    run = Engine(shipped, costs, max_gamma=16).decode(Fixed(16), requests, max_new_tokens=24)
    assert run.tokens == replies(recorded)[:3]
    assert run.log.drafted.max() == module_of(shipped).heads == recorded.meta.depth == 6


def test_shipped_heads_are_accepted(recorded: Trace) -> None:
    assert recorded.accept_len.mean() > 0.5
    assert sum(path.stat().st_size for path in HEADS.iterdir()) < 1e6


PROMPT, NUCLEUS = [0, 9, 30, 12], (0.7, 0.9)


class Rough(NamedTuple):
    """Heads that know roughly what follows PROMPT, and the laws there: first [V] and joint [V, V]
    of the target's first two tokens, drafted [2, V] of the heads.
    """

    pair: Pair
    first: Tensor
    joint: Tensor
    drafted: Tensor


@pytest.fixture(scope="module")
def rough(tiny: Pair, pair_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Rough:
    @torch.inference_mode()
    def law_behind(ids: list[int]) -> Tensor:
        return distribution(tiny.target.module(torch.tensor([ids])).logits[0, -1], *NUCLEUS)

    first = law_behind(PROMPT)
    joint = torch.stack([first[a] * law_behind([*PROMPT, a]) for a in range(V)])
    with torch.inference_mode():
        read = tiny.target.module(torch.tensor([PROMPT[:-1]]), output_hidden_states=True)
    state = read.hidden_states[-1][0, -1].clone()
    logits = 0.6 * NUCLEUS[0] * (torch.stack([first, joint.sum(0)]) + 1e-3).log()
    weights = {name: torch.zeros_like(weight) for name, weight in tiny_weights(own=K).items()}
    for k in (0, 1):
        weights[f"lm_heads.{k}.weight"] = logits[k, :, None] * state / state.dot(state)
    folder = save_heads(tmp_path_factory.mktemp("rough"), weights)
    return Rough(load(pair_folder, folder), first, joint, distribution(logits, *NUCLEUS))


def test_a_sampled_capture_accepts_where_the_laws_overlap(rough: Rough, tmp_path: Path) -> None:
    """One token with the sum of min(p, q), the second one given the first likewise."""
    runs, (first, second) = 600, rough.drafted
    settings = CaptureSettings(2, temperature=0.7, top_p=0.9, depth=K, seed=2)
    accepted = np.zeros(3)
    requests = [Request(str(k), "qa", PROMPT) for k in range(runs)]
    with torch.inference_mode():
        every = decode_coupled(rough.pair, requests, settings)
    assert isinstance(rough.pair.drafter, BlockDrafter)
    for request, decoded in zip(requests, every, strict=True):
        with torch.inference_mode():
            offers = of_block(rough.pair, rough.pair.drafter, request, decoded, settings)
        accepted[: 1 + offers.accept_len[0]] += 1
    one = torch.minimum(rough.first, first)
    behind = rough.joint / rough.first.clamp(min=1e-9)[:, None]
    two = one * torch.minimum(behind, second).sum(-1)
    two[1] = 0.0  # the end token ends the reply
    expected = [1.0, float(one.sum()), float(two.sum())]
    assert 0.2 < expected[2] < expected[1] - 0.1 < 0.9
    assert accepted / runs == pytest.approx(expected, abs=4 * 0.5 / np.sqrt(runs))


def test_sampling_has_the_targets_law(rough: Rough, costs: StepCosts) -> None:
    """The first two tokens of many short replies against the target's exact joint law."""
    pair, first, joint, runs = rough.pair, rough.first, rough.joint.clone(), 1_500
    requests = [Request(str(k), "qa", PROMPT) for k in range(runs)]
    run = Engine(pair, costs).decode(
        Fixed(2), requests, temperature=0.7, top_p=0.9, seed=11, max_new_tokens=3, batch=50
    )
    accepted = run.log.accepted[run.log.drafted == 2]
    assert min(np.bincount(accepted, minlength=3)) > 100  # none, one, both
    seen, ended = np.zeros((V, V)), np.zeros(V)
    for tokens in run.tokens:
        if len(tokens) > 1:
            seen[tokens[0], tokens[1]] += 1
        else:
            ended[tokens[0]] += 1
    joint[1] = 0.0  # the end token ends the reply
    law_flat = np.append(joint.double().numpy().ravel(), float(first[1]))
    observed = np.append(seen.ravel(), ended[1])
    assert observed[law_flat == 0].sum() == 0
    big = law_flat * runs >= 5
    observed = np.append(observed[big], observed[~big].sum())
    expected = np.append(law_flat[big], law_flat[~big].sum()) * runs
    keep = expected > 0
    expected = expected[keep] * observed.sum() / expected[keep].sum()
    assert stats.chisquare(observed[keep], expected).pvalue > 1e-3


def test_a_prompt_of_one_token_drafts_nothing_first(
    tiny: Pair, costs: StepCosts, tmp_path: Path
) -> None:
    """The target has read nothing of it: not even the row's last request counts."""
    (tmp_path / "p.jsonl").write_text(json.dumps({"question_id": 1, "turns": ["w3"]}) + "\n")
    asked = read_questions(write_prompts(tmp_path / "q.jsonl", questions=1))
    one = Request("one", "qa", [7])
    engine = Engine(tiny, costs, max_gamma=K)
    alone = engine.decode(Fixed(K), [one], max_new_tokens=12)
    assert alone.log.drafted[0] == 0 and alone.log.drafted[1] == K
    settings = CaptureSettings(max_new_tokens=12)
    trace = capture(tiny, asked, tmp_path / "t.parquet", settings)
    before = requests_of_trace(asked, trace, tiny)
    after = engine.decode(Fixed(K), [*before, one], max_new_tokens=12)
    mine = after.log.request == 1
    assert after.tokens[1] == alone.tokens[0]
    assert np.array_equal(after.log.drafted[mine], alone.log.drafted)


def test_a_capture_offers_nothing_behind_a_prompt_of_one_token(
    tiny: Pair, costs: StepCosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Request("1/0", "qa", [7])
    monkeypatch.setattr("real_backend.recording.capture.request_for", lambda *_: one)
    asked = read_questions(write_prompts(tmp_path / "q.jsonl", questions=1))
    settings = CaptureSettings(max_new_tokens=12)
    trace = capture(tiny, asked, tmp_path / "t.parquet", settings)
    assert trace.offered.tolist() == [0] + [K] * (trace.positions - 1)
    assert trace.target_rank is not None and trace.target_rank[0] == RANK_UNKNOWN
    run = Engine(tiny, costs, max_gamma=K).decode(Fixed(K), [one], max_new_tokens=12)
    log = replay_interpreted(Fixed(K), trace, costs)
    for column in ROUND:
        assert np.array_equal(getattr(run.log, column), getattr(log, column)), column


def test_rounds_of_more_tokens_than_heads_can_be_timed(tiny: Pair) -> None:
    """A timing holds verifies of up to 33 tokens, whatever drafts them."""
    samples: dict[Any, Any] = {}
    bench = Bench(tiny, 2, 128, samples)
    bench.block(3 * K, (1,), 64)
    assert ("verify", 2, 3 * K + 1, 64) in samples


def test_a_replayed_acceptance_may_draft_more(tiny: Pair, costs: StepCosts) -> None:
    from traces import synthetic

    trace = synthetic.bursty(
        0.9, 0.4, np.random.default_rng(3), requests=3, reply_tokens=20, signals=True, depth=8
    )
    requests = [Request(name, "", [5]) for name in trace.request_id]  # nothing to draft from
    settings = {"max_new_tokens": trace.meta.max_new_tokens, "acceptance": trace}
    run = Engine(tiny, costs, max_gamma=8).decode(Fixed(8), requests, **settings)
    assert run.log.drafted[0] == 8


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def changed(**changes: Any) -> Callable[[Path], None]:
    """config.json with other values."""

    def change(folder: Path) -> None:
        save_heads(folder, tiny_weights(), **changes)

    return change


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    """model.safetensors with other tensors."""

    def write(folder: Path) -> None:
        weights = tiny_weights(own=K)
        change(weights)
        save_heads(folder, weights)

    return write


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncated, "cannot be read"),
        (changed(hidden_size=48), "hidden_size is 48, the target's is 32"),
        (changed(num_heads="six"), "cannot be read"),
        (changed(num_heads=float("inf")), "cannot be read"),
        (changed(num_heads=0), "0 heads"),
        (changed(num_heads=K + 1), "other tensors"),
        (changed(num_hidden_layers=2), "other tensors"),
        (tensors(lambda w: w.pop("lm_heads.3.weight")), "one for every head"),
        (tensors(lambda w: w.update({"lm_heads.1.weight": torch.ones(V)})), "one for every head"),
        (tensors(lambda w: w.update({"lm_heads.1.weight": torch.ones(9, E)})), "one for every"),
        (tensors(lambda w: w.update(token_map=torch.ones(3))), "token_map"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be read"),
    ],
)
def test_bad_folders_are_one_line(
    pair_folder: Path, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    folder = save_heads(tmp_path / "heads", tiny_weights())
    damage(folder)
    with pytest.raises(InputError, match=said) as caught:
        load(pair_folder, folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize("listed", [5, "LlamaForCausalLM", [{}], None])
def test_what_names_no_heads_is_a_model(tmp_path: Path, listed: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": listed}))
    assert is_model(str(tmp_path))


def test_the_embedded_pair_has_heads_and_prompts() -> None:
    spec = resolve_pair("embedded+block", None, None)
    assert (spec.name, spec.draft) == ("embedded+block", str(HEADS))
    assert resolve_pair("embedded", None, None).draft == str(EMBEDDED / "draft")
    assert PairOptions(name="embedded+block").is_embedded
    assert not PairOptions(name="smollm2+block").is_embedded
    config = json.loads((HEADS / "config.json").read_text())
    assert len(load_file(HEADS / "model.safetensors")) == 2 * config["num_heads"] == 12
