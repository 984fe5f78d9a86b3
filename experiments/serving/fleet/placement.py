"""The draft on the target's device, on one of its own, drafting ahead there; and replicas behind a
router.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from experiments.common.results import jsonable
from experiments.common.statistics import Interval
from experiments.common.text_table import number, table
from experiments.serving.fleet.question import (
    Answer,
    Setting,
    distinct,
    full_load,
    shown,
    spread_line,
)
from experiments.serving.policy_runs import seed_ratio
from policies.fixed import Fixed, Never
from policies.registry import label, title
from simulator.serving.metrics import Service
from traces.workload.workload import Workload


def placement(ask: Setting) -> Answer:
    """Fixed and adaptive gammas with the draft here, there, and drafting ahead there; then the same
    load on replicas behind each router.
    """
    costs = ask.costs()
    users = ask.server.slots
    workload = Workload(requests=max(ask.requests, 8 * users), process="closed", users=users)
    step_s = float(costs.draft_s[0, 0, 1])
    places = {
        "one device": ask.server,
        "apart, no network": dataclasses.replace(ask.server, apart=True),
        f"apart, {1e3 * step_s:.2g} ms each way": dataclasses.replace(
            ask.server, apart=True, hop_s=step_s
        ),
        "apart, drafting ahead": dataclasses.replace(ask.server, apart=True, pipelined=True),
        f"ahead, {1e3 * step_s:.2g} ms each way": dataclasses.replace(
            ask.server, apart=True, pipelined=True, hop_s=step_s
        ),
    }
    policies = distinct([Never(), Fixed(1), Fixed(3), Fixed(5), Fixed(8), *ask.policies])
    speeds: dict[str, dict[str, float]] = {}
    spreads: list[Interval] = []
    plain_runs: Sequence[Service] = ()
    for name, server in places.items():
        rows = ask.run(policies, workload, server, costs)
        speeds[name] = {r.policy: r.intervals["tokens_per_s"].mean for r in rows}
        plain_runs = plain_runs or rows[0].runs
        spreads += [seed_ratio(r.runs, plain_runs, lambda run: run.tokens_per_s) for r in rows]
    plain = speeds["one device"]["never"]
    cells = [
        [title(label(p)), *(number(line[label(p)] / plain, 3) for line in speeds.values())]
        for p in policies
    ]
    full = full_load(ask, costs).requests_per_s
    poisson = Workload(requests=2 * ask.requests, process="poisson", rate_per_s=2 * 0.85 * full)
    routed = {}
    for router in ("round-robin", "least-outstanding", "shortest-queue"):
        server = dataclasses.replace(ask.server, replicas=2, router=router)
        rows = ask.run([Never(), Fixed(3)], poisson, server, costs)
        routed[router] = [row.intervals["ttft.p99"] for row in rows]
    lines = [[name, *(shown(v, 3) for v in values)] for name, values in routed.items()]
    text = "\n\n".join([
        f"tokens/s over plain decoding, {users} users without a pause. One device more is used "
        "where the draft is apart; what it costs is not in the table",
        table(("policy", *(name.replace(", ", ",\n", 1) for name in places)), [("", cells)]),
        spread_line(spreads),
        "two replicas at 0.85 of plain decoding's capacity: TTFT p99, seconds, 95 % over seeds",
        table(("router", "never", "fixed:gamma=3"), [("", lines)]),
    ])  # fmt: skip
    return Answer(text, {"tokens_per_s": speeds, "ttft_p99_s": jsonable(routed)})
