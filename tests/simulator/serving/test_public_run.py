"""The serving simulator fed with a public run's inputs must cross 1 where that run did.

vLLM on an A100, Llama-3.1-8B with EAGLE-3, five drafted tokens, gsm8k: tokens per step, and
milliseconds of a step with and without speculation by concurrency; measured goodput ratio 2.13,
1.76, 1.22, 0.97 at concurrency 1, 8, 32, 64.
"""

from __future__ import annotations

import numpy as np
import pytest

from policies.fixed import Fixed, Never
from simulator.replay.theory import expected_emitted
from simulator.serving.metrics import serving_metrics
from simulator.serving.options import Server
from simulator.serving.server import serve
from traces import synthetic
from traces.costs.pricing import tabulate
from traces.workload.arrivals import demand
from traces.workload.workload import Workload

CONCURRENCY = (1, 8, 32, 64)
WITH_MS, WITHOUT_MS = (14.0, 19.3, 43.3, 77.2), (10.9, 12.0, 18.5, 26.3)
MEASURED = (2.13, 1.76, 1.22, 0.97)
TOKENS_PER_STEP, GAMMA = 2.87, 5


class Steps:
    """Seconds of a whole step by batch size; a step with a draft has its drafting in it."""

    def prefill_s(self, tokens: float, batch: int) -> float:
        return 0.0

    def draft_start_s(self, batch: int, context_tokens: float) -> float:
        return 0.0

    def draft_step_s(self, batch: int, context_tokens: float, tokens: float = 1) -> float:
        return 0.0

    def verify_s(self, tokens: float, batch: int, context_tokens: float) -> float:
        steps = WITHOUT_MS if tokens == 1 else WITH_MS
        return float(np.interp(batch, CONCURRENCY, steps)) / 1e3

    def signal_s(self) -> float:
        return 0.0

    def control_s(self) -> float:
        return 0.0


def alpha_of(tokens: float, gamma: int) -> float:
    """The acceptance rate that gives so many tokens a step."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_emitted(middle, gamma) < tokens else (low, middle)
    return low


def goodput_ratio(users: int) -> float:
    alpha = alpha_of(TOKENS_PER_STEP, GAMMA)
    trace = synthetic.constant(
        alpha, np.random.default_rng(3), requests=200, reply_tokens=400, depth=GAMMA
    )
    costs = tabulate(Steps(), range(1, users + 1), max_context=0, width=GAMMA + 2)
    asked = demand(Workload(requests=10 * users + 200, process="closed", users=users),
                   trace.category, 1)  # fmt: skip
    speed = [
        serving_metrics(
            serve(policy, trace, asked, costs, Server(slots=users)), warmup=0.1
        ).goodput_per_s
        for policy in (Fixed(GAMMA), Never())
    ]
    return speed[0] / speed[1]


def test_speculation_stops_paying_where_the_public_run_saw_it() -> None:
    ratios = [goodput_ratio(users) for users in CONCURRENCY]
    print("predicted", [f"{ratio:.2f}" for ratio in ratios], "measured", MEASURED)
    assert ratios[2] > 1.0 > ratios[3]  # between 32 and 64, as measured
    # The step times alone explain the measured ratios to 5 %: nothing is fitted.
    assert ratios == pytest.approx(MEASURED, rel=0.06)
    found = [np.interp(-1.0, [-a, -b], [32, 64]) for a, b in ((ratios[2], ratios[3]), (1.22, 0.97))]
    assert found[0] == pytest.approx(found[1], rel=0.1)  # concurrency at the crossing
