"""A recording as rounds meet it that choose among several draft trees."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from traces.errors import InputError
from traces.roundlog import RoundLog
from traces.schema import Trace
from traces.shapes.growth import Growth
from traces.shapes.shape import Grown, Shape, check_recorded
from traces.shapes.unfold import under

IntArray = npt.NDArray[np.int64]

MOST_ENTRIES = 64


@dataclasses.dataclass(frozen=True)
class Several:
    """Shapes among which a policy chooses, in the place of one."""

    entries: tuple[Shape, ...]

    @property
    def nodes(self) -> int:
        """Of the largest."""
        return max(shape.nodes for shape in self.entries)

    @property
    def depth(self) -> int:
        """Of the deepest."""
        return max(shape.depth for shape in self.entries)

    @property
    def is_chain(self) -> bool:
        """True if there is nothing but chains."""
        return all(shape.is_chain for shape in self.entries)

    def __str__(self) -> str:
        return " or ".join(map(str, self.entries))


@dataclasses.dataclass(frozen=True, eq=False)
class Menu:
    """A entries, each a shape and the recording under it (traces.shapes.unfold.under)."""

    shapes: tuple[Shape | Grown, ...]
    traces: tuple[Trace, ...]

    @property
    def levels(self) -> IntArray:
        """[A] how deep each entry goes."""
        return np.array([shape.depth for shape in self.shapes], dtype=np.int64)

    def select(self, rows: list[int]) -> Menu:
        """Of these requests of the recording."""
        return Menu(self.shapes, tuple(trace.select(rows) for trace in self.traces))


def menu_of(trace: Trace, shapes: Sequence[Shape | Grown], growth: Growth | None = None) -> Menu:
    """The recording under each of these shapes; growth: for those that grow.

    A signal that one entry lacks no policy reads. Raises InputError as check_menu and
    traces.shapes.unfold.under.
    """
    check_menu(shapes)
    return Menu(tuple(shapes), tuple(under(trace, shape, growth) for shape in shapes))


def check_menu(shapes: Sequence[Shape | Grown]) -> None:
    """Raises InputError for no shape, too many, or one whose nodes are picked."""
    if not 1 <= len(shapes) <= MOST_ENTRIES:
        raise InputError(f"a menu has 1 to {MOST_ENTRIES} shapes, not {len(shapes)}")
    for shape in shapes:
        check_recorded("menu", str(shape), welcome=True)


def with_trees(log: RoundLog, shapes: Sequence[Shape | Grown], entries: IntArray) -> RoundLog:
    """The log of rounds that drafted these entries [K] of a menu, with `nodes`; and with `shape`,
    where there was a choice.
    """
    table = np.zeros((len(shapes), max(shape.depth for shape in shapes) + 1), dtype=np.int32)
    for row, shape in zip(table, shapes, strict=True):
        row[: shape.depth + 1] = shape.nodes_to
    chosen = entries.astype(np.int32) if len(shapes) > 1 else None
    return dataclasses.replace(log, nodes=table[entries, log.verified], shape=chosen)
