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


FEW = ("fixed", "gammatune", "hf-confidence", "goodput", "ucb", "payback", "tail-pruning", "exp3")


def few_or_slow(names: Iterable[Any], few: Container[Any] = FEW) -> list[Any]:
    """Parameters of a test: the suite runs those in `few`, `make test-all` the others, too."""
    return [pytest.param(name, marks=() if name in few else pytest.mark.slow) for name in names]


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
