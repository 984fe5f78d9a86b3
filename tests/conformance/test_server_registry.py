"""The registry and networks, compiled, on a server of one slot, no queue: rounds a replay's.

The suite has this for the interpreted server and a few compiled policies; here every kernel of the
server is compiled, which takes minutes:  pytest -m slow tests/conformance/test_server_registry.py
"""

from __future__ import annotations

import pytest

from policies.base import Policy
from policies.learned.neural import neural_policy
from policies.registry import REGISTRY
from simulator.replay.replay import replay
from simulator.serving.options import Server
from simulator.serving.server import serve
from tests.policies.learned.test_neural import KINDS, random_network
from traces.costs.pricing import tabulate
from traces.costs.table import Table
from traces.shipped import GREEDY, TIMING
from traces.store import read_trace
from traces.timing import read_timing
from traces.workload.arrivals import demand
from traces.workload.workload import Workload

TRACE = read_trace(GREEDY).select(list(range(24)))
MODEL = Table(read_timing(TIMING))
SHAPE = {"max_context": 512, "width": TRACE.meta.depth + 2, "bucket_tokens": 32}


NETWORKS = [neural_policy(random_network(kind, 1), round_s=2e-5) for kind in KINDS]
POLICIES = [*(cls() for cls in REGISTRY.values()), *NETWORKS]


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_one_slot_and_no_queue_is_the_replay(policy: Policy) -> None:
    asked = demand(Workload(TRACE.requests, "closed", users=1, order="recorded"), TRACE.category, 0)
    costs = tabulate(MODEL, **SHAPE)
    served = serve(policy, TRACE, asked, costs, Server(slots=1), log=True)
    assert served.round_log is not None
    assert served.round_log.same_rounds(replay(policy, TRACE, tabulate(MODEL, **SHAPE)))
