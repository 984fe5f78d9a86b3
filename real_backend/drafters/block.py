"""Heads that draft a whole block from one forward: head k says what stands k + 1 tokens behind the
target's own next one, each from the same hidden state.

The layout is that of vLLM's Medusa checkpoints: `blocks.K.layers.J` are residual layers, x +
silu(W x + b), with b or without, and `lm_heads.K` the output of head K; with `original_lm_head` all
heads have one, `lm_heads.0` or, if that is missing, the target's.

Source: Cai et al., Medusa, arXiv 2401.10774, Section 2.1.1; vllm-project/vllm,
model_executor/models/medusa.py.
Letters: A rows, K heads, E hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from real_backend.drafters.drafter import Level, Span
from real_backend.models.finite import Watch
from real_backend.models.llama import NORMED
from real_backend.models.model import Model
from traces.errors import InputError

BLOCK_ARCHITECTURES = {"MedusaModel"}


class MedusaHeads(torch.nn.Module):
    """K heads of some residual layers each. shared: the target's output [V, E], which is that of
    all heads unless they have `own`, one each or one for all.
    """

    def __init__(
        self,
        heads: int,
        layers: int,
        shared: Tensor,
        own: Sequence[Tensor] = (),
        bias: bool = True,
    ) -> None:
        super().__init__()
        hidden = shared.shape[1]
        self.config = None  # no cache
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleDict(
                {
                    "layers": torch.nn.ModuleList(
                        torch.nn.Linear(hidden, hidden, bias) for _ in range(layers)
                    )
                }
            )
            for _ in range(heads)
        )
        self.own = torch.nn.ParameterList(own)
        self._shared = shared.detach()  # the target's: neither trained nor counted here

    @property
    def outputs(self) -> Sequence[Tensor]:
        """One [V, E] for all heads, or one each."""
        return list(self.own) or [self._shared]

    @property
    def heads(self) -> int:
        """K."""
        return len(self.blocks)

    def forward(self, states: Tensor) -> Tensor:
        """Logits [..., K, V] of hidden states [..., E] behind the target's final norm."""
        found = []
        for block in self.blocks:
            x = states
            for layer in block["layers"]:  # type: ignore[index]
                x = x + F.silu(layer(x))
            found.append(x)
        stacked = torch.stack(found, -2)
        outputs = self.outputs
        if len(outputs) == 1:
            return F.linear(stacked, outputs[0])
        each = [F.linear(stacked[..., k, :], w) for k, w in enumerate(outputs)]
        return torch.stack(each, -2)


@dataclasses.dataclass(frozen=True)
class BlockDrafter:
    """Heads over the target's last hidden state."""

    module: MedusaHeads
    name: str
    watch: Watch

    kind = "block"
    max_context = 0

    @property
    def most(self) -> int:
        """K: a draft has as many tokens as there are heads."""
        return self.module.heads

    @property
    def vocab_size(self) -> int:
        """Tokens that the heads know."""
        return int(self.module.outputs[0].shape[0])

    @property
    def modules(self) -> tuple[Any, ...]:
        """The heads."""
        return (self.module,)

    def rows(self, batch: int, capacity: int) -> BlockRows:
        """Of a batch."""
        return BlockRows(self.module, batch)


class BlockRows:
    """The target's newest hidden state of every row, and the block of the round."""

    def __init__(self, heads: MedusaHeads, batch: int) -> None:
        self.heads = heads
        self._newest: list[Tensor | None] = [None] * batch
        self._block: dict[int, Tensor] = {}  # row -> logits [K, V]
        self._zeros = torch.zeros_like(heads.outputs[0][0])  # [E]
        self._drafted = 0

    def holds(self, context: int) -> bool:
        """False where the target has read nothing."""
        return all(state is not None for state in self._newest)

    def prefill(self, row: int, start: int, tokens: Tensor, states: Tensor) -> None:
        """The last state is what the heads read."""
        self._newest[row] = states[-1].clone()

    def first(self, spans: Sequence[Span], tokens: Tensor) -> Tensor:
        """Logits [A, V] of the first head; the others' are kept. A row that offers nothing drafts
        from zeros, for a replayed acceptance.
        """
        states = [self._newest[row] for row, _, _ in spans]
        logits = self.heads(torch.stack([self._zeros if s is None else s for s in states]))
        self._block = {row: block for (row, _, _), block in zip(spans, logits, strict=True)}
        self._drafted = 1
        return logits[:, 0]  # type: ignore[no-any-return]

    def further(self, spans: Sequence[Span], tokens: Tensor, level: Level | None = None) -> Tensor:
        """Logits of the next head, the same behind all nodes of a level; beyond the last one its
        own again, which only a measurement or a replayed acceptance asks for.
        """
        head = min(self._drafted, self.heads.heads - 1)
        self._drafted += 1
        found = torch.stack([self._block[row][head] for row, _, _ in spans])
        if level is None:
            return found
        widths = torch.tensor([width for _, _, width in spans], device=found.device)
        return found.repeat_interleave(widths, 0)

    def move(self, row: int, places: Sequence[int], start: int) -> None:
        """Nothing: heads have no cache."""

    def verified(self, row: int, start: int, states: Tensor) -> None:
        """The newest one counts."""
        self._newest[row] = states[-1].clone()


def load_block(folder: Path, target: Model) -> BlockDrafter:
    """The heads of a folder with config.json and model.safetensors.

    Raises InputError naming file and field where they do not fit the target.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text("utf-8"))
        heads, layers = int(raw["num_heads"]), int(raw.get("num_hidden_layers", 1))
        hidden = int(raw["hidden_size"])
        found = load_file(folder / "model.safetensors")
    except (OSError, ValueError, OverflowError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"{folder}: the heads cannot be read ({error})") from None
    if not 1 <= heads <= 64 or not 0 <= layers <= 8:
        raise InputError(f"{path}: {heads} heads of {layers} layers are not possible")
    module = target.module
    output = module.get_output_embeddings().weight.data
    if hidden != output.shape[1]:
        raise InputError(f"{path}: hidden_size is {hidden}, the target's is {output.shape[1]}")
    weights = {name.removeprefix("medusa_heads."): weight for name, weight in found.items()}
    own = _own_outputs(folder, weights, heads, bool(raw.get("original_lm_head")), hidden)
    bias = "blocks.0.layers.0.bias" in weights
    made = MedusaHeads(heads, layers, output, own, bias)
    try:
        made.load_state_dict(weights | made.own.state_dict(prefix="own."))
    except RuntimeError as error:
        said = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{folder}: other tensors than config.json says ({said[:160]})") from None
    made.to(output).eval().requires_grad_(False)
    target.tap((NORMED,), str(folder))
    return BlockDrafter(made, folder.name, Watch(str(module.device)))


def _own_outputs(
    folder: Path, weights: dict[str, Tensor], heads: int, one: bool, hidden: int
) -> list[Tensor]:
    """The outputs [V, E] taken out of the weights; none: the target's is meant. one: heads share.

    Raises InputError unless every head has one, of the same tokens.
    """
    named = [weights.pop(f"lm_heads.{k}.weight", None) for k in range(heads)]
    own = [weight for weight in named if weight is not None]
    meant = (0, heads) if not one or named[0] is None else (1, heads)
    fits = all(w.shape == (*own[0].shape[:1], hidden) for w in own)
    if len(own) not in meant or not fits:
        raise InputError(f"{folder}: lm_heads must be [V, {hidden}], one for every head, or none")
    return own
