"""How a server works: its options, and whether they fit a trace, its costs and a workload."""

from __future__ import annotations

import dataclasses

import numpy as np

from policies.base import Policy, drops_tokens, uses_signals
from policies.registry import label
from policies.round import Limits
from simulator.serving.draft_budget import ALLOTMENTS, TETRIS
from simulator.serving.queue import ORDERS, blocks_of
from traces.costs.pricing import StepCosts
from traces.errors import InputError
from traces.schema import Trace
from traces.workload.arrivals import Demand

ROUTERS = ("round-robin", "least-outstanding", "shortest-queue")
MOST_TOKENS = 2**31 - 1
BOUNDS: dict[str, tuple[float, float]] = {
    "slots": (1, 4096), "replicas": (1, 1024),
    "block_tokens": (1, MOST_TOKENS), "blocks": (0, MOST_TOKENS), "chunk_tokens": (0, MOST_TOKENS),
    "budget_tokens": (0, MOST_TOKENS), "hop_s": (0.0, 1e6), "jitter_s": (0.0, 1e6),
    "token_hop_s": (0.0, 1e6), "reentry_s": (0.0, 1e6), "bin_s": (1e-6, 1e9),
}  # fmt: skip
"""The smallest and the largest value of each number of a Server."""
REASONS = {
    "slots": ": step costs are tabulated for every batch size",
    "replicas": ": each has a queue and a time series of its own",
}
"""Of upper bounds that nobody would expect."""


@dataclasses.dataclass(frozen=True)
class Server:
    """How a server works.

    slots: requests that decode at once, per replica.
    order: of admission, see simulator.serving.queue.ORDERS.
    blocks: memory for keys and values, in blocks of block_tokens, per replica (0: no limit); a
        round reserves gamma + 1 tokens; when none is free, who was admitted last waits again and is
        read anew.
    chunk_tokens: prompt tokens read per iteration beside the decoding rows; 0: a prompt is read at
        once, and everybody waits.
    padded: every row is verified as wide as the widest.
    longest: caches of one width, as real_backend reads them: steps are priced at the longest
        context of their rows, and what a target step costs beyond that of the shortest context is
        paid for every row as wide as the widest; else at the mean of both (paged attention).
    allotment: see simulator.serving.draft_budget.
    budget_tokens: verified per iteration, of "budget" all of them, of "tetris" the drafted ones.
    max_gamma: None for the depth of the trace.
    apart: the draft has a device of its own, and every iteration with a draft crosses the network
        twice: hop_s each way, up to jitter_s more (uniform), token_hop_s per verified token.
    pipelined (needs apart): PEARL, as parallel_speculative_decoding in src/engine.py of
        github.com/smart-lty/ParallelSpeculativeDecoding has it (arXiv 2408.11850, which we have not
        read). Draft and target begin every iteration together and wait for each other. The target
        verifies what was drafted an iteration ago (post-verify; after a rejection nothing, pre-
        verify), and by the token that it adds the first of the new draft. Where they differ, or
        something before was rejected, the new draft is thrown away; else its others are verified
        next. So a row of gamma g emits g tokens an iteration while all are accepted. The network is
        crossed once, both ways at a time. A round's drafted tokens are those verified in it, its
        gamma no less.
    reentry_s: seconds charged when drafting begins again after iterations without.
    replicas: targets, each with its slots and memory (and draft).
    router: see ROUTERS.
    bin_s: width of the time series' bins, seconds.
    """

    slots: int = 8
    order: str = "first-come"
    block_tokens: int = 16
    blocks: int = 0
    chunk_tokens: int = 0
    padded: bool = False
    longest: bool = False
    allotment: str = "each"
    budget_tokens: int = 0
    max_gamma: int | None = None
    apart: bool = False
    hop_s: float = 0.0
    jitter_s: float = 0.0
    token_hop_s: float = 0.0
    pipelined: bool = False
    reentry_s: float = 0.0
    replicas: int = 1
    router: str = "round-robin"
    bin_s: float = 1.0

    def __post_init__(self) -> None:
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if isinstance(least, int) and not isinstance(value, int):
                raise InputError(f"server: {name} is {value!r}; give a whole number")
            if not least <= value <= most:
                raise InputError(
                    f"server: {name} is {value}; give {least} to {most:.12g}{REASONS.get(name, '')}"
                )
        choices = (("order", ORDERS), ("allotment", ALLOTMENTS), ("router", ROUTERS))
        for name, known in choices:
            if getattr(self, name) not in known:
                raise InputError(
                    f"server: {name} is {getattr(self, name)!r}; known: {', '.join(known)}"
                )
        if self.max_gamma is not None and not isinstance(self.max_gamma, int):
            raise InputError(f"server: max_gamma is {self.max_gamma!r}; give a whole number")
        if self.allotment == "budget" and self.budget_tokens < self.slots:
            raise InputError(
                f"server: budget_tokens is {self.budget_tokens}; budget needs at least one token "
                f"for each of the {self.slots} slots"
            )
        if self.allotment == "tetris" and self.budget_tokens < 1:
            raise InputError(
                f"server: budget_tokens is {self.budget_tokens}; tetris needs at least 1 drafted "
                "token to verify"
            )
        if self.pipelined and ALLOTMENTS[self.allotment] >= TETRIS:
            raise InputError(
                f"server: {self.allotment} trims a draft before it is verified; pipelined, its "
                "first token is verified while it is drafted: choose another allotment"
            )
        if self.pipelined and not self.apart:
            raise InputError("server: pipelined drafting needs a device of its own: set apart")
        network = self.hop_s + self.jitter_s + self.token_hop_s
        if network > 0.0 and not self.apart:
            raise InputError("server: hop_s, jitter_s and token_hop_s need a network: set apart")


def reads_signals(policy: Policy, server: Server) -> bool:
    """True if the policy or the allotment looks at the draft's confidence, which then costs."""
    return uses_signals(policy) or ALLOTMENTS[server.allotment] >= TETRIS


def _check_tree(policy: Policy, shape: str, server: Server) -> None:
    """Raises InputError for what counts drafted tokens one by one, where there are levels."""
    counted = {
        "an allotment": server.allotment != "each",
        "blocks": server.blocks > 0,
        "pipelined": server.pipelined,
        "token_hop_s": server.token_hop_s > 0.0,
        f"policy {label(policy)!r}, which drops tokens,": drops_tokens(type(policy)),
    }
    if wrong := [what for what, there in counted.items() if there]:
        raise InputError(
            f"{wrong[0]} counts drafted tokens; under the draft tree {shape} a draft is levels of "
            "several: leave it out, or take the recording of the chain"
        )


def check(policy: Policy, trace: Trace, demand: Demand, costs: StepCosts, server: Server) -> Limits:
    """The limits of a run; raises InputError if something does not fit."""
    if trace.meta.shape:
        _check_tree(policy, trace.meta.shape, server)
    depth = trace.meta.depth if server.max_gamma is None else server.max_gamma
    if not 0 <= depth <= trace.meta.depth:
        raise InputError(f"server: max_gamma is {depth}; this trace can play 0..{trace.meta.depth}")
    if reads_signals(policy, server) and not trace.has_signals:
        raise InputError(
            f"policy {label(policy)!r} with allotment {server.allotment!r} reads the draft's "
            "signals, but the trace has none; capture it again, or choose others"
        )
    if len(demand.row) == 0:
        raise InputError("the workload has no request")
    planes = int(costs.draft_s.shape[0])
    sizes = (costs.sizes or [*range(1, planes + 1)])[: server.slots]
    if sizes != [*range(1, server.slots + 1)] or costs.width < depth + 2:
        known = f"{planes} rows of {costs.width - 1} tokens"
        raise InputError(
            f"the costs cover {known}; {server.slots} slots and gamma {depth} need more: tabulate "
            "them for both"
        )
    if server.blocks > 0:
        asked = trace.select(sorted({int(row) for row in demand.row}))
        longest = asked.prompt_tokens + np.diff(asked.offsets)
        worst = int(longest.argmax())
        drafts = 2 if server.pipelined else 1  # one is verified while the next is made
        need = blocks_of(int(longest[worst]) + drafts * depth + 1, server.block_tokens)
        if need > server.blocks:
            raise InputError(
                f"server: {server.blocks} blocks of {server.block_tokens} tokens can never hold "
                f"request {asked.request_id[worst]!r}: {int(longest[worst])} tokens with its "
                f"reply, and gamma {drafts * depth} + 1; {need} are needed"
            )
    return Limits(depth, trace.meta.max_new_tokens, trace.meta.max_context)
