"""One target, several drafters: which one, at which length, by task, on one clock.

Their traces are of the same replies. Seconds of every timing are scaled so that plain decoding of
them takes as long as in the first one, for the target is the same and the machine may not have
been. Lengths
and rules are tuned on the training half, what is printed is about the held-out half.

Where some are look-ups, there is a rule for each that chooses between it and the best other
drafter, and the oracle of both: the least seconds that any choice of drafter and length could have
had.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from experiments.common.cost_sources import step_costs
from experiments.common.frames import (
    Column,
    described,
    figure,
    frame_of,
    interval,
    meanings,
    page_meanings,
    page_of,
    share,
    text_of,
    words,
)
from experiments.common.statistics import RESAMPLES, Estimate, bootstrap_weights, ratio_of_sums
from policies.fixed import Fixed, Never
from policies.registry import label, title
from simulator.replay.drafters import (
    LOOKED_UP,
    ROUNDS,
    SECONDS,
    Switch,
    TwoDrafters,
    switch_ceiling,
    switch_totals,
)
from simulator.replay.totals import tally, tally_many
from traces.costs.pricing import StepCosts
from traces.costs.table import Table
from traces.json_text import jsonable
from traces.schema import Trace
from traces.split import question_of, split_rows
from traces.timing import HOST, PRICES, Timing

FloatArray = npt.NDArray[np.float64]
LEASTS, SHARES = (1, 2, 3, 4), (0.0, 0.5, 0.9)


class Drafted(NamedTuple):
    """A drafter: the name of its trace, the trace, and its timing."""

    name: str
    trace: Trace
    timing: Timing


@dataclasses.dataclass(frozen=True)
class DrafterResult:
    """One way to draft on the held-out requests.

    role: "plain", "drafter", "choice" or "oracle". speedup: tokens/s over plain decoding. vs_best:
    over the best single drafter, as the training half chose it; both with intervals over questions.
    looked_up: share of the rounds that the look-up drafted, None where there is no choice.
    """

    name: str
    role: str
    rule: str
    tokens_per_s: float
    tokens_per_round: float | None
    speedup: Estimate
    vs_best: Estimate
    looked_up: float | None
    tasks: dict[str, Estimate]


@dataclasses.dataclass(frozen=True)
class Drafters:
    """Rows, best single drafter first named by `best`; scales: seconds of each timing times this;
    questions: held out.
    """

    rows: tuple[DrafterResult, ...]
    best: str
    scales: dict[str, float]
    tasks: tuple[str, ...]
    questions: int


COLUMNS = (
    words("name", "drafter", "Drafter", "the name of its trace"),
    words("rule", "length", "Length", "tuned on the training half"),
    figure("tokens_per_s", "tokens/s", "Tokens/s", "decoded, on the clock of the first timing", 1),
    figure("tokens_per_round", "tokens/\nround", "Tokens/round", "emitted by a round"),
    interval("speedup", "speed-up", "Speed-up", "tokens/s over plain decoding, 95 % interval"),
    interval("vs_best", "over best\nsingle", "Over best single", "tokens/s over the best drafter "
             "alone, 95 % interval", 3),
    share("looked_up", "looked\nup", "Looked up", "share of the rounds that the look-up drafted"),
)  # fmt: skip


def same_replies(drafted: Sequence[Drafted]) -> bool:
    """True if there are several drafters, on the same replies of the same target."""
    first = drafted[0].trace
    return len(drafted) > 1 and all(
        one.trace.meta.target == first.meta.target
        and one.trace.request_id == first.request_id
        and one.trace.token_ids is not None
        and first.token_ids is not None
        and np.array_equal(one.trace.token_ids, first.token_ids)
        for one in drafted
    )


def compare_drafters(
    drafted: Sequence[Drafted], *, seed: int, resamples: int = RESAMPLES
) -> Drafters:
    """Raises InputError if a trace cannot be split."""
    halves = split_rows(drafted[0].trace, seed=seed)
    train, test = ([one.trace.select(rows) for one in drafted] for rows in halves)
    tables = [step_costs(one.timing, one.trace) for one in drafted]
    plain = [_plain_s(one, test[0], table) for one, table in zip(drafted, tables, strict=True)]
    scales = [plain[0] / seconds for seconds in plain]
    prices = [_scaled(table, scale) for table, scale in zip(tables, scales, strict=True)]
    held = _Held(test[0], seed, resamples)
    reference = next((k for k, one in enumerate(drafted) if _price(one) != HOST), 0)
    never = tally(Never(), test[reference], prices[reference]).decode_s
    ways = [_Way("plain decoding", "plain", "", never, 0.0)]
    trained: dict[str, float] = {}
    for one, fit, judged, costs in zip(drafted, train, test, prices, strict=True):
        lengths = [Fixed(gamma) for gamma in range(one.trace.meta.depth + 1)]
        spent = [sums.decode_s.sum() for sums in tally_many(lengths, fit, costs)]
        tuned = lengths[int(np.argmin(spent))]
        totals = tally(tuned, judged, costs)
        trained[one.name] = float(min(spent))
        rounds = float(totals.rounds.sum())
        ways.append(_Way(one.name, "drafter", title(label(tuned)), totals.decode_s, rounds))
    best = min(trained, key=trained.__getitem__)
    best_s = next(way.decode_s for way in ways[1:] if way.name == best)
    hosts = [k for k, one in enumerate(drafted) if _price(one) == HOST]
    others = [k for k in range(len(drafted)) if k not in hosts]
    forwards = min(others, key=lambda k: trained[drafted[k].name], default=0)
    for looks in hosts if others else []:
        pair = drafted[forwards], drafted[looks]
        both = _two(prices[forwards], drafted[looks], scales[looks])
        parts = (train[forwards], train[looks], test[forwards], test[looks])
        ways += _choices(both, " or ".join(one.name for one in pair), *parts)
    tokens = float(test[0].reply_tokens.sum())
    rows = [
        DrafterResult(
            name=way.name,
            role=way.role,
            rule=way.rule,
            tokens_per_s=tokens / float(way.decode_s.sum()),
            tokens_per_round=tokens / way.rounds if way.rounds else None,
            speedup=held.faster(never, way.decode_s),
            vs_best=held.faster(best_s, way.decode_s),
            looked_up=way.looked_up,
            tasks={task: held.faster(never, way.decode_s, at) for task, at in held.tasks.items()},
        )
        for way in ways
    ]
    named = dict(zip((one.name for one in drafted), scales, strict=True))
    return Drafters(tuple(rows), best, named, tuple(held.tasks), held.questions)


class _Way(NamedTuple):
    """One way to draft: decode_s [R] held out; rounds: 0 where they are not known."""

    name: str
    role: str
    rule: str
    decode_s: FloatArray
    rounds: float
    looked_up: float | None = None


def _plain_s(one: Drafted, replies: Trace, costs: StepCosts) -> float:
    """Seconds of plain decoding of these replies by a drafter's timing, without what a look-up adds
    to every round, and each step at its own context: timings need not grow alike with it.
    """
    table, width = Table(one.timing), costs.bucket_tokens
    spans = zip(replies.prompt_tokens.tolist(), replies.reply_tokens.tolist(), strict=True)
    contexts = np.concatenate([np.arange(prompt, prompt + count) for prompt, count in spans])
    buckets, rounds = np.unique(contexts // width, return_counts=True)
    middles = zip(((buckets + 0.5) * width).tolist(), rounds.tolist(), strict=True)
    return math.fsum(n * (table.verify_s(1, 1, x) + table.control_s()) for x, n in middles)


def _price(one: Drafted) -> str:
    return PRICES[one.trace.meta.drafter]


class _Held:
    """Ratios on the held-out requests."""

    def __init__(self, test: Trace, seed: int, resamples: int) -> None:
        questions = [question_of(request_id) for request_id in test.request_id]
        category = np.asarray(test.category)
        self.weights = bootstrap_weights(questions, seed=seed, resamples=resamples)
        self.questions = len(set(questions))
        self.tasks = {t: np.flatnonzero(category == t) for t in dict.fromkeys(test.category)}

    def faster(self, theirs: FloatArray, ours: FloatArray, rows: Any = slice(None)) -> Estimate:
        """Tokens/s of ours [R] over theirs [R]: both emit the same tokens."""
        return ratio_of_sums(theirs[rows], ours[rows], self.weights[:, rows])


def _scaled(costs: StepCosts, scale: float) -> StepCosts:
    """All seconds of a table times `scale`, but those of rules' own arithmetic."""
    names = ("prefill_s", "draft_s", "verify_s", "start_s")
    parts = {name: getattr(costs, name) * scale for name in names}
    return costs._replace(signal_s=costs.signal_s * scale, **parts)


def _two(costs: StepCosts, lookup: Drafted, scale: float) -> TwoDrafters:
    """The prices of both. costs: of the drafter that runs forwards, scaled; scale: of the look-up's
    timing.
    """
    middles = [(c + 0.5) * costs.bucket_tokens for c in range(costs.buckets)]
    table = Table(lookup.timing)
    look_up_s = np.asarray([table.draft_start_s(1, context) * scale for context in middles])
    return TwoDrafters(costs, look_up_s)


def _choices(
    both: TwoDrafters, names: str, fit: Trace, fit_lookup: Trace, test: Trace, test_lookup: Trace
) -> list[_Way]:
    """The rule that chooses the drafter, tuned on the training half, and the oracle of both."""
    depth = range(1, fit_lookup.meta.depth + 1)
    rules = [
        Switch(least, floor, looked_up, drafted)
        for least, floor in product(LEASTS, SHARES)
        for looked_up, drafted in product(depth, range(fit.meta.depth + 1))
    ]
    spent = [switch_totals(rule, fit, fit_lookup, both)[:, SECONDS].sum() for rule in rules]
    rule = rules[int(np.argmin(spent))]
    totals = switch_totals(rule, test, test_lookup, both)
    rounds = float(totals[:, ROUNDS].sum())
    when = f"{rule.looked_up} looked up if {rule.least} found" + (
        f", share {rule.share:g}" if rule.share else ""
    )
    looked_up = float(totals[:, LOOKED_UP].sum()) / rounds
    said = f"{when}; else {rule.drafted}"
    ceiling = switch_ceiling(test, test_lookup, both)
    return [
        _Way(f"choice: {names}", "choice", said, totals[:, SECONDS], rounds, looked_up),
        _Way(f"oracle: {names}", "oracle", "", ceiling, 0.0),
    ]


def _by_task(tasks: Sequence[str]) -> list[Column]:
    """Speed-up over plain decoding, a column a task."""
    shown = [figure(f"tasks.{t}.value", t.replace("_", "\n", 1), t, "") for t in tasks]
    return [COLUMNS[0], *shown]


def _basis(questions: int, scales: Mapping[str, float]) -> str:
    said = ", ".join(f"{name} {scale:.3f}" for name, scale in scales.items())
    return f"{questions} held-out questions; seconds of the timings times: {said}"


def drafters_text(found: Drafters) -> str:
    """The table, the same by task, and what it rests on."""
    frame = frame_of(found.rows)
    return "\n\n".join(
        [
            "One target, several drafters",
            text_of(COLUMNS, [("", frame)]),
            text_of(_by_task(found.tasks), [("speed-up by task", frame)]),
            f"{meanings(COLUMNS)}\n{_basis(found.questions, found.scales)}",
        ]
    )


def drafters_view(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The same for the page, from the result file."""
    groups = [("", frame_of(raw["rows"]))]
    tables = [page_of(COLUMNS, groups), page_of(_by_task(raw["tasks"]), groups)]
    notes = [*page_meanings(COLUMNS), _basis(raw["questions"], raw["scales"])]
    return {"tables": tables, "notes": notes, "best": raw["best"]}


def drafters_dict(found: Drafters) -> Mapping[str, Any]:
    """JSON-ready."""
    raw: dict[str, Any] = jsonable(found)
    return raw | {"columns": described(COLUMNS)}
