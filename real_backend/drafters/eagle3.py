"""An EAGLE-3 head: a layer over three hidden states of the target, one forward per token.

The public layout. `fc` [E, 3 T] makes a feature of the target's states; one Llama layer
(`midlayer`, or `layers.0` as vLLM and the speculators library name it) reads
[input_layernorm(embedding), hidden_norm(feature)] in its attention and adds to the feature, or
where `norm_before_residual` says so to the normed one; `norm` and `lm_head` give logits over a
draft vocabulary, whose token d is the target's d + d2t[d]. Behind a drafted token the feature is
the head's own state before `norm`, or where `norm_output` says so behind it.

A token stands in the head's cache where the one before it stands in the target's: it is read with
the target's states of its predecessor.

Source: Li et al., EAGLE-3, arXiv 2503.01840, Section 3.1; SafeAILab/EAGLE, model/cnets.py;
vllm-project/vllm, model_executor/models/llama_eagle3.py.
Letters: N tokens, E hidden size of the head, T of the target, V vocabulary, D draft vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from real_backend.drafters.drafter import MOST, Level, Span
from real_backend.models.cache_rows import LeanRows
from real_backend.models.finite import Watch
from real_backend.models.llama import Attend, LeanLlama
from real_backend.models.llama_weights import LeanLayer, settled

PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATES = ("mlp.gate_proj", "mlp.up_proj")
_UNSEEN = float("-inf")


class HeadModule(torch.nn.Module):
    """The weights of a head under their names, and its draft vocabulary: what is hashed and looked
    through for NaN. config: of its layers.
    """

    def __init__(self, config: LlamaConfig, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config = config
        for name, weight in weights.items():
            parameter = torch.nn.Parameter(weight, requires_grad=False)
            self.register_parameter(name.replace(".", "/"), parameter)


class Eagle3Head(LeanLlama):
    """The forward of a head: a lean Llama that reads `feature` [N, E] beside its tokens.

    fuse makes features of the target's states. Its logits are those of the draft vocabulary;
    `spread` puts them where the target's tokens stand.
    """

    def __init__(
        self, config: LlamaConfig, raw: Mapping[str, Any], weights: Mapping[str, Tensor]
    ) -> None:
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps = float(config.rms_norm_eps)
        self._norm = self._norm_in_one
        self._least = torch.tensor(0.0)  # of the other norm
        self.embedding, self.unembedding = weights["embed_tokens"], settled(weights["lm_head"])
        self.final_norm, self._hidden_norm = weights["norm"], weights["layers.0.hidden_norm"]
        self.layers = [_layer(weights, k) for k in range(config.num_hidden_layers)]
        self._rotary = LlamaRotaryEmbedding(config).to(self.device)
        self._cos = self._sin = torch.empty(0, self.head_dim)
        self.taps, self.states = (config.num_hidden_layers,), torch.empty(0, 0)
        self._fc, self._fc_bias = weights["fc"], weights.get("fc.bias")
        self._fc_norm = weights.get("input_norm")
        self._normed_residual = bool(raw.get("norm_before_residual", False))
        self._normed_states = bool(raw.get("norm_output", False))
        self._places = weights.get("places")  # [D] int64, of the draft vocabulary in the target's
        self.vocab_size = int(raw["vocab_size"])
        self.feature = torch.empty(0, 0)

    def fuse(self, states: Tensor) -> Tensor:
        """Features [N, E] of the target's states [N, 3 T]."""
        if self._fc_norm is not None:
            states = F.rms_norm(states, (states.shape[-1],), self._fc_norm, self.eps)
        return F.linear(states, self._fc, self._fc_bias)

    def spread(self, logits: Tensor) -> Tensor:
        """Logits [..., V] of logits [..., D]; what cannot be proposed has minus infinity."""
        if self._places is None:
            return logits
        wide = logits.new_full((*logits.shape[:-1], self.vocab_size), _UNSEEN)
        return wide.index_copy_(-1, self._places, logits)

    def _layers(self, tokens: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """Hidden states [N, E] behind the final norm; `states` are those that a draft goes on
        from.
        """
        cos, sin = cos[:, None], sin[:, None]
        normed = self._norm(self.feature, self._hidden_norm)
        embedded = self._norm(F.embedding(tokens, self.embedding), self.layers[0].input_norm)
        x = normed.clone() if self._normed_residual else self.feature.clone()
        self._layer(0, x, torch.cat([embedded, normed], -1), cos, sin, attend)
        for index in range(1, len(self.layers)):
            self._layer(index, x, self._norm(x, self.layers[index].input_norm), cos, sin, attend)
        normed = self._norm(x, self.final_norm)
        self.states = normed if self._normed_states else x
        return normed


def _layer(weights: Mapping[str, Tensor], index: int) -> LeanLayer:
    def of(name: str) -> Tensor:
        return weights[f"layers.{index}.{name}"]

    def fused(names: Sequence[str], what: str) -> Tensor | None:
        found = [weights.get(f"layers.{index}.{name}{what}") for name in names]
        kept = [tensor for tensor in found if tensor is not None]
        return torch.cat(kept) if kept else None

    qkv, gate_up = fused(PROJECTIONS, ""), fused(GATES, "")
    assert qkv is not None and gate_up is not None
    return LeanLayer(
        of("input_layernorm"),
        qkv,
        fused(PROJECTIONS, ".bias"),
        of("self_attn.o_proj"),
        fused(("self_attn.o_proj",), ".bias"),
        of("post_attention_layernorm"),
        gate_up,
        fused(GATES, ".bias"),
        of("mlp.down_proj"),
        fused(("mlp.down_proj",), ".bias"),
    )


@dataclasses.dataclass(frozen=True)
class Eagle3Drafter:
    """A head and the weights that it was made of."""

    head: Eagle3Head
    module: HeadModule
    name: str
    max_context: int
    watch: Watch

    kind = "eagle3"
    most = MOST

    @property
    def vocab_size(self) -> int:
        """Tokens of the target that the head knows of."""
        return self.head.vocab_size

    @property
    def modules(self) -> tuple[Any, ...]:
        """The head."""
        return (self.module,)

    def rows(self, batch: int, capacity: int) -> Eagle3Rows:
        """Empty caches."""
        return Eagle3Rows(self.head, batch, capacity)


class Eagle3Rows:
    """The head's caches, and the features of what the target has read, by row and place."""

    def __init__(self, head: Eagle3Head, batch: int, capacity: int) -> None:
        self.head, self.cache = head, LeanRows(head, batch, capacity)
        self._features = head.embedding.new_zeros(batch, capacity, head.embedding.shape[1])
        self._own: dict[int, Tensor] = {}  # row -> the head's states behind its newest tokens

    def holds(self, context: int) -> bool:
        """Always: neither what a cache holds nor a feature changes what a read costs."""
        return True

    def prefill(self, row: int, start: int, tokens: Tensor, states: Tensor) -> None:
        """Every token but the first is read with the feature of the one before it."""
        self.verified(row, start, states)
        if len(tokens) > 1:
            self.head.feature = self._features[row, start : start + len(tokens) - 1]
            self.cache.read([(row, start, len(tokens) - 1)], tokens[1:], last=True)

    def first(self, spans: Sequence[Span], tokens: Tensor) -> Tensor:
        """Logits [A, V] behind the tokens that the head lacked."""
        before = [self._features[row, at - 1 : at - 1 + width] for row, at, width in spans]
        self.head.feature = torch.cat(before)
        return self._read(spans, tokens)

    def further(self, spans: Sequence[Span], tokens: Tensor, level: Level | None = None) -> Tensor:
        """Logits behind the newest drafted tokens, each read with the state behind its parent."""
        own = [self._own[row] for row, _, _ in spans]
        if level is None:
            self.head.feature = torch.cat(own)
            return self._read(spans, tokens)
        parents = [torch.from_numpy(places).to(tokens.device) for places in level.parents]
        self.head.feature = torch.cat([s[p] for s, p in zip(own, parents, strict=True)])
        places = [(row, start - 1, width) for row, start, width in spans]
        branches = [tree._replace(positions=tree.positions - 1) for tree in level.branches]
        logits = self.cache.read(places, tokens, last=False, branches=branches)
        states = torch.split(self.head.states, [width for _, _, width in spans])
        self._own = {row: state for (row, _, _), state in zip(spans, states, strict=True)}
        return self.head.spread(logits)

    def _read(self, spans: Sequence[Span], tokens: Tensor) -> Tensor:
        places = [(row, start - 1, width) for row, start, width in spans]
        logits = self.cache.read(places, tokens, last=True)
        ends = torch.tensor([width for _, _, width in spans]).cumsum(0) - 1
        states = self.head.states[ends.to(tokens.device)]
        self._own = {row: s[None] for (row, _, _), s in zip(spans, states, strict=True)}
        return self.head.spread(logits)

    def move(self, row: int, places: Sequence[int], start: int) -> None:
        """Nothing: all fixed tokens are read anew, with the target's states."""

    def verified(self, row: int, start: int, states: Tensor) -> None:
        """Their features are read at the next draft."""
        self._features[row, start : start + len(states)] = self.head.fuse(states)
