"""The options of `gammalab observe` and `gammalab recommend`, without heavy imports."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from experiments.options import as_csv, as_json, forced
from real_backend.command_line import argument, flag, option
from real_backend.number_options import count, number, temperature, whole
from real_backend.options import out_of, seed_of

RATE = number(0.0, 10_000.0, "beyond, the client is measured")
SILENCE = number(0.0, 86_400.0, "a day without a byte is the end")


def draft_lengths(text: str) -> tuple[int, ...]:
    """Draft lengths such as 0,2,6, for argparse."""
    read = whole(0, 128, "no engine drafts more")
    found = tuple(read(piece) for piece in text.split(","))
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text} names a length twice")
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObserveOptions:
    """A running server, asked."""

    url: str = option("of the server, e.g. http://127.0.0.1:8080")
    engine: str = option("vllm, sglang or llama.cpp")
    prompts: Path = option("JSON lines, as Spec-Bench's question file", Path)
    out: Path = out_of("folder of the answers; one that was stopped goes on there")
    lengths: tuple[int, ...] = option(
        "draft lengths in tokens, 0: none; without --server-command the one that the server "
        "drafts now",
        draft_lengths,
        (0,),
    )
    server_command: str | None = option(
        "starts llama.cpp's server; the length is put in for {length} or added", default=None
    )
    concurrency: int = option(
        "requests at once", whole(1, 1024, "beyond, the client is measured"), 1, exclusive="load"
    )
    rate: float | None = option(
        "or requests per second, arriving at random (default: none)", RATE, None,
        exclusive="load",
    )  # fmt: skip
    max_tokens: int = option("tokens of a reply", whole(2), 128)
    temperature: float = option("of the sampling, a number; 0: greedy", temperature, 0.0)
    limit: int = option("questions, 0: all", whole(0), 0)
    blocks: int = option("times that every length is started, interleaved", count, 1)
    warm_up: int = option("requests before those that count", whole(0, 100), 1)
    timeout: float = option("seconds without a byte until a request is sent again", SILENCE, 120.0)
    model: str | None = option("of several behind one URL", default=None)
    verify: bool = flag("recommended and present length interleaved, and a verdict")
    present: int | None = option(
        "the length of today in tokens, for --verify (default: the shortest played)",
        whole(0, 128), None,
    )  # fmt: skip
    seed: int = seed_of("order, arrivals and sampling")
    json: bool = as_json()
    csv: bool = as_csv()
    force: bool = forced("ask everything again")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecommendOptions:
    """The draft length for a server that was observed."""

    dir: Path = argument("folder of `gammalab observe`", Path)
    present: int | None = option(
        "the length of today in tokens (default: the shortest played)", whole(0, 128), None
    )
    known: tuple[int, ...] | None = option(
        "lengths in tokens to predict from; the others that were played are held against it "
        "(default: all)",
        draft_lengths,
        None,
    )
    longest: int | None = option(
        "of the table, in tokens (default: two beyond the longest played)", whole(1, 128), None
    )
    seed: int = seed_of("the resampling")
    json: bool = as_json()
    csv: bool = as_csv()
