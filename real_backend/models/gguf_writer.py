"""An independent draft as a GGUF file, for engines that read no other.

The tokenizer's keys are copied from the target's file, so that both name the same tokens. Keys and
tensors are those of ggml-org/llama.cpp (docs of the format in ggml-org/ggml, docs/gguf.md); query
and key rows are laid out as its rotary embedding pairs them, neighbours instead of halves
(convert_hf_to_gguf.py, LlamaModel.permute).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from real_backend.command_line import Result
from real_backend.models.checkpoint import load_model
from real_backend.models.gguf import package, smollm2_file
from real_backend.options import ExportDraftOptions
from traces.errors import InputError
from traces.store import refuse_existing, write_atomically

_TOKENIZER = "tokenizer."
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def run(options: ExportDraftOptions) -> Result:
    """`gammalab export-draft`: refuses another layout than a Llama's, and an existing file."""
    refuse_existing(options.out, options.force)
    model = load_model(str(options.draft), "cpu", "float32")
    if type(model).__name__ != "LlamaForCausalLM":
        raise InputError(f"{options.draft}: a {type(model).__name__}; only a Llama is written")
    write_gguf(model, options.target or smollm2_file(), options.out, overwrite=options.force)
    return Result(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")


def paired(rows: Tensor, heads: int) -> Tensor:
    """Rows [heads D, E] of a projection, whose rotary embedding turns d with d + D / 2, in the
    order in which it turns 2 d with 2 d + 1.
    """
    halves = rows.reshape(heads, 2, -1, rows.shape[1])
    return halves.transpose(1, 2).reshape(rows.shape)


def name_of(parameter: str) -> str:
    """GGUF's name of a parameter of transformers' Llama; raises InputError if it has none."""
    short = parameter.removesuffix(".weight")
    if short in _OUTSIDE:
        return f"{_OUTSIDE[short]}.weight"
    layer, _, part = short.removeprefix("model.layers.").partition(".")
    if not layer.isdigit() or part not in _LAYER:
        raise InputError(f"the draft has {parameter}, which a Llama's GGUF file does not")
    return f"blk.{layer}.{_LAYER[part]}.weight"


def write_gguf(model: Any, target: Path, path: Path, *, overwrite: bool = False) -> None:
    """A transformers LlamaForCausalLM in float16, norms in float32, with the tokenizer of the
    target's GGUF file.

    Raises InputError if the target's file is none or has other tokens, or `path` exists.
    """
    gguf = package("gguf")
    config = model.config
    try:
        reader = gguf.GGUFReader(str(target))
    except (OSError, ValueError) as error:
        raise InputError(f"{target}: no GGUF file ({error})") from None
    tokens = reader.fields.get(f"{_TOKENIZER}ggml.tokens")
    if tokens is None or len(tokens.data) != config.vocab_size:
        known = 0 if tokens is None else len(tokens.data)
        raise InputError(f"{target} names {known} tokens, the draft knows {config.vocab_size}")
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def fill(to: Path) -> None:
        writer = gguf.GGUFWriter(to, "llama")
        writer.add_name("draft")
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(size)
        writer.add_value_length(size)
        writer.add_rope_dimension_count(size)
        writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
        writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
        writer.add_vocab_size(config.vocab_size)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
        for name, field in reader.fields.items():
            if name.startswith(_TOKENIZER):
                kinds = field.types
                writer.add_key_value(
                    name, field.contents(), kinds[0], kinds[1] if len(kinds) > 1 else None
                )
        heads = {
            "q_proj.weight": config.num_attention_heads,
            "k_proj.weight": config.num_key_value_heads,
        }
        for name, weight in model.named_parameters():  # tied ones once
            kept = weight.detach()
            for part, count in heads.items():
                if name.endswith(part):
                    kept = paired(kept, count)
            kind = torch.float32 if kept.dim() == 1 else torch.float16
            writer.add_tensor(name_of(name), kept.to(kind).contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write_atomically(path, fill, overwrite)
