"""Stop drafting where the entropy of the draft bounds the chance of acceptance too low."""

from __future__ import annotations

import dataclasses
import math

from policies.base import Draft, Policy, State, View
from policies.draft_verify import DraftVerify, ThresholdState
from policies.fields import DRAFT, FACTOR, SHARE, hyper
from policies.randomness import Rng


def acceptance_gap(scale: float, entropy: float) -> float:
    """sqrt(scale * entropy): how far below 1 both papers put the chance of acceptance."""
    return math.sqrt(scale * max(0.0, entropy))  # rounding may leave an entropy below 0


@dataclasses.dataclass(frozen=True)
class SVIP(Policy):
    """Stop after a token whose entropy H has sqrt(0.15 H) > 0.3, that is H > 0.6 nats.

    The uncertain token is still verified.
    """

    gamma_max: int = hyper(40, DRAFT, "primary")
    scale: float = hyper(0.15, FACTOR, "primary")
    threshold: float = hyper(0.3, FACTOR, "primary")

    name = "svip"
    rule = "draft until sqrt(scale * entropy) exceeds the threshold, at most gamma_max"
    source = "SVIP, arXiv 2411.18462; its repository, eval_specbench.py"

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        return self.gamma_max

    def proceed(self, state: State, slot: int, draft: Draft) -> bool:
        return acceptance_gap(self.scale, draft.entropy) <= self.threshold


@dataclasses.dataclass(frozen=True)
class AdaEDL(DraftVerify):
    """Stop where the lower bound on acceptance, 1 - sqrt(scale H), falls below lambda.

    Lambda is adapted by Draft & Verify's update, whose class this is, with lambda for the
    threshold; it is shared by all requests too. The paper's text could not be read: the bound is as
    public ports have it, that lambda is adapted this way is our reading, and every constant of that
    adaptation, its start included, is Draft & Verify's or ours, not a published value. The entropy
    is taken in nats.
    """

    gamma_max: int = hyper(
        7, DRAFT, "secondary (the base length of DSDE's comparison, arXiv 2509.01083)"
    )
    threshold0: float = hyper(
        0.4, SHARE, "unconfirmed: no source gives the first lambda; 0.4 is ours"
    )
    scale: float = hyper(0.2, FACTOR, "secondary (a summary and a port give 0.2, another port 0.5)")
    beta1: float = hyper(0.5, SHARE, "unconfirmed: Draft & Verify's")
    target: float = hyper(0.9, SHARE, "unconfirmed: Draft & Verify's")
    epsilon: float = hyper(0.01, SHARE, "unconfirmed: Draft & Verify's")
    beta2: float = hyper(0.9, SHARE, "unconfirmed: Draft & Verify's")

    name = "adaedl"
    rule = "stop when 1 - sqrt(scale * entropy) < lambda; lambda moves as in draft-verify"
    source = "AdaEDL, arXiv 2410.18351 (form and constants from second hand)"

    def proceed(self, state: ThresholdState, slot: int, draft: Draft) -> bool:
        bound = 1.0 - acceptance_gap(self.scale, draft.entropy)
        return bound >= float(state.threshold[0])
