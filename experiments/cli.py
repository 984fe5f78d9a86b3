"""The command line `gammalab`: a table of verbs, dispatch, and bad input as one clear line.

A verb is a class of options (experiments.options) and a function of them that returns a Result.
Results go to stdout, everything else to stderr. Exit 0; 1 a
finding (a prediction missed its bound, a trace is damaged); 2 bad input; 130 interrupted. One
module is loaded per call, so that --help stays light.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from experiments import options as o
from experiments import studies as s
from experiments.inspect.options import (
    TraceCheckOptions,
    TraceImportOptions,
    TraceInfoOptions,
    TraceShapeOptions,
    TraceSplitOptions,
)
from experiments.servers.options import ObserveOptions, RecommendOptions
from real_backend.command_line import Parser, Result, add_options, options_of, print_anything, show
from real_backend.interruption import interrupted
from real_backend.options import CaptureOptions, ExportDraftOptions, MeasureOptions
from traces.errors import InputError, brief, missing


class Verb(NamedTuple):
    """about: what it does, in the help; options: its class; run: MODULE:FUNCTION of them."""

    about: str
    options: type[Any]
    run: str


VERBS = {
    "study": Verb(
        "the whole loop: capture, measure, compare, validate, report",
        o.StudyOptions,
        "experiments.study:run",
    ),
    "capture": Verb(
        "record what the draft proposes and the target accepts",
        CaptureOptions,
        "real_backend.recording.capture:run",
    ),
    "measure": Verb(
        "time prefill, draft step and verify of a pair here",
        MeasureOptions,
        "real_backend.recording.measure:run",
    ),
    "compare": Verb(
        "replay every controller on a recorded trace",
        o.CompareOptions,
        "experiments.comparison.command:run",
    ),
    "validate": Verb(
        "run controllers on the real engine beside the replay",
        o.ValidateOptions,
        "experiments.validation.command:run",
    ),
    "sweep": Verb(
        "settings of controllers, tuned on one half, judged on the other",
        o.SweepOptions,
        "experiments.sweep.command:run",
    ),
    "train": Verb(
        "a network for a pair and a machine, exported as a policy file",
        o.TrainOptions,
        "experiments.learning.train:run",
    ),
    "serve": Verb(
        "many requests at once: a server with a queue, simulated",
        o.ServeOptions,
        "experiments.serving.serve:run",
    ),
    "fleet": Verb(
        "what an operator asks: table, break-even, bursts, ...",
        o.FleetOptions,
        "experiments.serving.fleet.command:run",
    ),
    "observe": Verb(
        "prompts sent to a running server, and what it tells of its rounds",
        ObserveOptions,
        "experiments.servers.observe:run",
    ),
    "recommend": Verb(
        "the draft length for an observed server, and what others would do",
        RecommendOptions,
        "experiments.servers.recommend:run",
    ),
    "export": Verb(
        "a policy as the settings of a serving engine",
        o.ExportOptions,
        "experiments.export.export:run",
    ),
    "export-draft": Verb(
        "an independent draft as a GGUF file for llama.cpp",
        ExportDraftOptions,
        "real_backend.models.gguf_writer:run",
    ),
    "report": Verb(
        "write the HTML page and figures of finished results again",
        o.ReportOptions,
        "experiments.report.report:run",
    ),
    "policies": Verb(
        "list the controllers, or show one in full",
        o.PoliciesOptions,
        "experiments.inspect.show:show_policies",
    ),
    "study-published": Verb(
        "our numbers beside a published table, from your copy",
        o.PublishedOptions,
        "experiments.published.command:run",
    ),
    "trace info": Verb(
        "what a trace holds, and how its acceptance behaves",
        TraceInfoOptions,
        "experiments.inspect.show:show_trace",
    ),
    "trace check": Verb(
        "schema and content hash; exit 1 if damaged",
        TraceCheckOptions,
        "experiments.inspect.show:check_trace",
    ),
    "trace split": Verb(
        "by question, task by task, into two traces",
        TraceSplitOptions,
        "experiments.inspect.show:split_trace",
    ),
    "trace shape": Verb(
        "a recording under a draft tree, for compare, sweep, serve and validate",
        TraceShapeOptions,
        "experiments.inspect.trace_shape:run",
    ),
    "trace import": Verb(
        "another program's recording into a trace",
        TraceImportOptions,
        "experiments.inspect.trace_import:run",
    ),
    "studies in-law": Verb(
        "has a replay of sampled traces the law of real runs?",
        s.InLawOptions,
        "experiments.validation.in_law:run",
    ),
    "studies batches": Verb(
        "the serving simulator beside batches of the real engine",
        s.ServeCheckOptions,
        "experiments.serving.serve_check:run",
    ),
    "studies censored": Verb(
        "a censored trace at costs typed by hand, and over seeds",
        s.CensoredRunOptions,
        "experiments.censoring.censored_run:run",
    ),
    "studies coverage": Verb(
        "hides data: do the intervals of censored traces hold the truth?",
        s.CensoredCheckOptions,
        "experiments.censoring.censored_check:run",
    ),
    "studies positions": Verb(
        "what acceptance by position tells of other lengths, and what not",
        s.PositionsOptions,
        "experiments.published.positions:run",
    ),
    "studies ladders": Verb(
        "published speeds by draft length, predicted from a few of them",
        s.LaddersOptions,
        "experiments.servers.ladders:run",
    ),
    "studies shapes": Verb(
        "chains and trees on one recording: which shape of a draft pays here",
        s.ShapesOptions,
        "experiments.shapes.study:run",
    ),
    "studies trees": Verb(
        "where trees pay: recordings, prices and rows, as one figure",
        s.TreesOptions,
        "experiments.shapes.where:run",
    ),
    "studies drafts": Verb(
        "several independent drafts, accepted as SpecTr does, beside the best rule",
        s.DraftsOptions,
        "experiments.shapes.independent:run",
    ),
    "studies worlds": Verb(
        "several leaderboards as one table and one figure",
        s.WorldsOptions,
        "experiments.sweep.worlds:run",
    ),
    "studies classifiers": Verb(
        "the weights of the controllers that are classifiers, fitted to a trace",
        s.ClassifiersOptions,
        "experiments.sweep.classifiers:run",
    ),
    "studies transfer": Verb(
        "networks judged away from the costs they were trained on",
        s.TransferOptions,
        "experiments.learning.transfer:run",
    ),
    "studies regret": Verb(
        "what online learners lose to the best fixed length, over time",
        s.RegretOptions,
        "experiments.learning.regret:run",
    ),
}
GROUPS = {
    "trace": "inspect, check, split or import a trace",
    "studies": "studies of the laboratory itself: how far to trust it",
}
OPTIONAL = {  # what a verb needs beyond the others
    "train": ("torch", "safetensors"),
    "studies transfer": ("torch", "safetensors"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    found = build_parser().parse_args(argv)
    print_anything()
    verb = VERBS[found.verb]
    options = options_of(verb.options, found)
    try:
        return show(load(found.verb)(options), options)
    except KeyboardInterrupt:
        print(f"gammalab: {interrupted(found.verb, options)}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away (`| head`): keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        message = one_line(error)
        if found.debug or message is None:
            raise
        print(f"gammalab: {message}", file=sys.stderr)
        return 2


def load(name: str) -> Callable[[Any], Result]:
    """The function of a verb; raises InputError if a library that only it needs is missing."""
    module, _, function = VERBS[name].run.partition(":")
    try:
        run: Callable[[Any], Result] = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name in OPTIONAL.get(name, ()):
            raise missing(name, str(error.name), str(error.name)) from error
        raise
    return run


def one_line(error: Exception) -> str | None:
    """The line for the user; None if the error is a bug of ours, which deserves its traceback."""
    if isinstance(error, InputError):
        return brief(str(error))
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return brief(f"{where}{error.strerror}")
    if "torch" in sys.modules:  # else no device was in use, and importing it takes seconds
        from real_backend.device_errors import DEVICE_REMEDY, fault_of

        told = fault_of(error, "on the way", DEVICE_REMEDY)
        return str(told) if told else None
    return "out of memory; use fewer prompts" if isinstance(error, MemoryError) else None


def build_parser() -> Parser:
    """All verbs and their options."""
    parser = Parser(
        prog="gammalab",
        description="Which controller should set the draft length of speculative decoding here, "
        "how much does it gain, how sure is that, and how much headroom is left?",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands: dict[str, Any] = {"": _commands(parser, "COMMAND")}
    for name, verb in VERBS.items():
        group, _, action = name.rpartition(" ")
        if group not in commands:
            about = GROUPS[group]
            inner = commands[""].add_parser(group, help=about, description=about)
            commands[group] = _commands(inner, None)
        sub = commands[group].add_parser(action, help=verb.about, description=verb.about)
        sub.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
        )
        sub.set_defaults(verb=name)
        add_options(verb.options, sub)
    return parser


def _commands(parser: Parser, metavar: str | None) -> Any:
    return parser.add_subparsers(metavar=metavar, required=True, parser_class=Parser)
