"""The whole registry where the draft goes on while the target verifies, and where it does not.

There a full acceptance brings no token of the target's own although the reply goes on. The table of
both, tokens per second on the shipped greedy trace and timing, one slot, draft on its own device:

    pytest -m slow -n 0 -s tests/conformance/test_pipelined.py
"""

from __future__ import annotations

import numpy as np
import pytest

from policies.fixed import Fixed
from policies.registry import REGISTRY, parse_policy
from simulator.serving.options import Server
from simulator.serving.result import ServingResult
from simulator.serving.server import serve
from traces.costs.pricing import tabulate
from traces.costs.table import Table
from traces.shipped import GREEDY, TIMING
from traces.store import read_trace
from traces.timing import read_timing
from traces.workload.arrivals import demand
from traces.workload.workload import Workload

TRACE = read_trace(GREEDY)
SHAPE = {"max_context": 512, "width": TRACE.meta.depth + 2, "bucket_tokens": 32}
COSTS = tabulate(Table(read_timing(TIMING)), **SHAPE)
DEAF = 0.7  # of the unpipelined speed; no rule of the registry has a reason to fall below


def played(name: str, *, pipelined: bool, log: bool = False) -> ServingResult:
    server = Server(slots=1, apart=True, pipelined=pipelined)
    # A log is asked for once: as plain Python and of a dozen replies, for a loop that writes one is
    # compiled for seconds.
    requests = 12 if log else TRACE.requests
    workload = Workload(requests, "closed", users=1, order="recorded")
    asked = demand(workload, TRACE.category, 0)
    return serve(parse_policy(name), TRACE, asked, COSTS, server, log=log, compiled=not log)


def tokens_per_s(name: str, *, pipelined: bool) -> float:
    served = played(name, pipelined=pipelined)
    return float(served.tokens.sum() / served.busy_s.sum())


def test_only_the_last_round_of_a_reply_ends_it() -> None:
    assert isinstance(parse_policy("fixed"), Fixed)
    log = played("fixed", pipelined=True, log=True).round_log
    assert log is not None
    last = np.append(log.request[1:] != log.request[:-1], True)
    quiet = log.emitted <= log.accepted  # what once was taken for the end
    assert not log.ended[~last].any() and quiet[~last].any()
    assert np.array_equal(log.ended[last], quiet[last]) and quiet.any()


@pytest.mark.slow
def test_no_rule_is_deaf_to_full_acceptance() -> None:
    print("\ntokens/s              in turn  pipelined")
    deaf = []
    for name in REGISTRY:
        plain, ahead = (tokens_per_s(name, pipelined=pipelined) for pipelined in (False, True))
        print(f"{name:20} {plain:8.1f}   {ahead:8.1f}", flush=True)
        if ahead < DEAF * plain:
            deaf.append(name)
    assert deaf == []
