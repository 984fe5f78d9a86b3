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

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from policies.overhead import ROUNDS, own_s_of
from policies.registry import REGISTRY
from real_backend.command_line import Result, run_module
from real_backend.decoding.bench import (
    DRAFTED,
    LAGS,
    SIGNAL_TOKENS,
    TIMED_ROUNDS,
    Bench,
    Samples,
    lags_for,
)
from real_backend.decoding.steps import GREEDY, Sampling
from real_backend.load_pair import Pair, check_caches, pair_from
from real_backend.options import MeasureOptions
from real_backend.partial_file import PartialFile, damaged, finished, partial_path
from real_backend.progress import progress
from real_backend.recording.coupling import CaptureSettings
from real_backend.recording.round_overheads import (
    CONTROL_REPEATS,
    CONTROL_REPLIES,
    FEWEST_CONTROL_REPEATS,
    round_overheads,
)
from real_backend.trees.bench import TreeBench, check_trees
from traces.errors import InputError
from traces.store import refuse_existing
from traces.timing import WALL, Cell, Repeats, Timing

PREFILL_TOKENS = (16, 64, 128, 256, 512)
_VISITS, _FEWEST_VISITS = 5, 2  # blocks of a usual kind in a sweep, and if seconds are short
_USUAL = 8  # drafted tokens; longer drafts are rare and slow: one block of them a sweep
_SIGNAL_REPEATS, _FEWEST_SIGNAL_REPEATS = 8, 3  # likewise
_NANOSECONDS = 9  # digits kept of a block


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
    sampling: Sampling = GREEDY,
    kept: PartialFile | None = None,
    seconds: float = math.inf,
    deepest: int = max(DRAFTED),
    trees: int = 0,
) -> list[Samples]:
    """Seconds of every cell, sweep by sweep; each visits the usual kinds of rounds `_VISITS` times,
    all else once, every time in an order of its own. Sweeps that `kept` holds are not run again;
    after `seconds` no other begins, if there is one at all, and the first ends with the visit that
    it is at, if that is not the first.
    """
    kept = kept or PartialFile(None, {})
    found, sweeps = _read_sweeps(kept), -(-repeats // (_VISITS * TIMED_ROUNDS))
    if len(found) >= sweeps:
        return found
    samples: Samples = {}
    until = time.perf_counter() + seconds
    usual, rare = _work(pair, batches, contexts, samples, sampling, deepest)
    if trees:
        longest = _check_contexts(pair, contexts)
        bench = TreeBench(pair, longest, samples, sampling, trees)
        for context in contexts:
            usual += [partial(bench.tree_block, k, context) for k in range(len(bench.shapes))]
            usual.append(partial(bench.idle_block, context))
    missing = range(len(found), sweeps)
    with progress(len(missing) * (_VISITS * len(usual) + len(rare)), "measure") as step:
        for number in missing:
            if found and time.perf_counter() > until:
                break
            order = np.random.default_rng(number)
            samples.clear()
            for visit in range(_VISITS):
                if visit >= _FEWEST_VISITS and time.perf_counter() > until:
                    break
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
    pair: Pair,
    batches: Sequence[int],
    contexts: Sequence[int],
    samples: Samples,
    sampling: Sampling,
    deepest: int,
) -> tuple[list[Callable[[], None]], list[Callable[[], None]]]:
    """Blocks of the usual kinds of rounds; those of the rare ones, and prompts."""
    longest, limit = _check_contexts(pair, contexts), pair.max_context or 1 << 30
    check_caches(pair, sum(batches) * longest, "a smaller --batch or --context")
    usual: list[Callable[[], None]] = []
    rare: list[Callable[[], None]] = []
    for bench in [Bench(pair, batch, longest, samples, sampling) for batch in batches]:
        for context in contexts:
            lags = lags_for(pair)
            for drafted in (n for n in DRAFTED if n <= min(deepest, pair.drafter.most)):
                kind = partial(bench.block, drafted, lags[:2], context)
                (usual if drafted <= _USUAL else rare).append(kind)
            # Longer lags follow rounds without a draft; they are rare, one cell each will do.
            rare += [partial(bench.block, 1, (lag,), context) for lag in lags[2:]]
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


def control_effort(timing: Timing, repeats: int, seconds: float) -> tuple[int, int]:
    """How often rounds' overhead is timed, and tokens of its replies: as many as `repeats`, and not
    more than verifies of all these replies take in a quarter of `seconds`, but 4 at least and 64 at
    most; and less often if those 4 take longer.
    """
    verifies = [cell.median_s for cell in timing.cells if cell.operation == "verify"]
    replies = CONTROL_REPEATS * CONTROL_REPLIES
    affordable = seconds / 4 / (replies * float(np.median(verifies)))
    tokens = int(min(64, max(4, min(repeats, affordable))))
    return (CONTROL_REPEATS if affordable >= 4 else FEWEST_CONTROL_REPEATS), tokens


def _signal_repeats(bench: Bench, context: int, seconds: float) -> Repeats:
    """After `seconds` no other begins, if there are a few."""
    spent, until = [], time.perf_counter() + seconds
    for number in range(_SIGNAL_REPEATS):
        if number >= _FEWEST_SIGNAL_REPEATS and time.perf_counter() > until:
            break
        spent.append(bench.signal_s(context))
    wall, cpu = np.round(np.asarray(spent), _NANOSECONDS).T.tolist()
    return Repeats(tuple(wall), () if math.isnan(cpu[0]) else tuple(cpu))


@torch.inference_mode()
def measure(
    pair: Pair,
    *,
    batches: Sequence[int],
    contexts: Sequence[int],
    repeats: int = 100,
    sampling: Sampling = GREEDY,
    partial_file: Path | None = None,
    seconds: float = math.inf,
    deepest: int = max(DRAFTED),
    trees: int = 0,
) -> Timing:
    """Time the pair on its device; repeats: timed rounds of every usual kind, rounded up to whole
    sweeps, and of every rule of the registry. sampling: how tokens are chosen meanwhile.
    partial_file: where finished sweeps are kept until all is done, and found again; the timing's
    meta then has `gaps`, see PartialFile. seconds: be content with fewer sweeps after so many, and
    with fewer repeats of overheads after a quarter each. deepest: tokens of the longest draft
    that is timed. trees: nodes of the largest draft tree, 0 for none.

    Raises InputError if a context does not fit the pair, the file is of another measurement, or the
    pair drafts no trees.
    """
    if repeats < 1:
        raise InputError("--repeats must be at least 1")
    _check_contexts(pair, contexts)
    if trees:
        check_trees(pair, trees)  # before anything is kept
    about = pair.describe()
    asked = {"batches": list(batches), "contexts": list(contexts), "law": list(sampling)} | about
    asked |= {"deepest": deepest} | ({"trees": trees} if trees else {})
    kept = PartialFile(partial_file, asked | {"steps": "", "gpu": ""})
    cells = _cells(
        _sample(pair, batches, contexts, repeats, sampling, kept, seconds, deepest, trees)
    )
    about = pair.describe() | {"temperature": sampling.temperature, "top_p": sampling.top_p}
    if kept.gaps:
        about["gaps"] = kept.gaps
    timing = Timing(about, cells, 0.0, 0.0)
    rules = [rule() for rule in REGISTRY.values()]
    own_s = own_s_of(rules, min(repeats, ROUNDS))
    signal = control = Repeats()
    if 1 in batches:
        bench = Bench(pair, 1, min(contexts) + SIGNAL_TOKENS + 1, {}, sampling, SIGNAL_TOKENS)
        signal = _signal_repeats(bench, min(contexts), seconds / 4)
        effort = control_effort(timing, repeats, seconds)
        control = round_overheads(pair, timing, min(contexts), *effort, sampling)
    timing = dataclasses.replace(
        timing, own_s=own_s, signal_repeats=signal, control_repeats=control
    )
    return dataclasses.replace(timing.on(WALL), chosen=None)


def run(options: MeasureOptions) -> Result:
    """`gammalab measure`."""
    unfinished = partial_path(options.out)
    if options.force:
        unfinished.unlink(missing_ok=True)
    refuse_existing(options.out, options.force or unfinished.exists())  # begun with --force
    sampling = Sampling(options.temperature, options.top_p)
    CaptureSettings(
        temperature=sampling.temperature, top_p=sampling.top_p
    )  # the same bounds as of a capture
    pair = pair_from(options.pair, unfinished)
    timing = measure(
        pair,
        batches=options.batch,
        contexts=options.context,
        repeats=options.repeats,
        sampling=sampling,
        partial_file=unfinished,
        seconds=options.seconds or math.inf,
        deepest=options.deepest,
        trees=options.trees,
    )
    timing.write(options.out, overwrite=True)
    finished(unfinished)
    label = ", random weights" if timing.meta.get("weights") == "random" else ""
    return Result(
        f"{options.out}: {len(timing.cells)} cells of {timing.meta['pair']}{label}, on "
        f"{timing.meta['device_name']}"
    )


if __name__ == "__main__":
    sys.exit(run_module("real_backend.recording.measure", __doc__, MeasureOptions, run))
