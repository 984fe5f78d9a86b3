"""`gammalab compare`: read files, compute, print, write files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from experiments.common.cost_sources import step_costs
from experiments.common.frames import csv_of, frame_of, words
from experiments.common.results import (
    command_line,
    describe_inputs,
    mismatches,
    random_weights_note,
    read_input,
    versions,
    withdraw,
    write_result,
    write_text,
)
from experiments.comparison.columns import COLUMNS
from experiments.comparison.compare import compare, default_policies
from experiments.comparison.compare_text import comparison_text, to_dict, write_logs
from experiments.comparison.drafters import (
    Drafted,
    compare_drafters,
    drafters_dict,
    drafters_text,
    same_replies,
)
from experiments.comparison.headline import headline_text
from experiments.comparison.result import Comparison
from experiments.comparison.robust import TIMING_DRAWS, redrawn
from experiments.options import CompareOptions
from policies.base import Policy
from policies.registry import parse_policies
from real_backend.command_line import Result
from real_backend.progress import progress
from traces.errors import InputError, warn
from traces.schema import Trace
from traces.store import refuse_existing
from traces.timing import Timing

TRACE, ROLE = words("trace", None, None, "its file"), words("role", None, None, "of the row")


def run(options: CompareOptions) -> Result:
    """`gammalab compare`: on every trace; the content is that of compare.json.

    With `out`, also writes out/compare.json, the text as out/compare.txt, and the simulated rounds
    of every row to out/simulated/TRACE/. Traces of several drafters on the same replies are also
    compared with each other. Raises InputError for bad input, or if the result exists.
    """
    out, seed = options.out, options.seed
    names = names_of(options.trace)
    if out is not None:
        refuse_existing(out / "compare.json", options.force)
    policies = parse_policies(options.policies) if options.policies else None
    files = options.timing * (len(options.trace) if len(options.timing) == 1 else 1)
    if len(files) != len(options.trace):
        raise InputError(
            f"{len(options.trace)} traces, but {len(files)} timings; give one timing for all of "
            "them, or one for each"
        )
    read = partial(read_input, shaped=True)
    traces, timings = zip(*map(read, options.trace, files), strict=True)
    texts, entries, done = [], [], []
    every = zip(options.trace, names, files, traces, timings, strict=True)
    for path, name, file, trace, timing in every:
        comparison = _compare_one(path, trace, timing, policies, seed)
        note = random_weights_note(timing.meta, trace.meta.pair)
        file_name = name + path.suffix
        entry = describe_inputs(trace, file_name, timing) | to_dict(comparison)
        entry |= {"timing": file.name, "logs": f"simulated/{name}"}
        entries.append(entry | {"mismatches": mismatches(trace, timing)})
        said = [
            note,
            comparison_text(comparison, file_name),
            headline_text(entries[-1], None),
        ]
        texts.append("\n\n".join(filter(None, said)))
        done.append((name, comparison))
    result = {"command": command_line(), "versions": versions(), "comparisons": entries}
    drafted = [Drafted(*one) for one in zip(names, traces, timings, strict=True)]
    if same_replies(drafted):
        found = compare_drafters(drafted, seed=seed)
        result["drafters"] = drafters_dict(found)
        texts.append(drafters_text(found))
    text = "\n\n\n".join(texts)
    if out is not None:
        withdraw(out / "compare.json")
        for name, comparison in done:
            write_logs(comparison, out / "simulated" / name)
        write_text(text, out / "compare.txt")
        write_result("compare", result, out / "compare.json", overwrite=options.force)
    parts = [frame_of(entry["rows"]) for entry in entries]
    for part, entry in zip(parts, entries, strict=True):
        part.insert(0, "trace", entry["trace"])
    return Result(text, result, csv_of((TRACE, ROLE, *COLUMNS), pd.concat(parts)))


def names_of(paths: Sequence[Path]) -> list[str]:
    """A name for each trace: of its file, or where two are called alike, of folder and file.

    Raises InputError if these are alike, too.
    """
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.absolute().parent.name}-{path.stem}" for path in paths]
    if len(set(names)) < len(names):
        raise InputError("two traces have the same folder and file name; results go by them")
    return names


def _compare_one(
    path: Path, trace: Trace, timing: Timing, policies: Sequence[Policy] | None, seed: int
) -> Comparison:
    if policies is None:
        policies, skipped = default_policies(trace)
        if skipped:
            warn(f"{path} has no draft signals; left out: {', '.join(skipped)}")
    again = [step_costs(one, trace) for one in redrawn(timing, TIMING_DRAWS, seed)]
    try:
        with progress(len(policies) + 2, "compare") as step:
            return compare(
                trace,
                step_costs(timing, trace),
                policies,
                control_s=timing.settled().control_s,
                redrawn=again,
                seed=seed,
                step=step,
            )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
