"""Shape: what a round drafts where that is more than one chain.

A tree's root is the newest token of the reply; drafted nodes are numbered 1..M, level by level, so
that a tree cut at a depth is its first nodes. The r-th child of a node (r from 0) is the token of
rank r in the draft's distribution behind that node. Letters: M nodes, D levels.
"""

from __future__ import annotations

import dataclasses
import functools
import re

import numpy as np
import numpy.typing as npt

from traces.errors import InputError

MOST_NODES = 512
_GROWN = re.compile(r"g(\d{1,4})x(\d{1,4})(?:x(\d{1,4}))?")
_BY_LEVEL = re.compile(r"[1-9]\d*(x[1-9]\d*)*")


@dataclasses.dataclass(frozen=True)
class Shape:
    """A draft tree.

    parents: entry k is the number of the parent of node k + 1, 0 for the root. They do not fall,
        for nodes are numbered level by level and the children of a node follow each other.

    Raises InputError for anything else, for no node and for more than MOST_NODES.
    """

    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        parents = self.parents
        if not 1 <= len(parents) <= MOST_NODES:
            raise InputError(f"a shape has 1 to {MOST_NODES} nodes, not {len(parents)}")
        sound = all(0 <= parent <= k for k, parent in enumerate(parents))
        if not sound or list(parents) != sorted(parents):
            raise InputError(
                f"shape parents={parents}: nodes are numbered level by level from 1, the root is "
                "0, so that every parent is below its child and parents do not fall"
            )

    @functools.cached_property
    def depths(self) -> tuple[int, ...]:
        """[M] the level of every node, 1 for children of the root."""
        found = [0]
        for parent in self.parents:
            found.append(found[parent] + 1)
        return tuple(found[1:])

    @functools.cached_property
    def ranks(self) -> tuple[int, ...]:
        """[M] every node's rank among its siblings, from 0."""
        first = {parent: self.parents.index(parent) for parent in set(self.parents)}
        return tuple(k - first[parent] for k, parent in enumerate(self.parents))

    @functools.cached_property
    def widths(self) -> tuple[int, ...]:
        """[D] nodes of every level."""
        return tuple(np.bincount(self.depths)[1:].tolist())

    @property
    def nodes(self) -> int:
        """M: what the target reads besides the newest token."""
        return len(self.parents)

    @property
    def depth(self) -> int:
        """D: the most tokens a round can accept."""
        return len(self.widths)

    @functools.cached_property
    def nodes_to(self) -> tuple[int, ...]:
        """[D + 1] nodes of the first 0, 1, ... D levels."""
        return (0, *np.cumsum(self.widths).tolist())

    @functools.cached_property
    def children(self) -> npt.NDArray[np.int64]:
        """[M + 1, most children] the number of a node's child by its rank, 0 where there is none;
        row 0 is the root's.
        """
        table = np.zeros((self.nodes + 1, max(self.ranks) + 1), dtype=np.int64)
        for k, (parent, rank) in enumerate(zip(self.parents, self.ranks, strict=True)):
            table[parent, rank] = k + 1
        return table

    @property
    def is_chain(self) -> bool:
        """True if no level has two nodes."""
        return max(self.widths) == 1

    @functools.cached_property
    def first_path(self) -> int:
        """Levels that the path of the likeliest tokens, rank 0 all along, goes down."""
        node, levels = int(self.children[0, 0]), 0
        while node > 0:
            node, levels = int(self.children[node, 0]), levels + 1
        return levels

    def cut(self, depth: int) -> Shape:
        """Its first 1..D levels."""
        return Shape(self.parents[: self.nodes_to[depth]])

    def paths(self) -> list[tuple[int, ...]]:
        """[M] the ranks on the way to every node."""
        found: list[tuple[int, ...]] = [()]
        for parent, rank in zip(self.parents, self.ranks, strict=True):
            found.append((*found[parent], rank))
        return found[1:]

    def __str__(self) -> str:
        """As parse_shape reads it: children by level where all nodes of a level have as many, else
        the parents.
        """
        by_level = []
        last = 0
        for width in self.widths:
            if width % max(last, 1):
                break
            by_level.append(width // max(last, 1))
            last = width
        else:
            text = "x".join(map(str, by_level))
            if parse_shape(text) == self:
                return text
        return "p" + ".".join(map(str, self.parents))


@dataclasses.dataclass(frozen=True)
class Grown:
    """The rule by which a tree grows, see traces.shapes.growth. nodes_wanted: as many of all
    candidates as the target reads; 0: the beam of every level.

    Raises InputError for more than MOST_NODES, or less than one of anything.
    """

    beam: int
    depth: int
    nodes_wanted: int = 0

    def __post_init__(self) -> None:
        if min(self.beam, self.depth) < 1 or not 0 <= self.nodes_wanted <= MOST_NODES:
            raise InputError(f"{self}: a tree grows from 1 node a level and more, to {MOST_NODES}")
        if self.beam * self.depth > MOST_NODES:
            raise InputError(f"{self}: the draft reads at most {MOST_NODES} nodes")

    @property
    def widths(self) -> tuple[int, ...]:
        """[D] nodes of every level that the draft reads to go on."""
        return (self.beam,) * self.depth

    @property
    def nodes_to(self) -> tuple[int, ...]:
        """[D + 1] nodes that the target reads of a tree of 0, 1, ... D levels."""
        levels = range(self.depth + 1)
        if self.nodes_wanted == 0:
            return tuple(self.beam * level for level in levels)
        offered = [min(level, 1) * self.beam + max(0, level - 1) * self.beam**2 for level in levels]
        return tuple(min(self.nodes_wanted, count) for count in offered)

    @property
    def nodes(self) -> int:
        """Of the whole tree."""
        return self.nodes_to[-1]

    @property
    def is_chain(self) -> bool:
        """True if no level has two nodes."""
        return self.beam == 1

    def __str__(self) -> str:
        """As parse_draft reads it: beam, levels, and nodes where they are picked."""
        picked = f"x{self.nodes_wanted}" if self.nodes_wanted else ""
        return f"g{self.beam}x{self.depth}{picked}"


def chain(tokens: int) -> Shape:
    """So many tokens, one behind the other."""
    return Shape(tuple(range(tokens)))


def from_levels(children: list[int]) -> Shape:
    """Every node of a level has so many children, the root's first: [3, 2, 1] has 15 nodes."""
    parents: list[int] = []
    level, total = [0], 0
    for count in children:
        total += count * len(level)
        if total > MOST_NODES:
            raise InputError(f"a shape has 1 to {MOST_NODES} nodes, these levels {total} and more")
        begin = len(parents) + 1
        parents += [parent for parent in level for _ in range(count)]
        level = list(range(begin, len(parents) + 1))
    return Shape(tuple(parents))


def from_paths(paths: list[tuple[int, ...]]) -> Shape:
    """Of the ranks on the way to every node, in any order; as Medusa's trees are written. Raises
    InputError where the way to a node, or an elder sibling, is missing.
    """
    ordered = sorted(set(paths), key=lambda path: (len(path), path))
    number = {(): 0} | {path: k + 1 for k, path in enumerate(ordered)}
    for path in ordered:
        elder = (*path[:-1], path[-1] - 1) if path and path[-1] > 0 else ()
        if not path or min(path) < 0 or path[:-1] not in number or elder not in number:
            raise InputError(f"shape path {path}: the way to it, or an elder sibling, is missing")
    return Shape(tuple(number[path[:-1]] for path in ordered))


def parse_shape(text: str) -> Shape:
    """3x2x1, children by level; or p0.0.1, the parent of every node. Raises InputError."""
    if _BY_LEVEL.fullmatch(text):
        return from_levels([int(part) for part in text.split("x")])
    parts = text.removeprefix("p").split(".")
    if text.startswith("p") and all(part.isascii() and part.isdigit() for part in parts):
        return Shape(tuple(int(part[:9]) for part in parts))
    raise InputError(
        f"shape {text!r}: write children by level, as 3x2x1, or every node's parent, as p0.0.1"
    )


def parse_draft(text: str) -> Shape | Grown:
    """As parse_shape; or g8x6 and g8x6x32, a tree that grows with a beam of 8 for 6 levels, of
    which the target reads all, or 32 nodes. Raises InputError.
    """
    if found := _GROWN.fullmatch(text):
        beam, depth, nodes = (int(part or 0) for part in found.groups())
        return Grown(beam, depth, nodes)
    return parse_shape(text)


def check_recorded(path: str, shape: str, welcome: bool) -> None:
    """Raises InputError for a recording under a tree where it is not welcome, and for one whose
    nodes are picked: what min(depth, reach) says of it holds at its full depth alone.
    """
    draft = parse_draft(shape)
    if isinstance(draft, Grown) and draft.nodes_wanted:
        raise InputError(
            f"{path}: nodes of {shape} are picked among all levels; rounds of fewer meet others"
        )
    if not welcome:
        raise InputError(
            f"{path} is a recording under the draft tree {shape}; this takes recordings of chains "
            "alone"
        )
