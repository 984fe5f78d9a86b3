"""Weights of transformers' Llama layouts, fused and laid out for the lean forward (llama.py), and
which models it takes. Letters as there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

LEAN_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
ROTARY_TYPES = ("default", "linear", "llama3", "yarn")  # one table for every length


class LeanLayer(NamedTuple):
    """Weights of one layer; qkv [(H + 2K) D, E] and gate_up [2 F, E] are fused, F = inner size."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    post_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


def settled(weight: Tensor) -> Tensor:
    """The same [R, C] weights in the memory order that is fastest to read a few tokens through.

    On a CPU in float32 a matrix with many more rows than columns is read up to 2.5 times faster
    column by column; square, tall and large ones are not, or only for single tokens.
    """
    rows, columns = weight.shape
    plain = weight.device.type != "cpu" or weight.dtype != torch.float32
    if plain or rows < 2 * columns or columns >= 512:
        return weight.contiguous()
    return weight.t().contiguous().t()


def _fuse(tensors: list[Any], name: str, own: bool) -> Tensor | None:
    """One tensor with the rows of several layers' parameters, which go on as views of it.

    own: it may lie in another order in memory.
    """
    if getattr(tensors[0], name, None) is None:
        return None
    parameters = [getattr(module, name) for module in tensors]
    fused = torch.cat([p.data for p in parameters])
    fused = settled(fused) if own and fused.ndim == 2 else fused
    row = 0
    for parameter in parameters:
        rows = parameter.shape[0]
        parameter.data = fused[row : row + rows]
        row += rows
    return fused


def scaled(norm: Any, gain: float) -> Tensor:
    """A norm's weights times `gain`."""
    weight: Tensor = norm.weight.data
    return weight if gain == 1.0 else weight * gain


def lean_layer(layer: Any, gain: float, own: bool) -> LeanLayer:
    """One layer's weights; the norms' are scaled by `gain`. own: see LeanLlama."""
    attention, mlp = layer.self_attn, layer.mlp
    qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
    gate_up = [mlp.gate_proj, mlp.up_proj]
    fused_qkv, fused_gate_up = _fuse(qkv, "weight", own), _fuse(gate_up, "weight", own)
    assert fused_qkv is not None and fused_gate_up is not None
    return LeanLayer(
        scaled(layer.input_layernorm, gain),
        fused_qkv,
        _fuse(qkv, "bias", own),
        attention.o_proj.weight.data,
        getattr(attention.o_proj, "bias", None),
        scaled(layer.post_attention_layernorm, gain),
        fused_gate_up,
        _fuse(gate_up, "bias", own),
        mlp.down_proj.weight.data,
        getattr(mlp.down_proj, "bias", None),
    )


def _plain(module: Any) -> bool:
    """As its class made it: no hook, no forward of its own, parameters that are plain tensors."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    weights = [weight for weight in module._parameters.values() if weight is not None]
    return (
        not any(hooks)
        and "forward" not in vars(module)
        and not torch.nn.utils.parametrize.is_parametrized(module)
        and all(type(weight) is torch.nn.Parameter for weight in weights)
    )


def check_covered(model: Any) -> None:
    """Raise ValueError for what LeanLlama does not cover, before anything is touched."""
    config = model.config
    scaling = getattr(config, "rope_parameters", None) or {}
    if scaling.get("rope_type", "default") not in ROTARY_TYPES:
        raise ValueError(f"the lean forward takes no {scaling.get('rope_type')} rotary scaling")
    for name, module in model.named_modules():
        if module is not model and not _plain(module):
            raise ValueError(f"the lean forward takes plain modules: {name} is patched or hooked")
    family = type(model).__name__.removesuffix("ForCausalLM")
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        linear = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        for module in (*linear, mlp.gate_proj, mlp.up_proj, mlp.down_proj):
            if type(module) is not torch.nn.Linear or not module.weight.dtype.is_floating_point:
                raise ValueError("the lean forward takes plain weights, no quantised ones")
        norms = (layer.input_layernorm, layer.post_attention_layernorm, model.model.norm)
        kinds = {"DecoderLayer": [layer], "Attention": [attention], "MLP": [mlp], "RMSNorm": norms}
        for kind, modules in kinds.items():
            if any(type(module).__name__ != family + kind for module in modules):
                raise ValueError(f"the lean forward takes {family}{kind}, nothing in its place")
    if config.hidden_act not in ("silu", "swish"):
        raise ValueError(f"the lean forward takes silu, not {config.hidden_act}")
