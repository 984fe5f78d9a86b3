"""One model's `generate` three ways: plain, with our policies inside, with its own assistant.

    python -m pytest -m benchmarks -s tests/benchmarks/test_generate_speed.py

Embedded pair, greedy, float32, one thread, up to 128 new tokens; every contender is a call of
`model.generate` and must return the same tokens. Rates are tokens per second of whole calls,
prompts read included. The order of the contenders rotates from prompt to prompt; the first prompt
warms up. transformers' schedules: a constant 5 tokens, the heuristic from 5, and its default
(20 tokens, stopped by a confidence threshold that follows an ROC curve where scikit-learn is
installed).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from real_backend.huggingface.generate import Speculation, speculate
from real_backend.pair_spec import EMBEDDED
from real_backend.prompts import EMBEDDED_PROMPTS, read_questions

PER_TASK, NEW_TOKENS = 2, 128
TIMING = Path(__file__).parents[2] / "traces/data/timing-x86_64-cpu.json"
POLICIES = (
    "never",
    "fixed:gamma=3",
    "fixed:gamma=5",
    "hf-heuristic:gamma0=5",
    "hf-confidence",
    "hf-roc",
    "tail-pruning",
    "gammatune",
    "gammatune+",
    "ucb",
    "goodput",
)
ASSISTED = {  # num_assistant_tokens, its schedule, assistant_confidence_threshold
    "constant 5": (5, "constant", 0.0),
    "heuristic from 5": (5, "heuristic_transient", 0.0),
    "default": (20, "constant", 0.4),
}

pytestmark = [
    pytest.mark.benchmarks,
    pytest.mark.skipif(not EMBEDDED_PROMPTS.exists(), reason="no embedded pair in this checkout"),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load() -> tuple[Any, Any]:
    """Target and draft."""
    target, draft = (
        AutoModelForCausalLM.from_pretrained(EMBEDDED / role, dtype=torch.float32)
        for role in ("target", "draft")
    )
    return target, draft


def prompts() -> list[Any]:
    """Chat prompts as the tokenizer encodes them, PER_TASK of every task."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "target")
    chosen: dict[str, list[Any]] = defaultdict(list)
    for question in read_questions(EMBEDDED_PROMPTS):
        if len(chosen[question.task]) < PER_TASK:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": question.turns[0]}],
                tokenize=False,
                add_generation_prompt=True,
            )
            encoded = tokenizer(text, return_tensors="pt", add_special_tokens=False)
            chosen[question.task].append(encoded)
    return [prompt for task in chosen.values() for prompt in task]


def assisted(target: Any, draft: Any, settings: tuple[int, str, float], prompt: Any) -> Any:
    """transformers' assisted generation under one of its schedules."""
    config = draft.generation_config
    config.num_assistant_tokens, config.num_assistant_tokens_schedule = settings[:2]
    config.assistant_confidence_threshold = settings[2]
    return target.generate(**prompt, max_new_tokens=NEW_TOKENS, assistant_model=draft)


def ours(target: Any, spec: Speculation, prompt: Any) -> Any:
    return target.generate(**prompt, max_new_tokens=NEW_TOKENS, custom_generate=spec)


def test_generate_three_ways() -> None:
    (target, draft), (their_target, their_draft) = load(), load()
    specs = {name: speculate(draft, name, timing=TIMING) for name in POLICIES}
    contenders: dict[str, Callable[[Any], Any]] = {
        "plain generate": lambda prompt: their_target.generate(**prompt, max_new_tokens=NEW_TOKENS)
    }
    for name, settings in ASSISTED.items():
        contenders[f"assisted, {name}"] = partial(assisted, their_target, their_draft, settings)
    for name, spec in specs.items():
        contenders[f"speculate, {name}"] = partial(ours, target, spec)
    seconds: dict[str, float] = defaultdict(float)
    tokens, order, questions = 0, list(contenders), prompts()
    for turn, prompt in enumerate([questions[0], *questions]):
        shift = turn * 4 % len(order)
        outputs = {}
        for name in order[shift:] + order[:shift]:
            began = time.perf_counter()
            outputs[name] = contenders[name](prompt)
            seconds[name] += (time.perf_counter() - began) if turn else 0.0
        plain = outputs["plain generate"]
        for name, output in outputs.items():
            assert torch.equal(output, plain), name
        tokens += plain.shape[1] - prompt["input_ids"].shape[1] if turn else 0
    print(f"\n{'':34}{'tokens/s':>10}{'x plain':>9}{'tokens a round':>16}")
    for name in contenders:
        spec = specs.get(name.removeprefix("speculate, "))
        per_round = "" if spec is None else f"{spec.log.emitted.mean():.2f}"
        ratio = seconds["plain generate"] / seconds[name]
        print(f"{name:34}{tokens / seconds[name]:10.0f}{ratio:9.2f}{per_round:>16}")


def test_rows_at_once() -> None:
    """The same prompts as one left-padded batch: plain generate, and rows singly and at once."""
    (target, draft), (their_target, _) = load(), load()
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "target", padding_side="left")
    rows = [prompt["input_ids"][0].tolist() for prompt in prompts()]
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    loops: dict[str, Any] = {"plain generate": None}
    for at_once in (1, 4, len(rows)):
        loops[f"speculate, {at_once} at once"] = speculate(draft, "gammatune", batch=at_once)
    seconds: dict[str, float] = defaultdict(float)
    for turn in range(4):
        outputs = {}
        for name, loop in list(loops.items())[turn:] + list(loops.items())[:turn]:
            model = their_target if loop is None else target
            began = time.perf_counter()
            outputs[name] = model.generate(**batch, max_new_tokens=NEW_TOKENS, custom_generate=loop)
            seconds[name] += (time.perf_counter() - began) if turn else 0.0
        for name, output in outputs.items():
            assert torch.equal(output, outputs["plain generate"]), name
    width = batch["input_ids"].shape[1]
    tokens = 3 * int((outputs["plain generate"][:, width:] != tokenizer.pad_token_id).sum())
    print(f"\n{len(rows)} rows{'':27}{'tokens/s':>10}{'x plain':>9}")
    for name in loops:
        ratio = seconds["plain generate"] / seconds[name]
        print(f"{name:34}{tokens / seconds[name]:10.0f}{ratio:9.2f}")
