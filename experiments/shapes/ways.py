"""The ways to draft that are compared: chosen on the training half of a recording, by what they
cost there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from experiments.common.cost_sources import Priced
from policies.base import Policy, chooses_shapes, uses_signals
from policies.fixed import Fixed, Never
from policies.registry import label
from simulator.replay.menus import replay_menu
from simulator.replay.metrics import per_request
from simulator.replay.replay import replay
from simulator.replay.totals import tally
from traces.costs.model import KnowsDraft
from traces.costs.of_trace import prices_of_levels, prices_of_menu
from traces.costs.pricing import StepCosts, read_only, tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.roundlog import RoundLog
from traces.schema import Trace
from traces.shapes.fit import most_frequent, rank_profile, sequoia
from traces.shapes.growth import Growth
from traces.shapes.menu import Several, menu_of
from traces.shapes.shape import Grown, Shape, chain
from traces.shapes.unfold import check_ranks, cut, under
from traces.split import split_rows
from traces.timing import PRICES

FloatArray = npt.NDArray[np.float64]
SIZES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)
DEPTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
BUCKET_TOKENS = 32
TUNED = "tuned chain"
TREES = ("Sequoia's tree", "most frequent ways")


class Way(NamedTuple):
    """A way to draft: its name, who decides the depth, of which shape; None: nothing is drafted."""

    name: str
    policy: Policy
    shape: Shape | Grown | Several | None


class Played(NamedTuple):
    """Sums by held-out request [R] of one way to draft."""

    seconds: FloatArray
    rounds: float


class Half(NamedTuple):
    """Part of a recording, at the costs of single tokens. growths: its growing trees, by beam."""

    trace: Trace
    costs: StepCosts
    growths: dict[int, Growth]

    def seen(self, way: Way) -> tuple[Trace, StepCosts]:
        """The recording as this way to draft meets it, and the prices of its levels. Chains of
        sampled replies are drawn, as they were recorded, a tree's candidates are the likeliest.
        """
        shape = way.shape or chain(1)
        assert not isinstance(shape, Several)
        if shape.is_chain and self.trace.meta.temperature > 0.0:
            return cut(self.trace, shape.depth), self.prices(shape)
        growth = self.growths[shape.beam] if isinstance(shape, Grown) else None
        return under(self.trace, shape, growth), self.prices(shape)

    def of(self, rows: npt.NDArray[np.intp] | list[int]) -> Half:
        """The chosen requests of it."""
        growths = {beam: growth.select(rows) for beam, growth in self.growths.items()}
        return self._replace(trace=self.trace.select(rows), growths=growths)

    def seconds(self, policy: Policy, shape: Shape | Grown, seed: int = 0) -> float:
        """Of all requests together, where the controller decides the depth of this tree."""
        return float(self.play(Way("", policy, shape), seed).seconds.sum())

    def log(self, way: Way, seed: int = 0) -> RoundLog:
        """The rounds of one way to draft."""
        if not isinstance(way.shape, Several):
            return replay(way.policy, *self.seen(way), seed=seed)
        menu, prices = menu_of(self.trace, way.shape.entries), self.prices(way.shape)
        return replay_menu(way.policy, menu, prices, seed=seed)

    def prices(self, shape: Shape | Grown | Several) -> StepCosts:
        """Of its levels."""
        if isinstance(shape, Several):
            return prices_of_menu(self.costs, shape.entries)
        return prices_of_levels(self.costs, shape)

    def play(self, way: Way, seed: int = 0) -> Played:
        """One way to draft."""
        if isinstance(way.shape, Several):
            log = self.log(way, seed)
            return Played(per_request(log).decode_s, float(len(log)))
        found = tally(way.policy, *self.seen(way), seed=seed)
        return Played(found.decode_s, float(found.rounds.sum()))


class Ways(NamedTuple):
    """The ways that the training half chose. baseline: the tuned chain, one of them. ceilings: the
    longest chain and the best tree, whose depths the clairvoyant schedule decides.
    """

    all: list[Way]
    baseline: Way
    ceilings: list[Way]


def halves_of(
    trace: Trace,
    priced: Priced,
    given: Sequence[Shape],
    growths: Sequence[Growth],
    widest: int,
    seed: int,
    batch: int = 1,
) -> tuple[Half, Half]:
    """Training and held-out half, priced as wide as any tree, for one of `batch` rows that draft
    alike: what a step of all of them takes is each one's. Raises InputError if the trace cannot be
    split.
    """
    nodes = max([*SIZES, *(shape.nodes for shape in given), trace.meta.depth])
    costs = tabulate(
        priced.model,
        (batch,),
        max_context=trace.longest_context + BUCKET_TOKENS,
        width=min(nodes, widest) + 2,
        bucket_tokens=BUCKET_TOKENS,
    )
    if batch > 1:
        own_s = {name: (a * batch, b * batch) for name, (a, b) in (costs.own_s or {}).items()}
        costs = costs._replace(batch_sizes=read_only([1], np.int64), own_s=own_s)
    whole = Half(trace, costs, {growth.beam: growth for growth in growths})
    train, test = (whole.of(rows) for rows in split_rows(trace, seed=seed))
    return train, test


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
    if grown := _grown(train, widest, picks=True):
        likeliest = min(grown, key=lambda one: train.seconds(Fixed(one.depth), one))
        ways.append(Way("grown tree", Fixed(likeliest.depth), likeliest))
    every = list(dict.fromkeys(shape for offered in found.values() for shape in offered))
    best_trees = [way.shape for way in ways if isinstance(way.shape, Shape)]
    for rule in rules:
        ways.append(Way(f"{label(rule)}, chain", rule, longest))
        if chooses_shapes(type(rule)):
            entries = tuple(dict.fromkeys([longest, *best_trees]))
            ways.append(Way(f"{label(rule)}, menu", rule, Several(entries)))
        fit = [s for s in every if not uses_signals(rule) or under(train.trace, s).has_signals]
        trees: dict[str, Sequence[Shape | Grown]] = {
            "tree": fit, "grown tree": _grown(train, widest, picks=False),
        }  # fmt: skip
        for kind, offers in trees.items():
            if offers:
                tree = min(offers, key=lambda one: train.seconds(rule, one, seed))
                ways.append(Way(f"{label(rule)}, {kind}", rule, tree))
    best = min(every, key=lambda one: train.seconds(Fixed(one.depth), one))
    ceilings = [
        Way("clairvoyant depth, chain", Never(), longest),
        Way("clairvoyant depth, tree", Never(), best),
    ]
    return Ways(ways, base, ceilings)


def _trees(train: Half, given: Sequence[Shape], widest: int) -> dict[str, list[Shape]]:
    """The trees that the training half offers, by name; the given ones each by itself."""
    profile = rank_profile(train.trace)
    known = check_ranks(train.trace).levels
    if train.trace.meta.temperature > 0.0:  # what is but a chain is drafted as it was recorded
        known = min(known, train.trace.meta.depth)
    pairs = [(n, d) for n in SIZES if n <= widest for d in DEPTHS if d <= min(n, known)]
    return {f"given {shape}": [shape] for shape in given} | {
        TREES[0]: list(dict.fromkeys(sequoia(profile, *pair) for pair in pairs)),
        TREES[1]: list(dict.fromkeys(most_frequent(train.trace, *pair) for pair in pairs)),
    }


def _grown(train: Half, widest: int, picks: bool) -> list[Grown]:
    """The growing trees that are recorded and priced. picks: of every depth and size, of which the
    target reads the likeliest nodes; else of all levels, of which a rule decides the depth.
    """
    rules: list[Grown] = []
    for beam, growth in train.growths.items():
        depths = [d for d in DEPTHS if d <= growth.depth] if picks else [growth.depth]
        sizes = (0, *SIZES) if picks else (0,)
        rules += [Grown(beam, depth, size) for depth in depths for size in sizes]
    return [rule for rule in rules if rule.nodes <= widest]


def widest_of(priced: Priced) -> int:
    """Nodes of the largest tree whose verification was measured; of a formula the largest size."""
    if isinstance(priced.model, Table):
        return priced.model.widest - 1
    return SIZES[-1]


def check_drafter(priced: Priced, name: str, kind: str) -> None:
    """Raises InputError if the costs are those of another kind of drafter than the recording's."""
    model = priced.model
    # A timing that says nothing is of a model; a formula says how a draft is priced at most.
    timed = model.timing.drafter or "model" if isinstance(model, Table) else kind
    priced_as = model.draft_kind if isinstance(model, KnowsDraft) else PRICES[kind]
    if timed != kind or priced_as != PRICES[kind]:
        theirs = timed if timed != kind else priced_as
        raise InputError(
            f"--cost {name}: it is about a drafter of kind {theirs!r}, the recording's is one of "
            f"kind {kind!r}"
        )
