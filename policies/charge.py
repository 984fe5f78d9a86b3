"""What a policy's own arithmetic costs, on top of the steps that it asks for."""

from __future__ import annotations

import dataclasses

from policies.base import Policy
from traces.timing import StepCosts


def charged(policy: Policy, costs: StepCosts) -> StepCosts:
    """The step costs of a machine on which this policy decides; `costs` itself if it is free.

    Rows decide one after the other, so a batch of b pays b times. What a policy takes per token is
    charged where signals are: only to one that reads them.
    """
    return with_control(costs, policy.control_s())


def with_control(costs: StepCosts, control_s: tuple[float, float]) -> StepCosts:
    """`charged` for Policy.control_s = control_s."""
    round_s, token_s = control_s
    if round_s == 0.0 and token_s == 0.0:
        return costs
    verify_s = costs.verify_s.copy()
    verify_s[:, 1:] += round_s * costs.batch
    signal_s = costs.signal_s + token_s * costs.batch
    return dataclasses.replace(costs, verify_s=verify_s, signal_s=signal_s)
