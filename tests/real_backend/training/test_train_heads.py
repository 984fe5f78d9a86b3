"""Training of block heads, in miniature."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn

from real_backend.pair_spec import EMBEDDED
from real_backend.training import core, corpus, export, loop, replies, train_heads
from real_backend.training.dialogue import DocEntry
from real_backend.training.train_heads import UNKNOWN, TrainHeadsOptions, labels_of, loss_of_heads


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> TrainHeadsOptions:
    """A few steps for a random target of one layer."""
    folder = tmp_path_factory.mktemp("miniature")
    tokenizer = Tokenizer.from_file(str(EMBEDDED / "target" / "tokenizer.json"))
    shape = core.LlamaSize(1, 32, 1, 48, tokenizer.get_vocab_size())
    export.export(core.Llama(shape, seed=0), tokenizer, folder / "target")
    return TrainHeadsOptions(
        out=folder / "heads",
        target=folder / "target",
        heads=3,
        tokens=6 * 2 * 96,
        reply_tokens=10,
        rows=2,
        row_tokens=96,
        max_new_tokens=2,
        prompts_per_task=1,
        checkpoint_s=0.0,
    )


@pytest.fixture(autouse=True)
def small_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """No reading of the whole standard library."""
    told = ("Return the first one.", "It is not copied.", "Raise an error if there is none.")
    docs = tuple(DocEntry(f"module{k}.name{k}", "function", told) for k in range(200))
    monkeypatch.setattr(corpus, "_split_entries", lambda held_out: docs)
    monkeypatch.setattr(
        corpus, "stdlib_window", lambda rng, length, held_out: "import os\n" * length
    )
    monkeypatch.setattr(replies, "CHUNK", 4)


def test_labels_by_hand() -> None:
    """Two replies, tokens 3 to 5 and 8 to 9: no head looks from one into what follows it."""
    ids = torch.arange(10)[None]
    replied = torch.tensor([[0.0, 0, 0, 1, 1, 1, 0, 0, 1, 1]])
    expected = torch.full((10, 3), UNKNOWN)
    expected[1] = torch.tensor([3, 4, 5])
    expected[2, :2] = torch.tensor([4, 5])
    expected[3, 0] = 5
    expected[6, :2] = torch.tensor([8, 9])
    expected[7, 0] = 9
    assert torch.equal(labels_of(ids, replied, 3)[0], expected)


def test_fresh_heads_say_what_the_target_says() -> None:
    """Their loss is that of the target's own law, against later tokens."""
    target = core.Llama(core.LlamaSize(1, 32, 1, 48, 50), seed=0).requires_grad_(False)
    ids = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    heads = train_heads.new_heads(target, 2)
    loss = loss_of_heads(heads, target, ids, torch.ones(2, 9))
    logs = target(ids).log_softmax(-1)
    told = [
        -float(logs[b, p, ids[b, p + 2 + k]]) for b in (0, 1) for k in (0, 1) for p in range(7 - k)
    ]
    assert float(loss.detach()) == pytest.approx(sum(told) / len(told), rel=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(weight.grad is not None for weight in heads.parameters())
    assert {type(weight) for weight in heads.parameters()} == {nn.Parameter}


class KilledError(Exception):
    """Stands for a kill in the middle of a run."""


def test_a_killed_run_goes_on_to_the_same_heads(
    miniature: TrainHeadsOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop.Recipe, "log_steps", 1, raising=False)
    train_heads.run(miniature)
    whole = {path.name: path.read_bytes() for path in miniature.out.iterdir()}
    assert set(whole) == {"config.json", "model.safetensors"}

    loss_of = train_heads.loss_of_heads
    broken, calls = dataclasses.replace(miniature, out=tmp_path / "broken"), iter(range(4))

    def dying(*args: Any) -> Any:
        if next(calls, None) is None:
            raise KilledError
        return loss_of(*args)

    monkeypatch.setattr(train_heads, "loss_of_heads", dying)
    with pytest.raises(KilledError):
        train_heads.run(broken)
    assert not broken.out.exists()
    steps = []
    monkeypatch.setattr(train_heads, "loss_of_heads", lambda *a: steps.append(0) or loss_of(*a))
    train_heads.run(broken)
    assert len(steps) == 2
    assert {path.name: path.read_bytes() for path in broken.out.iterdir()} == whole

    other = dataclasses.replace(miniature, out=tmp_path / "other", seed=1)
    train_heads.run(other)
    assert (other.out / "model.safetensors").read_bytes() != whole["model.safetensors"]
    weights = load_file(other.out / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    config = json.loads((other.out / "config.json").read_text())
    assert config["original_lm_head"] is True and config["num_heads"] == 3


def test_a_seed_of_their_own(miniature: TrainHeadsOptions) -> None:
    """The rows of the target's and the draft's training are others."""
    ours = train_heads._packer(miniature)
    for seed in (0, 1):
        theirs = core.Packer(ours.tokenizer, seed, ours.rows, ours.length)
        assert not torch.equal(ours.batch(0).ids, theirs.batch(0).ids)
