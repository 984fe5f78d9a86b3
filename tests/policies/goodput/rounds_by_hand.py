"""Rounds of made-up prices, played one at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from policies.base import Outcome, Policy, View
from policies.randomness import Rng

RNG = Rng(1)


def view(room: int = 30, draft_s: float = 1.0, verify_s: float = 6.0, context: int = 100) -> View:
    """Every target step takes verify_s."""
    return View(context, 1, 0, room, draft_s, np.array([0.0] + [verify_s] * 40))


def tell(policy: Policy, state: Any, accepted: int, seen: View, slot: int = 0) -> int:
    """One round in which the target would accept so many tokens; the gamma played."""
    gamma = min(policy.gamma(state, slot, seen, RNG), seen.room)
    taken = min(gamma, accepted)
    elapsed = gamma * seen.draft_step_s + float(seen.verify_s[gamma + 1])
    policy.learn(
        state, slot, seen, Outcome(gamma, gamma, taken, taken + 1, False, elapsed, elapsed)
    )
    return gamma
