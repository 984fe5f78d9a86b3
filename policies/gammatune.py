"""GammaTune and GammaTune+ (arXiv 2504.00030): chase the accepted length with an average.

No constants could be read in the paper's text; the defaults are those of a public port
("secondary").
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from policies.base import Draft, FloatArray, IntArray, Outcome, Policy, State, View
from policies.randomness import Rng


class GammaTuneState(NamedTuple):
    """Per request: gamma [slots], the next cap; ema [slots], average accepted length in tokens."""

    gamma: IntArray
    ema: FloatArray


def clip(value: float, low: float, high: float) -> float:
    """value inside low..high."""
    return min(max(value, low), high)


def adapt(
    fields: GammaTune, state: GammaTuneState, slot: int, accepted: int, intended: int
) -> None:
    """The update both controllers share: expand after full acceptance, else follow the average."""
    if accepted == intended:
        state.gamma[slot] = int(clip(accepted + fields.delta, fields.gamma_min, fields.gamma_max))
    else:
        ema = (1.0 - fields.eta) * float(state.ema[slot]) + fields.eta * accepted
        ema = clip(ema, fields.gamma_min, fields.gamma_max)
        state.ema[slot] = ema
        state.gamma[slot] = math.ceil(ema)


@dataclasses.dataclass(frozen=True)
class GammaTune(Policy):
    """Expand by delta after full acceptance, else follow an exponential average of accepted length.

    accepted == gamma: gamma <- clip(accepted + delta), average unchanged.
    else:              ema <- clip((1 - eta) ema + eta accepted); gamma <- ceil(ema).
    A round that the reply's limits cut short is compared with the gamma that was intended.
    """

    gamma0: int = 3
    eta: float = 0.3
    delta: int = 2
    gamma_min: int = 1
    gamma_max: int = 10

    name = "gammatune"
    rule = "all accepted: gamma = accepted + delta; else gamma = ceil(EMA of accepted)"
    source = "GammaTune, arXiv 2504.00030"
    tags = {
        "gamma0": "secondary",
        "eta": "secondary",
        "delta": "secondary",
        "gamma_min": "secondary",
        "gamma_max": "secondary (the paper's listing has no clip on the expand branch)",
    }

    def new_state(self, slots: int) -> State:
        return GammaTuneState(
            np.full(slots, self.gamma0, dtype=np.int64), np.full(slots, float(self.gamma0))
        )

    def admit(self, state: GammaTuneState, slot: int) -> None:
        state.gamma[slot] = self.gamma0
        state.ema[slot] = self.gamma0

    def gamma(self, state: GammaTuneState, slot: int, view: View, rng: Rng) -> int:
        return int(state.gamma[slot])

    def learn(self, state: GammaTuneState, slot: int, view: View, outcome: Outcome) -> None:
        adapt(self, state, slot, outcome.accepted, int(state.gamma[slot]))


@dataclasses.dataclass(frozen=True)
class GammaTunePlus(GammaTune):
    """GammaTune that also stops drafting at a doubtful token.

    The round's gamma is then what was drafted: a round stopped early whose drafts were all accepted
    counts as fully accepted (our reading; the paper's text that could be read does not say).
    """

    tau: float = 0.4

    name = "gammatune+"
    rule = "GammaTune, and stop drafting after a token whose top-1 probability is below tau"
    source = "GammaTune+, arXiv 2504.00030"
    tags = {**GammaTune.tags, "tau": "ours: no published value; 0.4 is Hugging Face's threshold"}

    def proceed(self, state: GammaTuneState, slot: int, draft: Draft) -> bool:
        return draft.top1_prob >= self.tau

    def learn(self, state: GammaTuneState, slot: int, view: View, outcome: Outcome) -> None:
        intended = outcome.drafted if outcome.drafted < outcome.gamma else int(state.gamma[slot])
        adapt(self, state, slot, outcome.accepted, intended)
