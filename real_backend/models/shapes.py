"""Real sizes without weights: two models known by their shapes alone, `--pair shape:TARGET+DRAFT`.

What a forward costs follows from sizes, kernels and device, not from the values of the weights: so
a pair can be timed where nobody has downloaded it. What such models say is noise. They propose and
accept at random, have no tokenizer and never end a reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from real_backend.models.device import GIB, free_bytes
from real_backend.options import SHAPE_PREFIX
from traces.errors import InputError

WEIGHT_STD = 0.02  # small enough for finite activations in 16 bit at any depth
CACHE_TOKENS = 2048  # of all rows together: the room asked for beside the weights, in both models


class Shape(NamedTuple):
    """Sizes of a published model; head size = hidden / heads, biases on q, k, v in Qwen2 only.

    architecture: transformers' model_type.
    eps: of the RMS norms.
    vocabulary: rows of the embedding.
    source: the model on the Hugging Face hub whose config.json says so.
    rope_factor: of Llama 3.1's rotary scaling, 0 for none.
    tied: embedding and unembedding are one matrix.
    """

    architecture: str
    context_tokens: int
    eps: float
    rope_theta: float
    vocabulary: int
    source: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    rope_factor: float = 0.0
    tied: bool = False

    def config(self) -> Any:
        """As a transformers configuration."""
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.rope_theta}
        if self.rope_factor:
            rope |= {"rope_type": "llama3", "factor": self.rope_factor}
            rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
            rope |= {"original_max_position_embeddings": 8192}
        return AutoConfig.for_model(
            self.architecture,
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=self.context_tokens,
            rms_norm_eps=self.eps,
            rope_parameters=rope,
            tie_word_embeddings=self.tied,
        )


# Read in copies of these config.json, and again in Lightning-AI/litgpt (litgpt/config.py, which
# lists all but the two small Vicunas). The tests count every model's parameters. double7's Vicuna
# drafts are JackFram/llama-68m and llama-160m, trained further.
_vicuna = partial(Shape, "llama", 2048, 1e-6, 1e4, 32000)  # version 1.3, the one of Spec-Bench
_llama_2 = partial(Shape, "llama", 4096, 1e-5, 1e4, 32000)
_llama_3 = partial(Shape, "llama", 8192, 1e-5, 5e5, 128256)
_llama_31 = partial(Shape, "llama", 131072, 1e-5, 5e5, 128256)
SHAPES: dict[str, Shape] = {
    "llama-2-7b": _llama_2("meta-llama/Llama-2-7b-hf", 32, 4096, 11008, 32, 32),
    "llama-2-70b": _llama_2("meta-llama/Llama-2-70b-hf", 80, 8192, 28672, 64, 8),
    "llama-3-8b": _llama_3("meta-llama/Meta-Llama-3-8B", 32, 4096, 14336, 32, 8),
    "llama-3.1-8b": _llama_31("meta-llama/Llama-3.1-8B", 32, 4096, 14336, 32, 8, 8.0),
    "llama-3.1-70b": _llama_31("meta-llama/Llama-3.1-70B", 80, 8192, 28672, 64, 8, 8.0),
    "llama-3.2-1b": _llama_31("meta-llama/Llama-3.2-1B", 16, 2048, 8192, 32, 8, 32.0, True),
    "qwen2.5-0.5b": Shape(
        "qwen2", 32768, 1e-6, 1e6, 151936, "Qwen/Qwen2.5-0.5B", 24, 896, 4864, 14, 2, tied=True
    ),
    "qwen2.5-7b": Shape(
        "qwen2", 131072, 1e-6, 1e6, 152064, "Qwen/Qwen2.5-7B", 28, 3584, 18944, 28, 4
    ),
    "vicuna-68m": _vicuna("double7/vicuna-68m", 2, 768, 3072, 12, 12),
    "vicuna-160m": _vicuna("double7/vicuna-160m", 12, 768, 3072, 12, 12),
    "vicuna-7b": _vicuna("lmsys/vicuna-7b-v1.3", 32, 4096, 11008, 32, 32),
    "vicuna-13b": _vicuna("lmsys/vicuna-13b-v1.3", 40, 5120, 13824, 40, 40),
}


def split_pair(pair: str) -> tuple[str, str]:
    """Target and draft of "shape:TARGET+DRAFT": names of SHAPES, or absolute paths.

    Either may be the path of a config.json or of the folder that holds one; a draft may leave out
    the family that it shares with the target: "shape:vicuna-7b+68m". Raises InputError otherwise.
    """
    target, _, draft = pair.removeprefix(SHAPE_PREFIX).partition("+")
    if not (target and draft):
        raise InputError(
            f"--pair {pair}: write {SHAPE_PREFIX}TARGET+DRAFT, for example "
            f"{SHAPE_PREFIX}llama-3.1-8b+llama-3.2-1b"
        )
    found = _find(target, pair)
    return found, _find(draft, pair, found.rpartition("-")[0])


def _find(name: str, pair: str, family: str = "") -> str:
    for known in (name.lower(), f"{family}-{name.lower()}"):
        if known in SHAPES:
            return known
    path = Path(name).resolve()
    if path.name == "config.json" and path.is_file():
        return str(path.parent)
    if path.is_file() or (path / "config.json").is_file():
        return str(path)
    raise InputError(
        f"--pair {pair}: {name!r} is neither a config.json, nor a folder with one, nor one of the "
        f"known shapes: {', '.join(SHAPES)}"
    )


def build_pair(name: str, parts: Sequence[str], device: str, dtype: torch.dtype) -> list[Any]:
    """The models that split_pair named, on the device in eval mode; the same weights every time.

    Nothing passes through the host's memory, and no second copy stays. Raises InputError for an
    unreadable config.json, and, before anything is allocated, if the device has less memory free
    than weights and caches need.
    """
    modules = [_skeleton(part, dtype) for part in parts]
    weights = sum(m.num_parameters() for m in modules) * dtype.itemsize
    caches = sum(cache_bytes(m.config, dtype, CACHE_TOKENS) for m in modules)
    free = free_bytes(device)
    if free is not None and weights + caches > free:
        half = "" if dtype.itemsize == 2 else ", --dtype bfloat16"
        raise InputError(
            f"{name} needs {(weights + caches) / GIB:.1f} GiB on {device} in "
            f"{str(dtype).removeprefix('torch.')} (weights {weights / GIB:.1f}, caches "
            f"{caches / GIB:.1f}), and {free / GIB:.1f} are free; try a smaller pair{half} or "
            "another --device"
        )
    for seed, module in enumerate(modules):
        _materialise(module, device, seed)
    return modules


def cache_bytes(config: Any, dtype: torch.dtype, tokens: int) -> int:
    """Keys and values of so many tokens in all layers."""
    config = config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    values = 2 * config.num_hidden_layers * kv_heads * head_dim * tokens
    return int(values * dtype.itemsize)


def _skeleton(part: str, dtype: torch.dtype) -> Any:
    """A transformers model without storage."""
    try:
        if part in SHAPES:
            config = SHAPES[part].config()
        else:
            config = AutoConfig.from_pretrained(part, trust_remote_code=False)
        # What comes out is noise: no token of it may end a reply.
        config.bos_token_id = config.eos_token_id = config.pad_token_id = None
        config.initializer_range = WEIGHT_STD
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise InputError(f"{part}: no model can be built from its config.json ({reason})") from None


def _materialise(module: Any, device: str, seed: int) -> None:
    """Give a skeleton storage and its architecture's own start: random weights, norms of 1.

    transformers' initialisation also fills what no checkpoint holds, such as rotary frequencies.
    """
    module.to_empty(device=device)
    module.tie_weights()
    module.eval().requires_grad_(False)
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        module.initialize_weights()
        for name, weight in module.named_parameters():
            if name.endswith("bias"):  # a bias of 0 would hide a forward that forgets it
                weight.normal_(std=WEIGHT_STD)
