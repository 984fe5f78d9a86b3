"""The pool that episodes are drawn from: requests of recorded traces and tables of costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from policies.base import IntArray, Policy
from policies.learned.observation import FACTS, ROUND, show_costs
from policies.overhead import charged
from policies.round import Limits, longest_reply
from traces.costs.affine import at_ratio
from traces.costs.model import CostModel
from traces.costs.pricing import StepCosts, prices_of, read_only, tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.schema import Trace
from traces.shipped import GREEDY, TIMING
from traces.store import read_trace
from traces.timing import Timing, read_timing

OPTIONS = ("traces", "requests", "cost_ratios", "loads")

TraceLike = Trace | Path | str
CostsLike = CostModel | Timing | Path | str


@dataclasses.dataclass(frozen=True, order=True)
class Cost:
    """A cost table: ratio c of a target to a draft forward, 0 for the machine's own; load: rows of
    the batch that the request shares the machine with, itself included.
    """

    ratio: float = 0.0
    load: int = 1


def as_trace(source: TraceLike) -> Trace:
    """A trace, or the one in this file; raises InputError if it leaves acceptance open."""
    trace = source if isinstance(source, Trace) else read_trace(Path(source))
    if trace.censored is not None:
        raise InputError(
            "the trace is censored: what a longer draft would have had accepted is not known, so "
            "no environment can play it; capture it with `gammalab capture`"
        )
    return trace


def as_costs(source: CostsLike) -> CostModel:
    """A cost model, or the measured one of a timing or of its file."""
    if isinstance(source, str | Path):
        source = read_timing(Path(source))
    return Table(source) if isinstance(source, Timing) else source


class Pool:
    """Requests and cost tables as arrays; letters as in simulator.envs.kernel.

    signals: the draft's signals are shown, and charged. Tables are added as options ask for them.
    player: the policy whose own arithmetic is charged on them; None: nobody's.
    Raises InputError for traces that cannot be played.
    """

    def __init__(
        self,
        sources: TraceLike | Sequence[TraceLike] | None,
        costs: CostsLike | None,
        *,
        signals: bool,
        max_gamma: int | None,
    ) -> None:
        given: TraceLike | Sequence[TraceLike] = GREEDY if sources is None else sources
        several = [given] if isinstance(given, Trace | Path | str) else given
        self.traces = [as_trace(one) for one in several]
        if not self.traces:
            raise InputError("no trace given to draw requests from")
        self.model = as_costs(TIMING if costs is None else costs)
        self.signals = signals
        self.player: Policy | None = None
        depth = self.deepest()
        self.max_gamma = depth if max_gamma is None else max_gamma
        if not 1 <= self.max_gamma <= depth:
            raise InputError(f"max_gamma is {max_gamma}; these traces can play 1..{depth}")
        self._add_requests()
        self.tables: dict[Cost, StepCosts] = {}
        self.costs_of([Cost()])

    def deepest(self) -> int:
        """The most tokens that any round of these traces can draft."""
        return min(trace.meta.depth for trace in self.traces)

    @property
    def widest(self) -> int:
        """Tokens of the widest step that is priced."""
        return self.max_gamma + 1

    def _add_requests(self) -> None:
        rows, at, self.first_request = [], 0, [0]
        for trace in self.traces:
            prompts = trace.prompt_tokens.astype(np.int64)
            limits = Limits(self.max_gamma, trace.meta.max_new_tokens, trace.meta.max_context)
            last = [longest_reply(limits, prompt) for prompt in prompts.tolist()]
            bounds = trace.offsets.astype(np.int64) + at
            rows.append(np.stack([bounds[:-1], bounds[1:], prompts, last], axis=1))
            at += trace.positions
            self.first_request.append(self.first_request[-1] + trace.requests)
        self.requests: IntArray = np.ascontiguousarray(np.concatenate(rows))
        self.longest = int((self.requests[:, 2] + self.requests[:, 1] - self.requests[:, 0]).max())
        accepted = np.concatenate([trace.accept_len for trace in self.traces])
        self.accept_len: npt.NDArray[np.int16] = read_only(accepted, np.int16)
        offered = np.concatenate([trace.offered for trace in self.traces])
        self.draft_len: npt.NDArray[np.int16] = read_only(offered, np.int16)
        self.top1_prob, self.entropy = self._signal("top1_prob"), self._signal("entropy")

    def _signal(self, name: str) -> npt.NDArray[np.float32]:
        """[N, G] of all traces, or [0, 0] where nobody looks."""
        if not self.signals:
            return np.zeros((0, 0), dtype=np.float32)
        columns = [getattr(trace, name) for trace in self.traces]
        if any(column is None for column in columns):
            raise InputError(
                f"a trace has no {name}, which is shown after every drafted token; capture it "
                "again, or play gammalab/Round-v0"
            )
        joined = np.concatenate([column[:, : self.max_gamma] for column in columns])
        found: npt.NDArray[np.float32] = read_only(joined, np.float32)
        return found

    def costs_of(self, wanted: Sequence[Cost]) -> list[int]:
        """The numbers of these tables, made if need be."""
        longest, width = self.longest + 32, self.widest + 1
        for cost in wanted:
            if cost not in self.tables:
                model = self.model if cost.ratio == 0.0 else at_ratio(self.model, cost.ratio)
                self.tables[cost] = tabulate(model, (cost.load,), max_context=longest, width=width)
        known = list(self.tables)
        return [known.index(cost) for cost in wanted]

    def paid(self) -> list[StepCosts]:
        """All tables as the player pays them."""
        player, reads = self.player, self.signals
        return [
            prices_of(table, signals=reads) if player is None
            else charged(player, table, signals=reads)
            for table in self.tables.values()
        ]  # fmt: skip

    def load(self, table: int) -> int:
        """Rows of the batch that a table's requests share the machine with."""
        return list(self.tables)[table].load

    def facts(self) -> npt.NDArray[np.float32]:
        """[M, C, 6], what policies.learned.observation shows of costs and load."""
        return self.facts_of(self.paid())

    def facts_of(self, tables: Sequence[StepCosts]) -> npt.NDArray[np.float32]:
        """`facts`, of tables that are paid so."""
        shown = np.zeros((1, len(ROUND)))
        found = np.zeros((len(tables), tables[0].buckets, len(ROUND) - FACTS))
        for m, (cost, table) in enumerate(zip(self.tables, tables, strict=True)):
            for c, verify_s in enumerate(table.verify_s[0]):
                step_s = float(table.draft_s[0, c, 1]) + table.signal_s
                show_costs(step_s, verify_s, cost.load, 0, shown, 0)
                found[m, c] = shown[0, FACTS:]
        return np.ascontiguousarray(found, dtype=np.float32)

    def choose(self, options: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """Requests and tables that options allow to draw: numbers of requests and of tables.

        Raises InputError for an option that is unknown or names what is not there.
        """
        for name in options:
            if name not in OPTIONS:
                raise InputError(f"unknown option {name!r} of reset; known: {', '.join(OPTIONS)}")
        chosen = _numbers(options, "traces", range(len(self.traces)))
        of_traces = [
            row
            for trace in chosen
            for row in range(self.first_request[trace], self.first_request[trace + 1])
        ]
        rows = _numbers(options, "requests", of_traces)
        ratios = [float(c) for c in _listed(options, "cost_ratios", [0.0])]
        loads = [int(b) for b in _listed(options, "loads", [1])]
        if min(ratios) < 0.0 or min(loads) < 1:
            raise InputError("options of reset: cost_ratios must be above 0, loads at least 1")
        return rows, self.costs_of([Cost(c, b) for c in ratios for b in loads])


def _listed(options: Mapping[str, Any], name: str, default: Sequence[Any]) -> list[Any]:
    """An option's values: one, or a list of at least one."""
    value = options.get(name, default)
    values = [value] if isinstance(value, int | float) else list(value)
    if not values:
        raise InputError(f"option {name!r} of reset is empty; name at least one")
    return values


def _numbers(options: Mapping[str, Any], name: str, known: Sequence[int]) -> list[int]:
    """An option that picks among known numbers."""
    picked = [int(value) for value in _listed(options, name, known)]
    wrong = sorted(set(picked) - set(known))
    if wrong:
        raise InputError(
            f"option {name!r} of reset names {wrong[0]}; there are {min(known)}..{max(known)}"
        )
    return picked
