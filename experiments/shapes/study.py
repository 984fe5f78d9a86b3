"""`gammalab studies shapes`: chains and trees on one recording, at one machine's costs.

Trees are chosen on the training half, what is printed is about the held-out half. A tree of n nodes
comes of the ranks that the reply's tokens had in the draft's distribution: Sequoia's dynamic
programme, and the ways that replies took most often. Their sizes, like the length of the chain, are
those that take the training half the least time at these costs. Controllers decide the depth of
every round: on the longest chain, and on the tree on which they take the training half the least
time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from experiments.common.cost_sources import Priced, read_costs
from experiments.common.frames import (
    Column,
    csv_of,
    described,
    figure,
    frame_of,
    interval,
    meanings,
    text_of,
    words,
)
from experiments.common.statistics import (
    RESAMPLES,
    Estimate,
    bootstrap_weights,
    ratio_of_sums,
    verdict,
)
from experiments.common.text_table import fill
from experiments.studies import ShapesOptions
from policies.base import Policy, drops_tokens, uses_signals
from policies.fixed import Fixed, Never
from policies.registry import label, parse_policies
from real_backend.command_line import Result
from simulator.replay.hindsight import clairvoyant
from simulator.replay.metrics import per_request
from simulator.replay.totals import tally
from traces.costs.pricing import StepCosts, tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.schema import Trace
from traces.shapes.fit import most_frequent, rank_profile, sequoia
from traces.shapes.shape import Shape, chain, parse_shape
from traces.shapes.unfold import check_ranks, prices_of_levels, under
from traces.split import question_of, split_rows
from traces.store import read_trace

FloatArray = npt.NDArray[np.float64]
SIZES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)
DEPTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
BUCKET_TOKENS = 32
SHOWN = 32  # characters of a shape in a table


@dataclasses.dataclass(frozen=True)
class ShapeResult:
    """One way to draft, on the held-out requests.

    name: what chose the shape, or the depth of every round. shape: as traces.shapes.parse_shape
    reads it, "" where nothing is drafted. nodes, depth: of the shape. tokens_per_round, round_ms:
    means. tokens_per_s: over the decode seconds. speedup: tokens/s over plain decoding; vs_chain:
    over the chain whose length was tuned; both with intervals over questions. verdict: of the
    latter.
    """

    name: str
    shape: str
    nodes: int
    depth: int
    tokens_per_round: float
    round_ms: float
    tokens_per_s: float
    speedup: Estimate
    vs_chain: Estimate
    verdict: str


COLUMNS: tuple[Column, ...] = (
    words("name", "draft", "Draft", "what chose the shape, or the depth of every round"),
    Column(
        "shape", "shape", "Shape", "", "children by level, or p and the parent of every node",
        ("shape",), lambda row: _short(row["shape"]),
    ),
    figure("nodes", "nodes", "Nodes", "drafted by a whole round", 0),
    figure("depth", "depth", "Depth", "levels of a whole round", 0),
    figure("tokens_per_round", "tokens/\nround", "Tokens/round", "emitted"),
    figure("round_ms", "ms/\nround", "ms/round", "priced", unit="ms"),
    figure("tokens_per_s", "tokens/s", "Tokens/s", "decoded", 1),
    interval("speedup", "speed-up", "Speed-up", "tokens/s over plain decoding, 95 % interval"),
    interval("vs_chain", "over tuned\nchain", "Over tuned chain", "tokens/s over it, 95 % interval",
             3),
    words("verdict", "", "", "of the latter"),
)  # fmt: skip


class _Drafted(NamedTuple):
    """Sums by held-out request [R] of one way to draft."""

    seconds: FloatArray
    rounds: float


class _Half(NamedTuple):
    """One half of a recording, at the costs of single tokens."""

    trace: Trace
    costs: StepCosts

    def seconds(self, policy: Policy, shape: Shape, seed: int = 0) -> float:
        """Of all requests together."""
        return float(self.play(policy, shape, seed).seconds.sum())

    def play(self, policy: Policy, shape: Shape, seed: int = 0) -> _Drafted:
        """A controller that decides the depth of this tree."""
        trace, costs = under(self.trace, shape), prices_of_levels(self.costs, shape)
        found = tally(policy, trace, costs, seed=seed)
        return _Drafted(found.decode_s, float(found.rounds.sum()))


def run(options: ShapesOptions) -> Result:
    """The table. Raises InputError for a recording without ranks, sampled or of a head, and for
    shapes and rules that do not fit.
    """
    trace, priced = read_trace(options.trace), read_costs(options.cost)
    check_ranks(trace)
    given = [parse_shape(text) for text in options.shape]
    rules = parse_policies(options.policies) if options.policies else []
    for policy in rules:
        if drops_tokens(type(policy)):
            raise InputError(
                f"--policies {label(policy)}: it drops drafted tokens, a tree has none to drop"
            )
    widest = _widest(priced)
    for shape in given:
        if shape.nodes > widest:
            raise InputError(
                f"--shape {shape}: it verifies {shape.nodes + 1} tokens, {options.cost} was "
                f"measured up to {widest + 1}"
            )
    found = shapes(trace, priced, given, rules, widest=widest, seed=options.seed)
    frame = frame_of(found)
    held = len(split_rows(trace, seed=options.seed)[1])
    about = (
        f"{trace.meta.pair}, {held} of {trace.requests} replies held out; costs: "
        f"{Path(options.cost).name}, which know up to {widest + 1} verified tokens"
    )
    note = (
        "A level is drafted by one forward that reads the level before; the target reads all nodes "
        "and the newest token. The mask and the gather of accepted places are not priced."
    )
    text = [fill(about), text_of(COLUMNS, [("", frame)]), meanings(COLUMNS), fill(note)]
    content = {"columns": described(COLUMNS), "rows": frame.to_dict("records"), "about": about}
    return Result("\n\n".join(text), content, csv_of(COLUMNS, frame))


def shapes(
    trace: Trace,
    priced: Priced,
    given: Sequence[Shape],
    rules: Sequence[Policy],
    *,
    widest: int,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[ShapeResult]:
    """Every way to draft, plain decoding first. given: shapes that are judged besides; widest:
    nodes of the largest tree. Raises InputError if the trace cannot be split.
    """
    nodes = max([*SIZES, *(shape.nodes for shape in given), trace.meta.depth])
    costs = tabulate(
        priced.model,
        max_context=trace.longest_context + BUCKET_TOKENS,
        width=min(nodes, widest) + 2,
        bucket_tokens=BUCKET_TOKENS,
    )
    train, test = (_Half(trace.select(rows), costs) for rows in split_rows(trace, seed=seed))
    report = _report(test.trace, seed, resamples)
    lengths = range(1, min(trace.meta.depth, widest) + 1)
    longest = chain(lengths[-1])
    plain = test.play(Never(), longest)
    tuned = min((0, *lengths), key=lambda length: train.seconds(Fixed(length), longest))
    base = test.play(Fixed(tuned), longest)
    found = _trees(train, given, widest)
    rows = [
        report("plain decoding", None, plain, plain, base),
        report("tuned chain", chain(tuned) if tuned else None, base, plain, base),
    ]
    for name, shapes in found.items():
        shape = min(shapes, key=lambda one: train.seconds(Fixed(one.depth), one))
        rows.append(report(name, shape, test.play(Fixed(shape.depth), shape), plain, base))
    every = list(dict.fromkeys(shape for shapes in found.values() for shape in shapes))
    for rule in rules:
        played = test.play(rule, longest, seed)
        rows.append(report(f"{label(rule)}, chain", longest, played, plain, base))
        fit = [s for s in every if not uses_signals(rule) or under(train.trace, s).has_signals]
        if fit:
            shape = min(fit, key=lambda one: train.seconds(rule, one, seed))
            played = test.play(rule, shape, seed)
            rows.append(report(f"{label(rule)}, tree", shape, played, plain, base))
    for where, shape in (
        ("chain", longest),
        ("tree", min(every, key=lambda one: train.seconds(Fixed(one.depth), one))),
    ):
        log = clairvoyant(under(test.trace, shape), prices_of_levels(costs, shape))
        ceiling = _Drafted(per_request(log).decode_s, float(len(log)))
        rows.append(report(f"clairvoyant depth, {where}", shape, ceiling, plain, base))
    return rows


def _trees(train: _Half, given: Sequence[Shape], widest: int) -> dict[str, list[Shape]]:
    """The trees that the training half offers, by name; the given ones each by itself."""
    profile = rank_profile(train.trace)
    pairs = [(n, depth) for n in SIZES if n <= widest for depth in DEPTHS if depth <= n]
    return {f"given {_short(str(shape))}": [shape] for shape in given} | {
        "Sequoia's tree": list(dict.fromkeys(sequoia(profile, *pair) for pair in pairs)),
        "most frequent ways": list(
            dict.fromkeys(most_frequent(train.trace, *pair) for pair in pairs)
        ),
    }


def _widest(priced: Priced) -> int:
    """Nodes of the largest tree whose verification was measured; of a formula the largest size."""
    if isinstance(priced.model, Table):
        return int(priced.model.timing.grid("verify").tokens.max()) - 1
    return SIZES[-1]


def _report(
    test: Trace, seed: int, resamples: int
) -> Callable[[str, Shape | None, _Drafted, _Drafted, _Drafted], ShapeResult]:
    """Turns what was played into a row: name, shape, sums, those of plain decoding and of the tuned
    chain.
    """
    questions = [question_of(request_id) for request_id in test.request_id]
    weights = bootstrap_weights(questions, seed=seed, resamples=resamples)
    tokens = float(test.reply_tokens.sum())

    def report(
        name: str, shape: Shape | None, ours: _Drafted, plain: _Drafted, base: _Drafted
    ) -> ShapeResult:
        seconds = float(ours.seconds.sum())
        over = ratio_of_sums(base.seconds, ours.seconds, weights)
        return ShapeResult(
            name=name,
            shape="" if shape is None else str(shape),
            nodes=0 if shape is None else shape.nodes,
            depth=0 if shape is None else shape.depth,
            tokens_per_round=tokens / ours.rounds,
            round_ms=1e3 * seconds / ours.rounds,
            tokens_per_s=tokens / seconds,
            speedup=ratio_of_sums(plain.seconds, ours.seconds, weights),
            vs_chain=over,
            verdict="baseline" if ours is base else verdict(over, len(set(questions))),
        )

    return report


def _short(shape: Any) -> str:
    text = str(shape or "")
    if text and not text.strip("1x"):
        return "chain"
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
