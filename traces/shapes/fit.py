"""Which tree of n nodes, from how often the reply's token had which rank."""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from traces.schema import Trace
from traces.shapes.shape import Shape, from_paths
from traces.shapes.unfold import check_ranks

FloatArray = npt.NDArray[np.float64]
RANKS = 64  # beyond them no node is ever worth its place


def rank_profile(trace: Trace, ranks: int = RANKS) -> FloatArray:
    """[ranks] share of the positions whose token had rank 0, 1, ...; Sequoia's acceptance vector.
    Of heads: where a draft begins.

    Raises InputError as traces.shapes.unfold.check_ranks.
    """
    found = check_ranks(trace).at(np.arange(trace.positions), 0)
    return np.bincount(found[found < ranks], minlength=ranks) / len(found)


def expected_tokens(shape: Shape, profile: FloatArray) -> float:
    """Tokens per round, the target's own included, if every token's rank were drawn anew."""
    return 1.0 + sum(float(np.prod(profile[list(path)])) for path in shape.paths())


def sequoia(profile: FloatArray, nodes: int, depth: int) -> Shape:
    """The tree of at most so many nodes and levels with the most expected_tokens.

    By dynamic programming over nodes, levels and ranks. Source: Chen et al., Sequoia, arXiv
    2402.12374, section 3.1; there a tree of n counts its root and the acceptance vector is of
    sampled children, here of ranks.
    """
    size = nodes + 1  # with the root, as there
    best = np.ones((depth + 1, size + 1))  # [levels below, nodes]: tokens of the best such subtree
    best[:, 0] = 0.0
    split = np.zeros((depth + 1, size + 1, nodes + 1), dtype=np.int64)  # what rank r's child gets
    for below in range(1, depth + 1):
        # rest[m]: the most that m nodes bring as children of ranks r, r + 1, ... and below them
        rest = np.zeros(size)
        for rank in range(min(nodes, len(profile)) - 1, -1, -1):
            fresh = np.zeros(size)
            for m in range(1, size):
                gains = profile[rank] * best[below - 1, 1 : m + 1] + rest[m - 1 :: -1]
                k = int(np.argmax(gains))
                if gains[k] > 0.0:  # else neither this rank nor any behind it
                    fresh[m] = gains[k]
                    split[below, m + 1, rank] = k + 1
            rest = fresh
        best[below, 1:] = 1.0 + rest
    return from_paths(_unroll(split, depth, size, ()))


def _unroll(
    split: npt.NDArray[np.int64], below: int, size: int, path: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """Paths of the subtree that `sequoia` chose for so many nodes, its root included."""
    paths, left = [], size - 1
    for rank in range(split.shape[2]):
        if below == 0 or left == 0:
            break
        given = int(split[below, left + 1, rank])
        if given == 0:
            break
        paths.append((*path, rank))
        paths += _unroll(split, below - 1, given, (*path, rank))
        left -= given
    return paths


def most_frequent(trace: Trace, nodes: int, depth: int) -> Shape:
    """The tree of at most so many nodes and levels that would accept the most tokens if a round
    started at every position: its nodes are the ways that the reply itself took most often.

    Unlike `sequoia` it does not take ranks for independent: acceptance comes in runs. Grown node by
    node, as Medusa's trees are (Cai et al., arXiv 2401.10774, section 2.3.3 and appendix); where an
    elder sibling is rarer than a younger one, both count as the elder, and a better tree may exist.
    Raises InputError as traces.shapes.unfold.check_ranks.
    """
    ranks = check_ranks(trace)
    depth = min(depth, ranks.levels)
    left = np.repeat(trace.offsets[1:], trace.reply_tokens) - np.arange(trace.positions)
    waiting: list[tuple[int, int, tuple[int, ...], npt.NDArray[np.int64]]] = []

    def offer(path: tuple[int, ...], at: npt.NDArray[np.int64]) -> None:
        """The children of a node at which the replies from these positions arrive."""
        level = len(path)
        if level == depth:
            return
        at = at[left[at] > level]
        rank = ranks.at(at, level)
        counts = np.bincount(rank[rank < RANKS], minlength=RANKS)
        # An elder sibling that is rarer than a younger one goes before it all the same.
        at_most = np.minimum.accumulate(counts)
        for r in np.flatnonzero(at_most > 0).tolist():
            heapq.heappush(waiting, (-int(at_most[r]), level, (*path, r), at[rank == r]))

    offer((), np.arange(trace.positions))
    paths: list[tuple[int, ...]] = []
    while waiting and len(paths) < nodes:
        _, _, path, at = heapq.heappop(waiting)
        paths.append(path)
        offer(path, at)
    return from_paths(paths)
