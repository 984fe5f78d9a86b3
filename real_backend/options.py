"""Command-line options of capture and measure; argparse only, so that --help stays light."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from traces.errors import InputError

SHAPE_PREFIX = "shape:"
SEED = "of the halves, and of all that is drawn: a whole number"
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


def interrupted(command: str, args: argparse.Namespace) -> str:
    """What Ctrl-C leaves behind, and how the command goes on; in the words of one line."""
    forced, out = getattr(args, "force", False), getattr(args, "out", None)
    if command not in RESUMES or (command == "train" and args.algo != "ppo"):
        return "interrupted; nothing is kept, it begins anew"
    if out is None or getattr(args, "measured", None) is not None:
        return "interrupted; nothing is kept, with --out it would go on where it stopped"
    if command == "train" and forced and out.exists():
        return f"interrupted; with {out} moved away, the same command without --force goes on"
    how = " without --force" if forced and command not in KEPT_UNDER_FORCE else ""
    how = " with --resume" if command == "capture" and not args.resume else how
    return f"interrupted; the same command{how} goes on where it stopped"


KEPT_UNDER_FORCE = ("capture", "sweep")
RESUMES = (  # the others take a minute or two
    *("study", "capture", "measure", "validate", "sweep", "train"),
    *("sitting", "serve-check", "gpu_session"),
)


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
        "--threads", type=int, default=0, help="CPU threads, 0: 1 for small models, else by trial"
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
    group.add_argument("--max-new-tokens", type=int, default=128, help="longest reply, in tokens")
    group.add_argument("--temperature", type=float, default=0.0, help="of sampling, 0 is greedy")
    group.add_argument(
        "--top-p", type=float, default=1.0, help="nucleus of sampling, a share: 0 to 1"
    )
    group.add_argument(
        "--depth", type=int, default=16, help="record the draft's signals this many tokens deep"
    )
    group.add_argument("--seed", type=int, default=0, help="of what is drawn: a whole number")
    group.add_argument(
        "--limit", type=int, default=0, help="only the first N questions, 0: all of them"
    )
    group.add_argument(
        "--batch",
        type=int,
        default=1,
        help="prompts decoded at once; 1 is bit-exact to the engine",
    )
    group.add_argument("--resume", action="store_true", help="continue an interrupted capture")
    group.add_argument("--force", action="store_true", help="overwrite")


def integers(text: str) -> list[int]:
    """A comma-separated list of positive integers, for argparse."""
    values = [int(piece) for piece in text.split(",")]
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be positive integers such as 1,2,4")
    return values


def add_measure_arguments(parser: argparse.ArgumentParser) -> None:
    """What to time."""
    group = parser.add_argument_group("the measurement")
    group.add_argument("--out", type=Path, required=True, help="the timing, a JSON file")
    group.add_argument("--batch", type=integers, default=[1, 2, 4, 8], help="batch sizes, requests")
    group.add_argument(
        "--context", type=integers, default=[128, 512], help="context lengths, in tokens"
    )
    group.add_argument(
        "--repeats", type=int, default=100, help="timed rounds of every kind, how many"
    )
    group.add_argument(
        "--temperature", type=float, default=0.0, help="of the rounds timed, 0 is greedy"
    )
    group.add_argument(
        "--top-p", type=float, default=1.0, help="nucleus of the rounds timed, a share: 0 to 1"
    )
    add_seconds_argument(group, "no further sweep over all cells begins")
    group.add_argument("--force", action="store_true", help="overwrite")


def seconds_of(text: str) -> float:
    """A number of seconds, 0 or more, for argparse."""
    value = float(text)
    if not 0.0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be 0 or a number of seconds")
    return value


def add_seconds_argument(group: Any, what: str) -> None:
    """When to be content with less."""
    group.add_argument(
        "--seconds",
        type=seconds_of,
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
    group.add_argument("--batch", type=int, default=1, help="requests decoded at once")
    group.add_argument("--repeats", type=int, default=1, help="times that the sitting goes round")
    group.add_argument(
        "--limit", type=int, default=0, help="about N held-out requests, all tasks alike, 0: all"
    )
    add_seconds_argument(group, "no further request begins")
    group.add_argument("--seed", type=int, default=0, help=SEED)
    group.add_argument("--force", action="store_true", help="overwrite")


def add_session_arguments(parser: argparse.ArgumentParser) -> None:
    """What a GPU session does in which time."""
    parser.add_argument("--out", type=Path, required=True, help="folder of all results")
    parser.add_argument("--minutes", type=float, default=20.0, help="stop after so many minutes")
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
    group.add_argument("--limit", type=int, default=0, help="only the first N questions, 0: all")
    group.add_argument("--max-new-tokens", type=int, default=128, help="longest reply, in tokens")
    group.add_argument(
        "--policies", default="never,fixed:gamma=3,gammatune", help="under which to decode"
    )
    group.add_argument("--batch", type=integers, default=[1, 8], help="batch sizes, requests")
    group.add_argument("--out", type=Path, help="all that was found, a JSON file")
    group.add_argument("--force", action="store_true", help="overwrite")


def run_module(
    name: str,
    about: str | None,
    adders: list[Callable[[argparse.ArgumentParser], None]],
    run: Callable[[argparse.Namespace], Any],
) -> int:
    """`python -m real_backend.NAME`: parse, run, turn bad input into one line and exit code 2.

    An integer that `run` returns is the exit code. Device faults without a remedy of their own get
    one here.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m real_backend.{name}", description=about, formatter_class=Defaults
    )
    for add in adders:
        add(parser)
    args = parser.parse_args()
    from real_backend.faults import DEVICE_REMEDY, device_faults

    try:
        with device_faults(f"in {name}", DEVICE_REMEDY):
            code = run(args)
    except InputError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{name}: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: {interrupted(name, args)}", file=sys.stderr)
        return 130
    return code if isinstance(code, int) else 0
