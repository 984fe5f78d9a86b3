"""The device half of a round: draft step by step, verify, read the decision back once.

A batch has rows; a row is one request with its place in both caches. Rows stand at different
lengths and draft different numbers of tokens: a step reads only the rows that take part, and only
the tokens they have (a ragged batch). Between two calls nothing returns from the device, unless the
policy looks at signals. `eager.py` runs operation by operation on any device, `solo.py` does so for
a single row of two models, `graphs.py` holds the same steps as CUDA graphs, and `lookup_steps.py`
has drafts that are looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from traces.shapes.shape import Grown, Shape

if TYPE_CHECKING:
    from real_backend.load_pair import Pair


class Sampling(NamedTuple):
    """How tokens are chosen: temperature 0 is greedy, top_p the nucleus of sampling."""

    temperature: float = 0.0
    top_p: float = 1.0


GREEDY = Sampling()


class Feed(NamedTuple):
    """The next tokens of a row: token ids, and where in its cache the first of them stands."""

    row: int
    ids: list[int]
    start: int


class Verdict(NamedTuple):
    """The verdict on one row's round: tokens judged, how many were accepted, the target's own."""

    drafted: list[int]
    accepted: int
    extra: int


Uniforms = list[list[float]]
"""Numbers in [0, 1) per row, one per token to be drawn; empty lists if greedy."""


MakeSteps = Callable[["Pair", int, int], "Steps"]
"""(pair, batch, capacity) -> steps of so many rows of at least so many tokens."""


class Steps(Protocol):
    """The device half of a round, as the module docstring says. rows: 0 <= row < batch; positions
    stay below `capacity`.
    """

    batch: int
    capacity: int

    def holds(self, context: int) -> bool:
        """True if every row's caches can be read on from `context`."""

    def prepare(
        self, sampling: Sampling, reads_signals: bool, max_gamma: int, shortest: int
    ) -> None:
        """Do ahead of the clock what a run with contexts from `shortest` tokens on will need."""

    def prefill(self, feed: Feed) -> None:
        """Target and drafter read a prompt; nothing is drafted from it yet."""

    def offers(self, rows: Sequence[tuple[int, list[int]]]) -> list[int]:
        """Tokens that the drafter has to offer to each row, whose tokens so far are these; asked
        in every round, before its policy.
        """

    def draft_first(
        self, feeds: Sequence[Feed], sampling: Sampling, reads_signals: bool, uniforms: Uniforms
    ) -> list[list[float]] | None:
        """The first draft step of a round: read what the draft lacks, draft one token per row.

        Returns [top1_prob, entropy] per row if the policy looks at them. uniforms: enough numbers
        for every token of the round.
        """

    def draft_next(self, rows: Sequence[int]) -> list[list[float]] | None:
        """One more token for these rows, each of which took part in the step before."""

    def drop(self, row: int) -> None:
        """The newest drafted token of this row, the last it drafts in this round, is not judged."""

    def verify(
        self, newest: Sequence[Feed], sampling: Sampling, uniforms: Uniforms
    ) -> list[Verdict]:
        """The target reads each row's newest token and its drafted ones; one read-back.

        uniforms: one number per drafted token and one for the token added.
        """


@runtime_checkable
class ShapedSteps(Steps, Protocol):
    """Steps of rows whose tokens are levels of draft trees; of a single row, where there are
    several.
    """

    shapes: Sequence[Shape | Grown]

    def choose(self, entry: int) -> None:
        """The rounds from here on draft shapes[entry]."""
