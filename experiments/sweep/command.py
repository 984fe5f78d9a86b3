"""`gammalab sweep`, from files to files."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.common.plots import write_pictures
from experiments.common.results import dumps, read_result, write_result, write_text
from experiments.sweep.jobs import World, jobs_of, sweep, worlds_of, write_rows
from experiments.sweep.leaderboard import best_settings, compare_worlds, ratio_figure
from experiments.sweep.paper import paper_figure, paper_text
from experiments.sweep.suites import MEASURED, SUITES, TIMING, Suite
from policies.registry import label, parse_policies
from real_backend.progress import progress
from traces.errors import InputError, warn
from traces.schema import Trace
from traces.store import content_hash, read_trace
from traces.timing import Timing, read_timing


def run(args: argparse.Namespace) -> int:
    """Sweep, then tune and compare; prints the tables of every world."""
    suite = suite_of(args)
    traces = read_traces(args.trace or suite.traces)
    timing = timing_of(args, suite)
    worlds = worlds_of(traces, suite.costs, suite.seeds, timing)
    jobs = jobs_of(suite, worlds)
    if not jobs:
        raise InputError("no policy of the suite can be replayed on these traces")
    out: Path = args.out
    begin(args.suite, suite, traces, timing, out, force=args.force)
    rows = sweep(worlds, jobs, out, workers=args.workers, ray=args.ray)
    write_rows(rows, out / "rows.parquet", overwrite=True)
    text = conclude(args.suite, worlds, rows, traces, timing, out)
    write_text(text, out / "sweep.txt")
    result = {"suite": args.suite, "settings": len(rows), "best": best_settings(worlds, rows)}
    print(dumps(result) if args.json else text)
    return 0


def suite_of(args: argparse.Namespace) -> Suite:
    """The suite by name, with what the command line replaces in it."""
    if args.suite not in SUITES:
        known = "; ".join(f"{name}: {suite.about}" for name, suite in SUITES.items())
        raise InputError(f"unknown suite {args.suite!r}; known: {known}")
    suite, changes = SUITES[args.suite], dict[str, Any]()
    if args.policies:
        bare = [piece for piece in args.policies.split(",") if piece]
        given = bare if all(piece in known_names() for piece in bare) else None
        changes["policies"] = tuple(given or map(label, parse_policies(args.policies)))
    for name in ("search", "trials"):
        if getattr(args, name) is not None:
            changes[name] = getattr(args, name)
    if args.cost:
        changes["costs"] = tuple(args.cost.split(","))
    if args.seed is not None:
        changes["seeds"] = (args.seed,)
    return dataclasses.replace(suite, **changes)


def known_names() -> Sequence[str]:
    """The names of the shelf."""
    from policies.registry import SHELF

    return tuple(SHELF)


def read_traces(paths: Sequence[Path]) -> dict[str, Trace]:
    """Traces by the stem of their files; raises InputError if two have the same."""
    found: dict[str, Trace] = {}
    for path in paths:
        if path.stem in found:
            raise InputError(f"two traces are called {path.stem}; rename one, results go by it")
        found[path.stem] = read_trace(path)
    return found


def timing_of(args: argparse.Namespace, suite: Suite) -> Timing | None:
    """The timing of the measured cost, and the seconds that cost ratios and rules' own arithmetic
    are in; the shipped one goes with the shipped traces alone.
    """
    if args.timing is None and args.trace:
        if MEASURED not in suite.costs:
            return None
        raise InputError("--timing is missing: the measured cost of your trace; or --cost c=8")
    return read_timing(args.timing or TIMING)


def begin(
    name: str,
    suite: Suite,
    traces: dict[str, Trace],
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
    about["timing"] = timing.meta if timing else {}
    path = out / "sweep.json"
    if path.exists() and not force:
        before = read_result("sweep", path)
        for key, value in about.items():
            if before.get(key) != value:
                raise InputError(
                    f"{path}: this sweep was begun with another {key}; choose another --out, or "
                    "pass --force to sweep anew"
                )
        return
    write_result("sweep", about, path, overwrite=True)


def conclude(
    name: str,
    worlds: Sequence[World],
    rows: Sequence[dict[str, Any]],
    traces: dict[str, Trace],
    timing: Timing | None,
    out: Path,
) -> str:
    """What the rows say: the paper's table for its suite, else a leaderboard of every world."""
    if name == "paper":
        write_pictures([paper_figure(worlds, rows)], out / "figures")
        return paper_text(worlds, rows)
    if any(trace.censored is not None for trace in traces.values()):
        warn("settings were tuned on one imputation of a censored trace; see docs/censoring.md")
    with progress(len(worlds), "compare") as step:
        text, comparisons = compare_worlds(worlds, rows, traces, timing, out, step)
    if picture := ratio_figure(worlds, comparisons):
        write_pictures([picture], out / "figures")
    return text
