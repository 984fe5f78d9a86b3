"""`gammalab studies drafts`: several independent drafts, accepted as SpecTr accepts them.

K chains are drawn from the draft's law and judged together: a token is accepted by the K-sequential
rule, and the chains that begin with it go on to the next level (arXiv 2310.15141). Both models read
the recorded replies once; the laws say how often a level accepts, and how often the best rule of
all would (the bound of optimal transport). Given that the reply's token came out at a place, the
rule's own laws say with which chance it was a drafted one and how many chains drafted it, so that
rounds are replayed on the recording, in law.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from experiments.common.cost_sources import read_costs
from experiments.common.frames import (
    Column,
    csv_of,
    described,
    figure,
    frame_of,
    interval,
    meanings,
    text_of,
)
from experiments.common.statistics import Estimate, bootstrap_weights, ratio_of_sums
from experiments.common.text_table import fill
from experiments.shapes.ways import BUCKET_TOKENS, check_drafter, widest_of
from experiments.studies import DraftsOptions
from policies.fixed import Fixed, Never
from real_backend.command_line import Result
from simulator.replay.totals import tally
from traces.costs.of_trace import prices_of_levels
from traces.costs.pricing import StepCosts, tabulate
from traces.errors import InputError
from traces.schema import Trace
from traces.shapes.shape import Shape, from_levels
from traces.split import named_generator, question_of, split_rows
from traces.store import read_trace

if TYPE_CHECKING:
    from real_backend.trees.chances import Chances

FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class DraftsResult:
    """K chains, on the held-out half.

    drafts, levels, nodes: K, the levels that take the training half the least time, verified.
    accepted, bound: chance that a first level accepts, mean over positions; the best rule's.
    likeliest: chance that the target draws one of the draft's K likeliest tokens.
    tokens_per_round, tokens_per_s: in law. speedup: over plain decoding; vs_one: over one chain.
    """

    drafts: int
    levels: int
    nodes: int
    accepted: float
    bound: float
    likeliest: float
    tokens_per_round: float
    tokens_per_s: float
    speedup: Estimate
    vs_one: Estimate


COLUMNS: tuple[Column, ...] = (
    figure("drafts", "drafts", "Drafts", "independent chains", 0),
    figure("levels", "levels", "Levels", "tokens of each, tuned on the training half", 0),
    figure("nodes", "nodes", "Nodes", "tokens drafted", 0),
    figure("accepted", "a level\naccepts", "A level accepts", "one of them, mean of positions", 3),
    figure("bound", "at most", "At most", "by the best rule there could be", 3),
    figure("likeliest", "likeliest\nones", "Likeliest ones", "chance that the target draws one of "
           "as many likeliest tokens of the draft", 3),
    figure("tokens_per_round", "tokens/\nround", "Tokens/round", "emitted, in law"),
    figure("tokens_per_s", "tokens/s", "Tokens/s", "decoded", 1),
    interval("speedup", "speed-up", "Speed-up", "tokens/s over plain decoding, 95 % interval"),
    interval("vs_one", "over one", "Over one", "tokens/s over one chain, 95 % interval", 3),
)  # fmt: skip


def run(options: DraftsOptions) -> Result:
    """The table. Raises InputError for a recording that is greedy, or not of the pair."""
    from real_backend.load_pair import pair_from
    from real_backend.prompts import questions_of, requests_of_trace
    from real_backend.trees.chances import chances_of

    trace, priced = read_trace(options.trace), read_costs(options.cost)
    if trace.meta.exactness != "in-law" or trace.meta.drafter != "model":
        raise InputError(
            f"independent drafts need a sampled recording of a draft model; this one is of kind "
            f"{trace.meta.drafter!r} and {trace.meta.exactness!r}"
        )
    check_drafter(priced, options.cost, "model")
    most, widest = max(options.drafts), widest_of(priced)
    if most > widest:
        raise InputError(
            f"--drafts {most}: {options.cost} prices up to {widest + 1} verified tokens"
        )
    questions, pair = questions_of(options.pair, options.prompts), pair_from(options.pair)
    requests = requests_of_trace(questions, trace, pair)
    chances = chances_of(pair, requests, trace, most)
    costs = tabulate(
        priced.model,
        max_context=trace.longest_context + BUCKET_TOKENS,
        width=max(widest, trace.meta.depth) + 2,
        bucket_tokens=BUCKET_TOKENS,
    )
    found = list(_results(trace, chances, costs, options.drafts, widest, options.seed))
    frame = frame_of(found)
    about = f"{trace.meta.pair}, sampled at temperature {trace.meta.temperature:g}; {options.cost}"
    text = [fill(about), text_of(COLUMNS, [("", frame)]), meanings(COLUMNS)]
    content = {"columns": described(COLUMNS), "rows": frame.to_dict("records"), "about": about}
    return Result("\n\n".join(text), content, csv_of(COLUMNS, frame))


def reach_in_law(
    trace: Trace, chances: Chances, drafts: int, levels: int, generator: np.random.Generator
) -> npt.NDArray[np.int16]:
    """[N] drafted tokens that a round from each position accepts, drawn anew for every position."""
    left = np.repeat(trace.offsets[1:], trace.reply_tokens) - np.arange(trace.positions)
    reached = np.zeros(trace.positions, dtype=np.int16)
    at, chains = np.arange(trace.positions), np.full(trace.positions, drafts)
    for level in range(levels):
        going = left[at] > level
        at, chains = at[going], chains[going]
        place = chains - 1, at + level
        taken = generator.random(len(at)) < chances.given[place]
        at, chains = at[taken], chains[taken]
        reached[at] = level + 1
        chains = _survivors(chances, chains, at + level, generator)
    return reached


def _survivors(
    chances: Chances,
    chains: npt.NDArray[np.int64],
    position: npt.NDArray[np.int64],
    generator: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Chains that begin with the accepted token, itself included, given that one of `chains` drew
    it and was the first to be accepted.

    The first accepted is number j with chance as (1 - alone)^(j - 1). Those before it were turned
    down, those behind it not asked; each drew the token with the chance that these leave.
    """
    place = chains - 1, position
    alone, token, kept = chances.alone[place], chances.token[place], chances.token_kept[place]
    refused = 1.0 - alone
    u, total = generator.random(len(chains)), 1.0 - refused**chains
    # The first j whose cumulative chance 1 - refused^j reaches u of the total.
    with np.errstate(divide="ignore", invalid="ignore"):
        j = np.where(refused > 0.0, np.ceil(np.log1p(-u * total) / np.log(refused)), 1.0)
    j = np.clip(np.nan_to_num(j, nan=1.0), 1, chains).astype(np.int64)
    with np.errstate(divide="ignore", invalid="ignore"):
        before = np.where(refused > 0.0, token * (1.0 - kept) / refused, 0.0).clip(0.0, 1.0)
    earlier = generator.binomial(j - 1, np.nan_to_num(before))
    later = generator.binomial(chains - j, token.clip(0.0, 1.0))
    return np.asarray(1 + earlier + later, dtype=np.int64)


def _results(
    trace: Trace,
    chances: Chances,
    costs: StepCosts,
    drafts: Sequence[int],
    widest: int,
    seed: int,
) -> Iterator[DraftsResult]:
    train, test = split_rows(trace, seed=seed)
    weights = bootstrap_weights([question_of(trace.request_id[row]) for row in test], seed=seed)
    plain = tally(Never(), trace.select(test), costs).decode_s
    one: FloatArray | None = None
    for count in dict.fromkeys((1, *drafts)):
        tuned: tuple[float, int, Trace, StepCosts] | None = None
        for levels in range(1, min(trace.meta.depth, widest // count) + 1):
            shape = _chains(count, levels)
            generator = named_generator(seed, f"{count} drafts, {levels} levels")
            meta = dataclasses.replace(trace.meta, depth=levels)
            reached = reach_in_law(trace, chances, count, levels, generator)
            off: dict[str, Any] = {"top1_prob": None, "entropy": None, "accept_prob": None}
            world = dataclasses.replace(trace, meta=meta, accept_len=reached, **off)
            prices = prices_of_levels(costs, shape)
            spent = float(tally(Fixed(levels), world.select(train), prices).decode_s.sum())
            if tuned is None or spent < tuned[0]:
                tuned = spent, levels, world, prices
        assert tuned is not None
        _, levels, world, prices = tuned
        found = tally(Fixed(levels), world.select(test), prices)
        one = found.decode_s if one is None else one
        tokens = float(trace.reply_tokens[test].sum())
        if count in drafts:
            yield DraftsResult(
                drafts=count,
                levels=levels,
                nodes=count * levels,
                accepted=float(chances.mean[count - 1].mean()),
                bound=float(chances.bound[count - 1].mean()),
                likeliest=float(chances.likeliest[count - 1].mean()),
                tokens_per_round=tokens / float(found.rounds.sum()),
                tokens_per_s=tokens / float(found.decode_s.sum()),
                speedup=ratio_of_sums(plain, found.decode_s, weights),
                vs_one=ratio_of_sums(one, found.decode_s, weights),
            )


def _chains(count: int, levels: int) -> Shape:
    """So many chains side by side."""
    return from_levels([count] + [1] * (levels - 1))
