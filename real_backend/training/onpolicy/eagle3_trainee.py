"""An EAGLE-3 head while it is trained, under the names of the public layout, and what it learns.

A draft of J steps starts behind every token of the text (training-time test): step 0 reads the
target's states, step j the head's own state of step j - 1, and sees beside the true past only the
steps of its own draft. Step j of the draft that starts at place s reads token s + 1 + j and learns
the target's law behind it.

Source: Li et al., EAGLE-3, arXiv 2503.01840, Section 3.1 and Figure 6; of aligned drafts, Hu et
al., GRIFFIN, arXiv 2502.11018 (its loss mask alone, not its fusion of tokens and features).
Letters: B rows, W tokens of a row, N starts, E hidden size of the target, J steps, D draft
vocabulary, K likeliest tokens, H query heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from real_backend.training.onpolicy.text import Rows
from real_backend.training.onpolicy.write_text import GREEDY

_LEAST_MASS = 0.05  # of a law that the draft vocabulary must cover to be learnt from


class _Norm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class _Attention(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        read, size = 2 * config.hidden_size, config.head_dim
        narrow = config.num_key_value_heads * size
        wide = config.num_attention_heads * size
        self.q_proj = nn.Linear(read, wide, bias=False)
        self.k_proj = nn.Linear(read, narrow, bias=False)
        self.v_proj = nn.Linear(read, narrow, bias=False)
        self.o_proj = nn.Linear(wide, config.hidden_size, bias=False)


class _Mlp(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class _Layer(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm, self.hidden_norm = _Norm(hidden, eps), _Norm(hidden, eps)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = _Norm(hidden, eps)
        self.mlp = _Mlp(config)


class Step(NamedTuple):
    """A step of all drafts: loss in nats a token, tokens learnt from, how many of those the head
    would have said, and whose next token [N] was among its `align` likeliest (all if that is 0).
    """

    loss: Tensor
    tokens: int
    right: int
    aligned: Tensor


class _Starts(NamedTuple):
    """The starts that go on from a step: row and place [N]; and by step the keys and values
    [N, H, size] of their own drafts.
    """

    row: Tensor
    place: Tensor
    keys: list[Tensor]
    values: list[Tensor]

    def select(self, kept: Tensor) -> _Starts:
        """Those of kept [N] bool."""
        keys, values = ([x[kept] for x in all_] for all_ in (self.keys, self.values))
        return _Starts(self.row[kept], self.place[kept], keys, values)


class Eagle3Trainee(nn.Module):
    """The head of a config. embedding, output [V, E]: the target's, neither trained nor stored;
    known [D]: the target's token for each of the draft vocabulary.
    """

    def __init__(
        self, config: LlamaConfig, embedding: Tensor, output: Tensor, known: Tensor, seed: int
    ) -> None:
        super().__init__()
        self.config = config
        self.fc = nn.Linear(3 * config.hidden_size, config.hidden_size, bias=False)
        self.midlayer = _Layer(config)
        self.norm = _Norm(config.hidden_size, config.rms_norm_eps)
        self._embedding, self._output = embedding, output[known]
        self._slot = torch.full((len(embedding),), -1)  # of a token in the draft vocabulary
        self._slot[known] = torch.arange(len(known))
        self._rotary = LlamaRotaryEmbedding(config)
        generator = torch.Generator().manual_seed(seed)
        for weight in self.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5, generator=generator)
        for last in (self.midlayer.self_attn.o_proj, self.midlayer.mlp.down_proj):
            nn.init.zeros_(last.weight)

    def _split(self, projected: Tensor, heads: int) -> Tensor:
        """[..., heads, size]."""
        return projected.view(*projected.shape[:-1], heads, self.config.head_dim)

    def _qkv(self, tokens: Tensor, feature: Tensor, places: Tensor) -> tuple[Tensor, ...]:
        """Rotated q, k and v [N, H, size] of tokens, features and rotary places [N]; keys and
        values repeated for the query heads that share them.
        """
        layer, attention = self.midlayer, self.midlayer.self_attn
        embedded = layer.input_layernorm(F.embedding(tokens, self._embedding))
        read = torch.cat([embedded, layer.hidden_norm(feature)], -1)
        heads, few = self.config.num_attention_heads, self.config.num_key_value_heads
        q = self._split(attention.q_proj(read), heads)
        k = self._split(attention.k_proj(read), few)
        v = self._split(attention.v_proj(read), few)
        cos, sin = self._rotary(v, places[None])
        q, k = apply_rotary_pos_emb(q, k, cos[0].to(q), sin[0].to(q), unsqueeze_dim=1)
        groups = heads // few
        return q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)

    def _behind(self, feature: Tensor, attended: Tensor) -> Tensor:
        """The head's state [N, E] of attended [N, H, size]."""
        x = feature + self.midlayer.self_attn.o_proj(attended.flatten(-2))
        out: Tensor = x + self.midlayer.mlp(self.midlayer.post_attention_layernorm(x))
        return out

    def logits(self, states: Tensor) -> Tensor:
        """[N, D] of states [N, E]."""
        return F.linear(self.norm(states), self._output.to(states))

    def steps(self, rows: Rows, steps: int, align: int = 0) -> list[Step]:
        """The drafts of all starts that are to say tokens of answers. align: a draft ends at a
        token of the text that was not among the head's `align` likeliest; 0: none ends.
        """
        assert rows.states is not None
        batch, width = rows.ids.shape
        answered = rows.whose >= GREEDY
        read = width - 1  # the last token's states have no token to be read with
        at = torch.arange(read)
        features = self.fc(rows.states[:, :-1]).flatten(0, 1)
        tokens, places = rows.ids[:, 1:].flatten(), at.repeat(batch)
        q, k, v = self._qkv(tokens, features, places)
        grid = [self._grid(x, batch) for x in (q, k, v)]  # [B, H, W - 1, size]
        attended = F.scaled_dot_product_attention(grid[0], grid[1], grid[2], is_causal=True)
        states = self._behind(features, attended.transpose(1, 2).flatten(0, 1))
        row = torch.arange(batch).repeat_interleave(read)
        starts = _Starts(row, places, [], [])
        found = []
        for step in range(steps):
            if step:
                inside = starts.place + 2 + step < width
                starts, states = starts.select(inside), states[inside]
                states = self._further(states, starts, rows, grid, step)
            learnt = starts.place + 2 + step < width
            learnt[learnt.clone()] &= answered[starts.row[learnt], starts.place[learnt] + 2 + step]
            starts, states = starts.select(learnt), states[learnt]
            found.append(self._learn(states, starts, rows, step, align))
            going = found[-1].aligned
            starts, states = starts.select(going), states[going]
        return found

    def _grid(self, packed: Tensor, batch: int) -> Tensor:
        return packed.view(batch, -1, *packed.shape[1:]).transpose(1, 2)

    def _further(
        self, feature: Tensor, starts: _Starts, rows: Rows, grid: list[Tensor], step: int
    ) -> Tensor:
        """States [N, E] of a later step, which reads features [N, E] of the one before; its keys
        and values join the starts'.
        """
        tokens = rows.ids[starts.row, starts.place + 1 + step]
        q, k, v = self._qkv(tokens, feature, starts.place + step)
        starts.keys.append(k)
        starts.values.append(v)
        batch, width = rows.ids.shape[0], grid[1].shape[2]
        asked = q.new_zeros(batch, width, *q.shape[1:]).index_put((starts.row, starts.place), q)
        scale = q.shape[-1] ** -0.5
        past = (asked.transpose(1, 2) @ grid[1].transpose(-1, -2)) * scale  # [B, H, W, W]
        past = past.masked_fill(past.new_ones(width, width).triu(1).bool(), -torch.inf)
        past = past.transpose(1, 2)[starts.row, starts.place]  # [N, H, W]
        own = torch.stack([(q * key).sum(-1) for key in starts.keys], -1) * scale  # [N, H, step]
        weights = torch.cat([past, own], -1).float().softmax(-1).to(q.dtype)
        spread = q.new_zeros(batch, width, q.shape[1], width)
        spread = spread.index_put((starts.row, starts.place), weights[..., :width])
        attended = (spread.transpose(1, 2) @ grid[2]).transpose(1, 2)[starts.row, starts.place]
        for index, value in enumerate(starts.values):
            attended = attended + weights[..., width + index, None] * value
        return self._behind(feature, attended)

    def _learn(self, states: Tensor, starts: _Starts, rows: Rows, step: int, align: int) -> Step:
        """Cross-entropy to the target's law over the draft vocabulary."""
        behind = starts.place + 1 + step
        slots = self._slot[rows.likeliest[starts.row, behind]]  # [N, K]
        law = rows.logs[starts.row, behind].exp() * (slots >= 0)
        mass = law.sum(-1, keepdim=True)
        kept = mass[:, 0] > _LEAST_MASS
        logs = self.logits(states).float().log_softmax(-1)
        said = logs.gather(-1, slots.clamp(min=0))  # [N, K]
        loss = -((law / mass.clamp(min=_LEAST_MASS)) * said).sum(-1)
        meant = self._slot[rows.likeliest[starts.row, behind, 0]]
        right = int((logs.detach().argmax(-1) == meant).sum())
        aligned = torch.ones(len(kept), dtype=torch.bool)
        if align:
            told = self._slot[rows.ids[starts.row, behind + 1]]
            aligned = (logs.detach().topk(min(align, logs.shape[-1])).indices == told[:, None]).any(
                -1
            )
        return Step((loss * kept).sum() / kept.sum().clamp(min=1), len(kept), right, aligned)
