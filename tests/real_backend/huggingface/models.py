"""Pairs of transformers models to speculate with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Qwen2Config,
)
from transformers.generation import (
    BaseStreamer,
    StoppingCriteria,
)

TINY_PROMPT = torch.tensor([[2, 9, 30, 12]])

Models = tuple[Any, Any]


def load(folder: Path) -> Models:
    target, draft = (
        AutoModelForCausalLM.from_pretrained(folder / role, dtype=torch.float32)
        for role in ("target", "draft")
    )
    return target, draft


class Recorder(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        assert not value.is_inference()
        self.seen.append(value.tolist())

    def end(self) -> None:
        self.seen.append("end")


class Watcher(StoppingCriteria):
    """Stops a row at a token, and keeps the lengths it was asked about."""

    def __init__(self, token: int) -> None:
        self.token, self.lengths = token, list[int]()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.lengths.append(input_ids.shape[1])
        return input_ids[:, -1] == self.token


def small_qwen(**changes: Any) -> Qwen2Config:
    """Biases and grouped heads."""
    settings: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.35,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return Qwen2Config(**(settings | changes))
