"""A target deep enough for a head that reads three of its states; rules timed on warm caches."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real_backend.drafters.plain_eagle3 import LAYERS
from tests.specimens import save_llama, save_tokenizer


@pytest.fixture(scope="session")
def deep_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with layers enough for a head."""
    folder = tmp_path_factory.mktemp("deep") / "target"
    save_llama(folder, seed=7, num_hidden_layers=LAYERS, num_key_value_heads=2)
    save_tokenizer(folder, 60)
    return folder


@pytest.fixture(autouse=True)
def warm_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two timed hooks 16 MB are read; here little is, as nobody looks at the seconds."""
    monkeypatch.setattr("policies.overhead.BETWEEN_BYTES", 1 << 12)
