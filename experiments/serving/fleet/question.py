"""The setting of every question, and the parts of an answer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.common.cost_sources import Priced
from experiments.common.frames import Column
from experiments.common.plots import Picture
from experiments.common.statistics import Interval
from experiments.serving.policy_runs import PolicyResult, costs_for, run_policies
from policies.base import Policy
from policies.fixed import Never
from policies.registry import label
from simulator.serving.metrics import Objective, ServingMetrics
from simulator.serving.options import Server
from traces.costs.pricing import StepCosts
from traces.schema import Trace
from traces.workload.workload import Workload


@dataclasses.dataclass(frozen=True)
class FleetSetting:
    """The setting of all questions.

    trace: acceptance.
    priced: a cost model, and what it is.
    server: slots and memory.
    objective: what a request must keep to count as served.
    requests: of a run.
    seeds: of the runs, one each.
    policies: those asked for.
    step: called after every run of a policy.
    """

    trace: Trace
    priced: Priced
    server: Server
    objective: Objective
    requests: int
    seeds: range
    policies: tuple[Policy, ...]
    step: Callable[[], object] = lambda: None

    def costs(self) -> StepCosts:
        """Tables for the server."""
        return costs_for(self.priced, self.trace, self.server)

    def run(
        self, policies: Sequence[Policy], workload: Workload, server: Server, costs: StepCosts
    ) -> list[PolicyResult]:
        """policy_runs.run_policies here, the first tenth of the requests left out."""
        return run_policies(
            policies, self.trace, workload, costs, server, objective=self.objective,
            seeds=self.seeds, warmup=0.1, step=self.step,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Answer:
    """One table and what is said about it.

    about: a paragraph above the table.
    frame: a row per line of the table.
    notes: paragraphs below it.
    more: what the JSON holds beside the table.
    pictures: figures.
    """

    about: str
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()
    more: dict[str, Any] = dataclasses.field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()


class FleetQuestion(NamedTuple):
    """answer: computes it; columns: of the answer's frame, as people see them."""

    answer: Callable[[FleetSetting], Answer]
    columns: Callable[[pd.DataFrame], Sequence[Column]]


@dataclasses.dataclass(frozen=True)
class FullLoad:
    """Plain decoding with all slots busy: requests it finishes a second, and its mean TPOT."""

    requests_per_s: float
    tpot_s: float


def full_load(ask: FleetSetting, costs: StepCosts) -> FullLoad:
    """As many users as slots, no pause."""
    users = ask.server.slots
    workload = Workload(requests=max(ask.requests, 8 * users), process="closed", users=users)
    (row,) = ask.run([Never()], workload, ask.server, costs)
    return FullLoad(row.intervals["requests_per_s"].mean, row.intervals["tpot.mean"].mean)


def distinct(policies: Sequence[Policy]) -> list[Policy]:
    """Each once: a question's own policies may be among those asked for."""
    return list({label(policy): policy for policy in policies}.values())


def reply_s(run: ServingMetrics) -> float:
    """Mean seconds of a reply."""
    return run.end_to_end.mean


def spread_line(found: Sequence[Interval]) -> str:
    """How far other seeds would move the numbers of a table."""
    halves = [one.half for one in found if math.isfinite(one.half)]
    if not halves:
        return "one seed: how far other arrivals would move these numbers is not known"
    return (
        f"95 % intervals over seeds: half of the numbers +- {np.median(halves):.3f} or less, none "
        f"more than +- {max(halves):.3f}"
    )
