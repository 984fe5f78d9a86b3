"""A lean forward for the Llama layout: transformers' weights, a fraction of its Python.

Small models spend most of a forward inside Python. This one does the same arithmetic with one fused
projection for q, k and v, one for gate and up, a preallocated cache that rolls back by moving an
index, and nothing else. Letters: B batch, T tokens read now, S = start + T tokens visible, H query
heads, K key/value heads, D head size, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LEAN_ARCHITECTURES = ("LlamaForCausalLM",)
ROTARY_TYPES = ("default", "linear", "llama3", "yarn")  # one table for every length


class LeanCache(NamedTuple):
    """Keys and values of all layers: [layers, B, K, capacity, D] each."""

    keys: Tensor
    values: Tensor


class LeanLayer(NamedTuple):
    """Weights of one layer; qkv [(H + 2K) D, E] and gate_up [2 F, E] are fused, E = hidden size."""

    input_norm: Tensor
    qkv: Tensor
    out: Tensor
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor


def _fuse(modules: list[Any]) -> Tensor:
    """One tensor with the rows of several linear layers, which keep seeing it as their weight."""
    fused = torch.cat([m.weight.data for m in modules]).contiguous()
    row = 0
    for module in modules:
        rows = module.weight.shape[0]
        module.weight.data = fused[row : row + rows]
        row += rows
    return fused


def _projections(layer: Any) -> list[Any]:
    """The linear layers of one transformers layer."""
    attention, mlp = layer.self_attn, layer.mlp
    projections = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    return [*projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


class LeanLlama:
    """transformers' LlamaForCausalLM, read once; its weights are shared, not copied.

    Raises ValueError for a configuration outside the layout (biases, other activations, rotary
    scalings that depend on the length read, quantised weights), before anything is touched.
    """

    def __init__(self, model: Any) -> None:
        config = model.config
        scaling = getattr(config, "rope_parameters", None) or {}
        if scaling.get("rope_type", "default") not in ROTARY_TYPES:
            raise ValueError(f"the lean forward takes no {scaling.get('rope_type')} rotary scaling")
        projections = [m for layer in model.model.layers for m in _projections(layer)]
        if any(type(m) is not torch.nn.Linear for m in projections) or not all(
            m.weight.dtype.is_floating_point for m in projections
        ):
            raise ValueError("the lean forward takes plain weights, no quantised ones")
        if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
            raise ValueError("the lean forward takes Llama layers without biases")
        if config.hidden_act not in ("silu", "swish"):
            raise ValueError(f"the lean forward takes silu, not {config.hidden_act}")
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps = float(config.rms_norm_eps)
        self.embedding: Tensor = model.model.embed_tokens.weight.data
        self.final_norm: Tensor = model.model.norm.weight.data
        self.unembedding: Tensor = model.lm_head.weight.data
        self.layers = [
            LeanLayer(
                layer.input_layernorm.weight.data,
                _fuse([layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]),
                layer.self_attn.o_proj.weight.data,
                layer.post_attention_layernorm.weight.data,
                _fuse([layer.mlp.gate_proj, layer.mlp.up_proj]),
                layer.mlp.down_proj.weight.data,
            )
            for layer in model.model.layers
        ]
        self._rotary = model.model.rotary_emb
        self._cos = self._sin = torch.empty(0, self.head_dim)

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.embedding.device

    def new_cache(self, capacity: int, batch: int = 1) -> LeanCache:
        """An empty cache for `capacity` tokens of `batch` rows; extends the rotary tables to it."""
        if capacity > self._cos.shape[0]:
            positions = torch.arange(capacity, device=self.device)[None]
            cos, sin = self._rotary(self.embedding[:1][None], positions)
            half = self.head_dim // 2
            # x * cos + roll(x) * sin with the sign of the rotation folded into sin.
            sign = torch.ones(self.head_dim, device=self.device, dtype=sin.dtype)
            sign[:half] = -1.0
            self._cos, self._sin = cos[0].contiguous(), (sin[0] * sign).contiguous()
        shape = (len(self.layers), batch, self.kv_heads, capacity, self.head_dim)
        empty = torch.zeros(shape, dtype=self.embedding.dtype, device=self.device)
        return LeanCache(empty, torch.zeros_like(empty))

    def forward(
        self,
        tokens: Tensor,
        cache: LeanCache,
        start: int,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V] behind each of tokens [B, T], which enter the cache at start..start+T-1.

        What the cache held from `start` on is forgotten. positions [B, T]: rotary positions,
        default start..start+T-1. mask [B, 1, T, S] bool, True = visible; default causal.
        """
        batch, width = tokens.shape
        end = start + width
        if positions is None:
            cos, sin = self._cos[start:end, None], self._sin[start:end, None]  # (T, 1, D)
        else:
            cos, sin = self._cos[positions][:, :, None], self._sin[positions][:, :, None]
        causal = mask is None and width > 1
        if causal and start > 0:
            visible = torch.ones(width, end, dtype=torch.bool, device=tokens.device)
            mask, causal = visible.tril_(start), False
        heads, kv_heads, half = self.heads, self.kv_heads, self.head_dim // 2
        rotated = heads + kv_heads
        grouped = heads != kv_heads
        x = F.embedding(tokens, self.embedding)  # (B, T, E)
        shape = (x.shape[-1],)
        for index, layer in enumerate(self.layers):
            h = F.rms_norm(x, shape, layer.input_norm, self.eps)
            qkv = F.linear(h, layer.qkv).view(batch, width, rotated + kv_heads, -1)
            qk = qkv[:, :, :rotated]
            qk = torch.addcmul(qk * cos, qk.roll(half, -1), sin)  # rotary on q and k at once
            keys, values = cache.keys[index], cache.values[index]
            keys[:, :, start:end] = qk[:, :, heads:].transpose(1, 2)
            values[:, :, start:end] = qkv[:, :, rotated:].transpose(1, 2)
            attended = F.scaled_dot_product_attention(
                qk[:, :, :heads].transpose(1, 2),  # (B, H, T, D)
                keys[:, :, :end],
                values[:, :, :end],
                attn_mask=mask,
                is_causal=causal,
                enable_gqa=grouped,
            )
            x = x + F.linear(attended.transpose(1, 2).reshape(batch, width, -1), layer.out)
            h = F.rms_norm(x, shape, layer.post_norm, self.eps)
            gate, up = F.linear(h, layer.gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, layer.down)
        return F.linear(F.rms_norm(x, shape, self.final_norm, self.eps), self.unembedding)
