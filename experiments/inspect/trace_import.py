"""`gammalab trace import`: other programs' recordings into a Trace, their seconds into a Timing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from experiments.inspect.options import TraceImportOptions
from real_backend.command_line import Result
from traces.errors import InputError
from traces.importers import FORMATS, spec_bench
from traces.importers.common import Options
from traces.importers.marginals import MarginalsOnly
from traces.importers.spec_bench_timing import fit_timing
from traces.schema import Trace
from traces.store import refuse_existing, write_trace
from traces.timing import Timing


def run(asked: TraceImportOptions) -> Result:
    """Read everything, then write; a file that holds counts only is shown and refused."""
    options = _options(asked)
    for path in (asked.out, asked.timing_out):
        if path is not None:
            refuse_existing(path, asked.force)
    try:
        trace = FORMATS[asked.format](asked.input[0], options)
    except MarginalsOnly as refused:
        print(refused.marginals.table())
        raise
    trace = dataclasses.replace(trace, meta=dataclasses.replace(trace.meta, drafter=asked.drafter))
    timing = fit_timing(asked.input[0], options) if asked.timing_out else None
    write_trace(trace, asked.out, overwrite=asked.force)
    lines = [describe(trace, asked.out)]
    if timing is not None and asked.timing_out is not None:
        timing.write(asked.timing_out, overwrite=asked.force)
        lines.append(describe_fit(timing, asked.timing_out))
    return Result("\n".join(lines))


def _options(options: TraceImportOptions) -> Options:
    """The importer's options; raises InputError for what does not go together."""
    if options.format not in FORMATS:
        raise InputError(f"--format {options.format} is unknown; known: {', '.join(FORMATS)}")
    if options.timing_out is not None and options.format != spec_bench.NAME:
        raise InputError(f"--timing-out needs --format {spec_bench.NAME}: only it has wall times")
    if options.vanilla is not None and options.timing_out is None:
        raise InputError("--vanilla is for the timing; say where it goes with --timing-out")
    ours = [path.resolve() for path in (options.out, options.timing_out) if path is not None]
    given = [p.resolve() for p in (*options.input, *([options.vanilla] if options.vanilla else []))]
    if len({*ours, *given}) < len(ours) + len(set(given)):
        raise InputError("an output file is named twice, or is also an input")
    if len(set(given)) < len(given):
        raise InputError("an input file is named twice")
    return Options(
        schedule=options.schedule,
        key=options.key,
        merge=tuple(options.input[1:]),
        vanilla=options.vanilla,
        depth=options.depth,
        temperature=options.temperature,
        max_new_tokens=options.max_new_tokens,
        strict=options.strict,
        pad=options.pad,
    )


def describe(trace: Trace, path: Path) -> str:
    """The trace that was read, with every count that the importer kept."""
    unknown = 0 if trace.censored is None else int(np.count_nonzero(trace.censored))
    share = unknown / trace.positions
    lines = [
        f"{path}: {trace.requests} requests, {trace.positions} positions, {trace.meta.exactness}; "
        f"{unknown} positions censored ({share:.1%})"
    ]
    source: dict[str, Any] = trace.meta.source
    if source.get("rounds") and "full" in source:
        full = source["full"] / source["rounds"]
        lines.append(f"  {full:.1%} of the rounds accepted all they drafted")
    for name, value in source.items():
        if name not in ("format", "files", "censored_share"):
            for entry in value if isinstance(value, list) else [value]:
                lines.append(f"  {name.replace('_', ' '):<18}{_plain(entry)}")
    if "schedule" in source and not source["schedule"]:
        lines.append("  no --schedule: every token that the target put itself counts as unknown")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "nothing"
    return str(value) if value != "" else "none"


def describe_fit(timing: Timing, path: Path) -> str:
    """The fitted seconds, how well they fit, and the speed-ups where a vanilla file was given."""
    fit = timing.meta["fitted"]

    def errors(part: dict[str, Any]) -> str:
        median, largest = part["median_error_per_question"], part["max_error_per_question"]
        return f"R2 {part['r2']:.3f}, error per question {median:.1%} median, {largest:.1%} largest"

    lines = [
        f"{path}: {1e3 * fit['round_s']:.2f} ms per round + {1e3 * fit['drafted_token_s']:.2f} ms "
        f"per drafted token + {1e3 * fit['start_s']:.1f} ms per reply; {errors(fit)}"
    ]
    if "vanilla" in fit:
        plain, speed = fit["vanilla"], fit["speedup"]
        lines.append(f"  vanilla {1e3 * plain['token_s']:.2f} ms per token; {errors(plain)}")
        for name in ("measured", "predicted"):
            pair = speed[name]
            lines.append(
                f"  speed-up {name:<10}{pair['token_weighted']:.2f} token-weighted, "
                f"{pair['mean_of_questions']:.2f} mean of {speed['questions']} questions"
            )
    return "\n".join(lines)
