"""An EAGLE-3 head read off its files with nothing but torch, and a little training for it.

Letters: N tokens, E hidden size, T hidden states read, V vocabulary.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from real_backend.load_pair import Pair, load_pair
from real_backend.pair_spec import PairSpec
from traces.schema import Trace

LAYERS = 7  # of the target: 2, L // 2 and L - 3 differ


class Plain:
    """A head read off its files with nothing but torch: no cache, full attention.

    module: the target, in transformers.
    """

    def __init__(self, folder: Path, module: Any) -> None:
        raw = json.loads((folder / "config.json").read_text())
        raw = raw.get("transformer_layer_config", {}) | raw | raw.get("eagle_config", {})
        self.raw, self.module = raw, module
        self.w = {
            name.replace("midlayer.", "layers.0.").removesuffix(".weight"): tensor
            for name, tensor in load_file(folder / "model.safetensors").items()
        }
        self.places = torch.arange(raw["draft_vocab_size"]) + self.w["d2t"]
        self.w.setdefault("embed_tokens", module.model.embed_tokens.weight.data)
        self.w.setdefault("lm_head", module.lm_head.weight.data[self.places])

    def target_states(self, ids: list[int]) -> Tensor:
        """[N, T E]."""
        with torch.no_grad():
            output = self.module(torch.tensor([ids]), output_hidden_states=True)
        read = self.raw.get("eagle_aux_hidden_state_layer_ids") or [2, LAYERS // 2, LAYERS - 3]
        offset = 1 if read[0] == 1 else 0
        return torch.cat([output.hidden_states[k + offset][0] for k in read], -1)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.w[name], self.w.get(f"{name}.bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        mean = x.pow(2).mean(-1, keepdim=True)
        return x / (mean + self.raw["rms_norm_eps"]).sqrt() * self.w[name]

    def features(self, states: Tensor) -> Tensor:
        """[N, E] of [N, T E]."""
        if self.raw.get("norm_before_fc"):
            states = self._norm(states, "input_norm")
        return self._linear(states, "fc")

    def _rotated(self, x: Tensor) -> Tensor:
        """x [N, H, D] with the rotary embedding of places 0..N-1."""
        size, theta = x.shape[-1], self.raw["rope_theta"]
        scaling = self.raw.get("rope_scaling") or {"factor": 1.0}
        place = torch.arange(len(x)) / scaling["factor"]
        angle = place[:, None] * theta ** (-torch.arange(0, size, 2) / size)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def read(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N, V] behind tokens [N], each beside the feature [N, E] of the one before it,
        and the states [N, E] that a draft goes on from.
        """
        at, raw = "layers.0.", self.raw
        normed = self._norm(features, at + "hidden_norm")
        embedded = self._norm(self.w["embed_tokens"][tokens], at + "input_layernorm")
        asked, size = torch.cat([embedded, normed], -1), raw["head_dim"]
        q, k, v = (
            self._linear(asked, f"{at}self_attn.{n}_proj").view(len(tokens), -1, size)
            for n in "qkv"
        )
        groups = q.shape[1] // k.shape[1]
        q, k = self._rotated(q), self._rotated(k).repeat_interleave(groups, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(size)
        unseen = torch.ones(len(tokens), len(tokens), dtype=torch.bool).triu(1)
        weights = scores.masked_fill(unseen, -math.inf).softmax(-1)
        mixed = torch.einsum("hqk,khd->qhd", weights, v.repeat_interleave(groups, 1))
        normed_first = raw.get("norm_before_residual", "speculators_model_type" in raw)
        x = normed if normed_first else features
        x = x + self._linear(mixed.flatten(1), at + "self_attn.o_proj")
        h = self._norm(x, at + "post_attention_layernorm")
        gated = F.silu(self._linear(h, at + "mlp.gate_proj")) * self._linear(h, at + "mlp.up_proj")
        x = x + self._linear(gated, at + "mlp.down_proj")
        behind = self._norm(x, "norm")
        logits = torch.full((len(tokens), raw["vocab_size"]), -math.inf)
        logits[:, self.places] = F.linear(behind, self.w["lm_head"])
        return logits, behind if raw.get("norm_output") else x

    def draft(self, ids: list[int], steps: int) -> tuple[list[int], Tensor]:
        """A greedy draft behind ids, and the logits [steps, V] it was taken from."""
        features, tokens = self.features(self.target_states(ids)[:-1]), ids[1:]
        drafted: list[int] = []
        said = []
        for _ in range(steps):
            logits, states = self.read(features, torch.tensor(tokens))
            said.append(logits[-1])
            drafted.append(int(logits[-1].argmax()))
            tokens = [*tokens, drafted[-1]]
            features = torch.cat([features, states[-1:]])
        return drafted, torch.stack(said)


def pair_with(target: Path, head: Path, lean: bool = True) -> Pair:
    spec = PairSpec(head.name, str(target), str(head))
    return load_pair(spec, device="cpu", threads=1, lean=lean)


def train(folder: Path, plain: Plain, replies: list[list[int]], steps: int = 250) -> None:
    """Fit the head to replies of the target, over its features and one step of its own states."""
    trained = {n: t.requires_grad_() for n, t in plain.w.items() if t.is_floating_point()}
    optimizer = torch.optim.Adam(trained.values(), lr=4e-3)
    states = [plain.target_states(ids) for ids in replies]
    with torch.no_grad():
        said = [plain.module(torch.tensor([ids])).logits[0, 1:, plain.places] for ids in replies]
    for step in range(steps):
        ids, read = replies[step % len(replies)], states[step % len(replies)]
        tokens = torch.tensor(ids)
        features = plain.features(read[:-1])
        logits, own = plain.read(features, tokens[1:])
        meant = said[step % len(replies)].softmax(-1)
        further, _ = plain.read(torch.cat([features[:1], own[:-1]]), tokens[1:])
        loss = F.cross_entropy(logits[:, plain.places], meant)
        loss = loss + F.cross_entropy(further[:, plain.places], meant)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = folder / "model.safetensors"
    fitted = {name.replace("layers.0.", "midlayer."): t.detach() for name, t in trained.items()}
    named = load_file(path)
    save_file({n: fitted.get(n.removesuffix(".weight"), t) for n, t in named.items()}, path)


def replies_of(trace: Trace) -> list[list[int]]:
    """Token by token."""
    assert trace.token_ids is not None
    parts = np.split(trace.token_ids, trace.offsets[1:-1])
    return [part.tolist() for part in parts]
