"""GrownSteps: the steps of a single row that drafts a tree by the draft's own probabilities.

Which nodes there are is decided in every round, level by level, as traces.shapes.growth says; a
recording of these trees replays them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from real_backend.decoding.steps import Feed, Sampling, Uniforms, Verdict
from real_backend.decoding.verify import signals
from real_backend.load_pair import Pair
from real_backend.trees.steps import LevelSteps
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


class GrownSteps(LevelSteps):
    """Steps of batch 1. Raises InputError as LevelSteps, and for a beam beyond the vocabulary."""

    def __init__(self, pair: Pair, capacity: int, rule: Grown) -> None:
        drafted = rule.beam * rule.depth
        super().__init__(pair, capacity, [rule], max(drafted, rule.nodes) + 1)
        if rule.beam > self.vocab:
            raise InputError(f"a beam of {rule.beam} needs as many tokens; there are {self.vocab}")
        self.rule = rule
        self.levels: list[Level] = []
        self.share, self.entropy = 1.0, 0.0  # of the newest level, see traces.shapes.growth.Growth
        self._sees = np.zeros((drafted, drafted), dtype=np.bool_)  # of the draft's nodes
        self._unread: Feed | None = None  # an accepted node that no level grew from

    def prefill(self, feed: Feed) -> None:
        """Both models read a prompt."""
        self._unread = None
        super().prefill(feed)

    def draft_first(
        self, feeds: Sequence[Feed], sampling: Sampling, reads_signals: bool, uniforms: Uniforms
    ) -> list[list[float]] | None:
        """The first level, from the forward that reads what the draft lacks."""
        ((_, ids, start),) = feeds
        self._reads_signals, self.levels = reads_signals, []
        if self._unread is not None and self._unread.start == start - 1:
            ids, start = [*self._unread.ids, *ids], start - 1
        self._unread = None
        self._at = start + len(ids)
        tokens = torch.tensor([ids], device=self.device)
        return self._offer(self.draft.forward(tokens, self._draft_cache, start, last=1)[0])

    def draft_next(self, rows: Sequence[int]) -> list[list[float]] | None:
        """One more level, from a forward that reads the beam of the newest one."""
        beam, depth, newest = self.rule.beam, len(self.levels), self.levels[-1]
        first, end = beam * (depth - 1), beam * depth
        self._sees[first:end] = False
        if depth > 1:
            self._sees[first:end] = self._sees[first - beam + newest.parent[:beam]]
        self._sees[np.arange(first, end), np.arange(first, end)] = True
        tokens = torch.from_numpy(newest.tokens[None, :beam]).to(self.device)
        positions = torch.full((1, beam), self._at - 1 + depth, device=self.device)
        seen = self._mask(self._sees[first:end, :end], self._at)
        begin = self._at + first
        said = self.draft.forward(tokens, self._draft_cache, begin, positions, seen)[0]
        return self._offer(said)

    def _offer(self, logits: Tensor) -> list[list[float]] | None:
        """The candidates behind the nodes whose logits [nodes, V] these are."""
        beam, above = self.rule.beam, self.levels[-1].prob[: self.rule.beam] if self.levels else ONE
        probs = torch.softmax(logits[:, : self.vocab].float(), -1)
        self._said = logits[:, : self.vocab]
        found = probs.topk(beam, -1)
        prob = (above[:, None] * found.values.numpy(force=True)).ravel()
        order = np.argsort(-prob, kind="stable")
        tokens = found.indices.numpy(force=True).ravel()
        self.levels.append(Level(tokens[order], prob[order], order // beam))
        mass = float(above.sum())
        self.share = min(1.0, float(prob[order[:beam]].sum()) / mass) if mass > 0.0 else 0.0
        self.entropy = float(signals(probs[:1])[0, 1])
        return [[self.share, self.entropy]] if self._reads_signals else None

    def verify(
        self, newest: Sequence[Feed], sampling: Sampling, uniforms: Uniforms
    ) -> list[Verdict]:
        """The target reads the newest token and the nodes picked; then the way down it takes."""
        ((row, ids, start),) = newest
        levels, self.levels = self.levels, []
        nodes = pick(levels, self.rule)
        tokens = [ids[-1]]
        tokens += [
            int(levels[level - 1].tokens[place])
            for level, place in zip(nodes.level, nodes.place, strict=True)
        ]
        choices = torch.empty(len(tokens), dtype=torch.long, device=self.device)
        positions = start + np.concatenate([[0], nodes.level])
        logits = self.target.forward(
            torch.tensor([tokens], device=self.device),
            self._target_cache,
            start,
            torch.from_numpy(positions[None]).to(self.device),
            self._mask(ancestors(nodes), start),
        )[0, :, : self.vocab]
        self.pair.target.watch.best(logits, choices)
        self.note_logits()
        chosen = choices.tolist()
        path = _way_down(nodes, tokens, chosen)
        self.move_up(self._target_cache, [start + node for node in path], start + 1)
        self._draft_moves_up(
            path, nodes, len(levels), Feed(row, [tokens[(path or [0])[-1]]], start)
        )
        accepted = [tokens[node] for node in path]
        return [Verdict(accepted, len(path), chosen[path[-1] if path else 0])]

    def _draft_moves_up(self, path: list[int], nodes: Picked, levels: int, last: Feed) -> None:
        """Accepted nodes that the draft has read go where a chain's would stand. last: token of the
        last one, and the root's place.
        """
        beam, places = self.rule.beam, list[int]()
        for node in path:
            level, place = int(nodes.level[node - 1]), int(nodes.place[node - 1])
            if level < levels and place < beam:
                places.append(self._at + beam * (level - 1) + place)
        self.move_up(self._draft_cache, places, last.start + 1)
        if len(places) < len(path) < levels:  # a last level's own are fed by whoever decodes
            self._unread = last._replace(start=last.start + len(path))

    def _mask(self, own: npt.NDArray[np.bool_], fixed: int) -> Tensor:
        """[1, 1, nodes, places]: all fixed tokens are seen, and of the tree what `own` says."""
        seen = np.concatenate([np.ones((len(own), fixed), dtype=np.bool_), own], axis=1)
        return torch.from_numpy(seen)[None, None].to(self.device)


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


def ancestors(nodes: Picked) -> npt.NDArray[np.bool_]:
    """[M + 1, M + 1] the root and the nodes that each sees, itself included."""
    seen = np.eye(len(nodes.parent) + 1, dtype=np.bool_)
    for k, parent in enumerate(nodes.parent.tolist()):
        seen[k + 1] |= seen[parent]
    return seen


def _way_down(nodes: Picked, tokens: Sequence[int], choices: Sequence[int]) -> list[int]:
    """Numbers of the nodes that the target takes."""
    path, at = list[int](), 0
    for number, parent in enumerate(nodes.parent.tolist(), 1):  # parents come before children
        if parent == at and tokens[number] == choices[at]:
            path.append(number)
            at = number
    return path
