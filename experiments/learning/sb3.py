"""Stable-Baselines3 on the native vector environment: an adapter, and PPO and DQN by that library.

Raffin et al., Stable-Baselines3: Reliable Reinforcement Learning Implementations, JMLR 22 (2021).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from experiments.learning import ppo
from experiments.learning.task import Task, TrainingMemory, note
from simulator.envs.vector import LaneVectorEnv

DQN_LANES = 64  # DQN replays single steps: more lanes would only age its memory


class LaneVecEnv(VecEnv):  # type: ignore[misc]  # the library ships no types that mypy is shown
    """A LaneVectorEnv in SAME_STEP mode as SB3 wants it: what an episode last saw comes in
    infos[lane]["terminal_observation"], and its return and length in infos[lane]["episode"].
    """

    def __init__(self, env: LaneVectorEnv) -> None:
        if env.metadata["autoreset_mode"].value != "SameStep":
            raise ValueError("SB3 resets an environment in the step that ends it: SameStep")
        self.env = env
        self._stepped: Any = None
        self._returns, self._lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=int)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Any:
        """Observations of a new episode in every lane, [L, K]."""
        seeds = self._seeds
        seeded = None if seeds[0] is None else list(seeds)
        self._reset_seeds()
        self._returns[:], self._lengths[:] = 0.0, 0
        return self.env.reset(seed=seeded)[0].copy()

    def step_async(self, actions: Any) -> None:
        self._stepped = self.env.step(actions)

    def step_wait(self) -> Any:
        """Observations, rewards, dones and infos of every lane."""
        obs, rewards, terminated, truncated, found = self._stepped
        dones = terminated | truncated
        self._returns += rewards
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for lane in np.flatnonzero(dones):
            infos[lane] = {
                "terminal_observation": found["final_obs"][lane],
                "TimeLimit.truncated": bool(truncated[lane] and not terminated[lane]),
                "episode": {
                    "r": float(self._returns[lane]), "l": int(self._lengths[lane]), "t": 0.0
                },
            }  # fmt: skip
        self._returns[dones], self._lengths[dones] = 0.0, 0
        return obs.copy(), rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        value = getattr(self.env, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError("the lanes share one environment: set it there")

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        raise NotImplementedError("the lanes share one environment: call it there")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[Any]:
        return self.env.render() or ()


def make_model(algo: str, env: VecEnv, settings: ppo.PPOSettings) -> Any:
    """SB3's PPO or DQN with a network that policies.learned.neural can play; PPO undiscounted."""
    shape = [settings.hidden, settings.hidden]
    common: dict[str, Any] = {"gamma": 1.0, "seed": settings.seed, "device": "cpu"}
    if algo == "ppo":
        arch = {"pi": shape, "vf": [64, 64]}
        return PPO(
            "MlpPolicy", env, n_steps=settings.horizon, n_epochs=settings.epochs,
            batch_size=env.num_envs * settings.horizon // settings.minibatches,
            learning_rate=lambda left: settings.learning_rate * left, gae_lambda=settings.trace,
            ent_coef=settings.entropy, clip_range=settings.clip,
            policy_kwargs={"net_arch": arch, "activation_fn": torch.nn.ReLU}, **common,
        )  # fmt: skip
    common["gamma"] = 0.98  # average rewards: 50 steps tell; undiscounted, its maxima run away
    return DQN(
        "MlpPolicy", env, learning_rate=1e-3, buffer_size=200_000, learning_starts=5_000,
        batch_size=512, train_freq=1, gradient_steps=2, target_update_interval=2_000,
        exploration_fraction=0.3, exploration_final_eps=0.02,
        policy_kwargs={"net_arch": shape}, **common,
    )  # fmt: skip


def actor_weights(model: Any) -> list[Any]:
    """w1 .. b3 of the network that acts."""
    if isinstance(model, DQN):
        return ppo.weights_of(model.q_net.q_net)
    body = model.policy.mlp_extractor.policy_net
    return ppo.weights_of(torch.nn.Sequential(body, model.policy.action_net))


class _Judge(BaseCallback):  # type: ignore[misc]  # as LaneVecEnv
    """Every so many steps: judge the policy on the validation requests."""

    def __init__(self, task: Task, run: TrainingMemory, every: int) -> None:
        super().__init__()
        self.task, self.run_, self.every = task, run, every
        self.began, self.last = time.perf_counter(), 0

    def _on_step(self) -> bool:
        if self.num_timesteps - self.last >= self.every:
            self.last = self.num_timesteps
            self.judge()
        return True

    def judge(self) -> None:
        """Add a row to the curve."""
        note(
            self.run_,
            self.task,
            actor_weights(self.model),
            steps=self.num_timesteps,
            seconds=time.perf_counter() - self.began,
            reward=float("nan"),
        )


def fit_sb3(algo: str, task: Task, settings: ppo.PPOSettings, *, lanes: int) -> TrainingMemory:
    """Train by SB3 for as many steps as our PPO would take (DQN: half of them, in 64
    lanes); such a run does not resume.
    """
    lanes = min(lanes, DQN_LANES) if algo == "dqn" else lanes
    env = LaneVecEnv(task.env(lanes))
    total = settings.iterations * settings.horizon * lanes
    if algo == "dqn":
        total = max(50_000, total // 2)
    model, run = make_model(algo, env, settings), TrainingMemory()
    judge = _Judge(task, run, max(1, total // 40))
    model.learn(total, callback=judge)
    judge.judge()
    return run
