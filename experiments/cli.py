"""The command line `gammalab`: parse, dispatch, and turn bad input into one clear line.

Results go to stdout, everything else to stderr. Exit 0; 1 a finding (a prediction missed its bound,
a trace is damaged); 2 bad input; 130 interrupted. Commands are imported when they run, so that
--help stays light.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from experiments.arguments import (
    add_compare,
    add_export,
    add_fleet,
    add_import,
    add_published,
    add_serve,
    add_study,
    add_sweep,
    add_train,
    add_validate,
)
from real_backend.interruption import interrupted
from real_backend.number_options import (
    number,
)
from real_backend.options import (
    Parser,
    add_capture_arguments,
    add_measure_arguments,
    add_pair_arguments,
    add_seed,
    print_anything,
)
from traces.errors import InputError, brief, missing

Command = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = build_parser().parse_args(argv)
    print_anything()
    command: Command = args.command
    try:
        code = command(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(f"gammalab: {interrupted(args.command_name, args)}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader went away (`| head`): keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        message = one_line(error)
        if args.debug or message is None:
            raise
        print(f"gammalab: {message}", file=sys.stderr)
        return 2


def one_line(error: Exception) -> str | None:
    """What to tell the user; None if the error is a bug of ours, which deserves its traceback."""
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
    """All commands and their options."""
    parser = Parser(
        prog="gammalab",
        description="Which controller should set the draft length of speculative decoding here, "
        "how much does it gain, how sure is that, and how much headroom is left?",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(
        metavar="COMMAND", required=True, dest="command_name", parser_class=Parser
    )

    def add(name: str, help_text: str, command: Command) -> Parser:
        sub = commands.add_parser(name, help=help_text, description=help_text)
        sub.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
        )
        sub.set_defaults(command=command)
        return sub

    add_study(add("study", "the whole loop: capture, measure, compare, validate, report", _study))
    _add_backend(add)
    add_compare(add("compare", "replay every controller on a recorded trace", _compare))
    add_validate(add("validate", "run controllers on the real engine beside the replay", _validate))
    add_sweep(
        add("sweep", "settings of controllers, tuned on one half, judged on the other", _sweep)
    )
    add_train(add("train", "a network for a pair and a machine, exported as a policy file", _train))
    add_serve(add("serve", "many requests at once: a server with a queue, simulated", _serve))
    add_fleet(add("fleet", "what an operator asks: table, break-even, bursts, ...", _fleet))
    add_export(add("export", "a policy as the settings of a serving engine", _export))
    report = add("report", "write the HTML page and figures of finished results again", _report)
    report.add_argument(
        "dir",
        type=Path,
        help="folder with compare.json (and validate.json) or leaderboard.json, or one of the two",
    )
    policies = add("policies", "list the controllers, or show one in full", _policies)
    policies.add_argument("name", nargs="?", help="one controller")
    policies.add_argument("--json", action="store_true", help="as JSON")
    add_published(
        add("study-published", "our numbers beside a published table, from your copy", _published)
    )
    _add_trace(add("trace", "inspect, check, split or import a trace", _show_help))
    return parser


def _add_backend(add: Callable[[str, str, Command], Parser]) -> None:
    capture = add("capture", "record what the draft proposes and the target accepts", _capture)
    add_pair_arguments(capture)
    add_capture_arguments(capture)
    measure = add("measure", "time prefill, draft step and verify of a pair here", _measure)
    add_pair_arguments(measure)
    add_measure_arguments(measure)


def _add_trace(trace: Parser) -> None:
    trace.set_defaults(parser=trace)
    actions = trace.add_subparsers(metavar="ACTION", parser_class=Parser)
    info = actions.add_parser("info", help="what a trace holds, and how its acceptance behaves")
    info.add_argument("trace", type=Path)
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(command=_trace_info)
    check = actions.add_parser("check", help="schema and content hash; exit 1 if damaged")
    check.add_argument("trace", type=Path)
    check.set_defaults(command=_trace_check)
    split = actions.add_parser("split", help="by question, task by task, into two traces")
    split.add_argument("trace", type=Path)
    split.add_argument("--out-train", type=Path, required=True, help="to tune on, Parquet")
    split.add_argument("--out-test", type=Path, required=True, help="to judge on, Parquet")
    split.add_argument(
        "--fraction", type=number(0.0, 1.0), default=0.5, help="share of the training part"
    )
    add_seed(split, "the split")
    split.add_argument("--force", action="store_true", help="overwrite")
    split.set_defaults(command=_trace_split)
    imported = actions.add_parser("import", help="another program's recording into a trace")
    add_import(imported)
    imported.set_defaults(command=_trace_import)
    for action in (info, check, split, imported):
        action.add_argument("--debug", action="store_true", default=argparse.SUPPRESS)


def _show_help(args: argparse.Namespace) -> NoReturn:
    parser: Parser = args.parser
    parser.error("an action is missing: info, check, split or import")


def _study(args: argparse.Namespace) -> int:
    from experiments.study import run

    return run(args)


def _capture(args: argparse.Namespace) -> int:
    from real_backend.recording.capture import run

    run(args)
    return 0


def _measure(args: argparse.Namespace) -> int:
    from real_backend.recording.measure import run

    timing = run(args)
    label = ", random weights" if timing.meta.get("weights") == "random" else ""
    print(
        f"{args.out}: {len(timing.cells)} cells of {timing.meta['pair']}{label}, on "
        f"{timing.meta['device_name']}"
    )
    return 0


def _compare(args: argparse.Namespace) -> int:
    from experiments.comparison.command import run_compare

    return run_compare(args)


def _validate(args: argparse.Namespace) -> int:
    from experiments.validation.command import run_validate

    return run_validate(args)


def _sweep(args: argparse.Namespace) -> int:
    from experiments.sweep.command import run

    return run(args)


def _train(args: argparse.Namespace) -> int:
    try:
        from experiments.learning.train import run
    except ModuleNotFoundError as error:
        if error.name in ("torch", "safetensors"):
            raise missing("train", error.name, error.name) from error
        raise
    return run(args)


def _serve(args: argparse.Namespace) -> int:
    from experiments.serving.serve import run

    return run(args)


def _fleet(args: argparse.Namespace) -> int:
    from experiments.serving.fleet.command import run

    return run(args)


def _export(args: argparse.Namespace) -> int:
    from experiments.export.export import run

    return run(args)


def _published(args: argparse.Namespace) -> int:
    from experiments.published.command import run

    return run(args)


def _report(args: argparse.Namespace) -> int:
    from experiments.report.report import run

    return run(args)


def _policies(args: argparse.Namespace) -> int:
    from experiments.inspect.show import show_policies

    return show_policies(args.name, as_json=args.json)


def _trace_info(args: argparse.Namespace) -> int:
    from experiments.inspect.show import show_trace

    return show_trace(args.trace, as_json=args.json)


def _trace_check(args: argparse.Namespace) -> int:
    from experiments.inspect.show import check_trace

    return check_trace(args.trace)


def _trace_split(args: argparse.Namespace) -> int:
    from experiments.inspect.show import split_trace

    return split_trace(args)


def _trace_import(args: argparse.Namespace) -> int:
    from experiments.inspect.trace_import import run

    return run(args)
