"""The options of `gammalab studies`, a class for every study, without heavy imports."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from experiments.options import LANES, PROCESSES, as_csv, as_json, forced
from real_backend.command_line import argument, flag, option, options, several
from real_backend.number_options import count, integers, number, repeats, whole
from real_backend.options import TRACE_PROMPTS, PairOptions, maybe, out_of, pair_part, seed_of
from traces.shipped import GREEDY, SAMPLED, TIMING, shipped_or_file

LENGTHS = "fixed:gamma=1,fixed:gamma=3,fixed:gamma=5,fixed:gamma=8,gammatune"
SERVED = "never,fixed:gamma=3,gammatune,hf-confidence,goodput"
CENSORED = "gammatune,hf-heuristic:gamma0=5,goodput,ucb," + ",".join(
    f"fixed:gamma={gamma}" for gamma in range(9)
)
LEARNERS = "ucb,ucb1,thompson-beta,exp3,lin-thompson,payback,gammatune"
DEPTHS = "gammatune,payback,hf-confidence"
RECORDERS = ("hf-heuristic", "fixed:gamma=3", "gammatune")
REFERENCE = "fixed:gamma=5"  # the best fixed length of the greedy recording at `coverage`'s costs
MILLISECONDS = number(0.0, 1e6, "no forward takes a quarter of an hour", above=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InLawOptions:
    """Which sampled traces are decoded once more."""

    pair: PairOptions = pair_part()
    trace: tuple[Path, ...] = options("sampled; may be given again", shipped_or_file)
    timing: Path = option("step costs shown to policies", shipped_or_file)
    prompts: Path | None = maybe(TRACE_PROMPTS)
    policies: str = option("under which to decode", default=LENGTHS)
    seed: int = seed_of("the real runs' own draws", 1000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeCheckOptions:
    """A check of the serving simulator: batches, policies, replies."""

    pair: PairOptions = pair_part()
    prompts: Path | None = maybe(TRACE_PROMPTS)
    trace: Path = option("what was recorded of this pair", shipped_or_file)
    timing: Path = option("measured at these batch sizes", shipped_or_file)
    batch: tuple[int, ...] = option("requests at once", integers, (1, 2, 4, 8))
    policies: str = option("beside the placebo", default=SERVED)
    limit: int = option("replies, all tasks alike", whole(0), 64)
    repeats: int = option("rounds of the sitting", repeats, 3)
    out: Path | None = maybe("the tables, a file; a stopped check goes on")
    force: bool = forced("begin anew, overwrite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferOptions:
    """A study of transfer: networks and their worlds."""

    trace: Path = option("a recording (default: the shipped greedy one)", shipped_or_file, GREEDY)
    timing: Path = option("its step costs (default: the shipped timing)", shipped_or_file, TIMING)
    unit: str = option("decide per token or round", default="token")
    iterations: int = option("iterations of ppo", count, 200)
    lanes: int = option("environments of ppo", LANES, 256)
    out: Path = out_of("folder of all results; a stopped study goes on there")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegretOptions:
    """Which learners, on which recording."""

    trace: Path = option("a recording (default: the shipped greedy one)", shipped_or_file, GREEDY)
    timing: Path = option("its step costs (default: the shipped timing)", shipped_or_file, TIMING)
    policies: str = option("learners", default=LEARNERS)
    networks: tuple[Path, ...] = several("policy files", Path, ())
    passes: int = option("times over the held-out half", count, 4)
    seed: int = seed_of("all draws")
    out: Path = out_of("folder of the figures")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifiersOptions:
    """Which recording the weights are fitted to."""

    trace: Path = option(
        "a trace with signals (default: the shipped greedy one)", shipped_or_file, GREEDY
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaddersOptions:
    """Published speeds by draft length, held out."""

    data: Path = argument("your copy of the table, CSV", Path)
    json: bool = as_json()
    csv: bool = as_csv()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionsOptions:
    """Which recordings are counted by position."""

    trace: tuple[Path, ...] = options("a recording; may be given again", shipped_or_file)
    json: bool = as_json()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapesOptions:
    """Which recording, at which costs, and which trees besides those that are found."""

    pair: PairOptions = pair_part()
    trace: Path = option(
        "of a draft model or of heads (default: the shipped greedy one)", shipped_or_file, GREEDY
    )
    cost: str = option(
        "a timing, or roofline:DEVICE:TARGET+DRAFT (default: the shipped timing)",
        default=str(TIMING),
    )
    shape: tuple[str, ...] = several("also judged: children by level, as 3x2x1", str, ())
    grown: tuple[Path, ...] = several(
        "trees grown along its replies by `python -m real_backend.trees.grow`, files", Path, ()
    )
    batch: tuple[int, ...] = option(
        "requests at once, all drafting alike, as 1,8,64", integers, (1,)
    )
    policies: str = option('rules that decide the depth, "" for none', default=DEPTHS)
    sit: int = option(
        "decode about N held-out requests of the pair, all tasks alike, and say what holds; 0: "
        "nothing is decoded",
        whole(0),
        0,
    )
    prompts: Path | None = maybe(TRACE_PROMPTS)
    out: Path | None = maybe("folder of a figure: rounds of the first --shape, or of 3x2x1")
    seed: int = seed_of("the split into halves and all draws")
    json: bool = as_json()
    csv: bool = as_csv()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TreesOptions:
    """Which recordings, at which costs, for how many rows."""

    trace: tuple[Path, ...] = several(
        "replies drafted by a model or by heads; none given: the shipped ones", shipped_or_file, ()
    )
    cost: tuple[str, ...] = several(
        "seconds of rounds: timings, roofline:DEVICE:TARGET+DRAFT; none given: the shipped timing",
        str,
        (),
    )
    batch: tuple[int, ...] = option(
        "requests at once, all drafting alike", integers, (1, 2, 4, 8, 16, 32, 64)
    )
    out: Path = out_of("folder of the figure")
    seed: int = seed_of("the split into halves and all draws")
    json: bool = as_json()
    csv: bool = as_csv()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DraftsOptions:
    """Which sampled recording, at which costs, and how many drafts."""

    pair: PairOptions = pair_part()
    trace: Path = option(
        "sampled, of a draft model (default: the shipped sampled one)", shipped_or_file, SAMPLED
    )
    cost: str = option(
        "a timing, or roofline:DEVICE:TARGET+DRAFT (default: the shipped timing)",
        default=str(TIMING),
    )
    drafts: tuple[int, ...] = option(
        "numbers of independent chains, as 1,2,8", integers, (1, 2, 4, 8)
    )
    prompts: Path | None = maybe(TRACE_PROMPTS)
    seed: int = seed_of("the split into halves and all draws")
    json: bool = as_json()
    csv: bool = as_csv()


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldsOptions:
    """Which leaderboards, and which rule of theirs."""

    folder: tuple[Path, ...] = options(
        "of `gammalab sweep leaderboard --information`; may be given again", Path
    )
    rule: str = option("controller that is looked at", default="worth")
    out: Path | None = maybe("folder of the figure")
    entrants: bool = flag("every controller in every world, too")
    json: bool = as_json()
    csv: bool = as_csv()


@dataclasses.dataclass(frozen=True, kw_only=True)
class CensoredRunOptions:
    """Costs typed by hand, and how surely."""

    trace: Path = option("a censored trace", shipped_or_file)
    round_ms: float = option("a round without a draft, in milliseconds", MILLISECONDS)
    draft_ms: float = option("every drafted token, in milliseconds", MILLISECONDS)
    plain_ms: float | None = option(
        "a token of plain decoding, in milliseconds (default: gamma 0)", MILLISECONDS, None
    )
    policies: str = option("beside the reference", default=CENSORED)
    reference: str = option("what vs fixed is over", default="fixed:gamma=3")
    draws: int = option("imputations", count, 30)
    seed: int = seed_of("all draws")
    seeds: int = option("runs over so many seeds, whose verdicts are counted", whole(0, 1000), 0)
    workers: int = option("local processes", PROCESSES, 1)
    json: bool = as_json()


@dataclasses.dataclass(frozen=True, kw_only=True)
class CensoredCheckOptions:
    """A check of intervals: recorders, and how often."""

    trace: Path = option(
        "an exact trace (default: the shipped greedy one)", shipped_or_file, GREEDY
    )
    recorder: tuple[str, ...] | None = options(
        f"policy that records; may be given again (default: {', '.join(RECORDERS)})", str, None
    )
    reference: str = option("what the ratio is to", default=REFERENCE)
    others: bool = flag("intervals for other questions")
    resamples: int = option("draws of requests", count, 200)
    requests: int = option("requests of a draw", count, 40)
    workers: int = option("local processes", PROCESSES, 1)
