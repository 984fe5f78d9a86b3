"""One sitting: several policies decode the same requests for real, so that their ratios hold.

Request by request all of them run, one after another in a random order of its own, each with a
policy state of its own that lasts as long as the sitting. Neighbours in time share the machine's
mood, so a ratio of two policies is a hundred times surer than two runs an hour apart. The *placebo*
is a second copy of the baseline: what tells it from the baseline is chance alone. Between requests
steps of the timing are measured again (*anchors*), so that the sitting carries its own calibration.

Results lie in a folder: measured/SEAT-REPEAT.parquet and measured/anchors.json. Until they do,
finished turns are kept in a partial file, and a sitting that was stopped goes on behind them.
Run by hand: `python -m real_backend.decoding.sitting`.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from policies.registry import parse_policies
from real_backend.command_line import Result, run_module
from real_backend.decoding.interleaving import Sitting, baseline_of
from real_backend.decoding.measured import write_measured
from real_backend.options import PairOptions, SittingOptions
from real_backend.partial_file import finished, partial_path
from traces.costs.pricing import StepCosts, tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.schema import Trace
from traces.split import held_out_rows
from traces.store import read_trace, refuse_existing
from traces.timing import Timing, read_timing

if TYPE_CHECKING:
    from real_backend.decoding.steps import MakeSteps


def load_sitting(
    named: PairOptions,
    trace: Trace,
    costs: StepCosts,
    timing: Timing,
    *,
    prompts: Path | None = None,
    acceptance: str = "own",
    seed: int = 0,
    limit: int = 0,
    batch: int = 1,
    kept: Path | None = None,
    make: MakeSteps | None = None,
) -> Sitting:
    """Load the pair that is named and make its engine ready for about `limit` of the held-out
    requests.

    costs: as for Engine, of `timing`, whose steps are the anchors at batch 1. prompts: of the
    trace, None: the embedded pair's. kept: see Sitting. Raises InputError if the pair is not the
    trace's, unless acceptance is "trace". make: the steps that decode the trace's tree, without
    which a recording under one is refused.
    """
    from real_backend.decoding.anchors import Anchors
    from real_backend.decoding.engine import Engine
    from real_backend.decoding.leanest_steps import steps_for
    from real_backend.load_pair import pair_from
    from real_backend.prompts import forced_requests, questions_of, requests_of_trace

    replayed = acceptance == "trace"
    questions = None if replayed else questions_of(named, prompts)
    pair = pair_from(named, kept)
    if questions is None:
        requests = forced_requests(trace, pair)
    else:
        requests = requests_of_trace(questions, trace, pair)
    rows = held_out_rows(trace, limit, seed)
    if trace.meta.shape and (make is None or batch > 1 or replayed):
        raise InputError(
            f"trace under the draft tree {trace.meta.shape}: `gammalab validate` decodes these, "
            "one request at a time and by its own models' acceptance"
        )
    engine = Engine(pair, costs, max_gamma=trace.meta.depth, make=make or steps_for)
    chosen = [requests[row] for row in rows]
    longest = max(len(request.prompt_ids) for request in chosen)
    capacity = longest + trace.meta.max_new_tokens + trace.meta.depth + 1
    engine.steps(batch, capacity)
    return Sitting(
        engine,
        trace.select(rows),
        chosen,
        seed,
        batch,
        replayed,
        block=1 if batch == 1 else 4 * batch,
        anchors=Anchors(pair, timing, seed) if batch == 1 else None,
        kept=kept,
        about=pair.describe() | {"steps": "", "gpu": "", "timing": timing.sha256()},
    )


def begin_sitting(folder: Path, result: Path, force: bool) -> Path:
    """Where the sitting of a folder keeps its finished turns.

    force: begin anew. Raises InputError if `result`, what the sitting ends in, is there, unless
    force or a sitting that was begun with it goes on.
    """
    kept = partial_path(folder / "measured")
    if force:
        kept.unlink(missing_ok=True)
    refuse_existing(result, force or kept.exists())
    return kept


def run(options: SittingOptions) -> Result:
    """Decode a trace's held-out requests under every policy in one sitting, and save it."""
    policies = parse_policies(options.policies)
    trace, timing = read_trace(options.trace), read_timing(options.timing)
    kept = begin_sitting(options.out, options.out / "measured", options.force)
    longest = int(trace.prompt_tokens.max()) + trace.meta.max_new_tokens
    sizes, width = range(1, options.batch + 1), trace.meta.depth + 2
    costs = tabulate(Table(timing), sizes, max_context=longest, width=width)
    sitting = load_sitting(
        options.pair, trace, costs, timing, prompts=options.prompts, acceptance=options.acceptance,
        seed=options.seed, limit=options.limit, batch=options.batch, kept=kept,
    )  # fmt: skip
    measured = sitting.run(
        policies,
        baseline_of(policies),
        repeats=options.repeats,
        seconds=options.seconds or math.inf,
    )
    write_measured(measured, options.out)
    finished(kept)
    lines = []
    for seat, logs in measured.timed.items():
        speed = sum(log.emitted.sum() for log in logs) / sum(log.elapsed_s.sum() for log in logs)
        lines.append(f"{seat:32} {speed:9.1f} tokens/s, {logs[0].meta['device_name']}")
    return Result("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_module("real_backend.decoding.sitting", __doc__, SittingOptions, run))
