"""What tests make for themselves: tiny random pairs in Hugging Face layout, prompt files, random
traces and costs.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from traces.costs.pricing import StepCosts, make_step_costs
from traces.schema import Trace, TraceMeta

TEMPLATE = (
    "{% for m in messages %}{{ '<u>' if m['role'] == 'user' else '<a>' }} {{ m['content'] }} "
    "{% endfor %}{% if add_generation_prompt %}<a> {% endif %}"
)


def save_tokenizer(folder: Path, words: int, template: str | None = TEMPLATE) -> None:
    """A word-level tokenizer w0 w1 ... with <s> </s> <u> <a> in front."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<u>", "<a>"]
    vocabulary = {w: i for i, w in enumerate([*special, *(f"w{k}" for k in range(words))])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    if template:
        fast.chat_template = template
    fast.save_pretrained(folder)


def save_llama(folder: Path, seed: int, noise: float = 0.0, **changes: Any) -> None:
    """A random Llama; the same seed with some noise makes a draft that often agrees."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "initializer_range": 0.35,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(settings | changes)))
    if noise:
        generator = torch.Generator().manual_seed(seed + 1)
        for weight in model.parameters():
            spread = noise * float(weight.detach().std()) if weight.numel() > 1 else 0.0
            weight.data += spread * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)


def save_pair(folder: Path, *, draft_changes: dict[str, Any] | None = None, **changes: Any) -> Path:
    """target/ and draft/ with a shared tokenizer of 64 tokens."""
    for name, noise in (("target", 0.0), ("draft", 0.08)):
        extra = (draft_changes or {}) if name == "draft" else {}
        save_llama(folder / name, seed=7, noise=noise, **(changes | extra))
        save_tokenizer(folder / name, 60)
    return folder


def save_eagle3(
    folder: Path,
    target: Path,
    layout: str = "safeai",
    seed: int = 3,
    *,
    without: Container[str] = (),
    biases: bool = False,
    **changes: Any,
) -> Path:
    """A random EAGLE-3 head for a target of save_llama, in the files of SafeAILab ("safeai") or of
    the speculators library; 40 of the target's tokens can be proposed.

    without: tensors that the file lacks. changes: fields of config.json.
    """
    import torch
    from safetensors.torch import save_file

    of_target = json.loads((target / "config.json").read_text())
    hidden, vocab = of_target["hidden_size"], of_target["vocab_size"]
    layer: dict[str, Any] = {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": 40,
        "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 1,
        "vocab_size": vocab, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "hidden_act": "silu", "rope_theta": 700.0,
    }  # fmt: skip
    layer |= {name: changes.pop(name) for name in list(changes) if name in layer}
    layer["head_dim"] = changes.pop("head_dim", hidden // layer["num_attention_heads"])
    known = changes.setdefault("draft_vocab_size", 40)
    generator = torch.Generator().manual_seed(seed)
    wide = layer["num_attention_heads"] * layer["head_dim"]
    narrow, inner = layer["num_key_value_heads"] * layer["head_dim"], layer["intermediate_size"]
    shapes = {
        "fc": (hidden, 3 * hidden),
        "layers.0.hidden_norm": (hidden,),
        "layers.0.input_layernorm": (hidden,),
        "layers.0.self_attn.q_proj": (wide, 2 * hidden),
        "layers.0.self_attn.k_proj": (narrow, 2 * hidden),
        "layers.0.self_attn.v_proj": (narrow, 2 * hidden),
        "layers.0.self_attn.o_proj": (hidden, wide),
        "layers.0.post_attention_layernorm": (hidden,),
        "layers.0.mlp.gate_proj": (inner, hidden),
        "layers.0.mlp.up_proj": (inner, hidden),
        "layers.0.mlp.down_proj": (hidden, inner),
        "norm": (hidden,),
        "lm_head": (known, hidden),
        "embed_tokens": (vocab, hidden),
    }
    if changes.get("norm_before_fc"):
        shapes["input_norm"] = (3 * hidden,)
    tensors = {
        f"{name}.weight": 0.25 * torch.randn(shape, generator=generator) + (len(shape) == 1)
        for name, shape in shapes.items()
    }
    if biases:
        tensors |= {
            f"{name}.bias": torch.randn(shape[0], generator=generator)
            for name, shape in shapes.items()
            if name == "fc" or name.endswith("_proj")
        }
    tokens = torch.randperm(vocab, generator=generator)[:known].sort().values
    mask = torch.zeros(vocab, dtype=torch.bool)
    mask[tokens] = True
    tensors |= {"d2t": tokens - torch.arange(known), "t2d": mask}
    raw = {"architectures": ["LlamaForCausalLMEagle3"], **layer, **changes}
    if layout == "safeai":
        tensors = {name.replace("layers.0.", "midlayer."): t for name, t in tensors.items()}
    else:
        raw = {
            "architectures": ["Eagle3DraftModel"],
            "speculators_model_type": "eagle3",
            "transformer_layer_config": layer,
            **changes,
        }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(raw))
    kept = {name: t for name, t in tensors.items() if name not in without}
    save_file(kept, folder / "model.safetensors")
    return folder


def write_prompts(path: Path, questions: int = 6, turns: int = 1) -> Path:
    """A prompt file in Spec-Bench's layout over the tiny tokenizer's words."""
    generator = np.random.default_rng(5)
    tasks = ("writing", "qa", "rag")
    lines = []
    for number in range(questions):
        said = [
            " ".join(f"w{k}" for k in generator.integers(0, 60, size=generator.integers(3, 12)))
            for _ in range(turns)
        ]
        row = {"question_id": number + 1, "category": tasks[number % 3], "turns": said}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")
    return path


FEW = (
    "fixed", "gammatune", "hf-confidence", "goodput", "ucb", "payback", "tail-pruning", "exp3",
    "llama-p-min", "worth",
)  # fmt: skip


def few_or_slow(names: Iterable[Any], few: Container[Any] = FEW) -> list[Any]:
    """Parameters of a test: the suite runs those in `few`, `make test-all` the others, too."""
    return [pytest.param(name, marks=() if name in few else pytest.mark.slow) for name in names]


def few_or_long(names: Iterable[Any], few: Container[Any] = FEW) -> list[Any]:
    """`few_or_slow`, of which `make test-long` runs the others, too."""
    return [pytest.param(name, marks=() if name in few else pytest.mark.long) for name in names]


def random_trace(generator: np.random.Generator, requests: int, depth: int) -> Trace:
    """Any accept_len the schema allows, any signals, replies of 1 token and more; every other one
    is of a look-up, which has some tokens to offer and not as many as asked.
    """
    lengths = generator.integers(1, 30, requests)
    lengths[0] = 1
    remaining = np.concatenate([np.arange(n, 0, -1) for n in lengths])
    easy = generator.random()
    accept_len = np.minimum(remaining, generator.geometric(1.0 - 0.95 * easy, remaining.size) - 1)
    # Thresholds of the registry are among the values, where float32 and float64 disagree most.
    values = np.asarray([0.0, 0.2, 0.4, 0.5, 0.7, 0.75, 1.0])
    noise = generator.random((remaining.size, depth))
    chosen = generator.choice(values, noise.shape)
    top1 = np.where(generator.random(noise.shape) < 0.3, chosen, noise)
    longest = int(lengths.max()) + int(generator.integers(0, 5))
    context = int(generator.integers(0, 2)) * (longest + int(generator.integers(1, 60)))
    looks_up = bool(generator.integers(0, 2))
    draft_len = np.maximum(accept_len, generator.integers(0, depth + 1, remaining.size))
    meta = TraceMeta(
        "p", "t", "d", "", "none", "none", "synthetic",
        depth=depth, max_new_tokens=longest, max_context=context,
        drafter="lookup" if looks_up else "model",
    )  # fmt: skip
    return Trace(
        meta=meta,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompt_tokens=generator.integers(0, 50, requests).astype(np.int32),
        request_id=tuple(str(r) for r in range(requests)),
        category=("c",) * requests,
        accept_len=accept_len.astype(np.int16),
        top1_prob=top1.astype(np.float32),
        entropy=generator.exponential(1.0, noise.shape).astype(np.float32),
        draft_len=draft_len.astype(np.int16) if looks_up else None,
    )


def random_costs(generator: np.random.Generator, depth: int) -> StepCosts:
    """Any costs, falling and rising, few buckets and many."""
    buckets, width = int(generator.integers(1, 6)), depth + 2 + int(generator.integers(0, 3))
    draft = generator.exponential(1e-3, (buckets, width))
    verify = generator.exponential(1e-2, (buckets, width)) + 1e-6
    draft[:, 0] = verify[:, 0] = 0.0
    prefill = generator.exponential(1e-1, buckets)
    size, states = int(generator.integers(1, 40)), bool(generator.integers(0, 2))
    return make_step_costs(
        draft, verify, bucket_tokens=size, prefill_s=prefill, signal_s=1e-4, reads_states=states
    )
