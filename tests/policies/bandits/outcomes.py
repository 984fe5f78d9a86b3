"""Rounds of made-up prices and outcomes, and what a bandit is told of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from policies.base import Outcome, Policy, View
from policies.randomness import Rng
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate

RNG = Rng(1)


def view(room: int = 30, draft_s: float = 1.0, verify_s: float = 6.0, batch: int = 1) -> View:
    return View(100, batch, 0, room, draft_s, np.array([0.0] + [verify_s] * 40))


def outcome(gamma: int, accepted: int, seconds: float = 1.0) -> Outcome:
    """A round that drafted all of gamma, and whose reply went on."""
    return Outcome(gamma, gamma, accepted, accepted + 1, False, seconds, seconds)


def feed(policy: Policy, state: Any, *rounds: Outcome, seen: View | None = None) -> None:
    for result in rounds:
        policy.learn(state, 0, seen or view(), result)


def choose(policy: Policy, state: Any, room: int = 30, rng: Rng = RNG) -> int:
    return policy.gamma(state, 0, view(room), rng)


def costs_with(ratio: float) -> Any:
    """A target pass costs `ratio` draft steps of 1 ms, and 2 % more per further token."""
    target_s = ratio * 1e-3
    return tabulate(Affine(target_fixed=target_s, target_token=0.02 * target_s))
