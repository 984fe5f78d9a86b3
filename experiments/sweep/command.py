"""`gammalab sweep`, from files to files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.common.plots import write_pictures
from experiments.common.results import read_result, write_result, write_text
from experiments.options import SweepOptions
from experiments.sweep.information import check_known
from experiments.sweep.jobs import Condition, conditions_of, jobs_of, sweep, write_rows
from experiments.sweep.leaderboard import best_settings, compare_worlds, ratio_figure
from experiments.sweep.paper import paper_figure, paper_text
from experiments.sweep.suites import MEASURED, SUITES, Suite
from policies.registry import label, parse_policies
from real_backend.command_line import Result
from real_backend.progress import progress
from traces.errors import InputError, warn
from traces.schema import Trace
from traces.shipped import TIMING
from traces.store import content_hash, read_trace
from traces.timing import Timing, read_timing


def run(options: SweepOptions) -> Result:
    """`gammalab sweep`: sweep, then tune and compare; the tables of every world."""
    suite = suite_of(options)
    traces = read_traces(options.trace or suite.traces)
    timing = timing_of(options, suite)
    judged = judged_on(options, traces)
    if options.information:  # not after an hour of sweeping
        for trace in (*traces.values(), *judged.values()):
            check_known(trace)
    conditions = conditions_of(traces, suite.costs, suite.seeds, timing, judged)
    jobs = jobs_of(suite, conditions)
    if not jobs:
        raise InputError("no policy of the suite can be replayed on these traces")
    out: Path = options.out
    begin(options.suite, suite, traces, judged, timing, out, force=options.force)
    rows = sweep(conditions, jobs, out, workers=options.workers, ray=options.ray)
    write_rows(rows, out / "rows.parquet", overwrite=True)
    text = conclude(options, conditions, rows, traces, judged, timing)
    write_text(text, out / "sweep.txt")
    result = {
        "suite": options.suite,
        "settings": len(rows),
        "best": best_settings(conditions, rows),
    }
    return Result(text, result)


def suite_of(options: SweepOptions) -> Suite:
    """The suite by name, with what the command line replaces in it."""
    if options.suite not in SUITES:
        known = "; ".join(f"{name}: {suite.about}" for name, suite in SUITES.items())
        raise InputError(f"unknown suite {options.suite!r}; known: {known}")
    suite, changes = SUITES[options.suite], dict[str, Any]()
    if options.policies:
        bare = [piece for piece in options.policies.split(",") if piece]
        given = bare if all(piece in known_names() for piece in bare) else None
        changes["policies"] = tuple(given or map(label, parse_policies(options.policies)))
    for name in ("search", "trials"):
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)
    if options.cost:
        changes["costs"] = tuple(options.cost.split(","))
    if options.seed is not None:
        changes["seeds"] = (options.seed,)
    return dataclasses.replace(suite, **changes)


def known_names() -> Sequence[str]:
    """The names of the registry."""
    from policies.registry import REGISTRY

    return tuple(REGISTRY)


def read_traces(paths: Sequence[Path]) -> dict[str, Trace]:
    """Traces by the stem of their files; raises InputError if two have the same."""
    found: dict[str, Trace] = {}
    for path in paths:
        if path.stem in found:
            raise InputError(f"two traces are called {path.stem}; rename one, results go by it")
        found[path.stem] = read_trace(path, shaped=True)
    return found


def judged_on(options: SweepOptions, traces: dict[str, Trace]) -> dict[str, Trace]:
    """The recordings of --held-out by the trace they go with; InputError if they do not."""
    paths = options.held_out or ()
    if paths and len(paths) != len(options.trace or ()):
        raise InputError(
            f"--held-out was given {len(paths)} times, --trace {len(options.trace or ())} times; "
            "each trace needs its own"
        )
    found = {}
    for (name, trace), path in zip(traces.items(), paths, strict=False):
        other = read_trace(path, shaped=True)
        for field in ("target", "draft", "tokenizer_sha256", "temperature", "depth", "shape"):
            ours, theirs = (getattr(one.meta, field) for one in (trace, other))
            if ours != theirs:
                raise InputError(
                    f"{path}: its {field} is {theirs!r}, that of {name} is {ours!r}; both must be "
                    "of one pair, and drafted alike"
                )
        if trace.censored is not None or other.censored is not None:
            raise InputError(f"{path}: --held-out does not take censored traces")
        found[name] = other
    return found


def timing_of(options: SweepOptions, suite: Suite) -> Timing | None:
    """The timing of the measured cost, and the seconds that cost ratios and rules' own arithmetic
    are in; the shipped one goes with the shipped traces alone.
    """
    if options.timing is None and options.trace:
        if MEASURED not in suite.costs:
            return None
        raise InputError("--timing is missing: the measured cost of your trace; or --cost c=8")
    return read_timing(options.timing or TIMING)


def begin(
    name: str,
    suite: Suite,
    traces: dict[str, Trace],
    judged: dict[str, Trace],
    timing: Timing | None,
    out: Path,
    *,
    force: bool,
) -> None:
    """Note in out/sweep.json what is swept; raises InputError if another sweep lies there."""
    about: dict[str, Any] = {"suite": name} | dataclasses.asdict(suite)
    del about["traces"]
    about["costs"], about["seeds"] = list(suite.costs), list(suite.seeds)
    about["policies"] = list(suite.policies)
    about["traces"] = {stem: content_hash(trace) for stem, trace in traces.items()}
    about["held_out"] = {stem: content_hash(trace) for stem, trace in judged.items()}
    about["timing"] = timing.meta if timing else {}
    path = out / "sweep.json"
    if path.exists() and not force:
        before = {"held_out": {}} | read_result("sweep", path)  # older ones judged on halves
        for key, value in about.items():
            if before.get(key) != value:
                raise InputError(
                    f"{path}: this sweep was begun with another {key}; choose another --out, or "
                    "pass --force to sweep anew"
                )
        return
    write_result("sweep", about, path, overwrite=True)


def conclude(
    options: SweepOptions,
    conditions: Sequence[Condition],
    rows: Sequence[dict[str, Any]],
    traces: dict[str, Trace],
    judged: dict[str, Trace],
    timing: Timing | None,
) -> str:
    """The conclusion of the rows: the paper's table for its suite, else a leaderboard of every
    world.
    """
    out = options.out
    if options.suite == "paper":
        write_pictures([paper_figure(conditions, rows)], out / "figures")
        return paper_text(conditions, rows)
    if any(trace.censored is not None for trace in traces.values()):
        warn("settings were tuned on one imputation of a censored trace; see docs/censoring.md")
    with progress(len(conditions), "compare") as step:
        text, comparisons = compare_worlds(
            conditions,
            rows,
            traces,
            timing,
            out,
            step,
            judged,
            ceilings_of_information=options.information,
        )
    if picture := ratio_figure(conditions, comparisons):
        write_pictures([picture], out / "figures")
    return text
