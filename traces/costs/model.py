"""The protocol of cost models: what a machine, a pair and a kind of drafter charge, in seconds.

A round of a batch costs draft_start_s + sum_j [draft_step_s(active_j) + signal_s]
+ verify_s(sum(drafted + 1)) + control_s, and what the rule's own arithmetic costs
(policies.overhead). Nothing is hidden in another term.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from traces.timing import OwnSeconds


class CostModel(Protocol):
    """Prices of a machine and a pair, seconds.

    What a draft is made of depends on its kind (traces.timing.DRAFT_KINDS): of a further forward
    per token draft_step_s is the price; one forward for the whole block, or a look-up, is
    draft_start_s, and a further token is free.
    """

    def prefill_s(self, tokens: float, batch: int) -> float:
        """Both models read a prompt of `tokens` in each of `batch` rows."""

    def draft_start_s(self, batch: int, context_tokens: float) -> float:
        """The price of a draft once a round, whatever its length, beyond its steps."""

    def draft_step_s(self, batch: int, context_tokens: float, tokens: float = 1) -> float:
        """One more drafted token; `tokens` per row are read for it (above 1: the cache lags)."""

    def verify_s(self, tokens: float, batch: int, context_tokens: float) -> float:
        """One target forward over `tokens` per row (drafted + 1) and the accept decision."""

    def signal_s(self) -> float:
        """Reading top-1 probability and entropy of one drafted token to the host."""

    def control_s(self) -> float:
        """The engine's own fixed seconds per round, without any rule's arithmetic."""


@runtime_checkable
class KnowsRules(Protocol):
    """A cost model that knows what rules' own arithmetic costs on its machine, too."""

    def own_s(self) -> OwnSeconds:
        """By policy name; see policies.overhead."""


@runtime_checkable
class KnowsDraft(Protocol):
    """A cost model that knows what kind of draft it prices, one of traces.timing.DRAFT_KINDS."""

    draft_kind: str


@runtime_checkable
class ReadsStates(Protocol):
    """A cost model that knows whether its drafter is a feature head (EAGLE): it reads every fixed
    token with the target's state of it, so that after a round it lacks all that was emitted.
    """

    @property
    def reads_states(self) -> bool:
        """True for a feature head."""


@runtime_checkable
class KnowsTrees(Protocol):
    """A cost model that may know what the steps of draft trees cost, one request at a time."""

    @property
    def knows_trees(self) -> bool:
        """True if it does; else trees are priced as chains of as many tokens."""

    def level_s(self, nodes: float, context_tokens: float) -> float:
        """The draft reads the nodes of a level and offers children of each."""

    def tree_s(self, tokens: float, context_tokens: float) -> float:
        """As verify_s: the newest token and the nodes of a tree, and what follows from it."""
