"""What a policy's own arithmetic costs here, as the real engine pays it: plain Python."""

from __future__ import annotations

import time

import numpy as np

from policies.base import Draft, Outcome, Policy, View, clamp_gamma, uses_signals
from policies.randomness import Rng

ROUNDS = 200
WARM_UP = 20  # rounds that do not count
BETWEEN_BYTES = 1 << 24  # read before every call: between two calls an engine reads its models
NANOSECONDS = 9  # digits kept: the clock says no more


def own_seconds(policy: Policy, rounds: int = ROUNDS) -> tuple[float, float]:
    """Median seconds that gamma and learn take per round, and proceed per token (0 for a policy
    that decides nothing per token), to the nanosecond; see Policy.control_s.

    Random acceptance and confidence. A policy that would not draft is asked about one token all the
    same, so that `proceed` is measured.
    """
    generator, clock = np.random.default_rng(0), time.perf_counter
    looks, state = uses_signals(policy), policy.new_state(1)
    models = np.ones(BETWEEN_BYTES // 8)
    verify_s = np.concatenate([[0.0], 1e-2 + 2e-4 * np.arange(1, 34)])
    per_round, per_token = [], []
    policy.admit(state, 0)
    for index in range(WARM_UP + rounds):
        view, rng = View(40 + index % 400, 1, 0, 16, 2e-3, verify_s), Rng(index)
        models.sum()
        began = clock()
        wish = policy.gamma(state, 0, view, rng)
        spent = clock() - began
        cap = clamp_gamma(wish, view.room)
        drafted, going = cap, looks
        if looks:
            cap, drafted = max(1, cap), 0
        while going and drafted < cap:
            drafted += 1
            top1 = float(generator.beta(4.0, 1.0))
            draft = Draft(drafted, top1, 2.0 * (1.0 - top1))
            models.sum()
            began = clock()
            going = policy.proceed(state, 0, draft)
            if index >= WARM_UP:
                per_token.append(clock() - began)
        accepted = min(drafted, int(generator.geometric(0.3)) - 1)
        elapsed = drafted * view.draft_step_s + float(verify_s[drafted + 1])
        outcome = Outcome(cap, drafted, accepted, accepted + 1, False, elapsed, elapsed)
        began = clock()
        policy.learn(state, 0, view, outcome)
        if index >= WARM_UP:
            per_round.append(spent + clock() - began)
    token_s = float(np.median(per_token)) if per_token else 0.0
    return round(float(np.median(per_round)), NANOSECONDS), round(token_s, NANOSECONDS)
