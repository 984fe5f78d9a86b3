"""Command-line options by what they are about; argparse only: --help stays light."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from real_backend.interruption import interrupted
from real_backend.number_options import (
    MOST_SEED,
    MOST_THREADS,
    count,
    integers,
    number,
    positive,
    repeats,
    temperature,
    top_p,
    whole,
)
from traces.errors import InputError, brief

SHAPE_PREFIX = "shape:"
SESSION_SHAPES = (
    "llama-3.1-8b+llama-3.2-1b",
    "vicuna-7b+68m",
    "qwen2.5-7b+0.5b",
    "vicuna-13b+160m",
    "llama-3.1-70b+llama-3.2-1b",
)


class Defaults(argparse.HelpFormatter):
    """Help in which every option that takes a value and may be left out says what it is then."""

    def _get_help_string(self, action: argparse.Action) -> str:
        told = action.help or ""
        takes = bool(action.option_strings) and action.nargs != 0
        if not takes or action.required or "default" in told:
            return told
        value = action.default
        shown = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        if value is None or value == "":
            shown = "none"
        return f"{told} (default: {shown})".replace("%", "%%").strip()


class Parser(argparse.ArgumentParser):
    """argparse, with every default in the help and errors in one line that begins with the
    program's name.
    """

    def __init__(self, **how: Any) -> None:
        super().__init__(**how | {"formatter_class": Defaults})

    def error(self, message: str) -> NoReturn:
        """One line on stderr, exit 2."""
        name = self.prog.split()[0] if self.prog.startswith("gammalab") else self.prog
        self.exit(2, f"{name.rpartition('.')[2]}: {message}; see `{self.prog} --help`\n")


def add_seed(group: Any, what: str, option: str = "--seed", default: int | None = 0) -> None:
    """A seed, of `what`."""
    about = f"of {what}, a whole number" + " (default: the suite's)" * (default is None)
    group.add_argument(option, type=whole(0, MOST_SEED), default=default, help=about)


def add_pair_arguments(parser: argparse.ArgumentParser) -> None:
    """Which models, and where they run."""
    group = parser.add_argument_group("the pair")
    group.add_argument(
        "--pair",
        help="'embedded' (default), a folder with target/ and draft/, or shape:TARGET+DRAFT, "
        "random weights of real sizes, by name (shape:llama-3.1-8b+llama-3.2-1b) or by config.json",
    )
    group.add_argument("--target", help="target model: folder or Hugging Face name")
    group.add_argument("--draft", help="draft model: folder or Hugging Face name")
    group.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 ..., auto: a GPU if there is one"
    )
    group.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="auto: float32 on a CPU, elsewhere the checkpoint's own (shapes: bfloat16)",
    )
    group.add_argument(
        "--threads",
        type=whole(0, MOST_THREADS),
        default=0,
        help="CPU threads, 0: 1 for small models, else by trial",
    )
    group.add_argument("--no-graphs", action="store_true", help="no CUDA graphs: eager steps")


def refuse_shape(pair: str | None, command: str) -> None:
    """Raise InputError if `pair` is one of random weights, whose acceptance means nothing."""
    if pair is not None and pair.startswith(SHAPE_PREFIX):
        raise InputError(
            f"--pair {pair}: random weights have no acceptance worth recording, so {command} takes "
            "no shape; `measure` times it, `validate --acceptance trace` confirms it on the trace "
            "of a real pair"
        )


def add_capture_arguments(parser: argparse.ArgumentParser) -> None:
    """What to record."""
    group = parser.add_argument_group("the recording")
    group.add_argument(
        "--prompts",
        type=Path,
        help="JSON lines with question_id, category, turns (embedded: its own)",
    )
    group.add_argument("--out", type=Path, required=True, help="the trace, a Parquet file")
    group.add_argument("--max-new-tokens", type=count, default=128, help="longest reply, in tokens")
    group.add_argument(
        "--temperature", type=temperature, default=0.0, help="of sampling, 0 is greedy"
    )
    group.add_argument(
        "--top-p", type=top_p, default=1.0, help="nucleus of sampling, a share: 0 to 1"
    )
    group.add_argument(
        "--depth",
        type=whole(1, 256, "no round here drafts as many"),
        default=16,
        help="record the draft's signals this many tokens deep",
    )
    add_seed(group, "all draws, if sampled")
    group.add_argument(
        "--limit", type=whole(0), default=0, help="only the first N questions, 0: all of them"
    )
    group.add_argument(
        "--batch",
        type=count,
        default=1,
        help="prompts decoded at once; 1 is bit-exact to the engine",
    )
    group.add_argument("--resume", action="store_true", help="continue an interrupted capture")
    group.add_argument("--force", action="store_true", help="overwrite")


def add_measure_arguments(parser: argparse.ArgumentParser) -> None:
    """What to time."""
    group = parser.add_argument_group("the measurement")
    group.add_argument("--out", type=Path, required=True, help="the timing, a JSON file")
    group.add_argument("--batch", type=integers, default=[1, 2, 4, 8], help="batch sizes, requests")
    group.add_argument(
        "--context", type=integers, default=[128, 512], help="context lengths, in tokens"
    )
    group.add_argument(
        "--repeats", type=repeats, default=100, help="timed rounds of every kind, how many"
    )
    group.add_argument(
        "--temperature", type=temperature, default=0.0, help="of the rounds timed, 0 is greedy"
    )
    group.add_argument(
        "--top-p", type=top_p, default=1.0, help="nucleus of the rounds timed, a share: 0 to 1"
    )
    add_seconds_argument(group, "no further sweep over all cells begins")
    group.add_argument("--force", action="store_true", help="overwrite")


def add_seconds_argument(group: Any, what: str) -> None:
    """When to be content with less."""
    group.add_argument(
        "--seconds",
        type=number(0.0, above=False),
        default=0.0,
        help=f"after so many seconds {what}, 0: as many as asked",
    )


def add_acceptance_argument(group: Any) -> None:
    """Whose acceptance decides."""
    group.add_argument(
        "--acceptance",
        choices=["own", "trace"],
        default="own",
        help="trace: the forwards are real, but what they accept is what the trace recorded, for "
        "pairs that cannot have made it (shape:...)",
    )


def add_decode_arguments(parser: argparse.ArgumentParser) -> None:
    """What the real engine decodes, and under which policies."""
    group = parser.add_argument_group("the run")
    group.add_argument(
        "--trace", type=Path, required=True, help="the requests, limits and sampling"
    )
    group.add_argument("--prompts", type=Path, help="the trace's prompt file (embedded: its own)")
    group.add_argument("--timing", type=Path, required=True, help="step costs shown to policies")
    group.add_argument(
        "--policies", required=True, help="for example never,fixed:gamma=4,gammatune"
    )
    group.add_argument("--out", type=Path, required=True, help="folder for the round logs")
    add_acceptance_argument(group)
    group.add_argument("--batch", type=count, default=1, help="requests decoded at once")
    group.add_argument(
        "--repeats", type=repeats, default=1, help="times that the sitting goes round"
    )
    group.add_argument(
        "--limit",
        type=whole(0),
        default=0,
        help="about N held-out requests, all tasks alike, 0: all",
    )
    add_seconds_argument(group, "no further request begins")
    add_seed(group, "the order and all draws")
    group.add_argument("--force", action="store_true", help="overwrite")


def add_session_arguments(parser: argparse.ArgumentParser) -> None:
    """What a GPU session does in which time."""
    parser.add_argument("--out", type=Path, required=True, help="folder of all results")
    parser.add_argument("--minutes", type=positive, default=20.0, help="stop after so many minutes")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 ..., auto: a GPU if there is one"
    )
    parser.add_argument(
        "--shapes",
        default=",".join(SESSION_SHAPES),
        metavar="TARGET+DRAFT,...",
        help="pairs of real sizes to time, random weights; '' for none",
    )
    parser.add_argument("--small", action="store_true", help="a little of everything, for a CPU")


def add_lossless_arguments(parser: argparse.ArgumentParser) -> None:
    """What to decode, and in which ways."""
    group = parser.add_argument_group("the check")
    group.add_argument(
        "--prompts",
        type=Path,
        help="JSON lines with question_id, category, turns (embedded: its own); first turns only",
    )
    group.add_argument(
        "--limit", type=whole(0), default=0, help="only the first N questions, 0: all"
    )
    group.add_argument("--max-new-tokens", type=count, default=128, help="longest reply, in tokens")
    group.add_argument(
        "--policies", default="never,fixed:gamma=3,gammatune", help="under which to decode"
    )
    group.add_argument("--batch", type=integers, default=[1, 8], help="batch sizes, requests")
    group.add_argument("--out", type=Path, help="all that was found, a JSON file")
    group.add_argument("--force", action="store_true", help="overwrite")


def print_anything() -> None:
    """No file's name may end a command: what stdout's encoding lacks is shown as \\uXXXX."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def run_module(
    name: str,
    about: str | None,
    adders: list[Callable[[argparse.ArgumentParser], None]],
    run: Callable[[argparse.Namespace], Any],
) -> int:
    """`python -m real_backend.NAME`: parse, run, turn bad input into one line and exit code 2.
    name: with its room, recording.capture.

    An integer that `run` returns is the exit code. Device faults without a remedy of their own get
    one here.
    """
    parser = Parser(prog=f"python -m real_backend.{name}", description=about)
    for add in adders:
        add(parser)
    name = name.rpartition(".")[2]
    args = parser.parse_args()
    print_anything()
    from real_backend.device_errors import DEVICE_REMEDY, device_faults

    try:
        with device_faults(f"in {name}", DEVICE_REMEDY):
            code = run(args)
    except InputError as error:
        print(f"{name}: {brief(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{name}: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: {interrupted(name, args)}", file=sys.stderr)
        return 130
    return code if isinstance(code, int) else 0
