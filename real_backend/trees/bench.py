"""Rounds of draft trees timed step by step, as the engine runs them: cells of traces.timing.TREES.

A tree of n nodes and one child of each: its second level is what the draft makes of n nodes, its
verify that of 2 n + 1 tokens.
"""

from __future__ import annotations

from real_backend.decoding.bench import Bench, Marks, Samples
from real_backend.decoding.steps import Sampling
from real_backend.load_pair import Pair
from real_backend.trees.steps import TreeSteps, drafter_of_trees
from traces.errors import InputError
from traces.shapes.shape import Shape, from_levels

WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128)
NUMBERS = [[0.5] * 3]  # what a sampled round of two levels draws by
_WARM_ROUNDS, _TIMED_ROUNDS = 5, 3


def trees_to(nodes: int) -> list[Shape]:
    """The trees that are timed, none of more nodes; InputError if there is none."""
    shapes = [from_levels([width, 1]) for width in WIDTHS if 2 * width <= nodes]
    if not shapes:
        raise InputError(f"--trees {nodes}: the smallest tree that is timed has 2 nodes")
    return shapes


def check_trees(pair: Pair, nodes: int) -> None:
    """Raises InputError where no tree of so many nodes can be timed."""
    trees_to(nodes)
    drafter_of_trees(pair)


class TreeBench(Bench):
    """Rounds of the trees of up to so many nodes at batch 1. Raises InputError as TreeSteps."""

    def __init__(
        self, pair: Pair, longest: int, samples: Samples, sampling: Sampling, nodes: int
    ) -> None:
        super().__init__(pair, 1, longest, samples, sampling, 1)
        self.shapes = trees_to(nodes)
        self.trees = TreeSteps(pair, 1, longest, *self.shapes)

    def idle_block(self, context: int) -> None:
        """Rounds without a draft in a row, the first ones untimed."""
        (feed,) = self._feeds(0, context)
        self.trees.prefill(feed)
        for k in range(_WARM_ROUNDS + _TIMED_ROUNDS):
            marks = Marks(self.pair.device)
            marks.mark()
            self.trees.verify(self._feeds(context - 1, context), self.sampling, NUMBERS)
            marks.mark()
            if k >= _WARM_ROUNDS:
                self._keep([("tree", 1, context)], marks)

    def tree_block(self, entry: int, context: int) -> None:
        """Rounds of one tree in a row, the first ones untimed."""
        width = self.shapes[entry].widths[0]
        (feed,) = self._feeds(0, context)
        self.trees.prefill(feed)
        self.trees.choose(entry)
        for k in range(_WARM_ROUNDS + _TIMED_ROUNDS):
            marks = Marks(self.pair.device)
            self.trees.draft_first(self._feeds(context - 1, context), self.sampling, False, [[]])
            marks.mark()
            self.trees.draft_next([0])
            marks.mark()
            newest = self._feeds(context - 1, context)
            (verdict,) = self.trees.verify(newest, self.sampling, NUMBERS)
            if verdict.accepted < 2:  # random text is seldom accepted so far
                self.trees.keep_way([width, 2 * width], context - 1)
            marks.mark()
            if k >= _WARM_ROUNDS:
                self._keep([("level", width, context), ("tree", 2 * width + 1, context)], marks)
