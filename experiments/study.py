"""The whole loop in one folder: capture, measure, compare, validate, report.

Every stage leaves its file in the folder and is skipped when that file is there, so that a study
that was stopped goes on where it was. study.json keeps the settings; other settings need another
folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments.common.results import (
    describe_inputs,
    other_input,
    read_result,
    withdraw,
    write_result,
)
from experiments.comparison.command import run as compare
from experiments.comparison.headline import headline_text
from experiments.options import CompareOptions, StudyOptions, ValidateOptions
from experiments.report.report import write_report
from experiments.validation.command import run as validate
from policies.registry import REGISTRY
from real_backend.command_line import Result
from real_backend.options import CaptureOptions, MeasureOptions, refuse_shape
from real_backend.partial_file import finished, partial_path
from traces.errors import InputError
from traces.schema import Trace
from traces.shipped import GREEDY, TIMING
from traces.store import read_trace, write_atomically
from traces.timing import read_timing

OF_THE_PAIR = ("target", "draft", "device", "dtype", "threads")
FILES = (
    "study.json",
    "prompts.jsonl",
    "trace.parquet",
    "timing.json",
    "timing.json.partial",
    "measured.partial",
    "compare.json",
    "compare.txt",
    "validate.json",
    "validate.txt",
    "report.html",
)
STAGES = ("capture", "measure", "compare", "validate", "report")


class Effort(NamedTuple):
    """How much work a study does. questions_per_task 0: all of them. measure_s: after so many
    seconds no further sweep of a measurement begins, 0: all that are asked.
    """

    questions_per_task: int
    max_new_tokens: int
    batches: tuple[int, ...]
    measure_repeats: int
    measure_s: float
    validate_repeats: int


WIDEST_STEP = 33  # tokens of the widest verify that `measure` times
FULL = Effort(0, 128, (1,), 150, 0.0, 1)
QUICK = Effort(5, 32, (1,), 30, 30.0, 1)


def run(options: StudyOptions) -> Result:
    """`gammalab study`: no finding if a claim was contradicted, which the first screen then says.

    The comparison is printed before the sitting, which takes a while.
    """
    refuse_shape(options.pair, "study")
    out = options.out
    effort = QUICK if options.quick else FULL
    settings = _settings(options, out)
    if options.quick and options.trace is None:
        few = _few_prompts(options, effort, out / "prompts.jsonl")
        options = dataclasses.replace(options, prompts=few)
    trace, timing = options.trace or out / "trace.parquet", out / "timing.json"
    print(f"gammalab: study: {', '.join(STAGES)}; each says how long it takes", file=sys.stderr)
    _stage("capture", trace, trace.exists(), lambda: _capture(options, effort, trace))
    if not (out / "study.json").exists():  # only now: a study that never began leaves no trace
        write_result("study", {"settings": settings}, out / "study.json", overwrite=False)
    _stage("measure", timing, timing.exists(), lambda: _measure(options, effort, trace))
    inputs = inputs_of(trace, timing)
    compared, validated = out / "compare.json", out / "validate.json"
    _stage("compare", compared, _is_of(compared, inputs), lambda: _compare(options, trace))
    print((out / "compare.txt").read_text("utf-8"), flush=True)
    _stage(
        "validate", validated, _is_of(validated, inputs), lambda: _validate(options, effort, trace)
    )
    (part,) = read_result("compare", compared)["comparisons"]
    said = headline_text(part, read_result("validate", validated))
    text = (out / "validate.txt").read_text("utf-8")
    return Result(f"{text}\n{said}\nreport: {write_report(compared)}")


def _stage(name: str, result: Path, there: bool, work: Callable[[], object]) -> None:
    """Run one stage unless its result is there; says on stderr how long it took."""
    if there:
        print(f"gammalab: {name}: {result} is there, kept", file=sys.stderr)
        return
    began = time.perf_counter()
    print(f"gammalab: {name} ...", file=sys.stderr)
    work()
    print(f"gammalab: {name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)


def inputs_of(trace: Path, timing: Path) -> dict[str, Any]:
    """The inputs of a comparison and a validation of these files."""
    return describe_inputs(read_trace(trace), trace.name, read_timing(timing))


def _is_of(result: Path, inputs: dict[str, Any]) -> bool:
    """True if a comparison or validation is there with its text and all its rounds, of these
    inputs: a stage that was made again has those behind it made again.
    """
    if not result.exists() or not result.with_suffix(".txt").exists():
        return False
    found = read_result(result.stem, result)
    part, *others = found.get("comparisons", [found])
    logs = part.get("log_files", {}).values()
    names = [name for log in logs for name in (log if isinstance(log, list) else [log])]
    folder = result.parent / part.get("logs", "")
    alike = not others and not other_input(part, inputs)
    return alike and all((folder / name).exists() for name in names)


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    """Meanwhile two processes compare on the shipped recording, half of the registry each, which
    leaves every kernel compiled; at the end they are waited for, since the next stage measures
    time.
    """
    compare = (sys.executable, "-m", "experiments", "compare", "--trace", str(GREEDY))
    quiet, names = subprocess.DEVNULL, list(REGISTRY)
    with contextlib.ExitStack() as stack:
        for half in (names[::2], names[1::2]):
            command = [*compare, "--timing", str(TIMING), "--policies", ",".join(half)]
            process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
            stack.enter_context(process)
            stack.push(lambda failed, *_, process=process: failed and process.terminate())
        yield


def _settings(options: StudyOptions, out: Path) -> dict[str, Any]:
    """This study's settings, after a look at those of the study that lies in the folder.

    Raises InputError naming the first setting that differs.
    """
    if options.force:
        for name in FILES:
            (out / name).unlink(missing_ok=True)
    pair = options.pair
    settings: dict[str, Any] = {
        "pair": pair.name or (None if pair.target else "embedded"),
        **{name: getattr(pair, name) for name in OF_THE_PAIR},
        "quick": options.quick,
        "validate_limit": options.validate_limit or None,  # as in studies that knew no limit
        "seed": options.seed,
        "prompts": _identity(options.prompts),
        "trace": _identity(options.trace),
    }
    path = out / "study.json"
    if not path.exists():
        return settings
    before = read_result("study", path).get("settings", {})
    for name, value in settings.items():
        if before.get(name) != value:
            raise InputError(
                f"{path}: this study was begun with {name} = {before.get(name)!r}, now it is "
                f"{value!r}; choose another --out, or start over with --force"
            )
    return settings


def _identity(path: Path | None) -> str | None:
    """SHA-256 of a file's bytes: a study goes on only with the same input."""
    if path is None:
        return None
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _few_prompts(options: StudyOptions, effort: Effort, path: Path) -> Path:
    """Questions of every task, as a prompt file in the study's folder."""
    from real_backend.prompts import EMBEDDED_PROMPTS, alike, read_questions

    if options.prompts is None and not options.pair.is_embedded:
        raise InputError("--prompts is missing; only the embedded pair brings its own")
    questions = read_questions(options.prompts or EMBEDDED_PROMPTS)
    lines = []
    for question in alike(questions, effort.questions_per_task):
        fields = {name: getattr(question, name) for name in ("question_id", "category")}
        lines.append(json.dumps(fields | {"turns": list(question.turns)}))
    text = "\n".join(lines) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8"), overwrite=True)
    return path


def _capture(options: StudyOptions, effort: Effort, out: Path) -> None:
    from real_backend.recording.capture import run as capture

    with _compiling():
        capture(
            CaptureOptions(
                pair=options.pair,
                prompts=options.prompts,
                out=out,
                seed=options.seed,
                max_new_tokens=effort.max_new_tokens,
                resume=not options.force,
                force=options.force,
            )
        )


def _measure(options: StudyOptions, effort: Effort, trace: Path) -> None:
    from real_backend.recording.measure import run as measure

    recorded = read_trace(trace)
    finished(partial_path(options.out / "measured"))  # a sitting on another timing does not go on
    measure(
        MeasureOptions(
            pair=options.pair,
            out=options.out / "timing.json",
            batch=effort.batches,
            context=tuple(contexts_of(recorded)),
            repeats=effort.measure_repeats,
            seconds=effort.measure_s,
            deepest=recorded.meta.depth if options.quick else WIDEST_STEP - 1,
            temperature=recorded.meta.temperature,
            top_p=recorded.meta.top_p,
            force=options.force,
        )
    )


def contexts_of(trace: Trace) -> list[int]:
    """Two context lengths to time, near the ends of what the trace's rounds see, tokens.

    Room is left for the widest timed step, so that they fit into the pair's context.
    """
    longest = trace.longest_context
    if trace.meta.max_context:
        longest = min(longest, trace.meta.max_context - WIDEST_STEP)
    return sorted({max(1, longest // 4), max(1, longest)})


def _compare(options: StudyOptions, trace: Path) -> None:
    out = options.out
    timing = out / "timing.json"
    compare(
        CompareOptions(trace=(trace,), timing=(timing,), seed=options.seed, out=out, force=True)
    )


def _validate(options: StudyOptions, effort: Effort, trace: Path) -> None:
    out = options.out
    (compared,) = read_result("compare", out / "compare.json")["comparisons"]
    withdraw(out / "validate.json")  # not force: a sitting that was stopped goes on
    validate(
        ValidateOptions(
            pair=options.pair,
            trace=trace,
            timing=out / "timing.json",
            prompts=options.prompts,
            repeats=effort.validate_repeats,
            limit=options.validate_limit,
            max_error=options.max_error,
            seed=options.seed,
            out=out,
        ),
        winner=compared["recommended"],
        runner_up=compared["runner_up"],
    )
