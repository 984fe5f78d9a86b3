"""The options of `gammalab trace`, a class for every action, without heavy imports."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from real_backend.command_line import argument, arguments, flag, option
from real_backend.number_options import count, number, temperature
from real_backend.options import maybe, out_of, seed_of
from traces.shipped import shipped_or_file


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceInfoOptions:
    """The contents of a trace."""

    trace: Path = argument("a trace, Parquet", shipped_or_file)
    json: bool = flag("as JSON")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceCheckOptions:
    """Is a trace whole?"""

    trace: Path = argument("a trace, Parquet", shipped_or_file)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceSplitOptions:
    """A trace in two."""

    trace: Path = argument("a trace, Parquet", shipped_or_file)
    out_train: Path = out_of("to tune on, Parquet")
    out_test: Path = out_of("to judge on, Parquet")
    fraction: float = option("share of the training part", number(0.0, 1.0), 0.5)
    seed: int = seed_of("the split")
    force: bool = flag("overwrite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceShapeOptions:
    """A recording under a draft tree."""

    trace: Path = argument("of a draft model or of heads, Parquet", shipped_or_file)
    shape: str = option("children by level, as 3x2x1, or a tree that grows, as g8x6")
    grown: Path | None = maybe("trees of `python -m real_backend.trees.grow`, npz")
    out: Path = out_of("the recording under the tree, Parquet")
    force: bool = flag("overwrite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceImportOptions:
    """Another program's recording."""

    input: tuple[Path, ...] = arguments(
        "spec-bench: further runs of the same questions as well", Path
    )
    format: str = option("spec-bench, acc-len, jsonl, vllm, sglang or llama.cpp")
    out: Path = out_of("the trace, Parquet")
    schedule: str = option(
        "spec-bench: how gamma was set, heuristic:5 or fixed:5; one per file with commas",
        default="",
    )
    key: str = option("acc-len: the object to read, a dotted path", default="")
    vanilla: Path | None = maybe("spec-bench: the run without a draft")
    timing_out: Path | None = maybe("spec-bench: fit a timing to wall times")
    drafter: str = option(
        "what proposed the tokens: eagle3 also of heads like it, block of DFlash, DSpark or Medusa",
        default="model",
        choices=["model", "eagle3", "block", "lookup", "suffix"],
    )
    depth: int = option("deepest draft of a replay, in tokens", count, 0)
    temperature: float = option("of the recorded run, 0 is greedy", temperature, 0.0)
    max_new_tokens: int = option("its reply limit, in tokens", count, 0)
    strict: bool = flag("mend and leave out nothing")
    pad: bool = flag("acc-len: fill short lists up with unknown positions; else the reply is cut")
    force: bool = flag("overwrite")
