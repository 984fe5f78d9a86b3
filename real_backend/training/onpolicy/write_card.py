"""Write the model card of a trained drafter: ``python -m real_backend.training.onpolicy.write_card
--drafter FOLDER --trace TRACE``.

What it was trained on is read from training.json beside the weights; how often it agrees with the
target, from traces that were captured with it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from real_backend.command_line import Result, option, options, run_module
from traces.errors import InputError
from traces.schema import Trace
from traces.store import read_trace, write_atomically

DEPTHS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class WriteCardOptions:
    """A card and its sources."""

    drafter: Path = option("folder of the drafter; its README.md is written", Path)
    trace: tuple[Path, ...] = options("a trace captured with it, several times for several", Path)
    about: str = option("one sentence: what it drafts, for whom")


def by_depth(accept_len: npt.NDArray[Any], depth: int) -> list[float | None]:
    """Of the drafts that agree so far, the share that agrees with the target's next token, too;
    None: no draft does so far.
    """
    reached = [int((accept_len >= k).sum()) for k in range(depth + 1)]
    return [b / a if a else None for a, b in pairwise(reached)]


def table(trace: Trace) -> str:
    """Agreement by task and depth, in Markdown."""
    depth = min(DEPTHS, trace.meta.depth)
    spans = np.diff(trace.offsets)
    task = np.repeat(np.asarray(trace.category), spans)
    head = " | ".join(f"token {k + 1}" for k in range(depth))
    lines = [
        f"| task | replies | tokens | {head} | accepted of {trace.meta.depth} |",
        "|---|" + "---|" * (depth + 3),
    ]
    for name in [*dict.fromkeys(trace.category), "all"]:
        kept = np.ones(len(task), bool) if name == "all" else task == name
        replies = trace.requests if name == "all" else trace.category.count(name)
        lengths = trace.accept_len[kept]
        found = by_depth(lengths, depth)
        shares = " | ".join("-" if s is None else f"{100 * s:.1f} %" for s in found)
        mean = float(lengths.mean())
        lines.append(f"| {name} | {replies} | {kept.sum()} | {shares} | {mean:.2f} |")
    return "\n".join(lines)


def card(options: WriteCardOptions) -> str:
    """The text. Raises InputError if training.json cannot be read."""
    path = options.drafter / "training.json"
    try:
        made = json.loads(path.read_text("utf-8"))
        losses = made["losses"]
        steps, last = losses[-1]
        data = (
            f"{made['tokens']:,} tokens of the target's own answers, read {made['epochs']:g} times "
            f"in {steps:,} steps ({made['train_s'] / 60:.0f} minutes on one CPU core); loss "
            f"{losses[0][1]:.2f} -> {last:.2f} nats"
        )
        held_out = made.get("held_out_agreement")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path} cannot be read ({error})") from None
    parts = [f"# {options.drafter.name}", options.about, f"Trained on {data}."]
    if held_out is not None:
        shares = held_out if isinstance(held_out, list) else [held_out]
        said = ", ".join(f"{100 * share:.1f} %" for share in shares)
        parts.append(f"Held-out dialogues of the target with itself, agreement by step: {said}.")
    for file in options.trace:
        trace = read_trace(file)
        law = (
            "greedy"
            if trace.meta.temperature == 0
            else f"at temperature {trace.meta.temperature:g}"
        )
        parts += [
            f"## Agreement, {law}",
            f"`{file.name}`: of the drafts from every position that agree so far, the share that "
            "agrees with (sampled: is accepted by) the target once more.",
            table(trace),
        ]
    return "\n\n".join(parts) + "\n"


def run(options: WriteCardOptions) -> Result:
    """Write README.md."""
    text = card(options)
    path = options.drafter / "README.md"
    write_atomically(path, lambda to: to.write_text(text, "utf-8"), overwrite=True)
    return Result()


def main(argv: list[str] | None = None) -> int:
    """Run from the command line; the exit code."""
    name = "real_backend.training.onpolicy.write_card"
    return run_module(name, __doc__, WriteCardOptions, run, argv)


if __name__ == "__main__":
    sys.exit(main())
