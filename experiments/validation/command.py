"""`gammalab validate`: read files, run or read a sitting, judge it, print, write files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.common.cost_sources import step_costs
from experiments.common.frames import csv_of
from experiments.common.results import (
    command_line,
    describe_inputs,
    fits,
    random_weights_note,
    read_input,
    versions,
    withdraw,
    write_result,
    write_text,
)
from experiments.options import ValidateOptions
from experiments.validation.columns import RATIOS, SPEEDS, checks_of
from experiments.validation.result import Validation
from experiments.validation.validate import judge
from experiments.validation.validate_text import findings, validation_dict, validation_text
from policies.base import Policy
from policies.fixed import Fixed, Never
from policies.registry import DEFAULT, file_name, label, parse_policies, parse_policy
from real_backend.command_line import Result
from real_backend.decoding.measured import PLACEBO, read_measured, write_measured, write_rounds
from real_backend.decoding.sitting import begin_sitting
from real_backend.partial_file import finished
from simulator.replay.hindsight import best_fixed
from traces.costs.pricing import StepCosts
from traces.errors import InputError
from traces.schema import Trace
from traces.shapes.shape import parse_draft
from traces.split import split_rows
from traces.store import content_hash, refuse_existing
from traces.timing import Timing

DEFAULT_POLICIES = (
    DEFAULT,
    "tail-pruning",
    "payback",
    "goodput",
    "hf-roc",
    "gammatune",
    "gammatune+",
    "hf-heuristic",
    "ucb",
)

MACHINE = (  # of a round log's meta: what ran, and where
    *("pair", "target", "draft", "weights", "acceptance", "batch"),
    *("device", "device_name", "dtype", "engine", "threads", "versions", "gaps"),
)


class Entrants(NamedTuple):
    """The policies of a sitting. winner, runner_up: whose claims are judged, None: the fastest."""

    policies: list[Policy]
    baseline: Policy
    winner: str | None = None
    runner_up: str | None = None


def validation_policies(
    trace: Trace,
    costs: StepCosts,
    specs: str | None,
    seed: int,
    winner: str | None = None,
    runner_up: str | None = None,
) -> Entrants:
    """The policies to confirm and the baseline, the fixed gamma tuned on the training half.

    Those asked for and the baseline, or never, the baseline, a selection of the registry, and the
    winner and the runner-up of a comparison.
    """
    train, _ = split_rows(trace, seed=seed)
    tuned, _ = best_fixed(trace.select(train), costs)
    baseline: Policy = Fixed(tuned) if tuned else Never()
    if specs:
        chosen = parse_policies(specs)
        if len({label(policy) for policy in chosen}) < len(chosen):
            raise InputError("--policies names the same policy twice")
        wanted = [*chosen, baseline]
    else:
        registered = [parse_policy(name) for name in DEFAULT_POLICIES]
        usable = [p for p in registered if fits(p, trace)]
        claimed = [parse_policy(name) for name in map(_plain, (winner, runner_up)) if name]
        wanted = [Never(), baseline, *usable, *claimed]
    policies = {label(policy): policy for policy in wanted}
    return Entrants(list(policies.values()), baseline, _plain(winner), _plain(runner_up))


def _plain(name: str | None) -> str | None:
    """Plain decoding by its one name."""
    return "never" if name == label(Fixed(0)) else name


def run(
    options: ValidateOptions, *, winner: str | None = None, runner_up: str | None = None
) -> Result:
    """`gammalab validate`: the content is that of validate.json; findings are a contradicted claim,
    a placebo that was no tie, a prediction that missed its bound.

    winner, runner_up: of a comparison, as of validation_policies.

    With `out`, also writes out/validate.json, the text as out/validate.txt, the sitting (see
    real_backend.decoding.sitting) and out/predicted/; a sitting that was stopped goes on there.
    """
    kept, out, force = None, options.out, options.force
    if out is not None and options.measured is None:
        kept = begin_sitting(out, out / "validate.json", force)
    elif out is not None:
        refuse_existing(out / "validate.json", force)
    trace, timing = read_input(options.trace, options.timing, shaped=True)
    if options.measured is None:
        chosen = validation_policies(
            trace, step_costs(timing, trace), options.policies, options.seed, winner, runner_up
        )
        outcome = _sit(options, trace, timing, chosen, kept)
    else:
        outcome = judge_folder(options.measured, trace, timing, options.policies)
    note = random_weights_note(timing.meta, trace.meta.pair)
    text = "\n\n".join(filter(None, [note, validation_text(outcome)]))
    about = next(iter(outcome.measured.timed.values()))[0].meta
    result = describe_inputs(trace, options.trace.name, timing) | validation_dict(outcome)
    result |= {
        "timing": options.timing.name,
        "command": command_line(),
        "machine": {name: about[name] for name in MACHINE if name in about},
        "versions": versions() | about.get("versions", {}),
        "max_error_allowed": options.max_error / 100,
        "findings": findings(outcome, options.max_error),
    }
    if out is not None:
        withdraw(out / "validate.json")
        if options.measured is None or options.measured.resolve() != out.resolve():
            write_measured(outcome.measured, out)
        write_rounds(
            (out / "predicted" / f"{file_name(n)}.parquet", log)
            for n, log in outcome.predicted.items()
        )
        write_text(text, out / "validate.txt")
        write_result("validate", result, out / "validate.json", overwrite=True)
        finished(kept)
    rows = csv_of((*RATIOS, *SPEEDS[1:]), checks_of(result))
    return Result(text, result, rows, result["findings"])


def _sit(
    options: ValidateOptions, trace: Trace, timing: Timing, chosen: Entrants, kept: Path | None
) -> Validation:
    """Load the pair, run the policies on it, judge them."""
    from real_backend.decoding.sitting import (
        load_sitting,  # torch: only once the files are good
    )
    from real_backend.trees.load import steps_of

    costs = step_costs(timing, trace)
    sitting = load_sitting(
        options.pair, trace, costs, timing, prompts=options.prompts,
        acceptance=options.acceptance, seed=options.seed, limit=options.limit, kept=kept,
        make=steps_of([parse_draft(trace.meta.shape)]) if trace.meta.shape else None,
    )  # fmt: skip
    measured = sitting.run(
        chosen.policies, chosen.baseline, repeats=options.repeats, what="validate"
    )
    return judge(
        measured,
        sitting.trace,
        timing,
        chosen.policies,
        seed=sitting.seed,
        winner=chosen.winner,
        runner_up=chosen.runner_up,
    )


def judge_folder(folder: Path, trace: Trace, timing: Timing, specs: str | None) -> Validation:
    """Set a sitting that lies in a folder, made here or elsewhere, beside its replay.

    Raises InputError if it is not of this trace, or lacks a policy of `specs`.
    """
    measured = read_measured(folder)
    about = next(iter(measured.timed.values()))[0].meta
    kinds = {"batch": int, "seed": int, "carries": bool, "requests": list, "trace_sha256": str}
    for field, kind in kinds.items():
        if not isinstance(about.get(field), kind):
            raise InputError(f"{folder}: meta of its round logs: {field} is missing; run it again")
    if about["batch"] != 1 or not about["carries"]:
        raise InputError(
            f"{folder}: its rounds ran {about['batch']} at once; a verdict is about batch 1, for "
            "batches see `gammalab studies batches`"
        )
    rows = {name: row for row, name in enumerate(trace.request_id)}
    missing = [name for name in about["requests"] if name not in rows]
    ran = trace if missing else trace.select([rows[name] for name in about["requests"]])
    if missing or content_hash(ran) != about["trace_sha256"]:
        raise InputError(f"{folder}: its rounds ran the requests of another trace; give that one")
    for seat, logs in measured.timed.items():
        for log in logs:
            tokens = np.bincount(log.request, log.emitted, minlength=ran.requests)
            if len(log.prefill_s) != ran.requests or not tokens.all():
                raise InputError(f"{folder}: rounds of {seat} are missing; copy the whole folder")
            if int(log.drafted.max()) > ran.meta.depth:
                raise InputError(f"{folder}: {seat} drafted beyond the trace's {ran.meta.depth}")
    seats = [seat for seat in measured.timed if seat != PLACEBO]
    names = seats if specs is None else [label(policy) for policy in parse_policies(specs)]
    if absent := [name for name in names if name not in seats]:
        raise InputError(f"{folder} has no rounds of {', '.join(absent)}")
    kept = dict.fromkeys([*names, measured.baseline])
    timed = {seat: measured.timed[seat] for seat in (*kept, PLACEBO)}
    policies = [parse_policy(name) for name in kept]
    return judge(measured._replace(timed=timed), ran, timing, policies, seed=about["seed"])
