"""The ways to draft that are compared: chosen on the training half of a recording, by what they
cost there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from experiments.common.cost_sources import Priced
from policies.base import Policy, uses_signals
from policies.fixed import Fixed, Never
from policies.registry import label
from simulator.replay.totals import tally
from traces.costs.pricing import StepCosts, read_only, tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.schema import Trace
from traces.shapes.fit import most_frequent, rank_profile, sequoia
from traces.shapes.shape import Shape, chain
from traces.shapes.unfold import prices_of_levels, under
from traces.split import split_rows

FloatArray = npt.NDArray[np.float64]
SIZES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)
DEPTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
BUCKET_TOKENS = 32
TUNED = "tuned chain"


class Way(NamedTuple):
    """A way to draft: its name, who decides the depth, of which shape; None: nothing is drafted."""

    name: str
    policy: Policy
    shape: Shape | None


class Played(NamedTuple):
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

    def play(self, way: Way, seed: int = 0) -> Played:
        """One way to draft."""
        shape = way.shape or chain(1)
        trace, costs = under(self.trace, shape), prices_of_levels(self.costs, shape)
        found = tally(way.policy, trace, costs, seed=seed)
        return Played(found.decode_s, float(found.rounds.sum()))


class Ways(NamedTuple):
    """The ways that the training half chose. baseline: the tuned chain, one of them. ceilings: the
    longest chain and the best tree, whose depths the clairvoyant schedule decides.
    """

    all: list[Way]
    baseline: Way
    ceilings: list[Way]


def halves_of(
    trace: Trace, priced: Priced, given: Sequence[Shape], widest: int, seed: int, batch: int = 1
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
    train, test = (Half(trace.select(rows), costs) for rows in split_rows(trace, seed=seed))
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


def _trees(train: Half, given: Sequence[Shape], widest: int) -> dict[str, list[Shape]]:
    """The trees that the training half offers, by name; the given ones each by itself."""
    profile = rank_profile(train.trace)
    pairs = [(n, depth) for n in SIZES if n <= widest for depth in DEPTHS if depth <= n]
    return {f"given {shape}": [shape] for shape in given} | {
        "Sequoia's tree": list(dict.fromkeys(sequoia(profile, *pair) for pair in pairs)),
        "most frequent ways": list(
            dict.fromkeys(most_frequent(train.trace, *pair) for pair in pairs)
        ),
    }


def widest_of(priced: Priced) -> int:
    """Nodes of the largest tree whose verification was measured; of a formula the largest size."""
    if isinstance(priced.model, Table):
        return int(priced.model.timing.grid("verify").tokens.max()) - 1
    return SIZES[-1]


def check_drafter(priced: Priced, name: str) -> None:
    """Raises InputError if the costs are those of another kind of drafter than a model, whose steps
    and lags are not a tree's.
    """
    if isinstance(priced.model, Table) and priced.model.timing.drafter not in ("model", ""):
        raise InputError(
            f"--cost {name}: it is the timing of a drafter of kind "
            f"{priced.model.timing.drafter!r}; trees and chains here are drafted by a model"
        )
