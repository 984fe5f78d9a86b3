"""An EAGLE-3 head: a layer over three hidden states of the target, one forward per token.

The public layout. `fc` [E, 3 T] makes a feature of the target's states; one Llama layer
(`midlayer`, or `layers.0` as vLLM and the speculators library name it) reads
[input_layernorm(embedding), hidden_norm(feature)] in its attention and adds to the feature, or
where `norm_before_residual` says so to the normed one; `norm` and `lm_head` give logits over a
draft vocabulary, whose token d is the target's d + d2t[d]. Behind a drafted token the feature is
the head's own state before `norm`.

A token stands in the head's cache where the one before it stands in the target's: it is read with
the target's states of its predecessor.

Source: Li et al., EAGLE-3, arXiv 2503.01840, Section 3.1; SafeAILab/EAGLE, model/cnets.py;
vllm-project/vllm, model_executor/models/llama_eagle3.py; sgl-project/sglang, pull request 25454
(the two ways to count layers).
Letters: N tokens, E hidden size of the head, T of the target, V vocabulary, D draft vocabulary.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from real_backend.drafters.drafter import MOST, Span
from real_backend.models.cache_rows import LeanRows
from real_backend.models.finite import Watch
from real_backend.models.llama import Attend, LeanLlama
from real_backend.models.llama_weights import LeanLayer, settled
from real_backend.models.model import Model
from traces.errors import InputError

EAGLE3_ARCHITECTURES = {
    "LlamaForCausalLMEagle3",
    "Eagle3LlamaForCausalLM",
    "Eagle3Speculator",
    "eagle3",
}
_PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_UNSEEN = float("-inf")


class HeadModule(torch.nn.Module):
    """The weights of a head under their names: what is hashed, counted and looked through for
    NaN. config: of its layers.
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
        self._fc, self._fc_norm = weights["fc"], weights.get("input_norm")
        self._normed_residual = bool(raw.get("norm_before_residual", False))
        self._places = weights.get("places")  # [D] int64, of the draft vocabulary in the target's
        self.vocab_size = int(raw["vocab_size"])
        self.feature = torch.empty(0, 0)

    def fuse(self, states: Tensor) -> Tensor:
        """Features [N, E] of the target's states [N, 3 T]."""
        if self._fc_norm is not None:
            states = F.rms_norm(states, (states.shape[-1],), self._fc_norm, self.eps)
        return F.linear(states, self._fc)

    def spread(self, logits: Tensor) -> Tensor:
        """Logits [..., V] of logits [..., D]; what cannot be proposed has minus infinity."""
        if self._places is None:
            return logits
        wide = logits.new_full((*logits.shape[:-1], self.vocab_size), _UNSEEN)
        return wide.index_copy_(-1, self._places, logits)

    def _layers(self, tokens: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """Hidden states [N, E] behind the final norm; those before it are kept as `states`."""
        cos, sin = cos[:, None], sin[:, None]
        normed = self._norm(self.feature, self._hidden_norm)
        embedded = self._norm(F.embedding(tokens, self.embedding), self.layers[0].input_norm)
        x = normed.clone() if self._normed_residual else self.feature.clone()
        self._layer(0, x, torch.cat([embedded, normed], -1), cos, sin, attend)
        for index in range(1, len(self.layers)):
            self._layer(index, x, self._norm(x, self.layers[index].input_norm), cos, sin, attend)
        self.states = x
        return self._norm(x, self.final_norm)


def _layer(weights: Mapping[str, Tensor], index: int) -> LeanLayer:
    def of(name: str) -> Tensor:
        return weights[f"layers.{index}.{name}"]

    def fused(names: Sequence[str], what: str) -> Tensor | None:
        found = [weights.get(f"layers.{index}.{name}{what}") for name in names]
        kept = [tensor for tensor in found if tensor is not None]
        return torch.cat(kept) if kept else None

    qkv, gate_up = fused(_PROJECTIONS, ""), fused(("mlp.gate_proj", "mlp.up_proj"), "")
    assert qkv is not None and gate_up is not None
    return LeanLayer(
        of("input_layernorm"),
        qkv,
        fused(_PROJECTIONS, ".bias"),
        of("self_attn.o_proj"),
        fused(("self_attn.o_proj",), ".bias"),
        of("post_attention_layernorm"),
        gate_up,
        fused(("mlp.gate_proj", "mlp.up_proj"), ".bias"),
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
    """The head's caches, and of every row the target's states that it has not read yet."""

    def __init__(self, head: Eagle3Head, batch: int, capacity: int) -> None:
        self.head, self.cache = head, LeanRows(head, batch, capacity)
        self._unread: list[list[Tensor]] = [[] for _ in range(batch)]
        self._own: dict[int, Tensor] = {}  # row -> the head's state behind its newest token

    def holds(self, context: int) -> bool:
        """False where the target's states of the newest tokens are not there."""
        return all(self._unread)

    def offers(self, row: int) -> int:
        """As many as asked, but for a row of which the target has read nothing."""
        return MOST if self._unread[row] else 0

    def prefill(self, row: int, start: int, tokens: Tensor, states: Tensor) -> None:
        """Every token but the first is read with the states of the one before it."""
        if len(tokens) > 1:
            self.head.feature = self.head.fuse(states[:-1])
            self.cache.read([(row, start, len(tokens) - 1)], tokens[1:], last=True)
        self._unread[row] = [states[-1:].clone()]

    def first(self, spans: Sequence[Span], tokens: Tensor) -> Tensor:
        """Logits [A, V] behind the tokens that the head lacked."""
        unread = [torch.cat(self._unread[row])[-width:] for row, _, width in spans]
        for row, _, _ in spans:
            self._unread[row] = []
        self.head.feature = self.head.fuse(torch.cat(unread))
        return self._read(spans, tokens)

    def further(self, spans: Sequence[Span], tokens: Tensor) -> Tensor:
        """Logits [A, V] behind the newest drafted tokens."""
        self.head.feature = torch.stack([self._own[row] for row, _, _ in spans])
        return self._read(spans, tokens)

    def _read(self, spans: Sequence[Span], tokens: Tensor) -> Tensor:
        places = [(row, start - 1, width) for row, start, width in spans]
        logits = self.cache.read(places, tokens, last=True)
        ends = torch.tensor([width for _, _, width in spans]).cumsum(0) - 1
        states = self.head.states[ends.to(tokens.device)]
        self._own = {row: state for (row, _, _), state in zip(spans, states, strict=True)}
        return self.head.spread(logits)

    def verified(self, row: int, states: Tensor) -> None:
        """They are read at the next draft."""
        self._unread[row].append(states.clone())


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
    raw["vocab_size"] = vocab = int(raw.get("vocab_size") or embedding.shape[0])
    places = weights.pop("d2t", None)
    mask = weights.pop("t2d", None)
    known = int(raw.get("draft_vocab_size") or vocab)
    if places is not None and known < vocab:
        places = torch.arange(len(places)) + places.long()
        if len(places) != known or int(places.min()) < 0 or int(places.max()) >= vocab:
            raise InputError(f"{folder}: d2t names tokens outside of the {vocab} of the vocabulary")
        if mask is not None and not torch.equal(mask.bool().nonzero()[:, 0], places.sort().values):
            raise InputError(f"{folder}: t2d and d2t name different tokens")
    elif known < vocab:
        raise InputError(f"{folder}: draft_vocab_size is {known}, but there is no d2t")
    else:
        places = None
    if "lm_head" not in weights:
        weights["lm_head"] = output[:vocab] if places is None else output[places.to(output.device)]
    weights.setdefault("embed_tokens", embedding)
    taps = _taps(raw, int(module.config.num_hidden_layers))
    config = _layers_config(raw, folder)
    _check(folder, config, weights, known, len(taps) * embedding.shape[1])
    weights = {name: weight.to(device, dtype) for name, weight in weights.items()}
    target.tap(taps, str(folder))
    holder = HeadModule(config, weights)
    if places is not None:
        weights["places"] = places.to(device)
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
    eagle = raw.get("eagle_config") or {}
    return {**(raw.get("transformer_layer_config") or {}), **raw, **eagle}


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


def _taps(raw: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """Boundaries of the target's layers whose states the head reads. A file whose first layer is 1
    counts outputs, not inputs: the embedding is never read.
    """
    ids = raw.get("eagle_aux_hidden_state_layer_ids")
    if not ids:
        return (2, layers // 2, layers - 3)
    return tuple(int(k) + (int(ids[0]) == 1) for k in ids)


def _layers_config(raw: Mapping[str, Any], folder: Path) -> LlamaConfig:
    needed = ("hidden_size", "intermediate_size", "num_attention_heads")
    for field in needed:
        if not isinstance(raw.get(field), int):
            raise InputError(f"{folder / 'config.json'}: field {field} is missing")
    known = {f for f in LlamaConfig().to_dict() if f not in ("architectures", "model_type")}
    kept = {name: value for name, value in raw.items() if name in known}
    config = LlamaConfig(**kept)
    config.num_hidden_layers = int(raw.get("num_hidden_layers") or 1)
    if config.hidden_act != "silu":
        raise InputError(f"{folder / 'config.json'}: hidden_act must be silu")
    return config


def _check(
    folder: Path, config: LlamaConfig, weights: Mapping[str, Tensor], known: int, read: int
) -> None:
    """Raise InputError naming the first tensor that is missing, unknown or of another shape."""
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    wide, narrow = heads * size, config.num_key_value_heads * size
    vocab = weights["embed_tokens"].shape[0]
    shapes: dict[str, tuple[int, ...]] = {
        "fc": (hidden, read),
        "norm": (hidden,),
        "lm_head": (known, hidden),
        "embed_tokens": (vocab, hidden),
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
    for name, shape in shapes.items():
        if name not in weights:
            raise InputError(f"{folder}: no tensor {name}.weight; is this an EAGLE-3 head?")
        if tuple(weights[name].shape) != shape:
            raise InputError(
                f"{folder}: {name}.weight is {list(weights[name].shape)}, must be {list(shape)} "
                "for this config.json and target"
            )
    extra = {"input_norm": (read,)}
    for name, weight in weights.items():
        if name in shapes or name.endswith(".bias"):
            continue
        if tuple(weight.shape) != extra.get(name):
            raise InputError(f"{folder}: tensor {name} is not known here; not supported yet")
