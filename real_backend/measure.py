"""Time every step of a round on this machine: `python -m real_backend.measure`.

Each cell is timed as the engine runs it: a draft step reads, picks the next token and (apart) reads
its signals; a verify reads, compares and brings the decision to the host. Warm-up, then medians and
quartiles over repeats; the cells are visited in a shuffled order, several times over, so that a
slow minute of the machine does not fall on one of them. What the engine adds per round beyond these
steps is measured on real rounds and becomes control_s.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from policies.fixed import Fixed
from real_backend.engine import Engine
from real_backend.kvcache import Reader
from real_backend.models import Pair, pair_from_args
from real_backend.options import add_measure_arguments, add_pair_arguments
from real_backend.prompts import Request
from real_backend.verify import accept_greedy, signals
from traces.costs import Table, price_log, tabulate
from traces.errors import InputError
from traces.timing import Cell, Timing

DRAFT_TOKENS = (1, 2, 3, 5, 9)
VERIFY_TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 15, 17, 25, 33)
PREFILL_TOKENS = (16, 64, 128, 256, 512)


class Task(NamedTuple):
    """One cell to time: what, where, and the work itself."""

    operation: str
    batch: int
    tokens: int
    context: int
    prepare: Callable[[], object]
    work: Callable[[], object]


def _synchronise(pair: Pair) -> None:
    if pair.device.startswith("cuda"):
        torch.cuda.synchronize()


def _tasks(pair: Pair, batches: Sequence[int], contexts: Sequence[int]) -> list[Task]:
    """Every cell of the grid; raises InputError if one exceeds the pair's context."""
    limit = pair.max_context or 1 << 30
    widest = max(VERIFY_TOKENS)
    if max(contexts) + widest > limit:
        raise InputError(
            f"--context {max(contexts)}: with {widest} more tokens it exceeds the pair's context "
            f"of {limit}"
        )
    longest = min(limit, max(*contexts, *PREFILL_TOKENS) + widest)
    generator = torch.Generator().manual_seed(0)
    tasks: list[Task] = []
    work: Callable[[], object]
    for batch in batches:
        target, draft = pair.target.reader(longest, batch), pair.draft.reader(longest, batch)
        ids = torch.randint(pair.vocab_size, (batch, longest), generator=generator).to(pair.device)
        for tokens in PREFILL_TOKENS:
            if tokens < limit:
                work = partial(_prefill, target, draft, ids[:, :tokens])
                tasks.append(Task("prefill", batch, tokens, 0, work, work))
        for context in contexts:
            head, tail = ids[:, :context], ids[:, context:]
            for tokens in DRAFT_TOKENS:
                # Most single draft steps follow another one, a longer read follows a verify.
                before = partial(_fill, draft, head, target if tokens > 1 else draft)
                work = partial(_draft, pair, draft, tail[:, :tokens], context)
                tasks.append(Task("draft", batch, tokens, context, before, work))
            for tokens in VERIFY_TOKENS:
                before = partial(_fill, target, head, draft)
                work = partial(_verify, pair, target, tail[:, :tokens], context)
                tasks.append(Task("verify", batch, tokens, context, before, work))
    return tasks


def _fill(reader: Reader, head: Tensor, last: Reader) -> None:
    """Have `head` in both caches, then one read of `last`: what ran before decides what is warm."""
    context = head.shape[1]
    for one in (reader, last):
        if one.held < context:
            one.read(head, 0)
    last.read(head[:, -1:], context - 1)


def _prefill(target: Reader, draft: Reader, ids: Tensor) -> None:
    target.read(ids, 0)
    draft.read(ids, 0)


def _draft(pair: Pair, draft: Reader, tokens: Tensor, context: int) -> Tensor:
    return draft.read(tokens, context)[:, -1, : pair.vocab_size].argmax(-1)


def _verify(pair: Pair, target: Reader, tokens: Tensor, context: int) -> list[tuple[int, int]]:
    choices = target.read(tokens, context)[:, :, : pair.vocab_size].argmax(-1)
    rows = torch.cat([tokens[:, 1:], choices], dim=1).tolist()
    drafted = tokens.shape[1] - 1
    return [accept_greedy(row[:drafted], row[drafted:]) for row in rows]


def _seconds(pair: Pair, work: Callable[[], object]) -> float:
    _synchronise(pair)
    began = time.perf_counter()
    work()
    _synchronise(pair)
    return time.perf_counter() - began


def _signal_seconds(pair: Pair, repeats: int) -> float:
    """Median seconds to turn one row of draft logits into two numbers on the host."""
    logits = torch.randn(pair.vocab_size, device=pair.device)
    times = [
        _seconds(pair, lambda: signals(torch.softmax(logits.float(), -1)).tolist())
        for _ in range(4 * repeats)
    ]
    return float(np.median(times))


def _control_seconds(pair: Pair, timing: Timing, prompt_tokens: int) -> float:
    """Median seconds of real rounds beyond their steps, with controllers that do nothing.

    Random prompts do: what is drafted or accepted does not change what a step costs.
    """
    costs = tabulate(Table(timing), max_context=prompt_tokens + 256)
    engine = Engine(pair, costs, max_gamma=8)
    generator = np.random.default_rng(0)
    prompt = generator.integers(pair.vocab_size, size=prompt_tokens).tolist()
    request = [Request("control.1", "", prompt)]
    residual: list[float] = []
    for gamma in (0, 1, 2, 4, 8):
        log = engine.decode(Fixed(gamma), request, max_new_tokens=96).log
        residual += (log.elapsed_s - price_log(log, costs, signals=False)).tolist()
    return max(0.0, float(np.median(residual)))


@torch.inference_mode()
def measure(
    pair: Pair, *, batches: Sequence[int], contexts: Sequence[int], repeats: int = 30
) -> Timing:
    """Time the pair on its device; batches and contexts as lists, repeats per cell (at least 5).

    Raises InputError if a context does not fit the pair.
    """
    if repeats < 5:
        raise InputError("--repeats must be at least 5: quartiles of fewer runs say nothing")
    tasks = _tasks(pair, batches, contexts)
    for task in tasks:
        task.prepare()
        task.work()
    samples: list[list[float]] = [[] for _ in tasks]
    order = np.random.default_rng(0)
    for _ in tqdm(range(repeats), desc="measure", unit="sweep", disable=None):
        for index in order.permutation(len(tasks)):
            tasks[index].prepare()
            samples[index].append(_seconds(pair, tasks[index].work))
    cells = tuple(
        Cell(
            task.operation,
            task.batch,
            task.tokens,
            task.context,
            median_s=float(np.median(times)),
            q25_s=float(np.quantile(times, 0.25)),
            q75_s=float(np.quantile(times, 0.75)),
            repeats=repeats,
        )
        for task, times in zip(tasks, samples, strict=True)
    )
    signal_s = _signal_seconds(pair, repeats)
    steps = Timing(pair.describe(), cells, signal_s, 0.0)
    control_s = _control_seconds(pair, steps, min(contexts)) if 1 in batches else 0.0
    return Timing(pair.describe(), cells, signal_s, control_s)


def run(args: argparse.Namespace) -> Timing:
    """The measure command; see real_backend.options."""
    if args.out.exists() and not args.force:
        raise InputError(f"{args.out} exists; choose another name or pass --force")
    pair = pair_from_args(args)
    timing = measure(pair, batches=args.batch, contexts=args.context, repeats=args.repeats)
    timing.write(args.out, overwrite=args.force)
    return timing


def main() -> int:
    """`python -m real_backend.measure`."""
    parser = argparse.ArgumentParser(prog="python -m real_backend.measure", description=__doc__)
    add_pair_arguments(parser)
    add_measure_arguments(parser)
    try:
        run(parser.parse_args())
    except InputError as error:
        print(f"measure: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
