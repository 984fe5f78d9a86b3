"""A recording and its prices as a round of a certain tree meets them.

Drafting a tree level by level and judging its nodes in one forward is, to everybody who asks how
deep to go, drafting a chain in which other tokens are accepted and levels have other prices: a
round at i that drafts d levels accepts min(d, reach[i]), where reach is how far the reply's own
tokens lead down the tree. So every controller decides the depth of any tree, every runtime replays
it, and nothing of them knows.

The way down is exact for drafts of tokens only, whose candidates are the likeliest ones: whatever
the target chooses or draws is the reply, so the accepted path is the reply, and its tokens' ranks
were recorded. Heads that read the target's states draft deeper levels from their own, so that the
rank of a token hangs on where the draft began: they have ranks by level.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from traces.errors import InputError
from traces.schema import DEEPEST, Trace
from traces.shapes.growth import Growth
from traces.shapes.shape import Grown, Shape

DRAFT_TREES = ("model", "eagle3", "block")
FloatArray = npt.NDArray[np.float32]


class Ranks(NamedTuple):
    """The rank of the reply's token at each level of a draft. by_level: [N, G], else [N]."""

    found: npt.NDArray[np.int16]
    by_level: bool

    @property
    def levels(self) -> int:
        """How deep they are known."""
        return self.found.shape[1] if self.by_level else DEEPEST

    def at(self, start: npt.NDArray[np.int64], level: int) -> npt.NDArray[np.int64]:
        """Of drafts that begin at `start` and have followed the reply for `level` tokens."""
        found = self.found[start, level] if self.by_level else self.found[start + level]
        return np.asarray(found, dtype=np.int64)


def check_whole(trace: Trace) -> None:
    """Raises InputError for a recording whose trees are not known exactly."""
    meta = trace.meta
    if meta.shape:
        raise InputError(f"the trace is under the draft tree {meta.shape} already")
    if meta.drafter not in DRAFT_TREES or meta.exactness in ("censored", "imputed"):
        raise InputError(
            f"trees need a whole recording of a draft model or of heads; this one is of kind "
            f"{meta.drafter!r} and {meta.exactness!r}"
        )


def check_ranks(trace: Trace) -> Ranks:
    """The ranks of a recording whose trees are exact; InputError for any other."""
    check_whole(trace)
    by_level = trace.meta.drafter != "model"
    found = trace.level_rank if by_level else trace.target_rank
    if found is None:
        name = "level_rank" if by_level else "target_rank"
        raise InputError(
            f"the trace has no {name}, the rank of each token of the reply in the draft's "
            "distribution; record it again with `gammalab capture`"
        )
    return Ranks(found, by_level)


def reach(trace: Trace, shape: Shape) -> npt.NDArray[np.int16]:
    """[N] drafted tokens that a round of the whole tree at each position accepts."""
    ranks, children = check_ranks(trace), shape.children
    if shape.depth > ranks.levels:
        raise InputError(
            f"shape {shape} has {shape.depth} levels, the recording knows the ranks of "
            f"{ranks.levels}; record it deeper"
        )
    left = np.repeat(trace.offsets[1:], trace.reply_tokens) - np.arange(trace.positions)
    depth = np.zeros(trace.positions, dtype=np.int16)
    at = np.arange(trace.positions)  # positions that still descend
    node = np.zeros(trace.positions, dtype=np.int64)
    for level in range(shape.depth):
        at, node = at[left[at] > level], node[left[at] > level]
        rank = ranks.at(at, level)
        known = rank < children.shape[1]
        at, node, rank = at[known], node[known], rank[known]
        child = children[node, rank]
        at, node = at[child > 0], child[child > 0]
        depth[at] = level + 1
    return depth


def cut(trace: Trace, depth: int) -> Trace:
    """The recording as chains of at most so many tokens meet it, drafted as they were recorded;
    InputError if it is not as deep.
    """
    if depth > trace.meta.depth:
        raise InputError(
            f"chains of {depth} tokens: the recording's drafts are drawn, {trace.meta.depth} deep"
        )
    shallow = dataclasses.replace(trace.meta, depth=depth)

    def cut_to(signal: FloatArray | None) -> FloatArray | None:
        return None if signal is None else signal[:, :depth]

    return dataclasses.replace(
        trace,
        meta=shallow,
        accept_len=np.minimum(trace.accept_len, np.int16(depth)),
        top1_prob=cut_to(trace.top1_prob),
        entropy=cut_to(trace.entropy),
        accept_prob=None,
        level_rank=None,
    )


def under(trace: Trace, shape: Shape | Grown, growth: Growth | None = None) -> Trace:
    """The recording as rounds of this tree meet it: a draft of d tokens is one of d levels.

    Signals are those of the likeliest path, which is in the tree; they are left out where it ends
    before the tree does, or where they were not recorded so deep, and of sampled replies, whose
    recorded drafts were drawn. A tree that grows is replayed by `growth`, of the same rows: its
    top1_prob is the growth's share. Raises InputError as check_ranks.
    """
    depth = shape.depth
    if isinstance(shape, Grown):
        assert growth is not None and growth.beam == shape.beam and growth.depth >= depth
        check_whole(trace)
        return dataclasses.replace(
            trace,
            meta=dataclasses.replace(trace.meta, depth=depth, shape=str(shape)),
            accept_len=growth.reach(trace, shape),
            level_rank=None,
            top1_prob=growth.share[:, :depth],
            entropy=growth.entropy[:, :depth],
            accept_prob=None,
        )
    signals = trace.has_signals and shape.first_path == depth <= trace.meta.depth
    signals = signals and trace.meta.temperature == 0.0
    return dataclasses.replace(
        trace,
        meta=dataclasses.replace(trace.meta, depth=depth, shape=str(shape)),
        accept_len=reach(trace, shape),
        level_rank=None,
        top1_prob=trace.top1_prob[:, :depth] if signals and trace.top1_prob is not None else None,
        entropy=trace.entropy[:, :depth] if signals and trace.entropy is not None else None,
        accept_prob=None,
    )
