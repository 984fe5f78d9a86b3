"""GammaTune and GammaTune+ (arXiv 2504.00030): chase the accepted length with an average.

Of the paper only the abstract was read by us: what the rules are for, and the gains. Rule and
constants stand in a public port as a worked example of three rounds, transcribed from notes there;
where that example is silent, both ways are kept as fields: clip_expansion and early_stop.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from policies.base import Draft, FloatArray, IntArray, Outcome, Policy, State, View
from policies.fields import DRAFT, GAMMA, SHARE, SWITCH, Domain, disorder, hyper
from policies.randomness import Rng


class GammaTuneState(NamedTuple):
    """Per request: gamma [slots], the next cap; ema [slots], average accepted length in tokens."""

    gamma: IntArray
    ema: FloatArray


def clip(value: float, low: float, high: float) -> float:
    """value inside low..high."""
    return min(max(value, low), high)


DRAFTED, INTENDED, NO_UPDATE = range(3)  # GammaTunePlus.early_stop


def adapt(
    fields: GammaTune, state: GammaTuneState, slot: int, accepted: int, intended: int
) -> None:
    """The update both controllers share: expand after full acceptance, else follow the average."""
    if accepted == intended:
        longest = fields.gamma_max if fields.clip_expansion else accepted + fields.delta
        gamma = max(fields.gamma_min, min(accepted + fields.delta, longest))
        state.gamma[slot] = gamma
    else:
        ema = (1.0 - fields.eta) * float(state.ema[slot]) + fields.eta * accepted
        ema = clip(ema, fields.gamma_min, fields.gamma_max)
        state.ema[slot] = ema
        state.gamma[slot] = math.ceil(ema)


@dataclasses.dataclass(frozen=True)
class GammaTune(Policy):
    """Expand by delta after full acceptance, else follow an exponential average of accepted length.

    accepted == gamma: gamma <- clip(accepted + delta), average unchanged; with clip_expansion =
                       false gamma <- accepted + delta, bounded by the room alone.
    else:              ema <- clip((1 - eta) ema + eta accepted); gamma <- ceil(ema).
    A round that the reply's limits cut short is compared with the gamma that was intended.
    """

    gamma0: int = hyper(3, GAMMA, "secondary: a port's worked example")
    eta: float = hyper(0.3, SHARE, "secondary: a port's worked example")
    delta: int = hyper(2, GAMMA, "secondary: a port's worked example")
    gamma_min: int = hyper(1, GAMMA, "secondary: a port's worked example")
    gamma_max: int = hyper(10, DRAFT, "secondary: a port's worked example")
    clip_expansion: bool = hyper(
        True, SWITCH, "secondary: the port clips; the listing that it transcribes does not"
    )

    name = "gammatune"
    rule = "all accepted: gamma = accepted + delta; else gamma = ceil(EMA of accepted)"
    source = "GammaTune, arXiv 2504.00030 (abstract); the rule from a port's worked example"

    def conflict(self) -> str:
        return disorder(self, "gamma_min", "gamma_max")

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

    What a round that stopped early with all its drafts accepted counts as is not said where we
    could read; early_stop: 0, accepted is compared with what was drafted, so that it counts as
    fully accepted; 1, with the gamma that was intended, so that the average takes it in; 2, nothing
    is learned from it. A round with a rejection is the same in all three.
    """

    tau: float = hyper(0.4, SHARE, "ours: no published value; 0.4 is Hugging Face's threshold")
    early_stop: int = hyper(
        DRAFTED, Domain(DRAFTED, NO_UPDATE), "ours: not said where we could read"
    )

    name = "gammatune+"
    rule = "GammaTune, and stop drafting after a token whose top-1 probability is below tau"
    source = "GammaTune+, arXiv 2504.00030 (abstract); the rule from a port's worked example"

    def proceed(self, state: GammaTuneState, slot: int, draft: Draft) -> bool:
        return draft.top1_prob >= self.tau

    def learn(self, state: GammaTuneState, slot: int, view: View, outcome: Outcome) -> None:
        intended = int(state.gamma[slot])
        if outcome.drafted < outcome.gamma and outcome.accepted == outcome.drafted:
            if self.early_stop == NO_UPDATE:
                return
            if self.early_stop == DRAFTED:
                intended = outcome.drafted
        adapt(self, state, slot, outcome.accepted, intended)
