"""The trainable Llama and the packed batches behind ``real_backend.training.train_pair``.

Letters in shapes: B rows, T tokens of a row, V vocabulary, H heads, D head size.
Parameter names are those of the Hugging Face Llama layout, so that export is a copy.
"""

import math
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from real_backend.training import corpus
from real_backend.training.dialogue import Dialogue

BOS, EOS, USER, ASSISTANT, PAD = "<s>", "</s>", "<|user|>", "<|assistant|>", "<pad>"
SPECIAL_TOKENS = (PAD, BOS, EOS, USER, ASSISTANT)  # ids 0 to 4
PROMPT_WEIGHT = 0.25  # loss weight of the user turns; replies and plain text weigh 1


class LlamaSize(NamedTuple):
    """Size of a Llama; embeddings tied, no grouped heads, rotary positions.

    layers: blocks.
    hidden: numbers in a token's state.
    heads: of hidden / heads numbers each.
    inner: numbers inside the feed-forward part.
    vocab: tokens.
    max_positions: tokens of context.
    rope_theta: base of the rotary frequencies.
    norm_eps: of the RMS norms.
    """

    layers: int
    hidden: int
    heads: int
    inner: int
    vocab: int
    max_positions: int = 1024
    rope_theta: float = 100000.0
    norm_eps: float = 1e-5


class _RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (RoFormer, Su et al. 2021), halves layout; x is (B, H, T, D)."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


class _Attention(nn.Module):
    def __init__(self, shape: LlamaSize) -> None:
        super().__init__()
        size = shape.hidden
        self.heads = shape.heads
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, count, size = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(rows, count, self.heads, -1).transpose(1, 2)  # (B, H, T, D)

        q = _rotate(split(self.q_proj(x)), cos, sin)
        k = _rotate(split(self.k_proj(x)), cos, sin)
        y = functional.scaled_dot_product_attention(q, k, split(self.v_proj(x)), is_causal=True)
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(rows, count, size))
        return out


class _Mlp(nn.Module):
    def __init__(self, shape: LlamaSize) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.inner, bias=False)
        self.down_proj = nn.Linear(shape.inner, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class _Layer(nn.Module):
    def __init__(self, shape: LlamaSize) -> None:
        super().__init__()
        self.input_layernorm = _RMSNorm(shape.hidden, shape.norm_eps)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = _RMSNorm(shape.hidden, shape.norm_eps)
        self.mlp = _Mlp(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class _Body(nn.Module):
    def __init__(self, shape: LlamaSize) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = _RMSNorm(shape.hidden, shape.norm_eps)

    def attention(self, layer: int) -> _Attention:
        """The attention of a layer."""
        found = self.layers[layer]
        assert isinstance(found, _Layer)
        return found.self_attn


class Llama(nn.Module):
    """A Llama (Touvron et al. 2023) for training: token ids (B, T) to logits (B, T, V), causal."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: LlamaSize, seed: int) -> None:
        super().__init__()
        self.shape = shape
        self.model = _Body(shape)
        size = shape.hidden // shape.heads
        powers = torch.arange(0, size, 2, dtype=torch.int64).float() / size
        angles = torch.outer(torch.arange(shape.max_positions).float(), shape.rope_theta**-powers)
        self.register_buffer("cos", torch.cat((angles, angles), -1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat((angles, angles), -1).sin(), persistent=False)
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                scale = 0.02
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    scale /= math.sqrt(2 * shape.layers)
                nn.init.normal_(weight, std=scale, generator=generator)

    def embedding(self) -> Tensor:
        """The token embedding (V, hidden), which is the output matrix as well."""
        return self.model.embed_tokens.weight

    def states(self, ids: Tensor) -> Tensor:
        """Hidden states (B, T, hidden) behind the final norm."""
        x = self.model.embed_tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        normed: Tensor = self.model.norm(x)
        return normed

    def forward(self, ids: Tensor) -> Tensor:
        return functional.linear(self.states(ids), self.embedding())


class TokenBatch(NamedTuple):
    """``ids`` (B, T + 1), and for predicting ``ids[:, 1:]``: loss weight and is-reply, (B, T)."""

    ids: Tensor
    weights: Tensor
    replies: Tensor  # 1.0 on the replies of dialogues, else 0.0


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a special token; KeyError if the tokenizer lacks it."""
    index: int | None = tokenizer.token_to_id(token)
    if index is None:
        raise KeyError(f"the tokenizer has no token {token}")
    return index


def encode_dialogue(tokenizer: Tokenizer, drawn: Dialogue) -> tuple[list[int], list[float]]:
    """Token ids and loss weights of a dialogue in the chat format of the template."""
    ids, weights = [token_id(tokenizer, BOS)], [PROMPT_WEIGHT]
    for turn, reply in zip(drawn.turns, drawn.replies, strict=True):
        asked = [token_id(tokenizer, USER), *tokenizer.encode(turn + "\n").ids]
        said = [*tokenizer.encode(reply).ids, token_id(tokenizer, EOS)]
        ids += [*asked, token_id(tokenizer, ASSISTANT), *said]
        weights += [PROMPT_WEIGHT] * (len(asked) + 1) + [1.0] * len(said)
    return ids, weights


def copy_drill(rng: Random, vocab: int, size: int) -> tuple[list[int], list[float]]:
    """A row of random tokens said two or three times: nothing but copying predicts the echoes.

    Returns ``size`` ids and their loss weights, 1 on the echoes and 0 elsewhere.
    """
    first = len(SPECIAL_TOKENS)
    row: list[int] = []
    weights: list[float] = []
    while len(row) < size:
        phrase = [rng.randrange(first, vocab) for _ in range(rng.randrange(4, 24))]
        for echo in range(rng.choice([2, 2, 3])):
            noise = [
                rng.randrange(first, vocab) for _ in range(rng.choice([0, rng.randrange(1, 8)]))
            ]
            row += phrase + noise
            weights += [float(echo > 0)] * len(phrase) + [0.0] * len(noise)
    return row[:size], weights[:size]


class Packer:
    """Batches as a function of (seed, step): whole dialogues, rows topped up with library text.

    Of the first ``drill_steps`` steps a third of the rows are copy drills instead, later a tenth.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        seed: int,
        rows: int,
        length: int,
        drill_steps: int | None = None,
    ) -> None:
        self.tokenizer, self.seed, self.drill_steps = tokenizer, seed, drill_steps
        self.rows, self.length = rows, length

    def drill_share(self, step: int) -> float:
        """Share of the rows that are copy drills; none without ``drill_steps``."""
        if self.drill_steps is None:
            return 0.0
        return 1 / 3 if step < self.drill_steps else 0.1

    def dialogue(self, rng: Random, held_out: bool) -> Dialogue:
        """The next dialogue of a row."""
        return corpus.dialogue(rng, rng.choice(corpus.CATEGORIES), held_out)

    def batch(self, step: int, held_out: bool = False) -> TokenBatch:
        """The batch of a training step, or one of the held-out side."""
        rng = Random(f"batch {self.seed} {step} {held_out}")
        size = self.length + 1
        rows, marks, dialogue_tokens = [], [], []
        ids, weights = encode_dialogue(self.tokenizer, self.dialogue(rng, held_out))
        for _ in range(self.rows):
            row: list[int] = []
            mark: list[float] = []
            if not held_out and rng.random() < self.drill_share(step):
                row, mark = copy_drill(rng, self.tokenizer.get_vocab_size(), size)
                rows.append(row)
                marks.append(mark[1:])
                dialogue_tokens.append(0)
                continue
            while len(row) + len(ids) <= size:
                row += ids
                mark += weights
                ids, weights = encode_dialogue(self.tokenizer, self.dialogue(rng, held_out))
            if len(ids) > size:
                ids, weights = ids[:size], weights[:size]
            while len(row) < size:
                text = corpus.stdlib_window(rng, 8 * (size - len(row)), held_out)
                row += [token_id(self.tokenizer, BOS), *self.tokenizer.encode(text).ids]
            dialogue_tokens.append(len(mark))
            mark += [1.0] * (len(row) - len(mark))
            rows.append(row[:size])
            marks.append(mark[1:size])
        weight = torch.tensor(marks)
        inside = torch.arange(1, size) < torch.tensor(dialogue_tokens)[:, None]
        return TokenBatch(torch.tensor(rows), weight, (inside & (weight == 1.0)).float())

    def training_text(self, steps: int) -> Iterator[str]:
        """Every row of the first ``steps`` batches, decoded."""
        for step in range(steps):
            for row in self.batch(step).ids.tolist():
                yield self.tokenizer.decode(row, skip_special_tokens=False)


def weighted_loss(logits: Tensor, batch: TokenBatch) -> Tensor:
    """Mean cross-entropy in nats, weighted; logits (B, T, V)."""
    nll = functional.cross_entropy(
        logits.flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none"
    )
    weights = batch.weights.flatten()
    return (nll * weights).sum() / weights.sum()
