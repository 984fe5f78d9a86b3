"""A lean forward for the Llama layout: transformers' weights, a fraction of its Python.

Small models spend most of a forward inside Python. This one does the same arithmetic with one fused
projection for q, k and v, one for gate and up, a preallocated cache that rolls back by moving an
index, and nothing else. Two forms share every layer: `forward` reads rows in step, `forward_ragged`
reads rows that stand at different places. Letters: B cache rows, T tokens a row reads now, N = all
tokens read now, S tokens visible to the longest row, E hidden size, H query heads, K key/value
heads, G = H / K, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from real_backend.models.llama_weights import check_covered, lean_layer, scaled, settled

NORMED = -1  # a tap: the hidden state behind the final norm

Attend = Callable[[int, Tensor], Tensor]
"""(layer index, rotated q, k and v [N, H + 2K, D]) -> attended [N, H D]; stores k and v."""


class Layout(NamedTuple):
    """Where the N packed tokens of a ragged read go.

    row, position [N]: cache row and place of each token. rows: the A cache rows that attend, a
    slice where they are neighbours. padded [N]: place of each token in the [A T] grid of rows, None
    where they fill it in order. mask [A, 1, T, S]: added to the attention's scores. last [A]: index
    of each row's last token among the N. rotary [N]: the position that each token is read at, None
    where it is its place.
    """

    row: Tensor
    position: Tensor
    rows: slice | Tensor
    padded: Tensor | None
    mask: Tensor
    last: Tensor
    rotary: Tensor | None = None


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask (True = visible) as what attention adds to its scores.

    The lowest finite number, not minus infinity: a padded row that sees nothing must not give NaN.
    """
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)


class LeanLlama:
    """transformers' LlamaForCausalLM, read once; its weights are shared, not copied.

    own: nobody else will train or save the model, so that its weights may be laid out anew (and
    the head's copied).
    taps: hidden states to keep in every forward, as layer boundaries: k is what layer k reads, the
        number of layers what the final norm reads, NORMED what the head reads.
    states [N, taps E]: those of the last forward.

    Raises ValueError for a configuration outside the layout (other activations, rotary scalings
    that depend on the length read, quantised weights), before anything is touched.
    """

    def __init__(self, model: Any, own: bool = False) -> None:
        check_covered(model)
        config = model.config
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads
        self.head_dim: int = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        self.eps = float(config.rms_norm_eps)
        self.embedding: Tensor = model.model.embed_tokens.weight.data
        self.unembedding: Tensor = model.lm_head.weight.data
        if own:
            self.unembedding = settled(self.unembedding)
        # On a CPU F.rms_norm is ten small kernels; where float32 allows it, four do the same.
        few = self.device.type == "cpu" and self.embedding.dtype == torch.float32
        gain = self.embedding.shape[1] ** 0.5 if few else 1.0
        self._norm = self._norm_in_few if few else self._norm_in_one
        self._least = torch.tensor(self.eps**0.5 * gain)
        self.final_norm = scaled(model.model.norm, gain)
        self.layers = [lean_layer(layer, gain, own) for layer in model.model.layers]
        self._rotary = model.model.rotary_emb
        self._cos = self._sin = torch.empty(0, self.head_dim)
        self.taps: tuple[int, ...] = ()
        self.states = torch.empty(0, 0)

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.embedding.device

    def new_cache(self, capacity: int, batch: int = 1) -> Tensor:
        """An empty cache [layers, 2, B, K, capacity, D], keys then values; extends the rotary
        tables to `capacity` tokens.
        """
        if capacity > self._cos.shape[0]:
            positions = torch.arange(capacity, device=self.device)[None]
            cos, sin = self._rotary(self.embedding[:1][None], positions)
            # x * cos + roll(x) * sin with the sign of the rotation folded into sin.
            sign = torch.ones(self.head_dim, device=self.device, dtype=sin.dtype)
            sign[: self.head_dim // 2] = -1.0
            self._cos, self._sin = cos[0].contiguous(), (sin[0] * sign).contiguous()
        shape = (len(self.layers), 2, batch, self.kv_heads, capacity, self.head_dim)
        return torch.zeros(shape, dtype=self.embedding.dtype, device=self.device)

    def forward(
        self,
        tokens: Tensor,
        cache: Tensor,
        start: int,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        last: int | None = None,
    ) -> Tensor:
        """Logits [B, T, V] behind each of tokens [B, T], which enter the cache at start..start+T-1.

        What the cache held from `start` on is forgotten. positions [B, T]: rotary positions,
        default start..start+T-1. mask [B, 1, T, S] bool, True = visible; default causal. last: only
        the logits behind that many last tokens.
        """
        batch, width = tokens.shape
        end = start + width
        if positions is None:
            cos, sin = self._cos[start:end], self._sin[start:end]
            if batch > 1:
                cos, sin = cos.repeat(batch, 1), sin.repeat(batch, 1)
        else:
            cos, sin = self._cos[positions.reshape(-1)], self._sin[positions.reshape(-1)]
        causal = mask is None and width > 1 and start == 0
        scores: Tensor | None = None
        if mask is not None:
            scores = self._fold_mask(additive(mask, cache.dtype))
        elif width > 1 and start > 0:
            lowest = torch.finfo(cache.dtype).min
            scores = torch.full((width, end), lowest, dtype=cache.dtype, device=tokens.device)
            scores = self._fold_mask(scores.triu_(start + 1)[None, None])
        visible = cache[..., :end, :].unbind(0)
        fresh = cache[..., start:end, :].unbind(0)
        heads = self.heads

        def attend(index: int, qkv: Tensor) -> Tensor:
            kv = qkv[:, heads:].view(batch, width, 2, self.kv_heads, self.head_dim)
            fresh[index].copy_(kv.permute(2, 0, 3, 1, 4))
            q = qkv[:, :heads].view(batch, width, heads, self.head_dim).transpose(1, 2)
            attended = self._attend(q, visible[index], scores, causal)
            return attended.transpose(1, 2).reshape(batch * width, -1)

        x = self._layers(tokens.reshape(-1), cos, sin, attend).view(batch, width, -1)
        return F.linear(x if last is None else x[:, -last:], self.unembedding)

    def forward_ragged(
        self, tokens: Tensor, cache: Tensor, layout: Layout, *, last: bool = False
    ) -> Tensor:
        """Logits [N, V] behind each of tokens [N], or [A, V] behind the last token of each row.

        What a row of the cache held from its first new position on is forgotten.
        """
        attending, _, width, span = layout.mask.shape
        scores, heads, padded = self._fold_mask(layout.mask), self.heads, layout.padded

        def attend(index: int, qkv: Tensor) -> Tensor:
            kv = qkv[:, heads:].view(-1, 2, self.kv_heads, self.head_dim)
            cache[index][:, layout.row, :, layout.position] = kv
            q = qkv[:, :heads]
            if padded is not None:
                grid = q.new_zeros(attending * width, heads, self.head_dim)
                q = grid.index_copy_(0, padded, q)
            q = q.view(attending, width, heads, self.head_dim).transpose(1, 2)
            seen = cache[index][:, layout.rows, :, :span]
            attended = self._attend(q, seen, scores, False).transpose(1, 2)
            attended = attended.reshape(attending * width, -1)
            return attended if padded is None else attended[padded]

        read_at = layout.position if layout.rotary is None else layout.rotary
        cos, sin = self._cos[read_at], self._sin[read_at]
        x = self._layers(tokens, cos, sin, attend)
        return F.linear(x[layout.last] if last else x, self.unembedding)

    def _layers(self, tokens: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """Hidden states [N, E] behind the final norm; cos, sin [N, D]."""
        cos, sin = cos[:, None], sin[:, None]
        x = F.embedding(tokens, self.embedding)
        kept: dict[int, Tensor] = {}
        for index, layer in enumerate(self.layers):
            if index in self.taps:
                kept[index] = x.clone()
            self._layer(index, x, self._norm(x, layer.input_norm), cos, sin, attend)
        normed = self._norm(x, self.final_norm)
        if self.taps:
            kept |= {len(self.layers): x, NORMED: normed}
            self.states = torch.cat([kept[tap] for tap in self.taps], -1)
        return normed

    def _layer(
        self, index: int, x: Tensor, h: Tensor, cos: Tensor, sin: Tensor, attend: Attend
    ) -> None:
        """One layer, which reads h [N, E] and adds to x [N, E]; cos, sin [N, 1, D]."""
        layer, half, rotated = self.layers[index], self.head_dim // 2, self.heads + self.kv_heads
        qkv = F.linear(h, layer.qkv, layer.qkv_bias)
        qkv = qkv.view(-1, rotated + self.kv_heads, self.head_dim)
        qk = qkv[:, :rotated]
        torch.addcmul(qk * cos, qk.roll(half, -1), sin, out=qk)  # rotary on q and k at once
        x += F.linear(attend(index, qkv), layer.out, layer.out_bias)
        h = self._norm(x, layer.post_norm)
        gate, up = F.linear(h, layer.gate_up, layer.gate_up_bias).chunk(2, -1)
        x += F.linear(F.silu(gate).mul_(up), layer.down, layer.down_bias)

    def _attend(self, q: Tensor, kv: Tensor, scores: Tensor | None, causal: bool) -> Tensor:
        """[A, H, T, D] from q [A, H, T, D] and kv [2, A, K, S, D]; scores as _fold_mask left it.

        Without causality inside the kernel, the G query heads of one key head are read as G times
        as many tokens, so that no kernel needs to know of groups or copies keys.
        """
        keys, values = kv.unbind(0)
        if self.heads == self.kv_heads or causal:
            grouped = self.heads != self.kv_heads
            return F.scaled_dot_product_attention(
                q, keys, values, attn_mask=scores, is_causal=causal, enable_gqa=grouped
            )
        attending, _, width, _ = q.shape
        folded = q.reshape(attending, self.kv_heads, -1, self.head_dim)
        attended = F.scaled_dot_product_attention(folded, keys, values, attn_mask=scores)
        return attended.reshape(attending, self.heads, width, self.head_dim)

    def _fold_mask(self, mask: Tensor) -> Tensor:
        """mask [A, 1, T, S] as grouped attention reads it: once per head of a group."""
        groups = self.heads // self.kv_heads
        return mask if groups == 1 else mask.repeat(1, 1, groups, 1)

    def _norm_in_one(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.eps)

    def _norm_in_few(self, x: Tensor, weight: Tensor) -> Tensor:
        """x w / sqrt(mean(x^2) + eps) as x / hypot(|x|, sqrt(E eps)) times sqrt(E) w."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x / torch.hypot(length, self._least)).mul_(weight)
