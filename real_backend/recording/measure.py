"""Time every step of a round on this machine: `python -m real_backend.recording.measure`.

Steps are timed inside rounds, as the engine runs them: the first draft step, further ones, the
verify with its read-back. Nothing is synchronised between them: on a GPU the marks are events in
its own stream. The kinds of rounds are visited in a shuffled order, a few rounds at a time, so that
a slow tenth of a second of the machine does not fall on one of them; the median of every sweep is
kept, on a CPU by the wall and by the processor's clock. What the engine adds per round beyond these
steps is measured on real rounds and becomes control_s. What the rules of the registry take for
their own arithmetic is measured apart (policies.overhead).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policies.overhead import ROUNDS, own_seconds_of
from policies.registry import SHELF
from real_backend.decoding.clock import wait_for
from real_backend.decoding.leanest_steps import steps_for
from real_backend.decoding.steps import GREEDY, Feed, Law
from real_backend.device_errors import device_faults
from real_backend.models.finite import check_finite
from real_backend.models.pair import Pair, check_caches, pair_from_args
from real_backend.options import add_measure_arguments, add_pair_arguments, run_module
from real_backend.partial_file import PartialFile, damaged, finished, partial_path
from real_backend.progress import progress
from real_backend.recording.coupling import Settings
from real_backend.recording.round_overheads import round_overheads
from traces.errors import InputError
from traces.store import refuse_existing
from traces.timing import WALL, Cell, Repeats, Timing

DRAFTED = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 24, 32)
LAGS = (1, 2, 3, 5, 9)
PREFILL_TOKENS = (16, 64, 128, 256, 512)
_VISITS, _TIMED_ROUNDS = 5, 3  # blocks of a usual kind in a sweep, timed rounds of a block
_USUAL = 8  # drafted tokens; longer drafts are rare and slow: one block of them a sweep
_WARM_ROUNDS = 5  # untimed, at the head of a block: behind rounds of another kind the first ones
#                   take 1.05, 1.03, 1.02, 1.01 ... of the settled, and a reply is a row of one kind
_PLAIN_WARM_ROUNDS = 10  # a target that runs alone gets faster for about eight rounds: its weights
#                          stay in the cache (1.21, 1.18, 1.15, 1.09, 1.07, 1.05 ... of the settled)
_SIGNAL_REPEATS = 8
_SIGNAL_TOKENS, _SIGNAL_WARM, _SIGNAL_PAIRS = (
    4,
    2,
    33,
)  # of rounds that read signals, beside rounds that do not
_NANOSECONDS = 9  # digits kept of a block

Key = tuple[str, int, int, int]
"""(operation, batch, tokens, context) of one cell."""
Spent = tuple[float, float]
"""Seconds by the wall, or in a GPU's stream; and by the processor's clock of this thread, NaN on a
GPU."""
Samples = dict[Key, list[Spent]]
"""Seconds of every cell in one sweep."""


class Marks:
    """Moments between steps: both clocks of the host, or events in a GPU's stream."""

    def __init__(self, device: str) -> None:
        self.device, self.cuda = device, device.startswith("cuda")
        if not self.cuda and device != "cpu":
            raise InputError(f"--device {device}: steps can be timed on cpu and cuda only")
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Now, in the order of the device's work."""
        if self.cuda:
            event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append(event)
        else:
            self._marks.append((time.perf_counter(), time.thread_time()))

    def seconds(self) -> list[Spent]:
        """What passed between one mark and the next."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self.cuda:
            wait_for(self.device)
            return [(before.elapsed_time(after) / 1e3, math.nan) for before, after in pairs]
        return [(after[0] - before[0], after[1] - before[1]) for before, after in pairs]


class Bench:
    """Rounds of one batch size on caches of their own, timed step by step into `samples`.

    law: how tokens are chosen; drawing from a nucleus costs what an arg-max does not. deepest: the
    most tokens that a round will draft; its steps are made ready here, not inside a timed round.
    """

    def __init__(
        self,
        pair: Pair,
        batch: int,
        longest: int,
        samples: Samples,
        law: Law = GREEDY,
        deepest: int = max(DRAFTED),
    ) -> None:
        self.pair, self.batch, self.samples, self.law = pair, batch, samples, law
        self.steps = steps_for(pair, batch, longest)
        self.steps.prepare(law, False, deepest, 1)
        generator = torch.Generator().manual_seed(batch)
        self.ids: list[list[int]] = torch.randint(
            pair.vocab_size, (batch, longest), generator=generator
        ).tolist()

    def _feeds(self, start: int, end: int) -> list[Feed]:
        return [Feed(row, ids[start:end], start) for row, ids in enumerate(self.ids)]

    def _keep(self, keys: Sequence[tuple[str, int, int]], marks: Marks) -> None:
        """Each (operation, tokens, context) took the time between two marks."""
        for (operation, tokens, context), spent in zip(keys, marks.seconds(), strict=True):
            key = (operation, self.batch, tokens, context)
            self.samples.setdefault(key, []).append(spent)

    def prefill(self, tokens: int) -> None:
        """Both models read a prompt in each row."""
        marks = Marks(self.pair.device)
        marks.mark()
        for feed in self._feeds(0, tokens):
            self.steps.prefill(feed)
        marks.mark()
        self._keep([("prefill", tokens, 0)], marks)

    def round(self, drafted: int, lag: int, context: int, looks: bool = False) -> None:
        """One round as the engine runs it: first draft step, further ones, verify. looks: the
        signals of every drafted token are read.
        """
        steps, rows, marks = self.steps, range(self.batch), Marks(self.pair.device)
        lacking = self._feeds(context - lag, context)
        newest = self._feeds(context - 1, context)
        numbers = [[0.5] * (drafted + 1) if self.law.temperature else [] for _ in rows]
        keys = []
        marks.mark()
        if drafted:
            steps.draft_first(lacking, self.law, looks, numbers)
            marks.mark()
            keys.append(("first", lag, context))
        for _ in range(drafted - 1):
            steps.draft_next(rows)
            marks.mark()
            keys.append(("draft", 1, context))
        steps.verify(newest, self.law, numbers)
        marks.mark()
        self._keep([*keys, ("verify", drafted + 1, context)], marks)

    def signal_s(self, context: int) -> Spent:
        """Seconds that a drafted token costs more if its signals are read: rounds that read them
        and rounds that do not in turn, so that a machine that drifts is the same for both.
        """
        kept, spent = self.samples, list[Spent]()
        for k in range(2 * (_SIGNAL_WARM + _SIGNAL_PAIRS)):
            self.samples = {}
            self.round(_SIGNAL_TOKENS, 1, context, looks=k % 2 == 1)
            drafts = [s for key, some in self.samples.items() if key[0] != "verify" for s in some]
            spent.append((sum(s[0] for s in drafts), sum(s[1] for s in drafts)))
        self.samples = kept
        rounds = np.asarray(spent[2 * _SIGNAL_WARM :]).reshape(-1, 2, 2)  # pair, looks, clock
        wall, cpu = np.median(rounds[:, 1] - rounds[:, 0], axis=0) / _SIGNAL_TOKENS
        return float(wall), float(cpu)

    def block(self, drafted: int, lags: Sequence[int], context: int) -> None:
        """Rounds of one kind in a row, the first ones untimed."""
        with device_faults(
            f"at batch {self.batch}, context {context}, {drafted} drafted tokens",
            "a smaller --batch or --context, half precision, or a smaller pair",
        ):
            if not self.steps.holds(context):
                for feed in self._feeds(0, context):
                    self.steps.prefill(feed)
            kept, self.samples = self.samples, {}
            for k in range(_WARM_ROUNDS if drafted else _PLAIN_WARM_ROUNDS):
                self.round(drafted, lags[k % len(lags)], context)
            self.samples = kept
            for k in range(_TIMED_ROUNDS):
                self.round(drafted, lags[k % len(lags)], context)
            check_finite(self.pair, {f"at context {context}": self.ids[0][:context]})


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
    pair: Pair,
    batches: Sequence[int],
    contexts: Sequence[int],
    repeats: int,
    law: Law = GREEDY,
    kept: PartialFile | None = None,
    seconds: float = math.inf,
) -> list[Samples]:
    """Seconds of every cell, sweep by sweep; each visits the usual kinds of rounds `_VISITS` times,
    all else once, every time in an order of its own. Sweeps that `kept` holds are not run again;
    after `seconds` no other begins, if there is one at all.
    """
    kept = kept or PartialFile(None, {})
    found, sweeps = _read_sweeps(kept), -(-repeats // (_VISITS * _TIMED_ROUNDS))
    if len(found) >= sweeps:
        return found
    samples: Samples = {}
    until = time.perf_counter() + seconds
    usual, rare = _work(pair, batches, contexts, samples, law)
    missing = range(len(found), sweeps)
    with progress(len(missing) * (_VISITS * len(usual) + len(rare)), "measure") as step:
        for number in missing:
            if found and time.perf_counter() > until:
                break
            order = np.random.default_rng(number)
            samples.clear()
            for visit in range(_VISITS):
                work = usual if visit else usual + rare
                for index in order.permutation(len(work)):
                    work[index]()
                    step()
            found.append(dict(samples))
            kept.keep([[list(key), spent] for key, spent in samples.items()])
    return found


def _read_sweeps(kept: PartialFile) -> list[Samples]:
    """The sweeps that `kept` holds; raises InputError if they are none."""
    try:
        return [
            {
                (str(operation), int(batch), int(tokens), int(context)): [
                    (float(wall), float(cpu)) for wall, cpu in spent
                ]
                for (operation, batch, tokens, context), spent in sweep
            }
            for sweep in kept.found
        ]
    except (ValueError, TypeError):
        raise damaged(kept.path) from None


def _work(
    pair: Pair, batches: Sequence[int], contexts: Sequence[int], samples: Samples, law: Law
) -> tuple[list[Callable[[], None]], list[Callable[[], None]]]:
    """Blocks of the usual kinds of rounds; those of the rare ones, and prompts."""
    longest, limit = _check_contexts(pair, contexts), pair.max_context or 1 << 30
    check_caches(pair, sum(batches) * longest, "a smaller --batch or --context")
    usual: list[Callable[[], None]] = []
    rare: list[Callable[[], None]] = []
    for bench in [Bench(pair, batch, longest, samples, law) for batch in batches]:
        for context in contexts:
            for drafted in DRAFTED:
                kind = partial(bench.block, drafted, LAGS[:2], context)
                (usual if drafted <= _USUAL else rare).append(kind)
            # Longer lags follow rounds without a draft; they are rare, one cell each will do.
            rare += [partial(bench.block, 1, (lag,), context) for lag in LAGS[2:]]
        fitting = [n for n in PREFILL_TOKENS if n < limit]
        rare += [partial(bench.prefill, n) for n in fitting]
        for n in fitting:
            bench.prefill(n)  # warm-up
    return usual, rare


def _cells(sweeps: Sequence[Samples]) -> tuple[Cell, ...]:
    """Every cell that some sweep has visited."""
    cells = []
    for key in sorted(set().union(*sweeps)):
        spent = np.asarray([pair for sweep in sweeps for pair in sweep.get(key, [])])
        blocks = [
            np.median(sweep[key], axis=0) if key in sweep else np.full(2, np.nan)
            for sweep in sweeps
        ]
        wall, cpu = np.round(np.asarray(blocks), _NANOSECONDS).T.tolist()
        quartiles = np.quantile(spent[:, 0], (0.25, 0.75))
        q25_s, q75_s = np.round(quartiles, _NANOSECONDS).tolist()
        cells.append(
            Cell(
                *key,
                median_s=float(np.nanmedian(wall)),
                q25_s=q25_s,
                q75_s=q75_s,
                repeats=len(spent),
                blocks_s=tuple(wall),
                cpu_blocks_s=() if np.isnan(spent[:, 1]).all() else tuple(cpu),
            )
        )
    return tuple(cells)


@torch.inference_mode()
def measure(
    pair: Pair,
    *,
    batches: Sequence[int],
    contexts: Sequence[int],
    repeats: int = 100,
    law: Law = GREEDY,
    partial_file: Path | None = None,
    seconds: float = math.inf,
) -> Timing:
    """Time the pair on its device; repeats: timed rounds of every usual kind, rounded up to whole
    sweeps, and of every rule of the registry. law: how tokens are chosen meanwhile. partial_file:
    where finished sweeps are kept until all is done, and found again; the timing's meta then has
    `gaps`, see PartialFile. seconds: be content with fewer sweeps after so many.

    Raises InputError if a context does not fit the pair, or the file is of another measurement.
    """
    if repeats < 1:
        raise InputError("--repeats must be at least 1")
    _check_contexts(pair, contexts)
    about = pair.describe()
    asked = {"batches": list(batches), "contexts": list(contexts), "law": list(law)} | about
    kept = PartialFile(partial_file, asked | {"steps": "", "gpu": ""})
    cells = _cells(_sample(pair, batches, contexts, repeats, law, kept, seconds))
    about = pair.describe() | {"temperature": law.temperature, "top_p": law.top_p}
    if kept.gaps:
        about["gaps"] = kept.gaps
    timing = Timing(about, cells, 0.0, 0.0)
    rules = [rule() for rule in SHELF.values()]
    own_s = dict(zip(SHELF, own_seconds_of(rules, min(repeats, ROUNDS)), strict=True))
    signal = control = Repeats()
    if 1 in batches:
        bench = Bench(pair, 1, min(contexts) + _SIGNAL_TOKENS + 1, {}, law, _SIGNAL_TOKENS)
        spent = [bench.signal_s(min(contexts)) for _ in range(_SIGNAL_REPEATS)]
        wall, cpu = np.round(np.asarray(spent), _NANOSECONDS).T.tolist()
        signal = Repeats(tuple(wall), () if math.isnan(cpu[0]) else tuple(cpu))
        control = round_overheads(pair, timing, min(contexts), min(64, max(8, repeats)), law)
    timing = dataclasses.replace(
        timing, own_s=own_s, signal_repeats=signal, control_repeats=control
    )
    return dataclasses.replace(timing.on(WALL), chosen=None)


def run(args: argparse.Namespace) -> Timing:
    """The measure command; see real_backend.options."""
    unfinished = partial_path(args.out)
    if args.force:
        unfinished.unlink(missing_ok=True)
    refuse_existing(args.out, args.force or unfinished.exists())  # begun with --force
    law = Law(args.temperature, args.top_p)
    Settings(temperature=law.temperature, top_p=law.top_p)  # the same bounds as of a capture
    pair = pair_from_args(args, unfinished)
    timing = measure(
        pair,
        batches=args.batch,
        contexts=args.context,
        repeats=args.repeats,
        law=law,
        partial_file=unfinished,
        seconds=args.seconds or math.inf,
    )
    timing.write(args.out, overwrite=True)
    finished(unfinished)
    return timing


if __name__ == "__main__":
    sys.exit(
        run_module("recording.measure", __doc__, [add_pair_arguments, add_measure_arguments], run)
    )
