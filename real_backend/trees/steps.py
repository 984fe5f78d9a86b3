"""TreeSteps: the steps of rows that draft a tree, a level in the place of a token.

To the engine and to every policy a draft of d tokens is one of d levels, as traces.shapes.unfold
says; so a replay of a recording under a shape takes the rounds of this. Candidates are the draft's
likeliest tokens; what the target chooses behind a node, its likeliest token or one drawn from its
law, decides which child is accepted, if any: sampled replies have the target's law whatever was
drafted.

Nodes stand in both caches in the order of their numbers, behind the tokens that are fixed. Each
sees these, its ancestors and itself, and has the position of its level; once a way down is
accepted, its entries move up to where the next read expects them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from real_backend.decoding.judge import by_row, put_back
from real_backend.decoding.steps import Feed, Sampling, Uniforms, Verdict
from real_backend.decoding.verify import draw, signals
from real_backend.drafters.drafter import Level, RunsForwards
from real_backend.load_pair import Pair
from real_backend.models.cache_rows import Branches, Span, rows_of
from real_backend.models.finite import Watch
from traces.errors import InputError
from traces.shapes.shape import Grown, Shape


class LevelSteps:
    """Part of the steps of any tree, with so many places in the caches behind the capacity.

    Raises InputError for a drafter that runs no forwards, or fewer than the levels of a tree.
    """

    def __init__(
        self,
        pair: Pair,
        batch: int,
        capacity: int,
        shapes: Sequence[Shape | Grown],
        places: int,
    ) -> None:
        drafter, self.watch = drafter_of_trees(pair)
        self.pair, self.batch, self.capacity, self.shapes = pair, batch, capacity, shapes
        self.depth = max(shape.depth for shape in shapes)
        self.device, self.vocab = pair.device, pair.vocab_size
        self.target = rows_of(pair.target, batch, capacity + places)
        self.draft = drafter.rows(batch, capacity + places)
        self.taps = bool(pair.target.taps)  # the drafter reads the target's states
        if self.depth > drafter.most:
            raise InputError(f"a tree of {self.depth} levels: the drafter has {drafter.most}")
        self._reads_signals = False

    def holds(self, context: int) -> bool:
        """True if every row's caches can be read on from `context`."""
        return self.target.holds(context) and self.draft.holds(context)

    def prepare(
        self, sampling: Sampling, reads_signals: bool, max_gamma: int, shortest: int
    ) -> None:
        """Raises InputError where a round may be deeper than the tree."""
        if max_gamma > self.depth:
            raise InputError(f"max_gamma is {max_gamma}, the tree has {self.depth} levels")

    def choose(self, entry: int) -> None:
        """There is one shape."""

    def offers(self, rows: Sequence[tuple[int, list[int]]]) -> list[int]:
        """As many levels as there are, but none from states that there are not yet."""
        fewest = 2 if self.taps else 1
        return [self.depth if len(ids) >= fewest else 0 for _, ids in rows]

    def prefill(self, feed: Feed) -> None:
        """Both read a prompt."""
        tokens = self.tensor(feed.ids)
        self.target.read([(feed.row, feed.start, len(feed.ids))], tokens, last=True)
        states = self.target.states if self.taps else tokens
        self.draft.prefill(feed.row, feed.start, tokens, states)

    def hand_over(self, spans: Sequence[Span], paths: Sequence[Sequence[int]]) -> None:
        """The target's states of each row's newest token and of the nodes that it took, of the
        last read, go to the drafter.
        """
        if self.taps:
            parts = torch.split(self.target.states, [width for _, _, width in spans])
            for (row, start, _), states, path in zip(spans, parts, paths, strict=True):
                self.draft.verified(row, start, states[[0, *path]])

    def drop(self, row: int) -> None:
        """Rules that drop what they drafted are not asked of trees."""
        raise InputError("a policy that drops drafted tokens does not decide on trees")

    def tensor(self, ids: Sequence[int] | npt.NDArray[np.int64]) -> Tensor:
        """Token ids or indices on the device."""
        return torch.as_tensor(ids, dtype=torch.long).to(self.device)

    def choices(
        self,
        logits: Tensor,
        depths: Sequence[npt.NDArray[np.int64]],
        sampling: Sampling,
        uniforms: Uniforms,
    ) -> Tensor:
        """[N] what the target chooses behind the newest token and each node of every row, whose
        logits [N, V] these are.

        depths: of each row's nodes, the newest token's 0 among them. uniforms: of each row if
        sampled, a number per level, as on a way down there is one node of each.
        """
        if sampling.temperature == 0.0:
            return self.pair.target.watch.best(logits)
        numbers = [np.asarray(u)[depth] for u, depth in zip(uniforms, depths, strict=True)]
        drawn = torch.from_numpy(np.concatenate(numbers)).to(self.device)
        return draw(self.pair.target.watch.probs(logits, *sampling), drawn)


class TreeSteps(LevelSteps):
    """Of shapes that are known beforehand, the first until another one is chosen. Raises InputError
    as LevelSteps, and for several of them in a batch.
    """

    def __init__(self, pair: Pair, batch: int, capacity: int, *shapes: Shape) -> None:
        if batch > 1 and len(shapes) > 1:
            raise InputError("a policy chooses among trees for one request at a time, not a batch")
        most = max(shape.nodes for shape in shapes)
        super().__init__(pair, batch, capacity, shapes, most + 1)
        if max(max(shape.ranks) for shape in shapes) >= self.vocab:
            raise InputError(f"a tree asks for more candidates than there are tokens, {self.vocab}")
        self._tokens = torch.zeros((batch, most + 1), dtype=torch.long, device=self.device)
        self._menu = [
            (
                shape,
                _families(shape, self.device),
                ancestors(shape.parents),
                np.array([0, *shape.depths], dtype=np.int64),
            )
            for shape in shapes
        ]
        self._levels = 0  # that the newest step has drafted
        self._drafted: dict[int, int] = {}  # row -> levels of this round
        self._at: dict[int, int] = {}  # row -> where its first node stands
        self._read_to: dict[int, int] = {}  # row -> where what the draft has read ends
        self.choose(0)

    def choose(self, entry: int) -> None:
        """The rounds from here on draft this one."""
        self.shape, self._families, self._seen, self._depths = self._menu[entry]
        self._parents = [parents.numpy(force=True) for parents, _, _ in self._families]

    def offers(self, rows: Sequence[tuple[int, list[int]]]) -> list[int]:
        """As many levels as the chosen shape has."""
        return [min(offered, self.shape.depth) for offered in super().offers(rows)]

    def draft_first(
        self, feeds: Sequence[Feed], sampling: Sampling, reads_signals: bool, uniforms: Uniforms
    ) -> list[list[float]] | None:
        """The first level, from the forward that reads what the draft lacks."""
        order = by_row([feed.row for feed in feeds])
        feeds = [feeds[k] for k in order]
        self._reads_signals, self._levels, self._drafted = reads_signals, 0, {}
        spans = [(feed.row, feed.start, len(feed.ids)) for feed in feeds]
        self._at = {row: start + width for row, start, width in spans}
        tokens = self.tensor([token for feed in feeds for token in feed.ids])
        logits = self.draft.first(spans, tokens)
        return self._grow([feed.row for feed in feeds], order, logits[:, None])

    def draft_next(self, rows: Sequence[int]) -> list[list[float]] | None:
        """One more level, from a forward that reads the newest one."""
        order = by_row(rows)
        rows = [rows[k] for k in order]
        first, end = self.shape.nodes_to[self._levels - 1], self.shape.nodes_to[self._levels]
        spans = [(row, self._at[row] + first, end - first) for row in rows]
        own = self._seen[first + 1 : end + 1, 1 : end + 1]
        depths = self._depths[first + 1 : end + 1]
        branches = [Branches(self._at[row] - 1 + depths, own) for row in rows]
        tokens = self._tokens[self._of(rows), first + 1 : end + 1].flatten()
        level = Level(branches, [self._parents[self._levels - 1]] * len(rows))
        logits = self.draft.further(spans, tokens, level)
        return self._grow(rows, order, logits.view(len(rows), end - first, -1))

    def _grow(
        self, rows: Sequence[int], order: Sequence[int], logits: Tensor
    ) -> list[list[float]] | None:
        """The children of these rows' nodes, whose logits [A, nodes of the level, V] these are."""
        logits = logits[..., : self.vocab]
        parents, ranks, most = self._families[self._levels]
        values, tokens = logits.topk(most, -1)
        self.watch.note(values[..., 0])
        if self.taps:  # a token that a head cannot propose is minus infinity: the first one again
            tokens = torch.where(values.isneginf(), tokens[..., :1], tokens)
        first = self.shape.nodes_to[self._levels] + 1
        self._tokens[self._of(rows), first : first + len(parents)] = tokens[:, parents, ranks]
        self._levels += 1
        for row in rows:
            self._drafted[row] = self._levels
            self._read_to[row] = self._at[row] + first - 1
        if not self._reads_signals:
            return None
        seen: list[list[float]] = signals(torch.softmax(logits[:, 0].float(), -1)).tolist()
        return put_back(seen, order)

    def _of(self, rows: Sequence[int]) -> slice | list[int]:
        """These rows in rising order, as an index."""
        return slice(None) if len(rows) == self.batch else list(rows)

    def verify(
        self, newest: Sequence[Feed], sampling: Sampling, uniforms: Uniforms
    ) -> list[Verdict]:
        """The target reads each row's newest token and every node; then the ways down it takes."""
        order = by_row([feed.row for feed in newest])
        newest, uniforms = [newest[k] for k in order], [uniforms[k] for k in order]
        rows, starts = [feed.row for feed in newest], [feed.start for feed in newest]
        self._tokens[self._of(rows), 0] = self.tensor([feed.ids[-1] for feed in newest])
        widths = [self.shape.nodes_to[self._drafted.pop(row, 0)] + 1 for row in rows]
        depths = [self._depths[:width] for width in widths]
        spans: list[Span] = list(zip(rows, starts, widths, strict=True))
        branches = [
            Branches(start + self._depths[:width], self._seen[:width, :width])
            for _, start, width in spans
        ]
        tokens = torch.cat([self._tokens[row, :width] for row, _, width in spans])
        logits = self.target.read(spans, tokens, last=False, branches=branches)
        choices = self.choices(logits[:, : self.vocab], depths, sampling, uniforms)
        read, chosen = torch.stack([tokens, choices]).tolist()
        verdicts, paths, at = list[Verdict](), list[list[int]](), 0
        for row, start, width in spans:
            own, wanted = read[at : at + width], chosen[at : at + width]
            path = walk(self.shape, width - 1, own, wanted)
            self.keep_way(path, start, row)
            paths.append(path)
            verdicts.append(Verdict([own[k] for k in path], len(path), wanted[(path or [0])[-1]]))
            at += width
        self.hand_over(spans, paths)
        return put_back(verdicts, order)

    def keep_way(self, path: Sequence[int], root: int, row: int = 0) -> None:
        """Move these nodes' entries in both caches to where a chain's would stand; the draft has
        not read a last level.
        """
        places = [root + node for node in path]
        self.target.move(row, places, root + 1)
        if path:
            read = [place for place in places if place < self._read_to[row]]
            self.draft.move(row, read, root + 1)


def drafter_of_trees(pair: Pair) -> tuple[RunsForwards, Watch]:
    """The pair's, and its watch. Raises InputError for one that runs no forwards."""
    drafter = pair.drafter
    if not isinstance(drafter, RunsForwards) or drafter.watch is None:
        raise InputError(f"trees are drafted by forwards, not by one of kind {drafter.kind!r}")
    return drafter, drafter.watch


def walk(shape: Shape, nodes: int, tokens: Sequence[int], choices: Sequence[int]) -> list[int]:
    """Nodes that the target takes, from the root's child down: at every node the child that carries
    the target's own choice behind it. tokens, choices [nodes + 1]: of the root and each node.
    """
    path: list[int] = []
    node = 0
    while True:
        children = (int(child) for child in shape.children[node] if 0 < child <= nodes)
        node = next((child for child in children if tokens[child] == choices[node]), 0)
        if node == 0:
            return path
        path.append(node)


def ancestors(parents: Sequence[int]) -> npt.NDArray[np.bool_]:
    """[M + 1, M + 1] the root and the nodes that each sees, itself included. parents [M]: 0 for the
    root, and before their children.
    """
    seen = np.eye(len(parents) + 1, dtype=np.bool_)
    for k, parent in enumerate(parents):
        seen[k + 1] |= seen[parent]
    return seen


def _families(shape: Shape, device: str) -> list[tuple[Tensor, Tensor, int]]:
    """Of every level: each node's parent as a place in the level above, its rank, most ranks."""
    found = []
    for level in range(shape.depth):
        first, end = shape.nodes_to[level], shape.nodes_to[level + 1]
        above = shape.nodes_to[level - 1] + 1 if level else 0
        parents = torch.tensor(shape.parents[first:end], device=device) - above
        ranks = torch.tensor(shape.ranks[first:end], device=device)
        found.append((parents, ranks, max(shape.ranks[first:end]) + 1))
    return found
