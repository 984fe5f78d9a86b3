"""What speculate leaves behind: the models as they were, what policies remember, the rounds."""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
)

from policies.bandits.ucb import UCB
from policies.base import STEP_COSTS, Policy, State, View, reads_seconds
from policies.counts.heuristic import HFHeuristic
from policies.randomness import Rng
from policies.registry import REGISTRY
from real_backend.huggingface.generate import Speculation, speculate
from tests.real_backend.huggingface.models import TINY_PROMPT, Models, small_qwen
from traces.errors import InputError


def small_gpt2() -> GPT2Config:
    """Learned positions; a layout that the lean forward does not take."""
    return GPT2Config(
        vocab_size=64, n_positions=128, n_embd=32, n_layer=2, n_head=4, initializer_range=0.35,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "path"), [(small_qwen, "lean"), (small_gpt2, "general")], ids=lambda value: value
)
def test_other_architectures(make: Callable[[], Any], path: str) -> None:
    torch.manual_seed(4)
    target, draft = (AutoModelForCausalLM.from_config(make()).eval() for _ in range(2))
    draft.load_state_dict(target.state_dict())
    for weight in draft.parameters():
        weight.data += 0.05 * weight.data.std(correction=0) * torch.randn_like(weight)
    ids = torch.tensor([[0, 0, 9, 30, 12], [5, 40, 41, 9, 30]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    settings = {"attention_mask": mask, "max_new_tokens": 40, "pad_token_id": 0}
    expected = target.generate(ids, **settings)
    spec = speculate(draft, "gammatune")
    assert torch.equal(target.generate(ids, **settings, custom_generate=spec), expected)
    assert spec.log.meta["engine"] == path and spec.log.accepted.sum() > 5
    if path == "general":
        types = torch.zeros_like(ids)
        with pytest.raises(InputError, match="token ids alone; leave token_type_ids out"):
            target.generate(ids, **settings, token_type_ids=types, custom_generate=spec)


def test_the_models_stay_as_they_were(tiny: Models, tmp_path: Path) -> None:
    target, draft = tiny
    target.train()
    before = {name: weight.clone() for name, weight in target.state_dict().items()}
    threads, grads = torch.get_num_threads(), [p.requires_grad for p in target.parameters()]
    plain = target.generate(TINY_PROMPT, max_new_tokens=16)
    speculative = [
        target.generate(TINY_PROMPT, max_new_tokens=16, custom_generate=speculate(draft, "fixed"))
        for _ in "ab"
    ]
    again = target.generate(TINY_PROMPT, max_new_tokens=16)
    assert all(torch.equal(output, plain) for output in (*speculative, again))
    assert torch.get_num_threads() == threads and target.training
    assert [p.requires_grad for p in target.parameters()] == grads
    after = target.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    target(TINY_PROMPT, labels=TINY_PROMPT).loss.backward()  # and can still be trained
    target.save_pretrained(tmp_path)  # and saved
    saved = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    assert all(torch.equal(saved[name], weight) for name, weight in before.items())


def test_weights_are_fused_once(tiny: Models) -> None:
    target, draft = tiny
    places = []
    kept = [speculate(draft, name) for name in ("fixed", "gammatune", "fixed:gamma=2")]
    for spec in kept:
        target.generate(TINY_PROMPT, max_new_tokens=4, custom_generate=spec)
        places.append([p.data_ptr() for m in (target, draft) for p in m.parameters()])
    assert places[0] == places[1] == places[2]


def test_changed_weights_are_read_again(tiny: Models) -> None:
    target, draft = tiny
    spec = speculate(draft, "fixed:gamma=3")

    def check() -> torch.Tensor:
        expected = target.generate(TINY_PROMPT, max_new_tokens=24)
        output = target.generate(TINY_PROMPT, max_new_tokens=24, custom_generate=spec)
        assert torch.equal(output, expected)
        return output

    outputs = [check()]
    with torch.no_grad():  # an optimiser's step
        for weight in target.parameters():
            weight += 0.3 * torch.randn_like(weight)
    outputs.append(check())
    target.lm_head.weight.data.mul_(-1.0)  # unseen by torch, on memory that both see
    outputs.append(check())
    target.double(), draft.double()
    check()
    other = {name: torch.randn_like(w) * 0.3 for name, w in target.state_dict().items()}
    target.load_state_dict(other, assign=True)
    outputs.append(check())
    assert len({tuple(output[0].tolist()) for output in outputs}) == 4


def test_nothing_outlives_the_object(tiny: Models) -> None:
    from real_backend.huggingface.generate import _PREPARED

    target, draft = tiny
    key = id(target), id(draft)
    spec = speculate(draft, "fixed")
    target.generate(TINY_PROMPT, max_new_tokens=4, custom_generate=spec)
    assert key in _PREPARED
    del spec
    gc.collect()
    assert key not in _PREPARED


# ---- policies: memory, costs, rounds ---------------------------------------------------------


def test_policies_remember_as_they_are_meant_to(tiny: Models) -> None:
    target, draft = tiny

    def play(policy: Policy) -> Speculation:
        spec = speculate(draft, policy)
        for _ in range(3):
            target.generate(TINY_PROMPT, max_new_tokens=24, custom_generate=spec)
        return spec

    bandit = play(UCB())
    assert bandit.state.plays.sum() == (bandit.log.gamma > 0).sum()
    for policy, same in ((HFHeuristic(7), True), (HFHeuristic(7, transient=False), False)):
        log = play(policy).log
        starts = [log.gamma[log.request == call][0] for call in range(3)]
        assert starts[0] == 7 and (starts[1] == 7) == same


def test_memory_grows_with_the_batch(tiny: Models) -> None:
    """What a slot and what all slots learned outlives a call with more rows, and one with fewer."""
    target, draft = tiny
    spec = speculate(draft, HFHeuristic(7, transient=False))
    target.generate(TINY_PROMPT, max_new_tokens=24, custom_generate=spec)
    learned = int(spec.state.gamma[0])
    assert learned != 7
    target.generate(TINY_PROMPT.repeat(3, 1), max_new_tokens=24, custom_generate=spec)
    first = {slot: int(spec.log.gamma[spec.log.request == 1 + slot][0]) for slot in range(3)}
    assert first == {0: learned, 1: 7, 2: 7}
    target.generate(TINY_PROMPT, max_new_tokens=24, custom_generate=spec)
    assert len(spec.state.gamma) == 3
    bandit = speculate(draft, UCB())
    for rows in (1, 4, 2):
        ids = TINY_PROMPT.repeat(rows, 1)
        target.generate(ids, max_new_tokens=24, custom_generate=bandit)
    assert bandit.state.plays.sum() == (bandit.log.gamma > 0).sum()


def test_the_log_covers_all_calls(tiny: Models) -> None:
    target, draft = tiny
    spec = speculate(draft, "fixed:gamma=3")
    assert len(spec.log) == 0 and spec.log.meta["policy"] == "fixed:gamma=3"
    two = TINY_PROMPT.repeat(2, 1)
    for ids in (TINY_PROMPT, two, TINY_PROMPT):
        target.generate(ids, max_new_tokens=10, custom_generate=spec)
    log = spec.log
    assert sorted(set(log.request.tolist())) == [0, 1, 2, 3] and len(log.prefill_s) == 4
    assert (np.diff(log.start_s) >= 0).all() and log.request.dtype == np.int32
    assert log.meta["policy"] == "fixed:gamma=3" and (log.gamma <= 3).all()
    per_request = np.bincount(log.request, log.emitted)
    assert len(set(per_request.tolist())) == 1


def dear(view: View) -> float:
    return view.draft_step_s


@dataclasses.dataclass(frozen=True)
class Frugal(Policy):
    """Looks at a cost through a helper."""

    name = "frugal"

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        return 1 if dear(view) < 1.0 else 0


def test_policies_that_read_costs_are_known() -> None:
    found = {name for name, policy in REGISTRY.items() if reads_seconds(policy(), STEP_COSTS)}
    assert found == {
        "profile-guided", "vllm-dynamic", "sglang-throughput", "smartspec", "adaptive-k", "cascade",
        "thompson-beta", "linucb", "lin-thompson", "nightjar", "goodput", "alpha-goodput", "hedge",
        "marginal", "payback", "specstop", "worth", "shape-worth",
    }  # fmt: skip
    assert reads_seconds(Frugal(), STEP_COSTS)


def test_threads_take_turns(tiny: Models) -> None:
    target, draft = tiny
    expected = target.generate(TINY_PROMPT, max_new_tokens=40)
    spec = speculate(draft, "gammatune")
    outputs: list[torch.Tensor] = []

    def work() -> None:
        for _ in range(3):
            outputs.append(target.generate(TINY_PROMPT, max_new_tokens=40, custom_generate=spec))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(outputs) == 9 and all(torch.equal(output, expected) for output in outputs)
