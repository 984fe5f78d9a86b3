"""Read tokenizers and weights in Hugging Face layout: no code of a model's runs, nothing is taken
that does not fit; what was read is named by its hash.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from real_backend.models.device import GIB, free_bytes, weights_bytes
from real_backend.models.gguf import gguf_model, gguf_tokenizer, is_gguf
from traces.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


VOCABULARY = "vocabulary_sha256"  # of a draft's config.json: stands for a tokenizer of its own


def shared_tokenizer(target: str, draft: str) -> Any:
    """The target's tokenizer; raises InputError if the draft has another one."""
    tokenizer = load_tokenizer(target)
    if vocabulary_hash(tokenizer) != (
        _named_vocabulary(draft) or vocabulary_hash(load_tokenizer(draft))
    ):
        raise InputError(
            f"{target} and {draft} have different tokenizers; a draft must propose the "
            "target's own tokens - choose a pair of one family"
        )
    return tokenizer


def _named_vocabulary(draft: str) -> str | None:
    """The vocabulary that a draft's config.json names."""
    path = Path(draft) / "config.json"
    try:
        named = json.loads(path.read_text("utf-8")).get(VOCABULARY)
    except (OSError, ValueError, AttributeError):
        return None  # a hub name, a GGUF file, or no config: whoever loads it says so
    return named if isinstance(named, str) else None


def load_tokenizer(where: str) -> Any:
    """The tokenizer of a folder, a hub name or a GGUF file; raises InputError."""
    files = (
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "spiece.model",
        "tokenizer_config.json",
    )
    if Path(where).is_dir() and not any((Path(where) / name).is_file() for name in files):
        raise InputError(f"{where} has no tokenizer (tokenizer.json); copy it beside the weights")
    try:
        return gguf_tokenizer(where) if is_gguf(where) else AutoTokenizer.from_pretrained(where)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{where}: the tokenizer cannot be loaded ({_first_line(error)})"
        ) from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def _dtype_on(device: str, dtype: str) -> torch.dtype | None:
    """The dtype that --dtype names there; None: the checkpoint's."""
    if dtype != "auto":
        return DTYPES[dtype]
    return torch.float32 if device == "cpu" else None  # half precision on a CPU is emulated


def check_room(name: str, parts: Sequence[str], device: str, dtype: str) -> None:
    """Raise InputError if local weights cannot fit, before hours of reading them."""
    needed = sum(weights_bytes(Path(where), _dtype_on(device, dtype)) for where in parts)
    free = free_bytes(device)
    if free is not None and needed > free:
        raise InputError(
            f"{name}: the weights need {needed / GIB:.1f} GiB on {device}, {free / GIB:.1f} "
            "are free; try a smaller pair, --dtype bfloat16 or another --device"
        )


def load_model(where: str, device: str, dtype: str) -> Any:
    """A transformers model in eval mode; only safetensors or GGUF are read, no code of the model's
    runs.
    """
    chosen: Any = _dtype_on(device, dtype) or "auto"
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    told = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # what is wrong with the weights we say
    try:
        if is_gguf(where):
            return (
                gguf_model(where, torch.float32 if chosen == "auto" else chosen)
                .to(device)
                .eval()
                .requires_grad_(False)
            )
        AutoConfig.from_pretrained(where)
        model, info = AutoModelForCausalLM.from_pretrained(
            where, dtype=chosen, use_safetensors=True, output_loading_info=True
        )
    except (torch.cuda.OutOfMemoryError, InputError):
        raise
    except Exception as error:
        raise InputError(f"{where}: the model cannot be loaded ({_first_line(error)})") from None
    finally:
        transformers.utils.logging.set_verbosity(told)
    _check_weights(where, info["missing_keys"], info["unexpected_keys"])
    return model.to(device).eval().requires_grad_(False)


def _check_weights(where: str, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raise InputError unless the files hold the weights of the model, tied ones and buffers aside,
    and no others: a missing one would be random, one too many is of another model.
    """
    both = {"missing from": sorted(missing), "unexpected in": sorted(unexpected)}
    if not any(both.values()):
        return
    counts = [
        f"{len(names)} {what} the files" + f" ({', '.join(names[:2])} ...)" * bool(names)
        for what, names in both.items()
    ]
    raise InputError(
        f"{where}: config.json describes another model than the weights: {', '.join(counts)}; "
        "take both from one checkpoint"
    )


def vocabulary_hash(tokenizer: Any) -> str:
    """SHA-256 of the token-to-id map: equal for two copies of one tokenizer."""
    items = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(items).encode()).hexdigest()


def weights_hash(*modules: Any) -> str:
    """SHA-256 over name, shape and first values of every parameter: cheap, and new after
    training.
    """
    digest = hashlib.sha256()
    for module in modules:
        for name, weight in module.named_parameters():
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()
