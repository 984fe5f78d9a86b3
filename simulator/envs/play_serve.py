"""Policies that play gammalab/Serve-v0: they get what `serve` gets, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium

from policies.base import Policy, clamp_gamma, uses_signals
from policies.randomness import Rng, round_key
from policies.registry import label
from simulator.replay.replay import low_bits
from simulator.serving.result import ServingResult
from traces.errors import InputError


def play_serve(
    env: gymnasium.Env[Any, Any],
    policy: Policy,
    *,
    seed: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> ServingResult:
    """Let a policy play an episode, as batch-wide ones play in `serve`: the first row is asked, and
    all learn. Batch-wide policies, and fixed ones, do there what they do here, and pay the same for
    their own arithmetic.

    Raises InputError for a policy that looks at the draft's signals, which this environment hides.
    """
    base: Any = env.unwrapped
    if uses_signals(policy):
        raise InputError(
            f"policy {label(policy)!r} stops drafts by their signals, which gammalab/Serve-v0 does "
            "not show; take another, or `serve`"
        )
    base.charge(policy)
    state, ended = policy.new_state(base.server.slots), False
    _, info = env.reset(seed=seed, options=None if options is None else dict(options))
    while not ended:
        for slot in info["entered"]:
            policy.admit(state, slot)
        views, first = dict(zip(info["slots"], info["views"], strict=True)), info["slots"][0]
        key = round_key(low_bits(base.episode_seed), info["requests"][0], info["rounds"][0])
        gamma = policy.gamma(state, first, views[first], Rng(key))
        action = clamp_gamma(gamma, base.limits.max_gamma)
        _, _, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
        for slot, outcome in zip(info["learned"], info["outcomes"], strict=True):
            policy.learn(state, slot, views[slot], outcome)
    served: ServingResult = base.served(label(policy))
    return served
