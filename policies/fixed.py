"""The baselines: never draft, and always draft the same number of tokens."""

from __future__ import annotations

import dataclasses

from policies.base import Policy, State, View
from policies.fields import GAMMA, hyper
from policies.randomness import Rng


@dataclasses.dataclass(frozen=True)
class Never(Policy):
    """Plain autoregressive decoding on the same engine: the 1.0x of every speed-up."""

    name = "never"
    rule = "gamma = 0: no drafting, one target pass per token"
    source = "autoregressive decoding"

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        return 0


@dataclasses.dataclass(frozen=True)
class Fixed(Policy):
    """Leviathan et al., Fast Inference from Transformers via Speculative Decoding, arXiv
    2211.17192.
    """

    gamma_tokens: int = hyper(5, GAMMA, "ours: sweep it, no single value is right")

    name = "fixed"
    rule = "always draft `gamma` tokens"
    source = "Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318"

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        return self.gamma_tokens
