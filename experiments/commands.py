"""`gammalab compare` and `gammalab validate`: read files, compute, print, write files."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.compare import Comparison, compare, default_policies, step_costs
from experiments.compare_text import text_of, to_dict, write_logs
from experiments.files import (
    command_line,
    describe_inputs,
    dumps,
    mismatches,
    random_weights_note,
    versions,
    warn,
    write_result,
)
from experiments.validate import DEFAULT_POLICIES, Validation, judge, validate
from experiments.validate_text import findings, validation_dict, validation_text
from policies.base import Policy, uses_signals
from policies.fixed import Fixed, Never
from policies.shelf import file_name, label, parse_policies, parse_policy
from real_backend.passes import exact_path, read_measured, timed_path, write_rounds
from simulator.hindsight import best_fixed
from traces.errors import InputError
from traces.schema import Trace
from traces.split import split_rows
from traces.store import content_hash, read_trace, refuse_existing
from traces.timing import StepCosts, Timing, read_timing

MACHINE = (  # of a round log's meta: what ran, and where
    *("pair", "target", "draft", "weights", "acceptance", "batch"),
    *("device", "device_name", "dtype", "engine", "threads", "versions"),
)


@contextlib.contextmanager
def progress(total: int | None, what: str) -> Iterator[Callable[[], object]]:
    """A step function that moves a bar on stderr, or counts if the total is not known; nothing if
    stderr is not a terminal.
    """
    from tqdm import tqdm

    with tqdm(total=total, desc=what, disable=None, leave=False) as bar:
        yield bar.update


def read_inputs(traces: Sequence[Path], timing_path: Path) -> tuple[list[Trace], Timing]:
    """Traces and timing, with a warning on stderr for whatever does not belong together."""
    timing = read_timing(timing_path)
    read = [read_trace(path) for path in traces]
    for path, trace in zip(traces, read, strict=True):
        for line in mismatches(trace, timing):
            warn(f"{path} and {timing_path}: {line}")
    return read, timing


def compare_files(
    trace_paths: Sequence[Path],
    timing_path: Path,
    *,
    specs: str | None = None,
    seed: int = 0,
    out: Path | None = None,
    force: bool = False,
) -> tuple[str, dict[str, Any]]:
    """Compare on every trace; the printed text and the content of compare.json.

    With `out`, also writes out/compare.json and the simulated rounds of every row to
    out/simulated/TRACE/. Raises InputError for bad input, or if the result exists.
    """
    if out is not None:
        refuse_existing(out / "compare.json", force)
    policies = parse_policies(specs) if specs else None
    traces, timing = read_inputs(trace_paths, timing_path)
    texts, entries, done = [], [], []
    for path, trace in zip(trace_paths, traces, strict=True):
        comparison = _compare_one(path, trace, timing, policies, seed)
        note = random_weights_note(timing.meta, trace.meta.pair)
        texts.append("\n\n".join(filter(None, [note, text_of(comparison, path.name)])))
        entry = describe_inputs(trace, path.name, timing.meta) | to_dict(comparison)
        entries.append(entry | {"timing": timing_path.name, "logs": f"simulated/{path.stem}"})
        done.append((path.stem, comparison))
    result = {"command": command_line(), "versions": versions(), "comparisons": entries}
    if out is not None:
        for stem, comparison in done:
            write_logs(comparison, out / "simulated" / stem)
        write_result("compare", result, out / "compare.json", overwrite=force)
    return "\n\n\n".join(texts), result


def _compare_one(
    path: Path, trace: Trace, timing: Timing, policies: Sequence[Policy] | None, seed: int
) -> Comparison:
    if policies is None:
        policies, skipped = default_policies(trace)
        if skipped:
            warn(f"{path} has no draft signals; left out: {', '.join(skipped)}")
    costs, control_s = step_costs(timing, trace), timing.settled().control_s
    try:
        with progress(len(policies) + 2, "compare") as step:
            return compare(trace, costs, policies, control_s=control_s, seed=seed, step=step)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def run_compare(args: argparse.Namespace) -> int:
    """`gammalab compare`."""
    names = [path.name for path in args.trace]
    if len(set(names)) < len(names):
        raise InputError("two traces have the same file name; rename one, results go by it")
    text, result = compare_files(
        args.trace,
        args.timing,
        specs=args.policies,
        seed=args.seed,
        out=args.out,
        force=args.force,
    )
    print(dumps(result) if args.json else text)
    return 0


def validation_policies(
    trace: Trace, costs: StepCosts, specs: str | None, seed: int, winner: str | None = None
) -> list[Policy]:
    """The policies to confirm: those asked for, or never, the tuned fixed gamma, a selection of the
    shelf, and the winner of a comparison if it is none of these.
    """
    if specs:
        chosen = parse_policies(specs)
    else:
        train, _ = split_rows(trace, seed=seed)
        tuned, _ = best_fixed(trace.select(train), costs)
        shelf = [parse_policy(name) for name in DEFAULT_POLICIES]
        chosen = [Never(), Fixed(tuned)] if tuned else [Never()]
        chosen += [p for p in shelf if trace.has_signals or not uses_signals(p)]
        if winner is not None and winner not in map(label, chosen):
            chosen.append(parse_policy(winner))
    if len({label(policy) for policy in chosen}) < len(chosen):
        raise InputError("--policies names the same policy twice")
    return chosen


def validate_files(
    args: argparse.Namespace,
    *,
    repeats: int,
    limit: int,
    out: Path | None,
    force: bool = False,
    winner: str | None = None,
) -> tuple[str, dict[str, Any], list[str]]:
    """Run the validation that `args` describe; text, content of validate.json, findings.

    winner: see validation_policies.

    args: pair options, trace, timing, prompts, policies, acceptance, measured, seed, max_error.
    With `out`, also writes out/validate.json, the rounds that ran (see real_backend.passes) and
    out/predicted/.
    """
    if out is not None:
        refuse_existing(out / "validate.json", force)
    (trace,), timing = read_inputs([args.trace], args.timing)
    costs = step_costs(timing, trace)
    if args.measured is None:
        outcome = _run_here(args, trace, costs, repeats, limit, winner)
    else:
        outcome = judge_folder(args.measured, trace, costs, args.policies)
    about = next(iter(outcome.measured.timed.values()))[0].meta
    result = describe_inputs(trace, args.trace.name, timing.meta) | validation_dict(outcome)
    result |= {
        "timing": args.timing.name,
        "command": command_line(),
        "machine": {name: about[name] for name in MACHINE if name in about},
        "versions": versions() | about.get("versions", {}),
        "max_error_allowed": args.max_error / 100,
        "findings": findings(outcome, args.max_error),
    }
    if out is not None:
        _write_validation(outcome, result, out, force)
    note = random_weights_note(timing.meta, trace.meta.pair)
    text = "\n\n".join(filter(None, [note, validation_text(outcome)]))
    return text, result, result["findings"]


def _run_here(
    args: argparse.Namespace,
    trace: Trace,
    costs: StepCosts,
    repeats: int,
    limit: int,
    winner: str | None,
) -> Validation:
    """Load the pair and run the policies on it."""
    policies = validation_policies(trace, costs, args.policies, args.seed, winner)
    from real_backend.engine import passes_from_args  # torch: only once the files are good

    passes = passes_from_args(args, trace, costs, limit=limit)
    with progress(passes.units(len(policies), repeats), "validate") as step:
        return validate(passes, costs, policies, repeats=repeats, step=step)


def judge_folder(folder: Path, trace: Trace, costs: StepCosts, specs: str | None) -> Validation:
    """Set round logs that lie in a folder, made here or elsewhere, beside their replay.

    Raises InputError if the folder's runs are not of this trace, or lack a policy of `specs`.
    """
    measured = read_measured(folder)
    about = next(iter(measured.timed.values()))[0].meta
    rows = {name: row for row, name in enumerate(trace.request_id)}
    missing = [name for name in about["requests"] if name not in rows]
    ran = trace if missing else trace.select([rows[name] for name in about["requests"]])
    if missing or content_hash(ran) != about["trace_sha256"]:
        raise InputError(f"{folder}: its rounds ran the requests of another trace; give that one")
    names = list(measured.timed) if specs is None else [label(p) for p in parse_policies(specs)]
    if absent := [name for name in names if name not in measured.timed]:
        raise InputError(f"{folder} has no rounds of {', '.join(absent)}")
    policies = [parse_policy(name) for name in names]
    return judge(measured, ran, costs, policies, seed=about["seed"], chunk=about["chunk"])


def _write_validation(outcome: Validation, result: dict[str, Any], out: Path, force: bool) -> None:
    measured, predicted = outcome.measured, outcome.predicted
    write_rounds((exact_path(out, name), log) for name, log in measured.exact.items())
    write_rounds(
        (timed_path(out, name, repeat), log)
        for name, logs in measured.timed.items()
        for repeat, log in enumerate(logs)
    )
    write_rounds(
        (out / "predicted" / f"{file_name(n)}.parquet", log) for n, log in predicted.items()
    )
    write_result("validate", result, out / "validate.json", overwrite=force)


def run_validate(args: argparse.Namespace) -> int:
    """`gammalab validate`; 1 if a prediction missed its bound."""
    text, result, found = validate_files(
        args, repeats=args.repeats, limit=args.limit, out=args.out, force=args.force
    )
    print(dumps(result) if args.json else text)
    for line in found:
        warn(line)
    return 1 if found else 0
