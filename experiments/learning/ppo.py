"""Proximal policy optimisation on the native vector environment, in one file.

Schulman, Wolski, Dhariwal, Radford and Klimov, Proximal Policy Optimization Algorithms, arXiv
1707.06347; advantages as in Schulman et al., arXiv 1506.02438, undiscounted: the return is the
quantity of interest. Letters: T steps of L lanes, K numbers observed, A actions, B = T L.

Everything a run needs to go on lies in `State.tensors()`: stopped and resumed it ends in the same
weights, bit for bit, on the same machine with the same number of threads.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simulator.envs.vector import LaneVectorEnv

# Arrays of simulator.envs.kernel.Lanes that a run goes on from.
KEPT = ("lanes", "memory", "seen", "obs")


@dataclasses.dataclass(frozen=True)
class PPOSettings:
    """How PPO is run.

    iterations: of `horizon` steps in every lane.
    hidden: width of both layers of the policy.
    epochs: over every batch, in `minibatches` parts.
    learning_rate: at the first iteration, falling to 0.
    clip: of the ratio of probabilities.
    trace: the lambda of the advantages.
    entropy: its bonus, falling to 0 with the learning rate.
    seed: of the weights and all draws.
    """

    iterations: int = 800
    horizon: int = 64
    hidden: int = 32
    epochs: int = 4
    minibatches: int = 8
    learning_rate: float = 1e-3
    clip: float = 0.2
    trace: float = 0.95
    entropy: float = 0.005
    seed: int = 0


def layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of ReLU, as policies.learned.neural plays them."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
        nn.Linear(hidden, outputs),
    )  # fmt: skip


def weights_of(policy: nn.Module) -> list[Any]:
    """w1, b1, w2, b2, w3, b3 of a network: inputs by outputs, float64."""
    found: list[Any] = []
    for layer in policy.modules():
        if isinstance(layer, nn.Linear):
            found.append(layer.weight.detach().double().numpy().T.copy())
            found.append(layer.bias.detach().double().numpy().copy())
    return found


class State:
    """A run in progress: networks, optimiser, environment, randomness, iterations done."""

    def __init__(self, env: LaneVectorEnv, settings: PPOSettings) -> None:
        self.env, self.settings, self.iteration = env, settings, 0
        torch.manual_seed(settings.seed)
        numbers = env.stage.numbers
        self.policy = layers(numbers, settings.hidden, env.choices)
        self.critic = layers(numbers, 64, 1)
        with torch.no_grad():
            list(self.policy.parameters())[-2].mul_(0.01)  # all actions alike at the start
        weights = [*self.policy.parameters(), *self.critic.parameters()]
        self.optimizer = torch.optim.Adam(weights, lr=settings.learning_rate, eps=1e-5)
        for weight in weights:  # so that there is something to load into
            moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[weight] = {"step": torch.zeros(()), **moments}
        self.random = torch.Generator().manual_seed(settings.seed)
        self.obs, _ = env.reset(seed=settings.seed)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that changes, by name; the live tensors where they are tensors."""
        found = {f"policy.{k}": v for k, v in self.policy.state_dict().items()}
        found |= {f"critic.{k}": v for k, v in self.critic.state_dict().items()}
        for number, moments in enumerate(self.optimizer.state.values()):
            found |= {f"adam.{number}.{name}": value for name, value in moments.items()}
        for name in KEPT:
            array = getattr(self.env.stage.arrays, name)
            found[f"env.{name}"] = torch.from_numpy(array.view(np.uint8).reshape(-1))
        found["random"] = self.random.get_state()
        found["iteration"] = torch.tensor(self.iteration)
        return found

    def load(self, saved: dict[str, Tensor]) -> None:
        """Go on from what `tensors` gave; KeyError or RuntimeError if it is of another run."""
        for name, value in self.tensors().items():
            value.copy_(saved[name])
        self.random.set_state(saved["random"].clone())
        self.iteration = int(saved["iteration"])


def advance(state: State) -> float:
    """One iteration: T steps in every lane, then the updates; returns the mean reward of a step."""
    share = 1.0 - state.iteration / state.settings.iterations
    for group in state.optimizer.param_groups:
        group["lr"] = state.settings.learning_rate * share
    batch, reward = rollout(state)
    update(state, batch, state.settings.entropy * share)
    state.iteration += 1
    return reward


@dataclasses.dataclass(frozen=True)
class Batch:
    """obs (B, K); actions, logp, advantages, returns (B)."""

    obs: Tensor
    actions: Tensor
    logp: Tensor
    advantages: Tensor
    returns: Tensor


@torch.no_grad()
def rollout(state: State) -> tuple[Batch, float]:
    """T steps in every lane by the present policy."""
    env, steps, lanes = state.env, state.settings.horizon, state.env.num_envs
    obs = torch.empty(steps + 1, lanes, env.stage.numbers)
    actions = torch.empty(steps, lanes, dtype=torch.int64)
    logp = torch.empty(steps, lanes)
    rewards = torch.empty(steps, lanes)
    ended = torch.empty(steps, lanes)
    for t in range(steps):
        obs[t] = torch.from_numpy(state.obs)
        log_probs = torch.log_softmax(state.policy(obs[t]), dim=-1)  # (L, A)
        noise = torch.empty_like(log_probs).exponential_(generator=state.random)
        actions[t] = (log_probs - noise.log()).argmax(dim=-1)  # Gumbel: a draw from the policy
        logp[t] = log_probs.gather(1, actions[t, :, None])[:, 0]
        state.obs, reward, terminated, truncated, _ = env.step(actions[t].numpy())
        rewards[t] = torch.from_numpy(reward)
        ended[t] = torch.from_numpy(terminated | truncated)
    obs[steps] = torch.from_numpy(state.obs)
    values = state.critic(obs)[..., 0]  # (T + 1, L)
    advantages = torch.empty(steps, lanes)
    ahead = torch.zeros(lanes)
    for t in reversed(range(steps)):
        going = 1.0 - ended[t]
        surprise = rewards[t] + going * values[t + 1] - values[t]
        ahead = surprise + state.settings.trace * going * ahead
        advantages[t] = ahead
    flat = [x.reshape(steps * lanes, -1).squeeze(-1) for x in (obs[:-1], actions, logp)]
    returns = (advantages + values[:-1]).reshape(-1)
    batch = Batch(flat[0], flat[1], flat[2], advantages.reshape(-1), returns)
    return batch, float(rewards.mean())


def update(state: State, batch: Batch, entropy: float) -> None:
    """Epochs of the clipped objective over a batch."""
    settings, size = state.settings, len(batch.actions)
    parameters = [*state.policy.parameters(), *state.critic.parameters()]
    for _ in range(settings.epochs):
        order = torch.randperm(size, generator=state.random)
        for rows in order.chunk(settings.minibatches):
            log_probs = torch.log_softmax(state.policy(batch.obs[rows]), dim=-1)
            logp = log_probs.gather(1, batch.actions[rows, None])[:, 0]
            gain = batch.advantages[rows]
            gain = (gain - gain.mean()) / (gain.std() + 1e-8)
            ratio = (logp - batch.logp[rows]).exp()
            clipped = ratio.clamp(1.0 - settings.clip, 1.0 + settings.clip)
            loss = -torch.min(ratio * gain, clipped * gain).mean()
            error = state.critic(batch.obs[rows])[:, 0] - batch.returns[rows]
            loss = loss + 0.5 * error.square().mean()
            loss = loss + entropy * (log_probs.exp() * log_probs).sum(dim=-1).mean()
            state.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 0.5)
            state.optimizer.step()
