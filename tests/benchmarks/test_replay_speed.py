"""Nanoseconds per round of three runtimes with the same hooks; prints, never asserts a time.

Run with `pytest -m benchmarks -s tests/benchmarks`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest
import simpy

from policies.base import Draft, Outcome, Policy, clamp_gamma, uses_signals
from policies.randomness import Rng, round_key
from policies.registry import parse_policy
from policies.round import room_at, settle, view_at
from simulator.replay.replay import check_inputs, replay, replay_interpreted
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.pricing import StepCosts, bucket_of, lag_after, prices_of, round_seconds, tabulate
from traces.schema import Trace

POLICIES = ("fixed", "gammatune", "tail-pruning", "ucb", "goodput")


def simpy_rounds(policy: Policy, trace: Trace, costs: StepCosts) -> tuple[int, float]:
    """One process per request, one timeout per round, one request at a time; rounds and seconds."""
    signals, limits = uses_signals(policy), check_inputs(policy, trace, costs)
    prices, state = prices_of(costs, signals=signals), policy.new_state(1)
    env, rounds = simpy.Environment(), 0
    server = simpy.Resource(env, capacity=1)

    def request(r: int) -> Generator[Any, Any, None]:
        nonlocal rounds
        with server.request() as turn:
            yield turn
            policy.admit(state, 0)
            prompt, begin, end = (
                int(trace.prompt_tokens[r]), int(trace.offsets[r]), int(trace.offsets[r + 1]),
            )  # fmt: skip
            yield env.timeout(float(prices.prefill_s[bucket_of(prices, prompt)]))
            at, index, lag = begin, 0, 1
            while at < end:
                context = prompt + at - begin
                bucket, room = (
                    bucket_of(prices, context),
                    room_at(limits, prompt, at - begin, 1 << 15),
                )
                view = view_at(prices, 0, bucket, context, 1, 0, room)
                rng = Rng(round_key(0, r, index))
                cap = clamp_gamma(policy.gamma(state, 0, view, rng), room)
                drafted = draft(policy, state, trace, at, cap) if signals else cap
                accepted, emitted, ended = settle(drafted, int(trace.accept_len[at]), end - at)
                elapsed = round_seconds(prices, 0, bucket, drafted, lag)
                yield env.timeout(elapsed)
                outcome = Outcome(cap, drafted, accepted, emitted, ended, elapsed, elapsed)
                policy.learn(state, 0, view, outcome)
                lag = lag_after(lag, drafted, accepted, False)
                at, index, rounds = at + emitted, index + 1, rounds + 1

    for r in range(trace.requests):
        env.process(request(r))
    env.run()
    return rounds, float(env.now)


def draft(policy: Policy, state: Any, trace: Trace, at: int, cap: int) -> int:
    assert trace.top1_prob is not None and trace.entropy is not None
    drafted, going = 0, True
    while going and drafted < cap:
        top1, entropy = float(trace.top1_prob[at, drafted]), float(trace.entropy[at, drafted])
        drafted += 1
        going = policy.proceed(state, 0, Draft(drafted, top1, entropy))
    return drafted


def median_ns(run: Callable[[], object], rounds: int, repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) / rounds * 1e9


@pytest.mark.benchmarks
def test_nanoseconds_per_round(capsys: pytest.CaptureFixture[str]) -> None:
    trace = synthetic.bursty(0.9, 0.5, np.random.default_rng(0), requests=140, signals=True)
    costs = tabulate(Affine(signal=1e-4, control=1e-4, prefill_token=1e-5))
    lines = [f"{'policy':14}{'rounds':>8}{'compiled':>10}{'interpreted':>13}{'simpy':>9}  ns/round"]
    for name in POLICIES:
        policy = parse_policy(name)
        log = replay(policy, trace, costs)
        rounds, seconds = simpy_rounds(policy, trace, costs)
        assert rounds == len(log)
        assert seconds == pytest.approx(float(log.start_s[-1] + log.elapsed_s[-1]))
        compiled = median_ns(lambda p=policy: replay(p, trace, costs), rounds, 15)
        plain = median_ns(lambda p=policy: replay_interpreted(p, trace, costs), rounds, 5)
        process = median_ns(lambda p=policy: simpy_rounds(p, trace, costs), rounds, 5)
        lines.append(
            f"{name:14}{rounds:8d}{compiled:10.1f}{plain:13.0f}{process:9.0f}"
            f"  interpreted {plain / compiled:.0f}x, simpy {process / compiled:.0f}x"
        )
    with capsys.disabled():
        print("\n" + "\n".join(lines))
