"""One causal language model as the engine uses it, and which layouts it can use."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import DynamicCache

from real_backend.models.finite import Watch
from real_backend.models.kvcache import GeneralReader, LeanReader, Reader
from real_backend.models.llama import NORMED, LeanLlama
from real_backend.models.llama_weights import LEAN_ARCHITECTURES
from traces.errors import InputError


class Model:
    """One causal language model, its lean forward if the layout allows, and its limits.

    own: see LeanLlama. watch: chooses tokens of its logits.
    """

    def __init__(self, module: Any, lean: bool, own: bool) -> None:
        self.module = module
        self.taps: tuple[int, ...] = ()
        self.watch = Watch(str(module.device))
        config = module.config
        self.vocab_size = int(config.vocab_size)
        self.max_context = int(getattr(config, "max_position_embeddings", 0) or 0)
        architectures = getattr(config, "architectures", None) or [type(module).__name__]
        self.lean: LeanLlama | None = None
        if (
            lean
            and architectures[0] in LEAN_ARCHITECTURES
            and type(module).__name__ in (LEAN_ARCHITECTURES)
        ):
            try:
                self.lean = LeanLlama(module, own)
            except ValueError:  # a Llama with biases: the general path takes it
                self.lean = None

    def reader(self, capacity: int, batch: int = 1) -> Reader:
        """A fresh cache for `capacity` tokens of `batch` rows."""
        if self.lean is not None:
            return LeanReader(self.lean, capacity, batch)
        return GeneralReader(self.module, capacity, self.taps)

    def tap(self, layers: tuple[int, ...], where: str) -> None:
        """Keep these hidden states (LeanLlama.taps) in every forward from now on.

        Raises InputError naming `where` if the model has no such layers, or, on the general path,
        for what the final norm reads, which transformers does not show.
        """
        deepest = int(self.module.config.num_hidden_layers) - (self.lean is None)
        if not all(NORMED <= layer <= deepest for layer in layers):
            raise InputError(
                f"{where} reads the target's layers {', '.join(map(str, layers))}; this target "
                f"shows 0 to {deepest}"
            )
        self.taps = layers
        if self.lean is not None:
            self.lean.taps = layers


def check_layout(where: str, model: Any) -> None:
    """Refuse what cannot roll back or branch: windows, recurrent states, no position_ids."""
    layers = getattr(DynamicCache(config=model.config), "layers", [])
    other = sorted({type(layer).__name__ for layer in layers} - {"DynamicLayer"})
    if other:
        raise InputError(
            f"{where}: layers with a {other[0]} cannot be rolled back yet; GammaLab needs full "
            "attention in every layer"
        )
    if "position_ids" not in inspect.signature(type(model).forward).parameters:
        raise InputError(
            f"{where}: {type(model).__name__} takes no position_ids; not supported yet"
        )
