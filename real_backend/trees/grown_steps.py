"""GrownSteps: the steps of rows that draft trees by the draft's own probabilities.

Which nodes there are is decided in every round, level by level, as traces.shapes.growth says; a
recording of these trees replays them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from real_backend.decoding.judge import by_row, put_back
from real_backend.decoding.steps import Feed, Sampling, Uniforms, Verdict
from real_backend.decoding.verify import signals
from real_backend.drafters.drafter import Level as DraftLevel
from real_backend.load_pair import Pair
from real_backend.models.cache_rows import Branches, Span
from real_backend.trees.steps import LevelSteps, ancestors
from traces.errors import InputError
from traces.shapes.shape import Grown

IntArray = npt.NDArray[np.int64]


class Level(NamedTuple):
    """Candidates [C] of a level, the likeliest first; the first `beam` of them are its beam.

    tokens. prob: product of the draft's probabilities on the way. parent: place in the beam of the
    level above, 0 for the root's children.
    """

    tokens: IntArray
    prob: npt.NDArray[np.float32]
    parent: IntArray


class Picked(NamedTuple):
    """Nodes [M] that the target reads, level by level: level from 1, place among the candidates of
    it, and the number of the parent among these from 1, 0 for the root.
    """

    level: IntArray
    place: IntArray
    parent: IntArray


@dataclasses.dataclass
class _Row:
    """A row's tree. at: where its first node stands in the draft's cache. share, entropy: of the
    newest level, see traces.shapes.growth.Growth. sees: of the draft's nodes. unread: an accepted
    node that no level grew from.
    """

    sees: npt.NDArray[np.bool_]
    levels: list[Level] = dataclasses.field(default_factory=list)
    at: int = 0
    share: float = 1.0
    entropy: float = 0.0
    unread: Feed | None = None


class GrownSteps(LevelSteps):
    """Steps of any batch. Raises InputError as LevelSteps, and for a beam beyond the vocabulary."""

    def __init__(self, pair: Pair, batch: int, capacity: int, rule: Grown) -> None:
        drafted = rule.beam * rule.depth
        super().__init__(pair, batch, capacity, [rule], max(drafted, rule.nodes) + 1)
        if rule.beam > self.vocab:
            raise InputError(f"a beam of {rule.beam} needs as many tokens; there are {self.vocab}")
        self.rule = rule
        # No round drafts beyond the context, but a recording does near its end.
        self._last = (pair.max_context or capacity + drafted) - 1
        self.rows = [_Row(np.zeros((drafted, drafted), dtype=np.bool_)) for _ in range(batch)]

    def prefill(self, feed: Feed) -> None:
        """Both models read a prompt."""
        self.rows[feed.row].unread = None
        super().prefill(feed)

    def draft_first(
        self, feeds: Sequence[Feed], sampling: Sampling, reads_signals: bool, uniforms: Uniforms
    ) -> list[list[float]] | None:
        """The first level, from the forward that reads what the draft lacks."""
        order = by_row([feed.row for feed in feeds])
        self._reads_signals = reads_signals
        spans, tokens = list[Span](), list[int]()
        for row, ids, start in (feeds[k] for k in order):
            own = self.rows[row]
            if own.unread is not None and own.unread.start == start - 1:
                ids, start = [*own.unread.ids, *ids], start - 1
            own.unread, own.levels, own.at = None, [], start + len(ids)
            spans.append((row, start, len(ids)))
            tokens += ids
        logits = self.draft.first(spans, self.tensor(tokens))
        return self._offer([row for row, _, _ in spans], order, logits[:, None])

    def draft_next(self, rows: Sequence[int]) -> list[list[float]] | None:
        """One more level, from a forward that reads the beam of the newest one."""
        order, beam = by_row(rows), self.rule.beam
        rows = [rows[k] for k in order]
        spans, tokens = list[Span](), list[IntArray]()
        level = DraftLevel([], [])
        for row in rows:
            own = self.rows[row]
            depth, newest = len(own.levels), own.levels[-1]
            first, end = beam * (depth - 1), beam * depth
            own.sees[first:end] = False
            if depth > 1:
                own.sees[first:end] = own.sees[first - beam + newest.parent[:beam]]
            own.sees[np.arange(first, end), np.arange(first, end)] = True
            spans.append((row, own.at + first, beam))
            tokens.append(newest.tokens[:beam])
            positions = np.full(beam, min(own.at - 1 + depth, self._last))
            level.branches.append(Branches(positions, own.sees[first:end, :end]))
            level.parents.append(newest.parent[:beam])
        read = self.tensor(np.concatenate(tokens))
        logits = self.draft.further(spans, read, level)
        return self._offer(rows, order, logits.view(len(rows), beam, -1))

    def _offer(
        self, rows: Sequence[int], order: Sequence[int], logits: Tensor
    ) -> list[list[float]] | None:
        """The candidates behind these rows' nodes, whose logits [A, nodes, V] these are."""
        beam, logits = self.rule.beam, logits[..., : self.vocab]
        probs = torch.softmax(logits.float(), -1)
        found, entropy = probs.topk(beam, -1), signals(probs[:, 0])[:, 1].tolist()
        self.watch.note(found.values[..., 0])
        values, indices = found.values.numpy(force=True), found.indices.numpy(force=True)
        for k, row in enumerate(rows):
            own = self.rows[row]
            above = own.levels[-1].prob[:beam] if own.levels else ONE
            prob = (above[:, None] * values[k]).ravel()
            ranked = np.argsort(-prob, kind="stable")
            own.levels.append(Level(indices[k].ravel()[ranked], prob[ranked], ranked // beam))
            mass = float(above.sum())
            share = float(prob[ranked[:beam]].sum()) / mass if mass != 0.0 else 0.0
            own.share = min(share, 1.0)  # NaN stays NaN
            own.entropy = entropy[k]
        if not self._reads_signals:
            return None
        return put_back([[self.rows[row].share, self.rows[row].entropy] for row in rows], order)

    def verify(
        self, newest: Sequence[Feed], sampling: Sampling, uniforms: Uniforms
    ) -> list[Verdict]:
        """The target reads each row's newest token and the nodes picked; then the ways down."""
        order = by_row([feed.row for feed in newest])
        newest, uniforms = [newest[k] for k in order], [uniforms[k] for k in order]
        trees = [pick(self.rows[feed.row].levels, self.rule) for feed in newest]
        depths = [np.concatenate([[0], nodes.level]) for nodes in trees]
        read, branches = list[list[int]](), list[Branches]()
        for (row, ids, start), nodes, depth in zip(newest, trees, depths, strict=True):
            levels, at = self.rows[row].levels, zip(nodes.level, nodes.place, strict=True)
            read.append([ids[-1], *(int(levels[level - 1].tokens[place]) for level, place in at)])
            branches.append(Branches(start + depth, ancestors(nodes.parent.tolist())))
        spans = [(f.row, f.start, len(ids)) for f, ids in zip(newest, read, strict=True)]
        tokens = self.tensor([token for ids in read for token in ids])
        logits = self.target.read(spans, tokens, last=False, branches=branches)[:, : self.vocab]
        chosen = self.choices(logits, depths, sampling, uniforms).tolist()
        verdicts, paths, end = list[Verdict](), list[list[int]](), 0
        for (row, start, width), nodes, ids in zip(spans, trees, read, strict=True):
            wanted, end = chosen[end : end + width], end + width
            path = _way_down(nodes, ids, wanted)
            last = (path or [0])[-1]
            self.target.move(row, [start + node for node in path], start + 1)
            self._draft_moves_up(path, nodes, Feed(row, [ids[last]], start))
            paths.append(path)
            verdicts.append(Verdict([ids[node] for node in path], len(path), wanted[last]))
        self.hand_over(spans, paths)
        return put_back(verdicts, order)

    def _draft_moves_up(self, path: list[int], nodes: Picked, last: Feed) -> None:
        """Accepted nodes that the draft has read go where a chain's would stand. last: token of the
        last one, and the root's place.
        """
        own, beam, places = self.rows[last.row], self.rule.beam, list[int]()
        levels, own.levels = len(own.levels), []
        for node in path:
            level, place = int(nodes.level[node - 1]), int(nodes.place[node - 1])
            if level < levels and place < beam:
                places.append(own.at + beam * (level - 1) + place)
        self.draft.move(last.row, places, last.start + 1)
        # A last level's own are fed by whoever decodes, and all of them to whom reads states.
        if len(places) < len(path) < levels and not self.taps:
            own.unread = last._replace(start=last.start + len(path))


ONE = np.ones(1, dtype=np.float32)  # the root's probability


def pick(levels: Sequence[Level], rule: Grown) -> Picked:
    """The nodes that the target reads: the beams, or the likeliest of all candidates, of which a
    node never comes before its parent.
    """
    beam, wanted = rule.beam, rule.nodes_wanted
    counts = [len(level.prob) if wanted else min(beam, len(level.prob)) for level in levels]
    which = np.repeat(np.arange(1, len(levels) + 1), counts)
    place = np.concatenate([np.arange(count) for count in counts] or [which])
    if wanted:
        prob = np.concatenate([level.prob for level in levels] or [ONE[:0]])
        chosen = np.sort(np.argsort(-prob, kind="stable")[:wanted])
        which, place = which[chosen], place[chosen]
    number = {(0, 0): 0}
    parent = np.zeros(len(which), dtype=np.int64)
    for k, (level, at) in enumerate(zip(which.tolist(), place.tolist(), strict=True)):
        parent[k] = number[level - 1, int(levels[level - 1].parent[at])]
        number[level, at] = k + 1
    return Picked(which, place, parent)


def _way_down(nodes: Picked, tokens: Sequence[int], choices: Sequence[int]) -> list[int]:
    """Numbers of the nodes that the target takes."""
    path, at = list[int](), 0
    for number, parent in enumerate(nodes.parent.tolist(), 1):  # parents come before children
        if parent == at and tokens[number] == choices[at]:
            path.append(number)
            at = number
    return path
