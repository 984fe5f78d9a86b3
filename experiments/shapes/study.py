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
TUNED = "tuned chain"
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


class Half(NamedTuple):
    """One half of a recording, at the costs of single tokens."""

    trace: Trace
    costs: StepCosts

    def seconds(self, policy: Policy, shape: Shape, seed: int = 0) -> float:
        """Of all requests together, where the controller decides the depth of this tree."""
        return float(self.play(Way("", policy, shape), seed).seconds.sum())

    def play(self, way: Way, seed: int = 0) -> _Drafted:
        """One way to draft."""
        shape = way.shape or chain(1)
        trace, costs = under(self.trace, shape), prices_of_levels(self.costs, shape)
        found = tally(way.policy, trace, costs, seed=seed)
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
    train, test = halves_of(trace, priced, given, widest, options.seed)
    ways = ways_of(train, given, rules, widest, options.seed)
    found = judged(ways, test, seed=options.seed)
    frame = frame_of(found)
    about = (
        f"{trace.meta.pair}, {test.trace.requests} of {trace.requests} replies held out; costs: "
        f"{Path(options.cost).name}, which know up to {widest + 1} verified tokens"
    )
    note = (
        "A level is drafted by one forward that reads the level before; the target reads all nodes "
        "and the newest token. The mask and the gather of accepted places are not priced."
    )
    text = [fill(about), text_of(COLUMNS, [("", frame)]), meanings(COLUMNS), fill(note)]
    content = {"columns": described(COLUMNS), "rows": frame.to_dict("records"), "about": about}
    return Result("\n\n".join(text), content, csv_of(COLUMNS, frame))


def halves_of(
    trace: Trace, priced: Priced, given: Sequence[Shape], widest: int, seed: int
) -> tuple[Half, Half]:
    """Training and held-out half, priced as wide as any tree. Raises InputError if the trace cannot
    be split.
    """
    nodes = max([*SIZES, *(shape.nodes for shape in given), trace.meta.depth])
    costs = tabulate(
        priced.model,
        max_context=trace.longest_context + BUCKET_TOKENS,
        width=min(nodes, widest) + 2,
        bucket_tokens=BUCKET_TOKENS,
    )
    train, test = (Half(trace.select(rows), costs) for rows in split_rows(trace, seed=seed))
    return train, test


class Way(NamedTuple):
    """A way to draft: its name, who decides the depth, of which shape; None: nothing is drafted."""

    name: str
    policy: Policy
    shape: Shape | None


class Ways(NamedTuple):
    """The ways that the training half chose, the tuned chain among them, and the trees on which
    no controller is deeper than the clairvoyant.
    """

    all: list[Way]
    baseline: Way
    ceilings: list[Way]


def ways_of(
    train: Half, given: Sequence[Shape], rules: Sequence[Policy], widest: int, seed: int
) -> Ways:
    """Plain decoding, the tuned chain, trees, and every rule on a chain and on its best tree."""
    lengths = range(1, min(train.trace.meta.depth, widest) + 1)
    longest = chain(lengths[-1])
    tuned = min((0, *lengths), key=lambda length: train.seconds(Fixed(length), longest))
    plain = Way("plain decoding", Never(), None)
    base = Way(TUNED, Fixed(tuned), chain(tuned) if tuned else None)
    found = _trees(train, given, widest)
    ways = [plain, base]
    for name, offered in found.items():
        shape = min(offered, key=lambda one: train.seconds(Fixed(one.depth), one))
        ways.append(Way(name, Fixed(shape.depth), shape))
    every = list(dict.fromkeys(shape for offered in found.values() for shape in offered))
    for rule in rules:
        ways.append(Way(f"{label(rule)}, chain", rule, longest))
        fit = [s for s in every if not uses_signals(rule) or under(train.trace, s).has_signals]
        if fit:
            shape = min(fit, key=lambda one: train.seconds(rule, one, seed))
            ways.append(Way(f"{label(rule)}, tree", rule, shape))
    best = min(every, key=lambda one: train.seconds(Fixed(one.depth), one))
    ceilings = [
        Way("clairvoyant depth, chain", Never(), longest),
        Way("clairvoyant depth, tree", Never(), best),
    ]
    return Ways(ways, base, ceilings)


def judged(
    ways: Ways, test: Half, *, seed: int = 0, resamples: int = RESAMPLES
) -> list[ShapeResult]:
    """Every way on the held-out half, plain decoding first, the clairvoyant's depths last."""
    report = _report(test.trace, seed, resamples)
    plain = test.play(ways.all[0], seed)
    base = plain if ways.baseline.shape is None else test.play(ways.baseline, seed)
    rows = [report(way, test.play(way, seed), plain, base) for way in ways.all]
    for way in ways.ceilings:
        assert way.shape is not None
        log = clairvoyant(under(test.trace, way.shape), prices_of_levels(test.costs, way.shape))
        found = _Drafted(per_request(log).decode_s, float(len(log)))
        rows.append(report(way, found, plain, base))
    return rows


def _trees(train: Half, given: Sequence[Shape], widest: int) -> dict[str, list[Shape]]:
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
) -> Callable[[Way, _Drafted, _Drafted, _Drafted], ShapeResult]:
    """Turns sums into a row: of a way, of plain decoding, of the tuned chain."""
    questions = [question_of(request_id) for request_id in test.request_id]
    weights = bootstrap_weights(questions, seed=seed, resamples=resamples)
    tokens = float(test.reply_tokens.sum())

    def report(way: Way, ours: _Drafted, plain: _Drafted, base: _Drafted) -> ShapeResult:
        seconds, shape = float(ours.seconds.sum()), way.shape
        over = ratio_of_sums(base.seconds, ours.seconds, weights)
        return ShapeResult(
            name=way.name,
            shape="" if shape is None else str(shape),
            nodes=0 if shape is None else shape.nodes,
            depth=0 if shape is None else shape.depth,
            tokens_per_round=tokens / ours.rounds,
            round_ms=1e3 * seconds / ours.rounds,
            tokens_per_s=tokens / seconds,
            speedup=ratio_of_sums(plain.seconds, ours.seconds, weights),
            vs_chain=over,
            verdict="baseline" if way.name == TUNED else verdict(over, len(set(questions))),
        )

    return report


def _short(shape: Any) -> str:
    text = str(shape or "")
    if text and not text.strip("1x"):
        return "chain"
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
