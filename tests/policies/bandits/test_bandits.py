"""Bandits over lengths: all conform, compiled they decide the same, and where each settles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from policies.bandits.begmab import (
    BegMab,
)
from policies.bandits.contextual import LinThompson, LinUCB, Nightjar
from policies.bandits.exp3 import Exp3, Exp3Spec
from policies.bandits.tapout import TapOut
from policies.bandits.thompson import ThompsonBeta, ThompsonGauss
from policies.bandits.ucb import UCB, UCB1, DiscountedUCB, SlidingUCB
from policies.bandits.ucbspec import UCBSpec, UCBSpecReleased
from policies.base import Policy
from policies.conformance import check_policy
from policies.ours.hedge import Hedge
from simulator.replay.hindsight import best_fixed
from simulator.replay.replay import replay, replay_interpreted
from tests.policies.bandits.outcomes import costs_with
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate

POLICIES: list[Policy] = [
    UCB(),
    UCB1(),
    UCB1(gamma_min=0, gamma_max=3),
    UCBSpec(),
    UCBSpecReleased(),
    DiscountedUCB(),
    DiscountedUCB(gamma_min=0, gamma_max=3, discount=0.5),
    SlidingUCB(),
    SlidingUCB(gamma_max=5, window=3),
    Exp3(),
    Exp3(gamma_min=0, gamma_max=3, exploration=0.0),
    Exp3Spec(),
    ThompsonBeta(),
    ThompsonBeta(gamma_max=3, discount=1.0),
    ThompsonGauss(),
    ThompsonGauss(gamma_min=0, gamma_max=2),
    BegMab(),
    BegMab(gamma_max=3, window=4, epsilon=0.5, refresh=1.0),
    TapOut(),
    TapOut(gamma_max=3, confidence=0.4, entropy_low=0.3),
    LinUCB(),
    LinUCB(gamma_min=0, gamma_max=3, exploration=0.0, memory=1.0),
    LinThompson(),
    Nightjar(),
    Nightjar(gamma_max=3, batch_max=1, switch_steps=9.0),
    Hedge(),
    Hedge(gamma_max=3, rate=2.0, share=0.5, probe_every=2),
]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_policies_conform(policy: Policy) -> None:
    check_policy(policy)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_plain_and_compiled_agree(policy: Policy) -> None:
    generator = np.random.default_rng(5)
    costs = tabulate(Affine(context_token=1e-6, signal=1e-4, control=2e-4, prefill_token=1e-4))
    size: dict[str, Any] = {"requests": 3, "reply_tokens": 150, "signals": True}
    for trace in (
        synthetic.constant(0.8, generator, **size),
        synthetic.bursty(0.95, 0.3, generator, **size),
    ):
        log = replay(policy, trace, costs, seed=3)
        assert log.same_rounds(replay_interpreted(policy, trace, costs, seed=3))
        assert int(log.emitted.sum()) == trace.positions


@pytest.mark.parametrize(
    "policy",
    [
        UCB(),
        DiscountedUCB(),
        SlidingUCB(),
        ThompsonBeta(),
        ThompsonGauss(),
        LinUCB(),
        LinThompson(),
        Nightjar(),
        Hedge(),
    ],
    ids=lambda policy: policy.name,
)
def test_late_rounds_play_the_best_length_or_its_neighbour(policy: Policy) -> None:
    generator, costs = np.random.default_rng(0), costs_with(10.0)
    trace = synthetic.constant(0.6, generator, requests=40, reply_tokens=512)
    best, reference = best_fixed(trace, costs)
    log = replay(policy, trace, costs)
    late = log.gamma[len(log) // 2 :]
    assert best == 3 and (np.abs(late - best) <= 1).mean() > 0.85
    assert log.elapsed_s.sum() < 1.04 * reference.elapsed_s.sum()


@pytest.mark.parametrize("policy", [UCB1(), Exp3()], ids=lambda policy: policy.name)
def test_slow_bandits_lean_to_the_best_length(policy: Policy) -> None:
    generator, costs = np.random.default_rng(0), costs_with(10.0)
    trace = synthetic.constant(0.6, generator, requests=40, reply_tokens=512)
    late = replay(policy, trace, costs).gamma[-4000:]
    near = np.abs(late - 3) <= 1
    assert 0.85 > near.mean() > 0.5  # 3 of 8 arms; neither settles within this many rounds


def test_rules_that_count_rounds_miss_the_best_length() -> None:
    generator, costs = np.random.default_rng(0), costs_with(4.0)
    trace = synthetic.constant(0.6, generator, requests=40, reply_tokens=512)
    assert best_fixed(trace, costs)[0] == 2
    late = replay(Exp3Spec(), trace, costs).gamma[-4000:]
    assert (late >= 3).mean() > 0.5
    late = replay(BegMab(), trace, costs).gamma[-4000:]
    assert np.bincount(late).argmax() < 2  # equal medians: the cheaper arm
