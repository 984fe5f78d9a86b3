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

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from policies.confidence import HFConfidence
from policies.fixed import Fixed
from real_backend.engine import Engine
from real_backend.models import Pair, pair_from_args
from real_backend.options import add_measure_arguments, add_pair_arguments, run_module
from real_backend.prompts import Request
from real_backend.verify import accept_greedy
from traces.costs import Table, price_log, tabulate
from traces.errors import InputError
from traces.timing import Cell, Timing

DRAFTED = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 24, 32)
LAGS = (1, 2, 3, 5, 9)
PREFILL_TOKENS = (16, 64, 128, 256, 512)
_WARM_ROUNDS, _TIMED_ROUNDS = 10, 10  # of a block
_WARM_S = 0.05  # at least: a forward that repeats itself settles only after some tens of rounds

Key = tuple[str, int, int, int]
"""(operation, batch, tokens, context) of one cell."""


class Bench:
    """Rounds of one batch size on readers of their own, timed step by step into `samples`."""

    def __init__(
        self, pair: Pair, batch: int, longest: int, samples: dict[Key, list[float]]
    ) -> None:
        self.pair, self.batch, self.samples = pair, batch, samples
        self.target = pair.target.reader(longest, batch)
        self.draft = pair.draft.reader(longest, batch)
        generator = torch.Generator().manual_seed(batch)
        ids = torch.randint(pair.vocab_size, (batch, longest), generator=generator)
        self.ids = ids.to(pair.device)

    def timed(
        self, operation: str, tokens: int, context: int, work: Callable[[], Tensor]
    ) -> Tensor:
        """Run one step; its seconds join the samples of its cell."""
        _synchronise(self.pair)
        began = time.perf_counter()
        result = work()
        _synchronise(self.pair)
        key = (operation, self.batch, tokens, context)
        self.samples.setdefault(key, []).append(time.perf_counter() - began)
        return result

    def prefill(self, tokens: int) -> None:
        """Both models read a prompt."""

        def work() -> Tensor:
            self.target.read(self.ids[:, :tokens], 0)
            return self.draft.read(self.ids[:, :tokens], 0)

        self.timed("prefill", tokens, 0, work)

    def fill(self, context: int) -> None:
        """Have `context` tokens in both caches."""
        for reader in (self.target, self.draft):
            if reader.held < context:
                reader.read(self.ids[:, :context], 0)

    def round(self, drafted: int, lag: int, context: int) -> None:
        """One round as the engine runs it: first draft step, further ones, verify."""
        feed, start = self.ids[:, context - lag : context], context - lag
        tokens: list[Tensor] = []
        for step in range(drafted):
            operation, width = ("first", lag) if step == 0 else ("draft", 1)
            read = partial(self._draft, feed, start)
            tokens.append(self.timed(operation, width, context, read))
            start, feed = start + feed.shape[1], tokens[-1][:, None]
        newest = self.ids[:, context - 1 : context]
        verify = partial(self._verify, newest, tokens, context - 1)
        self.timed("verify", drafted + 1, context, verify)

    def _draft(self, feed: Tensor, start: int) -> Tensor:
        return self.draft.read(feed, start)[:, -1, : self.pair.vocab_size].argmax(-1)

    def _verify(self, newest: Tensor, tokens: list[Tensor], start: int) -> Tensor:
        feed = torch.cat([newest, torch.stack(tokens, dim=1)], dim=1) if tokens else newest
        choices = self.target.read(feed, start)[:, :, : self.pair.vocab_size].argmax(-1)
        for row in torch.cat([feed[:, 1:], choices], dim=1).tolist():
            accept_greedy(row[: len(tokens)], row[len(tokens) :])
        return choices

    def block(self, drafted: int, lags: Sequence[int], context: int) -> None:
        """Rounds of one kind in a row, the first ones untimed."""
        self.fill(context)
        kept, self.samples = self.samples, {}
        began, k = time.perf_counter(), 0
        while k < _WARM_ROUNDS or time.perf_counter() - began < _WARM_S:
            self.round(drafted, lags[k % len(lags)], context)
            k += 1
        self.samples = kept
        for k in range(_TIMED_ROUNDS):
            self.round(drafted, lags[k % len(lags)], context)


def _synchronise(pair: Pair) -> None:
    if pair.device.startswith("cuda"):
        torch.cuda.synchronize()


def _check_contexts(pair: Pair, contexts: Sequence[int]) -> int:
    """The cache capacity that all cells need; raises InputError if a cell cannot fit."""
    limit, widest = pair.max_context or 1 << 30, max(DRAFTED) + 1
    if max(contexts) + widest > limit:
        raise InputError(
            f"--context {max(contexts)}: with {widest} more tokens it exceeds the pair's context "
            f"of {limit}"
        )
    if min(contexts) <= max(LAGS):
        raise InputError(f"--context {min(contexts)}: must be above {max(LAGS)}")
    return min(limit, max(*contexts, *PREFILL_TOKENS) + widest)


def _sample(
    pair: Pair, batches: Sequence[int], contexts: Sequence[int], repeats: int
) -> dict[Key, list[float]]:
    """Seconds of every cell; blocks and prompts of all kinds in one shuffled order, sweep by
    sweep.
    """
    samples: dict[Key, list[float]] = {}
    longest, limit = _check_contexts(pair, contexts), pair.max_context or 1 << 30
    benches = [Bench(pair, batch, longest, samples) for batch in batches]
    blocks: list[Callable[[], None]] = []
    for bench in benches:
        for context in contexts:
            blocks += [partial(bench.block, d, LAGS[:2], context) for d in DRAFTED]
            # Longer lags follow rounds without a draft; they are rare, one cell each will do.
            blocks += [partial(bench.block, 1, (lag,), context) for lag in LAGS[2:]]
        fitting = [n for n in PREFILL_TOKENS if n < limit]
        blocks += [partial(bench.prefill, n) for n in fitting]
        for n in fitting:
            bench.prefill(n)  # warm-up
            samples.clear()
    sweeps = -(-repeats // _TIMED_ROUNDS)
    order = np.random.default_rng(0)
    for _ in tqdm(range(sweeps), desc="measure", unit="sweep", disable=None):
        for index in order.permutation(len(blocks)):
            blocks[index]()
    return samples


def _round_overheads(pair: Pair, timing: Timing, prompt_tokens: int) -> tuple[float, float]:
    """(signal_s, control_s) from real rounds of controllers that do nothing but draft a fixed
    number.

    control_s: median seconds of a round beyond its steps. signal_s: what a drafted token costs more
    if the controller looks at its signals. A random prompt does: what is drafted or accepted does
    not change what a step costs.
    """
    costs = tabulate(Table(timing), max_context=prompt_tokens + 256)
    engine = Engine(pair, costs, max_gamma=8)
    generator = np.random.default_rng(0)
    prompt = generator.integers(pair.vocab_size, size=prompt_tokens).tolist()
    request = [Request("control.1", "", prompt)]
    residual: list[float] = []
    added = {gamma: [0.0, 0.0] for gamma in (1, 2, 4, 8)}
    for gamma in (0, *added) * 3:
        plain = engine.decode(Fixed(gamma), request, max_new_tokens=64).log
        beyond = plain.elapsed_s - price_log(plain, costs, signals=False)
        residual += beyond.tolist()
        if gamma:
            looking = HFConfidence(gamma_max=gamma, threshold=0.0)
            log = engine.decode(looking, request, max_new_tokens=64).log
            with_signals = log.elapsed_s - price_log(log, costs, signals=False)
            added[gamma][0] += float(np.median(with_signals) - np.median(beyond))
            added[gamma][1] += gamma
    signal_s = sum(a for a, _ in added.values()) / sum(n for _, n in added.values())
    return max(0.0, signal_s), max(0.0, float(np.median(residual)))


@torch.inference_mode()
def measure(
    pair: Pair, *, batches: Sequence[int], contexts: Sequence[int], repeats: int = 100
) -> Timing:
    """Time the pair on its device; repeats: timed rounds of every kind, rounded up to whole blocks.

    Raises InputError if a context does not fit the pair.
    """
    if repeats < 1:
        raise InputError("--repeats must be at least 1")
    samples = _sample(pair, batches, contexts, repeats)
    cells = tuple(
        Cell(
            *key,
            median_s=float(np.median(times)),
            q25_s=float(np.quantile(times, 0.25)),
            q75_s=float(np.quantile(times, 0.75)),
            repeats=len(times),
        )
        for key, times in sorted(samples.items())
    )
    steps = Timing(pair.describe(), cells, 0.0, 0.0)
    signal_s = control_s = 0.0
    if 1 in batches:
        signal_s, control_s = _round_overheads(pair, steps, min(contexts))
    return Timing(pair.describe(), cells, signal_s, control_s)


def run(args: argparse.Namespace) -> Timing:
    """The measure command; see real_backend.options."""
    if args.out.exists() and not args.force:
        raise InputError(f"{args.out} exists; choose another name or pass --force")
    pair = pair_from_args(args)
    timing = measure(pair, batches=args.batch, contexts=args.context, repeats=args.repeats)
    timing.write(args.out, overwrite=args.force)
    return timing


if __name__ == "__main__":
    sys.exit(run_module("measure", __doc__, [add_pair_arguments, add_measure_arguments], run))
