"""The options of every verb of `gammalab`, a class each, without heavy imports."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from real_backend.command_line import argument, flag, option, options, several, switch
from real_backend.number_options import (
    count,
    number,
    positive,
    repeats,
    whole,
    workers,
)
from real_backend.options import (
    FEW_REPLIES,
    TRACE_PROMPTS,
    PairOptions,
    few,
    maybe,
    out_of,
    pair_part,
    seed_of,
    whose_acceptance,
)
from traces.shipped import shipped_or_file

PROCESSES = workers()
HALVES = "the split into halves and all draws"
TIMING = "JSON of `gammalab measure`"
LARGEST_ERROR = "largest prediction error to accept, in percent"
REQUESTS = whole(1, 1_000_000, "a run keeps every request; results settle long before")
SEEDS = whole(1, 1000, "every seed is a run of every policy; intervals settle long before")
TRIALS = whole(1, 100_000, "every setting is replayed twice and kept as a row")
LANES = whole(1, 65_536, "beyond, memory grows and nothing gets faster")
RATE = number(0.0, 1.0, "weights would only diverge")


def as_json(what: str = "results as JSON on stdout") -> Any:
    """`--json`."""
    return flag(what)


def as_csv() -> Any:
    """`--csv`."""
    return flag("the rows as comma-separated values on stdout")


def forced(what: str = "overwrite") -> Any:
    """`--force`."""
    return flag(what)


def timing_file(about: str = TIMING) -> Any:
    """`--timing`, a file."""
    return option(about, shipped_or_file)


def recording(about: str = "a recording of the pair") -> Any:
    """`--trace`, one file."""
    return option(about, shipped_or_file)


def recordings() -> Any:
    """`--trace`, as often as there are files."""
    about = "Parquet, or a shipped one by name (embedded-greedy); may be given again"
    return options(about, shipped_or_file)


def largest_error() -> Any:
    """`--max-error`."""
    return option(LARGEST_ERROR, positive, 8.0, metavar="PERCENT")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """The whole loop."""

    pair: PairOptions = pair_part()
    prompts: Path | None = maybe("JSON lines (embedded pair: its own)")
    trace: Path | None = option("use this trace instead of capturing one", shipped_or_file, None)
    out: Path = out_of("folder of all results")
    quick: bool = flag("fewer prompts and repeats, for a look")
    validate_limit: int = few(f"validate on {FEW_REPLIES}")
    max_error: float = largest_error()
    seed: int = seed_of(HALVES)
    force: bool = forced("start over, overwriting results")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Every controller on recorded traces."""

    trace: tuple[Path, ...] = recordings()
    timing: tuple[Path, ...] = options(
        "step costs of all traces; or given for each of them, in their order", shipped_or_file
    )
    policies: str | None = option(
        "e.g. gammatune,fixed:gamma=4 (default: the registry)", default=None
    )
    out: Path | None = maybe("folder for compare.json, compare.txt and simulated rounds")
    seed: int = seed_of(HALVES)
    json: bool = as_json()
    csv: bool = as_csv()
    force: bool = forced()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidateOptions:
    """A sitting beside its replay. repeats, limit: see real_backend.options.SittingOptions."""

    pair: PairOptions = pair_part()
    trace: Path = recording("what was recorded of this pair")
    timing: Path = timing_file("measured on this machine")
    prompts: Path | None = maybe(TRACE_PROMPTS)
    policies: str | None = option(
        "default: never and nine more; the tuned fixed gamma and its placebo always sit",
        default=None,
    )
    out: Path | None = maybe("folder for validate.json and measured rounds")
    acceptance: str = whose_acceptance()
    measured: Path | None = option(
        "judge the rounds in DIR (of an earlier --out, or of `python -m "
        "real_backend.decoding.sitting` on another machine) instead of running",
        Path,
        None,
        metavar="DIR",
    )
    repeats: int = option("times that the sitting goes round", repeats, 1)
    limit: int = few(FEW_REPLIES)
    max_error: float = largest_error()
    seed: int = seed_of("the split into halves, the order and all draws")
    json: bool = as_json()
    csv: bool = as_csv()
    force: bool = forced()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Settings tuned on one half, judged on the other."""

    suite: str = argument("leaderboard, cost-ratio, seeds, ablation, paper or quick (a look)")
    out: Path = out_of("folder; a stopped sweep goes on there")
    trace: tuple[Path, ...] | None = options(
        "instead of the suite's; may be given again", shipped_or_file, None
    )
    held_out: tuple[Path, ...] | None = options(
        "recording to judge on, one for each --trace, which is then tuned on whole",
        shipped_or_file,
        None,
    )
    timing: Path | None = option(f"{TIMING}, for --trace", shipped_or_file, None)
    cost: str | None = option("measured, or ratios: c=4,c=8 (default: the suite's)", default=None)
    policies: str | None = option("instead of the suite's; bare names are searched", default=None)
    search: str | None = option("grid, random or optuna (default: the suite's)", default=None)
    trials: int | None = option("settings per policy (default: the suite's)", TRIALS, None)
    seed: int | None = seed_of("split and search", None)
    information: bool = switch(
        "ceilings of what counts and signals allow, a minute a world (default: no)", default=False
    )
    workers: int = option("local processes", PROCESSES, 1, exclusive="where")
    ray: str | None = option(
        "a Ray cluster, or 'local'", default=None, metavar="ADDRESS", exclusive="where"
    )
    json: bool = as_json("the best settings as JSON on stdout")
    force: bool = forced("another sweep into the same folder")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """A network for a pair and a machine."""

    trace: tuple[Path, ...] = recordings()
    timing: Path = timing_file()
    out: Path = out_of("policy file, NAME.json")
    algo: str = option("ppo (ours), clone, sb3-ppo or sb3-dqn", default="ppo")
    unit: str = option("decide per token or round", default="token")
    cost_ratios: str | None = option(
        "e.g. 0,4,8,16; 0: the measured costs (default: those alone)", default=None
    )
    iterations: int = option("iterations of ppo", count, 800)
    lanes: int = option("environments of ppo", LANES, 256)
    hidden: int = option("numbers in a layer", count, 32)
    rate: float = option("learning rate, a number", RATE, 1e-3)
    warm_start: bool = switch(
        "ppo: clone the clairvoyant schedule first (default: yes)", default=True
    )
    seed: int = seed_of("everything drawn")
    split_seed: int = seed_of("the halves, as in compare")
    json: bool = as_json("the curve as JSON on stdout")
    force: bool = forced("train anew, overwriting")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Many requests at once."""

    trace: Path = recording()
    timing: str = option(
        "JSON of `gammalab measure --batch 1,2,4,8`, or roofline:h100:TARGET+DRAFT"
    )
    workload: str = option(
        "poisson:rate=4, gamma:rate=4,cv=2, bursts:on=8,off=1,on_s=10,off_s=30, "
        "closed:users=8,think_s=0.5, or a JSON file"
    )
    requests: int = option("how many requests", REQUESTS, 2000)
    policies: str | None = option(
        "the first is what ratios refer to (default: never ...)", default=None
    )
    server: str = option("slots=8,blocks=0,chunk_tokens=0,allotment=each,...", default="")
    slo: str = option("ttft_s=0.5,tpot_s=0.05", default="")
    seeds: int = option("runs per policy", SEEDS, 3)
    seed: int = seed_of("the first run")
    warmup: float = option("share of requests left out", number(0.0, 0.99, above=False), 0.1)
    out: Path | None = maybe("folder for serve.json and request logs")
    timeline: bool = flag("rounds and a Perfetto timeline of 300 requests")
    json: bool = as_json()
    csv: bool = as_csv()
    force: bool = forced()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FleetOptions:
    """A question that an operator asks of a server."""

    question: str = argument("table, break-even, bursts, capacity, placement or routing")
    trace: Path = recording()
    timing: str = option("as for `gammalab serve`")
    policies: str | None = option("beside plain decoding and fixed lengths", default=None)
    server: str = option("as for `gammalab serve`", default="")
    slo: str = option("ttft_s=0.5,tpot_s=0.05 (default: from the costs)", default="")
    requests: int = option("requests per run", REQUESTS, 1000)
    seeds: int = option("runs per policy", SEEDS, 4)
    seed: int = seed_of("the first run")
    out: Path | None = maybe("folder for fleet.json, table and figures")
    json: bool = as_json()
    csv: bool = as_csv()
    force: bool = forced()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """A policy as an engine's settings."""

    policy: str = argument("e.g. gammatune, fixed:gamma=4, or a draft tree: g8x3x16")
    to: str = option("vllm, sglang, trtllm, llama.cpp or hf")
    trace: Path = recording()
    timing: Path = timing_file()
    grown: Path | None = maybe("of a tree: those of `python -m real_backend.trees.grow`, npz")
    out: Path | None = maybe("write there instead of to stdout")
    seed: int = seed_of("the split into halves")
    json: bool = as_json("as JSON")
    force: bool = forced()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """The page of finished results."""

    dir: Path = argument(
        "folder with compare.json (and validate.json) or leaderboard.json, or one of the two", Path
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoliciesOptions:
    """The registry."""

    name: str | None = argument("one controller", default=None)
    json: bool = as_json("as JSON")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedOptions:
    """Our numbers beside a published table."""

    name: str = argument("spec-bench, specforge, microbenchmarks or iid (a control)")
    data: tuple[Path, ...] = several("your copy of the published data", Path)
    vanilla: Path | None = maybe("spec-bench: the run without a draft")
    timing: Path | None = option(f"iid: {TIMING}", shipped_or_file, None)
    out: Path | None = maybe("write the results there as JSON, too")
    json: bool = as_json()
    force: bool = forced()
