"""Our engine and transformers' assisted generation, side by side, and the bare forwards below both.

    python -m pytest -m benchmarks -s tests/benchmarks/test_engine_speed.py

Same pair, same prompts, same schedules (constant gamma 5; the heuristic from 5), greedy, float32,
one thread, up to 128 new tokens. The floor of a run is its model forwards alone: what the two
models were asked to read during one decode, asked again without the loop around it. Every contender
runs REPEATS times per prompt and counts with its median; each of the five stands at every place of
the order, and behind every other one, equally often. Seconds are those of whole replies, the
prompt's reading included, for all five, and of the processor: one thread that waits for nothing
needs as many by the clock on the wall of an idle machine. How much longer the wall says it took
shows how busy the machine was.
"""

from __future__ import annotations

import contextlib
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import transformers

from policies.base import Policy
from policies.registry import parse_policy
from real_backend.decoding.eager import EagerSteps
from real_backend.decoding.engine import Engine
from real_backend.decoding.solo import SoloSteps
from real_backend.load_pair import Pair, load_pair
from real_backend.models.cache_rows import CacheRows
from real_backend.pair_spec import resolve_pair
from real_backend.prompts import EMBEDDED_PROMPTS, Request, read_questions, request_for
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate

PER_TASK, NEW_TOKENS, REPEATS = 3, 128, 5
SCHEDULES = {"constant": "fixed:gamma=5", "heuristic": "hf-heuristic:gamma0=5"}
CONTENDERS = ("lean floor", "lean", "general floor", "general", "transformers")
COSTS = tabulate(Affine(), max_context=1024)  # neither schedule looks at them

pytestmark = [
    pytest.mark.benchmarks,
    pytest.mark.skipif(not EMBEDDED_PROMPTS.exists(), reason="no embedded pair in this checkout"),
]


class Read(NamedTuple):
    """One call of Rows.read."""

    rows: CacheRows
    feeds: list[tuple[int, int, int]]
    tokens: torch.Tensor
    last: bool

    def again(self) -> torch.Tensor:
        return self.rows.read(self.feeds, self.tokens, self.last)


def header() -> str:
    return (
        f"\nembedded pair, float32, {platform.machine()} CPU, {torch.get_num_threads()} thread(s), "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextlib.contextmanager
def waiting_shown() -> Iterator[None]:
    """Prints how much longer it took than the processor worked."""
    wall, processor = time.perf_counter(), time.process_time()
    yield
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    print(f"seconds are the processor's; by the clock it took {wall / processor - 1:.1%} longer")


@contextlib.contextmanager
def recording(engine: Engine, batch: int, capacity: int) -> Iterator[list[Read]]:
    """What both models of the engine read in the meantime."""
    steps, reads = engine.steps(batch, capacity), list[Read]()
    assert isinstance(steps, EagerSteps | SoloSteps)

    def noting(rows: CacheRows) -> Callable[..., torch.Tensor]:
        read = rows.read

        def note(
            feeds: Sequence[tuple[int, int, int]], tokens: torch.Tensor, last: bool
        ) -> torch.Tensor:
            reads.append(Read(rows, list(feeds), tokens.clone(), last))
            return read(feeds, tokens, last)

        return note

    with (
        mock.patch.object(steps.target, "read", noting(steps.target)),
        mock.patch.object(steps.draft, "read", noting(steps.draft)),
    ):
        yield reads


def requests_by_task(pair: Pair, per_task: int) -> list[Request]:
    chosen: dict[str, list[Request]] = defaultdict(list)
    for question in read_questions(EMBEDDED_PROMPTS):
        if len(chosen[question.task]) < per_task:
            chosen[question.task].append(request_for(pair, question, 0, []))
    return [request for requests in chosen.values() for request in requests]


def capacity_for(requests: Sequence[Request], engine: Engine) -> int:
    """Tokens of cache that serve every one of the requests."""
    return max(len(r.prompt_ids) for r in requests) + NEW_TOKENS + engine.max_gamma + 1


def ours(engine: Engine, policy: Policy, request: Request) -> list[int]:
    return engine.decode(policy, [request], max_new_tokens=NEW_TOKENS).tokens[0]


def assisted(pair: Pair, schedule: str, request: Request) -> list[int]:
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


@torch.inference_mode()
def replay(reads: Sequence[Read]) -> None:
    for read in reads:
        read.again()


def in_turn(turn: int) -> list[str]:
    """The contenders in one of their 20 orders; all 20 together are balanced."""
    n = len(CONTENDERS)
    shift, stride = turn % n, 1 + turn // n % (n - 1)
    return [CONTENDERS[(shift + k * stride) % n] for k in range(n)]


def test_engine_against_transformers() -> None:
    spec = resolve_pair(None, None, None)
    pairs = {
        "lean": load_pair(spec, device="cpu"),
        "general": load_pair(spec, device="cpu", lean=False),
    }
    engines = {path: Engine(pair, COSTS) for path, pair in pairs.items()}
    requests = requests_by_task(pairs["lean"], PER_TASK)
    capacity = capacity_for(requests, engines["lean"])
    tasks = [request.category for request in requests]
    turn = 0
    with one_thread(), waiting_shown():
        print(header())
        for schedule, text in SCHEDULES.items():
            policy = parse_policy(text)
            medians: list[dict[str, float]] = []
            tokens: list[int] = []
            rounds: list[int] = []
            for request in [requests[0], *requests]:  # the first one warms up
                work: dict[str, Callable[[], Any]] = {
                    "transformers": partial(assisted, pairs["general"], schedule, request)
                }
                for path, engine in engines.items():
                    with recording(engine, 1, capacity) as reads:
                        ours(engine, policy, request)
                    work[path] = partial(ours, engine, policy, request)
                    work[f"{path} floor"] = partial(replay, reads)
                rounds.append(sum(not read.last for read in reads))  # on either path
                seconds: dict[str, list[float]] = defaultdict(list)
                replies: dict[str, Any] = {}
                for _ in range(REPEATS):
                    for name in in_turn(turn):
                        began = time.process_time()
                        replies[name] = work[name]()
                        seconds[name].append(time.process_time() - began)
                    turn += 1
                assert replies["lean"] == replies["general"] == replies["transformers"]
                medians.append({name: statistics.median(seconds[name]) for name in CONTENDERS})
                tokens.append(len(replies["lean"]))
            print(f"\n{schedule} schedule ({text}), tokens/s")
            report(tasks, medians[1:], tokens[1:], sum(rounds[1:]))


def report(
    tasks: list[str], medians: list[dict[str, float]], tokens: list[int], rounds: int
) -> None:
    """tasks, medians, tokens: one entry per prompt."""
    columns = "".join(f"{name:>15}" for name in CONTENDERS)
    print(f"{'task':16}{columns}{'lean/transf.':>14}{'lean above its floor':>22}")
    for task in [*dict.fromkeys(tasks), "all"]:
        chosen = [k for k, of in enumerate(tasks) if task in (of, "all")]
        spent = {name: sum(medians[k][name] for k in chosen) for name in CONTENDERS}
        count = sum(tokens[k] for k in chosen)
        rates = "".join(f"{count / spent[name]:15.0f}" for name in CONTENDERS)
        times = spent["transformers"] / spent["lean"]
        above = spent["lean"] / spent["lean floor"] - 1
        print(f"{task:16}{rates}{times:14.2f}{above:21.1%}")
    each = [prompt["lean"] / prompt["lean floor"] - 1 for prompt in medians]
    print(
        f"  lean above its floor, prompt by prompt: median {statistics.median(each):.1%}, "
        f"{min(each):.1%} to {max(each):.1%}"
    )
    for name, floor in (
        ("lean", "lean floor"),
        ("general", "general floor"),
        ("transformers", "general floor"),
    ):
        extra = (spent[name] - spent[floor]) / rounds
        print(
            f"  {name}: {extra * 1e6:.0f} us per round beyond the {floor}, "
            f"{spent[name] / spent[floor] - 1:.1%}"
        )
