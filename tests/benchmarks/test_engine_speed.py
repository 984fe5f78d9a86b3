"""Our engine and transformers' assisted generation, side by side, and the bare forwards below both.

    python -m pytest -m benchmarks -s tests/benchmarks/test_engine_speed.py

Same pair, same prompts, same schedules (constant gamma 5; the heuristic from 5), greedy, float32,
one thread. The floor of a run is its model forwards alone: the same reads, replayed without the
loop around them. Rates are tokens per second of decoding and reading the prompt; the order of the
contenders rotates from prompt to prompt.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from policies.base import Policy
from policies.shelf import parse_policy
from real_backend.engine import Engine
from real_backend.kvcache import Reader
from real_backend.models import Pair, load_pair, resolve_pair
from real_backend.prompts import EMBEDDED_PROMPTS, Request, read_questions, request_for
from traces.costs import tabulate
from traces.timing import StepCosts

PER_TASK, NEW_TOKENS = 3, 128
SCHEDULES = {"constant": "fixed:gamma=5", "heuristic": "hf-heuristic:gamma0=5"}
Read = tuple[Reader, torch.Tensor, int]

pytestmark = [
    pytest.mark.benchmarks,
    pytest.mark.skipif(not EMBEDDED_PROMPTS.exists(), reason="no embedded pair in this checkout"),
]


class Free:
    """Costs nobody looks at: neither schedule reads the clock."""

    def prefill_s(self, tokens: float, batch: int) -> float:
        return 0.0

    def draft_step_s(self, batch: int, context_tokens: float, tokens: float = 1) -> float:
        return 1e-3

    def verify_s(self, tokens: float, batch: int, context_tokens: float) -> float:
        return 1e-2

    def signal_s(self) -> float:
        return 0.0

    def control_s(self) -> float:
        return 0.0


class Recorder:
    """A reader that remembers what it was asked to read."""

    def __init__(self, reader: Reader, reads: list[Read]) -> None:
        self.reader, self.reads = reader, reads
        self.capacity = reader.capacity

    @property
    def held(self) -> int:
        return self.reader.held

    def read(self, tokens: torch.Tensor, start: int, *rest: Any) -> torch.Tensor:
        self.reads.append((self.reader, tokens.clone(), start))
        return self.reader.read(tokens, start, *rest)


def requests_by_task(pair: Pair) -> list[Request]:
    chosen: dict[str, list[Request]] = defaultdict(list)
    for question in read_questions(EMBEDDED_PROMPTS):
        if len(chosen[question.task]) < PER_TASK:
            chosen[question.task].append(request_for(pair, question, 0, []))
    return [request for requests in chosen.values() for request in requests]


def floor_seconds(
    pair: Pair, costs: StepCosts, policy: Policy, request: Request
) -> tuple[float, int]:
    """Seconds of the forwards of one run alone, and its rounds."""
    engine, reads = Engine(pair, costs), list[Read]()
    readers = engine.readers(len(request.prompt_ids) + NEW_TOKENS + 20)
    engine._readers = (Recorder(readers[0], reads), Recorder(readers[1], reads))
    rounds = len(engine.decode(policy, [request], max_new_tokens=NEW_TOKENS).log)
    with torch.inference_mode():
        began = time.perf_counter()
        for reader, tokens, start in reads:
            reader.read(tokens, start)
        return time.perf_counter() - began, rounds


def assisted(pair: Pair, request: Request, schedule: str) -> list[int]:
    ids = torch.tensor([request.prompt_ids])
    config = pair.draft.module.generation_config
    config.num_assistant_tokens = 5
    config.num_assistant_tokens_schedule = schedule
    config.assistant_confidence_threshold = 0.0
    output = pair.target.module.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        assistant_model=pair.draft.module,
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
    )
    return list(output[0, ids.shape[1] :].tolist())


def test_engine_against_transformers() -> None:
    spec = resolve_pair(None, None, None)
    lean, general = load_pair(spec), load_pair(spec, lean=False)
    costs = tabulate(Free(), max_context=1024)
    engines = {"lean": Engine(lean, costs), "general": Engine(general, costs)}
    pairs = {"lean": lean, "general": general}
    seconds: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    tokens: dict[str, int] = defaultdict(int)
    rounds: dict[tuple[str, str], int] = defaultdict(int)
    requests = requests_by_task(lean)

    def ours(path: str, text: str, request: Request) -> list[int]:
        run = engines[path].decode(parse_policy(text), [request], max_new_tokens=NEW_TOKENS)
        return run.tokens[0]

    for turn, request in enumerate([requests[0], *requests]):  # the first one warms up
        for schedule, text in SCHEDULES.items():
            contenders: list[tuple[str, Callable[[], list[int]]]] = [
                ("lean", partial(ours, "lean", text, request)),
                ("general", partial(ours, "general", text, request)),
                ("transformers", partial(assisted, general, request, schedule)),
            ]
            shift = turn % len(contenders)
            replies = {}
            for name, work in contenders[shift:] + contenders[:shift]:
                began = time.perf_counter()
                replies[name] = work()
                elapsed = time.perf_counter() - began
                if turn:
                    seconds[name, schedule, request.category].append(elapsed)
            assert replies["lean"] == replies["general"] == replies["transformers"]
            if turn:
                tokens[request.category] += len(replies["lean"]) if schedule == "constant" else 0
                for path in ("lean", "general"):
                    bare, count = floor_seconds(pairs[path], costs, parse_policy(text), request)
                    seconds[f"{path} floor", schedule, request.category].append(bare)
                    rounds[schedule, path] += count
    report(seconds, tokens, rounds)


def report(
    seconds: dict[tuple[str, str, str], list[float]],
    tokens: dict[str, int],
    rounds: dict[tuple[str, str], int],
) -> None:
    names = ("lean floor", "lean", "general floor", "general", "transformers")
    for schedule, text in SCHEDULES.items():
        print(f"\n{schedule} schedule ({text}), tokens/s")
        print(f"{'task':16}" + "".join(f"{name:>15}" for name in names) + f"{'lean/transf.':>14}")
        total = {name: 0.0 for name in names}
        for task, count in tokens.items():
            spent = {name: sum(seconds[name, schedule, task]) for name in names}
            for name in names:
                total[name] += spent[name]
            rates = "".join(f"{count / spent[name]:15.0f}" for name in names)
            print(f"{task:16}{rates}{spent['transformers'] / spent['lean']:14.2f}")
        everything = sum(tokens.values())
        rates = "".join(f"{everything / total[name]:15.0f}" for name in names)
        print(f"{'all':16}{rates}{total['transformers'] / total['lean']:14.2f}")
        count = rounds[schedule, "lean"]
        for name, floor in (
            ("lean", "lean floor"),
            ("general", "general floor"),
            ("transformers", "general floor"),
        ):
            extra = (total[name] - total[floor]) / count
            print(f"  {name}: {extra * 1e6:.0f} us per round beyond the bare forwards")
