"""Environment steps per second of CPU time: the native vector environments, so many single ones in
gymnasium's SyncVectorEnv, and gymnasium's own vectorised CartPole, in one run.

    pytest -m benchmarks -s tests/benchmarks/test_env_speed.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

import simulator.envs  # noqa: F401  registers the environments

LANES = (64, 256, 1024, 4096)
TURNS = 7
pytestmark = pytest.mark.benchmarks


def per_cpu_second(step: Callable[[int], Any], lanes: int, calls: int) -> float:
    """Median over turns of lane steps per second of this process's CPU time."""
    found = []
    for _ in range(TURNS):
        began = time.process_time()
        for k in range(calls):
            step(k)
        found.append(calls * lanes / (time.process_time() - began))
    return statistics.median(found)


def speed(envs: Any, lanes: int, actions: int, budget: int) -> float:
    """Of a vector environment under random actions drawn beforehand."""
    chosen = np.random.default_rng(0).integers(0, actions, (64, lanes))
    envs.reset(seed=0)
    for k in range(40):
        envs.step(chosen[k])
    return per_cpu_second(lambda k: envs.step(chosen[k & 63]), lanes, max(20, budget // lanes))


@pytest.mark.parametrize("name", ["gammalab/Round-v0", "gammalab/Token-v0"])
def test_steps_per_cpu_second(name: str) -> None:
    actions = 9 if name.startswith("gammalab/Round") else 2
    print(f"\n{name}: million steps per CPU second (over SyncVectorEnv)")
    print("  lanes     reused              copying             sync    CartPole")
    for lanes in LANES:
        reused = speed(gymnasium.make_vec(name, lanes, copy=False), lanes, actions, 2_000_000)
        copying = speed(gymnasium.make_vec(name, lanes), lanes, actions, 2_000_000)
        some = min(lanes, 256)  # its cost per step does not fall with their number
        kind = {"vectorization_mode": "sync"}
        sync = speed(gymnasium.make_vec(name, some, **kind), some, actions, 4_000)
        pole = speed(gymnasium.make_vec("CartPole-v1", lanes), lanes, 2, 1_000_000)
        print(
            f"  {lanes:5}  {reused / 1e6:7.1f} ({reused / sync:5.0f}x)"
            f"  {copying / 1e6:7.1f} ({copying / sync:5.0f}x)  {sync / 1e6:8.4f}  {pole / 1e6:8.1f}"
        )


def test_what_sb3_gains_end_to_end() -> None:
    """SB3's PPO on our adapter and on its own DummyVecEnv of the single environments."""
    pytest.importorskip("stable_baselines3")
    import torch
    from stable_baselines3.common.vec_env import DummyVecEnv

    from experiments.learning import ppo
    from experiments.learning.sb3 import LaneVecEnv, make_model

    torch.set_num_threads(1)
    settings = ppo.PPOSettings(horizon=32, hidden=32)
    print("\nSB3's PPO, steps per second of learn(), and ours")
    for lanes in (64, 256):
        native = gymnasium.make_vec(
            "gammalab/Token-v0", lanes, autoreset_mode="SameStep", copy=False
        )
        dummy = DummyVecEnv([lambda: gymnasium.make("gammalab/Token-v0")] * lanes)
        rates = {}
        for name, env in (("adapter", LaneVecEnv(native)), ("DummyVecEnv", dummy)):
            model = make_model("ppo", env, settings)
            model.learn(lanes * 32)  # warm
            began = time.perf_counter()
            model.learn(lanes * 32 * 5)
            rates[name] = lanes * 32 * 5 / (time.perf_counter() - began)
        state = ppo.State(native, settings)
        ppo.advance(state)
        began = time.perf_counter()
        for _ in range(5):
            ppo.advance(state)
        ours = lanes * 32 * 5 / (time.perf_counter() - began)
        print(
            f"  {lanes:5} lanes: adapter {rates['adapter']:,.0f}, DummyVecEnv "
            f"{rates['DummyVecEnv']:,.0f} ({rates['adapter'] / rates['DummyVecEnv']:.1f}x); "
            f"experiments.learning.ppo {ours:,.0f} ({ours / rates['DummyVecEnv']:.1f}x)"
        )
