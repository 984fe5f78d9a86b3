"""The options of every command of real_backend, a class each; argparse only: --help stays light."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from real_backend.command_line import flag, option, part
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
from traces.errors import InputError
from traces.shipped import GREEDY, shipped_or_file

SHAPE_PREFIX = "shape:"
SESSION_SHAPES = (
    "llama-3.1-8b+llama-3.2-1b",
    "vicuna-7b+68m",
    "qwen2.5-7b+0.5b",
    "vicuna-13b+160m",
    "llama-3.1-70b+llama-3.2-1b",
)


def seed_of(what: str, default: int | None = 0, **how: Any) -> Any:
    """A seed, of `what`."""
    about = f"of {what}, a whole number" + " (default: the suite's)" * (default is None)
    return option(about, whole(0, MOST_SEED), default, **how)


def out_of(about: str) -> Any:
    """Where results go, of a command that has nothing to say otherwise."""
    return option(about, Path)


def maybe(about: str) -> Any:
    """A path that may be left out."""
    return option(about, Path, None)


def seconds_until(what: str) -> Any:
    """When to be content with less."""
    about = f"after so many seconds {what}, 0: as many as asked"
    return option(about, number(0.0, above=False), 0.0)


def whose_acceptance() -> Any:
    """The source of acceptance: the models, or the trace."""
    return option(
        "trace: the forwards are real, but what they accept is what the trace recorded, for pairs "
        "that cannot have made it (shape:...)",
        default="own",
        choices=["own", "trace"],
    )


def device_of() -> Any:
    """Where models run."""
    return option("cpu, cuda, cuda:1 ..., auto: a GPU if there is one", default="auto")


def few(about: str) -> Any:
    """The first so many, 0: all."""
    return option(about, whole(0), 0)


FEW_QUESTIONS = "only the first N questions, 0: all of them"
FEW_REPLIES = "about N held-out requests, all tasks alike, 0: all"
OWN_PROMPTS = "JSON lines with question_id, category, turns (embedded: its own)"
TRACE_PROMPTS = "the trace's prompt file (embedded: its own)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairOptions:
    """Which models, and where they run."""

    name: str | None = option(
        "'embedded' (default; +block: its heads) or 'smollm2' (+draft or +eagle3: trained for it), "
        "either with +lookup or +suffix; a folder with target/ and draft/; or shape:TARGET+DRAFT, "
        "random weights of real sizes, by name (shape:llama-3.1-8b+llama-3.2-1b) or by config.json",
        default=None,
        name="pair",
    )
    target: str | None = option(
        "target model: folder, Hugging Face name or .gguf file", default=None
    )
    draft: str | None = option(
        "drafter: a model as above, a folder with an EAGLE-3 or Medusa head, or a look-up: "
        "lookup:least=1,greatest=3 or suffix:factor=1,min_share=0.1",
        default=None,
    )
    device: str = device_of()
    dtype: str = option(
        "auto: float32 on a CPU, elsewhere the checkpoint's own (shapes: bfloat16)",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
    )
    threads: int = option(
        "CPU threads, 0: 1 for small models, else by trial", whole(0, MOST_THREADS), 0
    )
    no_graphs: bool = flag("no CUDA graphs: eager steps")

    @property
    def is_embedded(self) -> bool:
        """The target that comes with prompts of its own, under any drafter."""
        return not self.target and (self.name or "embedded").partition("+")[0] == "embedded"


def pair_part() -> Any:
    """The pair among a command's options."""
    return part("the pair", PairOptions)


def refuse_shape(pair: PairOptions, command: str) -> None:
    """Raise InputError if the pair is one of random weights, whose acceptance means nothing."""
    if pair.name is not None and pair.name.startswith(SHAPE_PREFIX):
        raise InputError(
            f"--pair {pair.name}: random weights have no acceptance worth recording, so {command} "
            "takes no shape; `measure` times it, `validate --acceptance trace` confirms it on the "
            "trace of a real pair"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportDraftOptions:
    """A draft for llama.cpp."""

    draft: Path = option("folder of the draft, a Llama", Path)
    target: Path | None = option("the target's GGUF file (default: SmolLM2)", Path, None)
    out: Path = option("the GGUF file", Path)
    force: bool = flag("overwrite the file")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptureOptions:
    """A recording."""

    pair: PairOptions = pair_part()
    prompts: Path | None = maybe(OWN_PROMPTS)
    out: Path = out_of("the trace, a Parquet file")
    max_new_tokens: int = option("longest reply, in tokens", count, 128)
    temperature: float = option("of sampling, 0 is greedy", temperature, 0.0)
    top_p: float = option("nucleus of sampling, a share: 0 to 1", top_p, 1.0)
    depth: int = option(
        "record the draft's signals this many tokens deep",
        whole(1, 256, "no round here drafts as many"),
        16,
    )
    seed: int = seed_of("all draws, if sampled")
    limit: int = few(FEW_QUESTIONS)
    per_task: int = few("questions of every task at most, evenly spread, 0: all of them")
    batch: int = option("prompts decoded at once; 1 is bit-exact to the engine", count, 1)
    replies: Path | None = option(
        "a trace of the same target and questions: its replies are taken, not decoded, so that "
        "drafters are compared on the same tokens",
        shipped_or_file,
        None,
    )
    resume: bool = flag("continue an interrupted capture")
    force: bool = flag("overwrite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """A measurement."""

    pair: PairOptions = pair_part()
    out: Path = out_of("the timing, a JSON file")
    batch: tuple[int, ...] = option("batch sizes, requests", integers, (1, 2, 4, 8))
    context: tuple[int, ...] = option("context lengths, in tokens", integers, (128, 512))
    repeats: int = option("timed rounds of every kind, how many", repeats, 100)
    temperature: float = option("of the rounds timed, 0 is greedy", temperature, 0.0)
    top_p: float = option("nucleus of the rounds timed, a share: 0 to 1", top_p, 1.0)
    seconds: float = seconds_until("no further sweep over all cells begins")
    deepest: int = option("tokens of the longest draft that is timed", count, 32)
    trees: int = option("tokens of the largest draft tree timed, 0: none", whole(0, 256), 0)
    force: bool = flag("overwrite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrowOptions:
    """Trees grown along a recording's replies."""

    pair: PairOptions = pair_part()
    trace: Path = option(
        "greedy, of this pair (default: the shipped greedy one)", shipped_or_file, GREEDY
    )
    prompts: Path | None = maybe(TRACE_PROMPTS)
    beam: int = option("tokens of a level that the draft goes on from", count, 8)
    levels: int = option("depth of the trees, in tokens", count, 6)
    out: Path = out_of("the trees, an npz file")
    force: bool = flag("overwrite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SittingOptions:
    """A sitting: requests, policies, and how often."""

    pair: PairOptions = pair_part()
    trace: Path = option("the requests, limits and sampling", shipped_or_file)
    prompts: Path | None = maybe(TRACE_PROMPTS)
    timing: Path = option("step costs shown to policies", shipped_or_file)
    policies: str = option("for example never,fixed:gamma=4,gammatune")
    out: Path = out_of("folder for the round logs")
    acceptance: str = whose_acceptance()
    batch: int = option("requests decoded at once", count, 1)
    repeats: int = option("times that the sitting goes round", repeats, 1)
    limit: int = few(FEW_REPLIES)
    seconds: float = seconds_until("no further request begins")
    seed: int = seed_of("the order and all draws")
    force: bool = flag("overwrite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """A GPU session: its time, and how much it does."""

    out: Path = out_of("folder of all results")
    minutes: float = option("stop after so many minutes", positive, 20.0)
    device: str = device_of()
    shapes: str = option(
        "pairs of real sizes to time, random weights; '' for none",
        default=",".join(SESSION_SHAPES),
        metavar="TARGET+DRAFT,...",
    )
    small: bool = flag("a little of everything, for a CPU")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LosslessOptions:
    """A check that greedy output is the target's."""

    pair: PairOptions = pair_part()
    prompts: Path | None = maybe(f"{OWN_PROMPTS}; first turns only")
    limit: int = few("only the first N questions, 0: all")
    max_new_tokens: int = option("longest reply, in tokens", count, 128)
    policies: str = option("under which to decode", default="never,fixed:gamma=3,gammatune")
    batch: tuple[int, ...] = option("batch sizes, requests", integers, (1, 8))
    out: Path | None = maybe("all that was found, a JSON file")
    force: bool = flag("overwrite")
