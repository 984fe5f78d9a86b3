"""An EAGLE-3 head's files: config.json and safetensors, in the layout of SafeAILab and SGLang or in
that of vLLM and the speculators library, checked against each other and the target.

Source: sgl-project/sglang, pull request 25454 (the two ways to count layers); vllm-project/vllm,
transformers_utils/configs/speculators/algos.py (the fields of the speculators library).
Letters: D draft vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig

from real_backend.drafters.eagle3 import (
    GATES,
    PROJECTIONS,
    Eagle3Drafter,
    Eagle3Head,
    HeadModule,
)
from real_backend.models.finite import Watch
from real_backend.models.llama_weights import ROTARY_TYPES
from real_backend.models.model import Model
from traces.errors import InputError

EAGLE3_ARCHITECTURES = {
    "LlamaForCausalLMEagle3",
    "Eagle3LlamaForCausalLM",
    "Eagle3Speculator",
    "eagle3",
}


def load_eagle3(folder: Path, target: Model) -> Eagle3Drafter:
    """The head of a folder with config.json and model.safetensors, in the public layout or that of
    the speculators library. What the files lack, the embedding and rows of the head's output, is
    the target's.

    Raises InputError naming file and field where it does not fit.
    """
    raw = _config(folder)
    weights = _weights(folder)
    module = target.module
    device, dtype = module.device, module.dtype
    embedding = module.get_input_embeddings().weight.data
    output = module.get_output_embeddings().weight.data
    raw["vocab_size"] = vocab = _whole(raw, "vocab_size", folder, embedding.shape[0])
    known = _whole(raw, "draft_vocab_size", folder, vocab)
    if not 1 <= known <= vocab:
        raise InputError(
            f"{folder / 'config.json'}: draft_vocab_size is {known}, must lie between 1 and the "
            f"vocab_size, {vocab}"
        )
    places = _places(folder, weights.pop("d2t", None), weights.pop("t2d", None), known, vocab)
    if "lm_head" not in weights and vocab <= len(output):
        weights["lm_head"] = output[:vocab] if places is None else output[places.to(output.device)]
    weights.setdefault("embed_tokens", embedding)
    taps = _taps(raw, int(module.config.num_hidden_layers), folder)
    config = _layers_config(raw, folder)
    _check(folder, config, weights, known, len(taps) * embedding.shape[1])
    if raw.get("norm_before_fc") and "input_norm" not in weights:
        raise InputError(f"{folder}: norm_before_fc is set, but there is no input_norm.weight")
    weights = {name: weight.to(device, dtype) for name, weight in weights.items()}
    target.tap(taps, str(folder))
    if places is not None:
        weights["places"] = places.to(device)
    holder = HeadModule(config, weights)
    head = Eagle3Head(config, raw, weights)
    longest = int(config.max_position_embeddings or 0)
    return Eagle3Drafter(head, holder, folder.name, longest, Watch(str(device)))


def _config(folder: Path) -> dict[str, Any]:
    """config.json with the fields of the layer at the top, as SafeAILab writes it."""
    path = folder / "config.json"
    try:
        raw: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})") from None
    if raw.get("speculators_model_type") is not None:
        raw.setdefault("norm_before_residual", True)
    parts = raw.get("transformer_layer_config") or {}, raw, raw.get("eagle_config") or {}
    if not all(isinstance(part, dict) for part in parts):
        raise InputError(f"{path}: transformer_layer_config and eagle_config must be objects")
    return {name: value for part in parts for name, value in part.items()}


def _whole(raw: Mapping[str, Any], field: str, folder: Path, default: int | None = None) -> int:
    """A field that is a whole number from 0 on; null or missing: the default."""
    value = default if raw.get(field) is None else raw[field]
    if type(value) is not int or value < 0:
        told = "is missing" if value is None else f"is {value!r}, must be a whole number"
        raise InputError(f"{folder / 'config.json'}: field {field} {told}")
    return value


def _places(
    folder: Path, offsets: Tensor | None, mask: Tensor | None, known: int, vocab: int
) -> Tensor | None:
    """[D] the target's token for every one of the draft vocabulary; None: they are the same."""
    if offsets is None:
        if known < vocab:
            raise InputError(f"{folder}: draft_vocab_size is {known}, but there is no d2t")
        return None
    if tuple(offsets.shape) != (known,):
        shape = list(offsets.shape)
        raise InputError(f"{folder}: d2t is {shape}, draft_vocab_size in config.json is {known}")
    places = torch.arange(known) + offsets.long()
    named = places.sort().values
    twice = bool((named.diff() == 0).any())
    if twice or int(named[0]) < 0 or int(named[-1]) >= vocab:
        raise InputError(f"{folder}: d2t must name {known} different tokens below {vocab}")
    if mask is not None and not torch.equal(mask.flatten().nonzero()[:, 0], named):
        raise InputError(f"{folder}: t2d and d2t name different tokens")
    return None if known == vocab and torch.equal(places, named) else places


def _weights(folder: Path) -> dict[str, Tensor]:
    """Tensors by their short names: no `model.`, no `.weight`, and layers.0 for midlayer."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder} holds no .safetensors file; other formats may run code")
    found: dict[str, Tensor] = {}
    for path in files:
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} cannot be read ({error}); truncated?") from None
        for name, tensor in tensors.items():
            short = name.removeprefix("model.").removesuffix(".weight")
            short = short.replace("midlayer.", "layers.0.")
            found[short] = tensor
    return found


def default_taps(layers: int) -> tuple[int, int, int]:
    """Boundaries that a head reads where its file names none: low, middle and high."""
    return 2, layers // 2, layers - 3


def _taps(raw: Mapping[str, Any], layers: int, folder: Path) -> tuple[int, ...]:
    """Boundaries of the target's layers whose states the head reads. A file whose first layer is 1
    counts outputs, not inputs: the embedding is never read.
    """
    field = "eagle_aux_hidden_state_layer_ids"
    ids = raw.get(field) or list(default_taps(layers))
    if not isinstance(ids, list) or not all(type(k) is int and k >= 0 for k in ids):
        raise InputError(
            f"{folder / 'config.json'}: field {field} is {ids!r}, must hold layers of a target "
            f"that has {layers}"
        )
    return tuple(k + (ids[0] == 1) for k in ids)


def _layers_config(raw: Mapping[str, Any], folder: Path) -> LlamaConfig:
    path = folder / "config.json"
    for field in ("hidden_size", "intermediate_size", "num_attention_heads"):
        _whole(raw, field, folder)
    known = {*LlamaConfig().to_dict(), "rope_theta", "rope_scaling"}
    known -= {"architectures", "model_type", "transformers_version"}
    kept = {name: value for name, value in raw.items() if name in known}
    try:
        config = LlamaConfig(**kept)
    except Exception as error:  # whatever its fields raise
        raise InputError(f"{path}: {' '.join(str(error).split())[:160]}") from None
    config.num_hidden_layers = max(1, _whole(raw, "num_hidden_layers", folder, 1))
    rotary = config.rope_parameters["rope_type"]
    if config.hidden_act != "silu" or rotary not in ROTARY_TYPES:
        raise InputError(f"{path}: {config.hidden_act} or {rotary} rotary is not supported yet")
    if "sliding_attention" in (raw.get("layer_types") or ()):
        raise InputError(f"{path}: layers with a sliding window cannot be rolled back yet")
    return config


def _check(
    folder: Path, config: LlamaConfig, weights: Mapping[str, Tensor], known: int, read: int
) -> None:
    """Raise InputError naming the first tensor that is missing, unknown or of another shape."""
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    wide, narrow = heads * size, config.num_key_value_heads * size
    shapes: dict[str, tuple[int, ...]] = {
        "fc": (hidden, read),
        "norm": (hidden,),
        "lm_head": (known, hidden),
        "embed_tokens": (max(len(weights["embed_tokens"]), config.vocab_size), hidden),
        "layers.0.hidden_norm": (hidden,),
    }
    for k in range(config.num_hidden_layers):
        asked = hidden if k else 2 * hidden
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "self_attn.q_proj": (wide, asked),
            "self_attn.k_proj": (narrow, asked),
            "self_attn.v_proj": (narrow, asked),
            "self_attn.o_proj": (hidden, wide),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        shapes |= {f"layers.{k}.{name}": shape for name, shape in layer.items()}
    biases = {
        f"{name}.bias": shape[:1]
        for name, shape in shapes.items()
        if name == "fc" or name.endswith("_proj")
    }
    needed = shapes.copy()
    for names in (PROJECTIONS, GATES):  # fused: all of them have one or none
        for k in range(config.num_hidden_layers):
            group = [f"layers.{k}.{name}.bias" for name in names]
            if any(name in weights for name in group):
                needed |= {name: biases[name] for name in group}
    for name in needed:
        if name not in weights:
            told = name if name.endswith(".bias") else f"{name}.weight"
            raise InputError(f"{folder}: no tensor {told}; is this an EAGLE-3 head?")
    allowed = shapes | biases | {"input_norm": (read,)}
    for name, weight in weights.items():
        if name not in allowed:
            raise InputError(f"{folder}: tensor {name} is not known here; not supported yet")
        if tuple(weight.shape) != allowed[name]:
            raise InputError(
                f"{folder}: {name} is {list(weight.shape)}, must be {list(allowed[name])} for "
                "this config.json and target"
            )
