"""TreeSteps: the steps of a single row that drafts a tree, a level in the place of a token.

To the engine and to every policy a draft of d tokens is one of d levels, as traces.shapes.unfold
says; so a replay of a recording under a shape takes the rounds of this. Greedy replies, two models
with the lean forward.

Nodes stand in both caches in the order of their numbers, behind the tokens that are fixed. Each
sees these, its ancestors and itself, and has the position of its level; once a way down is
accepted, its entries move up to where the next read expects them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from real_backend.decoding.steps import Feed, Sampling, Uniforms, Verdict
from real_backend.decoding.verify import signals
from real_backend.load_pair import Pair
from real_backend.models.llama import LeanLlama
from traces.errors import InputError
from traces.shapes.shape import Grown, Shape


class LevelSteps:
    """Part of the steps of any tree: of batch 1, with so many places in the caches behind the
    capacity. Raises InputError where a model has no lean forward, or the drafter is none of its
    own.
    """

    batch = 1

    def __init__(
        self, pair: Pair, capacity: int, shapes: Sequence[Shape | Grown], places: int
    ) -> None:
        drafter = pair.drafter.kind
        if drafter != "model":
            raise InputError(f"trees are drafted by a model of its own, not by one of {drafter!r}")
        self.pair, self.capacity, self.shapes = pair, capacity, shapes
        self.depth = max(shape.depth for shape in shapes)
        self.device, self.vocab = pair.device, pair.vocab_size
        self.target, self.draft = _lean(pair.target), _lean(pair.draft)
        self._target_cache = self.target.new_cache(capacity + places)
        self._draft_cache = self.draft.new_cache(capacity + places)
        self._levels = 0  # drafted in this round
        self._at = 0  # where the first drafted token stands
        self._reads_signals = False
        self._said: Tensor | None = None  # logits of the newest level

    def holds(self, context: int) -> bool:
        """Always: preallocated caches are read on from anywhere."""
        return True

    def prepare(
        self, sampling: Sampling, reads_signals: bool, max_gamma: int, shortest: int
    ) -> None:
        """Raises InputError for sampled replies, and where a round may be deeper than the tree."""
        if sampling.temperature != 0.0:
            raise InputError("trees are decoded greedily: temperature must be 0")
        if max_gamma > self.depth:
            raise InputError(f"max_gamma is {max_gamma}, the tree has {self.depth} levels")

    def choose(self, entry: int) -> None:
        """There is one shape."""

    def offers(self, rows: Sequence[tuple[int, list[int]]]) -> list[int]:
        """As many levels as there are."""
        return [self.depth] * len(rows)

    def prefill(self, feed: Feed) -> None:
        """Both models read a prompt."""
        tokens = torch.tensor([feed.ids], device=self.device)
        self.target.forward(tokens, self._target_cache, feed.start, last=1)
        self.draft.forward(tokens, self._draft_cache, feed.start, last=1)

    def drop(self, row: int) -> None:
        """Rules that drop what they drafted are not asked of trees."""
        raise InputError("a policy that drops drafted tokens does not decide on trees")

    def note_logits(self) -> None:
        """Tell the draft's watch what the newest level was chosen by."""
        if self._said is not None:
            self.pair.draft.watch.note(self._said.amax(-1))
            self._said = None

    def move_up(self, cache: Tensor, places: list[int], start: int) -> None:
        """Entries at these places go to start and on, where a chain's would stand."""
        if places != list(range(start, start + len(places))):
            moved = cache.index_select(4, torch.tensor(places, device=self.device))
            cache[..., start : start + len(places), :] = moved


class TreeSteps(LevelSteps):
    """Of shapes that are known beforehand, the first until another one is chosen. Raises InputError
    as LevelSteps.
    """

    def __init__(self, pair: Pair, capacity: int, *shapes: Shape) -> None:
        most = max(shape.nodes for shape in shapes)
        super().__init__(pair, capacity, shapes, most + 1)
        self._tokens = torch.zeros(most + 1, dtype=torch.long, device=self.device)
        self._menu = [
            (
                shape,
                _families(shape, self.device),
                _ancestors(shape).to(self.device),
                torch.tensor([0, *shape.depths], device=self.device),
            )
            for shape in shapes
        ]
        self.choose(0)

    def choose(self, entry: int) -> None:
        """The rounds from here on draft this one."""
        self.shape, self._families, self._seen, self._depths = self._menu[entry]

    def offers(self, rows: Sequence[tuple[int, list[int]]]) -> list[int]:
        """As many levels as the chosen shape has."""
        return [self.shape.depth] * len(rows)

    def draft_first(
        self, feeds: Sequence[Feed], sampling: Sampling, reads_signals: bool, uniforms: Uniforms
    ) -> list[list[float]] | None:
        """The first level, from the forward that reads what the draft lacks."""
        ((_, ids, start),) = feeds
        self._reads_signals, self._levels, self._at = reads_signals, 0, start + len(ids)
        tokens = torch.tensor([ids], device=self.device)
        return self._grow(self.draft.forward(tokens, self._draft_cache, start, last=1)[0])

    def draft_next(self, rows: Sequence[int]) -> list[list[float]] | None:
        """One more level, from a forward that reads the newest one."""
        first, end = self.shape.nodes_to[self._levels - 1], self.shape.nodes_to[self._levels]
        begin, width = self._at + first, end - first
        seen = self._mask(self._at - 1, first + 1, end + 1, 1)
        positions = self._at - 1 + self._depths[first + 1 : end + 1]
        logits = self.draft.forward(
            self._tokens[None, first + 1 : end + 1], self._draft_cache, begin, positions[None], seen
        )[0]
        assert logits.shape[0] == width
        return self._grow(logits)

    def _grow(self, logits: Tensor) -> list[list[float]] | None:
        """The children of the nodes whose logits [nodes of the level, V] these are."""
        logits = logits[:, : self.vocab]
        parents, ranks, most = self._families[self._levels]
        likeliest = logits.topk(most, -1).indices
        first = self.shape.nodes_to[self._levels] + 1
        self._tokens[first : first + len(parents)] = likeliest[parents, ranks]
        self._levels += 1
        self._said = logits
        if not self._reads_signals:
            return None
        seen: list[list[float]] = signals(torch.softmax(logits[:1].float(), -1)).tolist()
        return seen

    def verify(
        self, newest: Sequence[Feed], sampling: Sampling, uniforms: Uniforms
    ) -> list[Verdict]:
        """The target reads the newest token and every node; then the way down that it takes."""
        ((_, ids, start),) = newest
        nodes, self._levels = self.shape.nodes_to[self._levels], 0
        self._tokens[0] = ids[-1]
        seen = self._mask(start, 0, nodes + 1, 0)
        positions = start + self._depths[: nodes + 1]
        logits = self.target.forward(
            self._tokens[None, : nodes + 1], self._target_cache, start, positions[None], seen
        )[0, :, : self.vocab]
        choices = torch.empty(nodes + 1, dtype=torch.long, device=self.device)
        self.pair.target.watch.best(logits, choices)
        self.note_logits()
        tokens, chosen = torch.stack([self._tokens[: nodes + 1], choices]).tolist()
        path = walk(self.shape, nodes, tokens, chosen)
        self.keep_way(path, start)
        at = path[-1] if path else 0
        return [Verdict([tokens[node] for node in path], len(path), chosen[at])]

    def keep_way(self, path: Sequence[int], root: int) -> None:
        """Move these nodes' entries in both caches to where a chain's would stand. The last level,
        which the draft has not read, is read anew before it counts.
        """
        for cache in (self._target_cache, self._draft_cache):
            self.move_up(cache, [root + node for node in path], root + 1)

    def _mask(self, root: int, first: int, end: int, own: int) -> Tensor:
        """[1, 1, nodes, places] which places nodes first..end-1 see; the root stands at `root`.
        own: the first node that the cache holds, 0: the root itself is read now.
        """
        fixed = torch.ones((end - first, root + own), dtype=torch.bool, device=self.device)
        return torch.cat([fixed, self._seen[first:end, own:end]], 1)[None, None]


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


def _lean(model: object) -> LeanLlama:
    lean: LeanLlama | None = getattr(model, "lean", None)
    if lean is None:
        raise InputError("trees need models that the lean forward covers, see docs/backends.md")
    return lean


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


def _ancestors(shape: Shape) -> Tensor:
    """[M + 1, M + 1] bool: which nodes each sees, itself included."""
    seen = torch.eye(shape.nodes + 1, dtype=torch.bool)
    for k, parent in enumerate(shape.parents):
        seen[k + 1] |= seen[parent]
    return seen
