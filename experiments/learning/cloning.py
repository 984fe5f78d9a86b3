"""Behaviour cloning of the clairvoyant schedule: a warm start for training, and a baseline.

The clairvoyant knows what will be accepted, the network does not: what it learns is how often the
clairvoyant drafted in situations that look alike. Pomerleau, ALVINN, NIPS 1988.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from policies.base import IntArray
from policies.round import Limits
from simulator.envs.dataset import Pool
from simulator.envs.vector import LaneVectorEnv
from simulator.replay.hindsight import plan
from simulator.replay.kernels import run_function
from simulator.replay.replay import tape_of
from traces.costs.pricing import prices_of


def schedules(pool: Pool) -> IntArray:
    """[M, N, W] the clairvoyant's gamma at every cost table, position and lag."""
    tables = list(pool.tables.values())
    found = np.zeros((len(tables), len(pool.accept_len), tables[0].width), dtype=np.int64)
    for m, table in enumerate(tables):
        at = 0
        for trace in pool.traces:
            limits = Limits(pool.max_gamma, trace.meta.max_new_tokens, trace.meta.max_context)
            choice = np.zeros((trace.positions, found.shape[2]), dtype=np.int64)
            prices = prices_of(table, signals=pool.signals)
            run_function(plan, tape_of(trace, False), prices, limits, choice)
            found[m, at : at + trace.positions] = choice
            at += trace.positions
    return found


def demonstrations(env: LaneVectorEnv, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Demonstrations of the clairvoyant: observations (steps * L, K), actions (steps * L)."""
    env.reset(seed=seed)
    choice, arrays = schedules(env.stage.pool), env.stage.arrays
    seen, done = [], []
    for _ in range(steps):
        lanes = arrays.lanes
        lag = np.minimum(lanes["lag"], choice.shape[2] - 1)
        gamma = choice[lanes["cost"], lanes["at"], lag]
        actions = (lanes["tokens"] < gamma).astype(np.int64) if env.tokens else gamma
        seen.append(torch.from_numpy(arrays.obs.copy()))
        done.append(torch.from_numpy(actions))
        env.step(actions)
    return torch.cat(seen), torch.cat(done)


def clone(
    policy: nn.Module, seen: Tensor, done: Tensor, *, epochs: int = 4, rate: float = 2e-3, seed: int
) -> float:
    """Fit a policy to demonstrations; the cross-entropy of the last epoch, nats."""
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=rate)
    size, total, parts = 4096, 0.0, 0
    for _ in range(epochs):
        total, parts = 0.0, 0
        order = torch.randperm(len(done), generator=random)
        for rows in order.chunk(max(1, len(done) // size)):
            loss = nn.functional.cross_entropy(policy(seen[rows]), done[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships no type for it
            optimizer.step()
            total, parts = total + float(loss.detach()), parts + 1
    return total / parts
