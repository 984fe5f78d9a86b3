"""The lean forward against transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from real_backend.models.kvcache import GeneralReader, LeanReader
from real_backend.models.llama import LeanLlama
from real_backend.models.llama_weights import settled
from real_backend.models.model import Model
from tests.specimens import save_llama

VARIANTS = {
    "plain": {},
    "grouped heads": {"num_key_value_heads": 2},
    "biases": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1},
    "tied, wide head": {"tie_word_embeddings": True, "head_dim": 16},
    "scaled rotary": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
}


def load(folder: Path) -> object:
    return AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_logits_equal_transformers_through_any_split_and_roll_back(
    tmp_path: Path, variant: str, own: bool
) -> None:
    save_llama(tmp_path, seed=3, **VARIANTS[variant])
    module = load(tmp_path)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in module.named_parameters():  # type: ignore[attr-defined]
        if name.endswith("bias"):  # made as zeros, which would prove nothing
            parameter.data.normal_(generator=generator)
    ids = torch.randint(64, (2, 40), generator=torch.Generator().manual_seed(0))
    expected = module(ids).logits
    lean = LeanReader(LeanLlama(module, own), capacity=64, batch=2)
    tolerance = 2e-5 * float(expected.abs().max())
    for start, end in ((0, 30), (30, 31), (31, 40), (12, 13), (13, 29), (29, 40)):
        logits = lean.read(ids[:, start:end], start)
        assert float((logits - expected[:, start:end]).abs().max()) < tolerance
    still = float((module(ids).logits - expected).abs().max())
    assert still < tolerance if own else still == 0.0  # shared, still intact


def test_own_weights_are_the_same_in_another_order() -> None:
    wide, tall = torch.randn(64, 16), torch.randn(16, 64)
    assert torch.equal(settled(wide), wide) and settled(wide).stride() == (1, 64)
    assert settled(tall).is_contiguous() and settled(wide.bfloat16()).is_contiguous()
    assert settled(torch.randn(1024, 512)).is_contiguous()


@torch.inference_mode()
def test_both_readers_honour_positions_and_mask(tmp_path: Path) -> None:
    save_llama(tmp_path, seed=4)
    module = load(tmp_path)
    ids = torch.randint(64, (1, 12), generator=torch.Generator().manual_seed(1))
    branch = torch.tensor([[5, 9]])
    # Two branches: token 5 behind the first 4 tokens, token 9 behind the first 10.
    prefix = torch.tensor([4, 10])
    shared = torch.arange(12)[None] < prefix[:, None]
    mask = torch.cat([shared, torch.eye(2, dtype=torch.bool)], dim=1)[None, None]
    alone = [
        module(torch.cat([ids[:, :p], branch[:, k : k + 1]], dim=1)).logits[0, -1]
        for k, p in enumerate(prefix.tolist())
    ]
    for reader in (
        LeanReader(LeanLlama(load(tmp_path)), capacity=32, batch=1),
        GeneralReader(load(tmp_path), capacity=32),
    ):
        reader.read(ids, 0)
        logits = reader.read(branch, 12, prefix[None], mask)[0]
        for k in range(2):
            assert torch.allclose(logits[k], alone[k], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "silu"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "dynamic",
        ),
    ],
)
def test_other_layouts_are_refused_untouched(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    save_llama(tmp_path, seed=5, **changes)
    module = load(tmp_path)
    ids = torch.arange(9)[None]
    before = module(ids).logits
    with pytest.raises(ValueError, match=message):
        LeanLlama(module)
    assert torch.equal(module(ids).logits, before)


class Quantised(torch.Tensor):
    """Weights that compute for themselves, as torchao's and others' do."""


def _quantise(module: Any) -> None:
    weight = module.weight.data.as_subclass(Quantised)
    module._parameters["weight"] = torch.nn.Parameter(weight, requires_grad=False)


def _patch(module: Any) -> None:
    real = module.forward
    module.forward = lambda *args, **kwargs: real(*args, **kwargs) * 2


def _hook(module: Any) -> None:
    module.register_forward_hook(lambda module, args, out: out * 2)


def _parametrise(module: Any) -> None:
    torch.nn.utils.parametrize.register_parametrization(module, "weight", torch.nn.Identity())


@pytest.mark.parametrize("change", [_quantise, _patch, _hook, _parametrise])
@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.k_proj", "model.layers.0.input_layernorm", "lm_head"]
)
def test_what_was_changed_after_loading_goes_the_general_way(
    tmp_path: Path, change: Callable[[Any], None], name: str
) -> None:
    """A module that is patched, hooked or holds weights of another kind is computed by itself."""
    save_llama(tmp_path, seed=5)
    module: Any = load(tmp_path)
    change(module.get_submodule(name))
    ids = torch.arange(9)[None]
    before = module(ids).logits
    with pytest.raises(ValueError, match=f"{name} is patched or hooked"):
        LeanLlama(module)
    assert torch.equal(module(ids).logits, before)
    assert Model(module, lean=True, own=False).lean is None


def test_another_class_in_the_place_of_a_norm_goes_the_general_way(tmp_path: Path) -> None:
    save_llama(tmp_path, seed=5)
    module: Any = load(tmp_path)
    module.model.norm = torch.nn.LayerNorm(module.config.hidden_size)
    with pytest.raises(ValueError, match="LlamaRMSNorm"):
        LeanLlama(module)
