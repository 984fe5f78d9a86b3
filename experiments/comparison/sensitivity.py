"""Would another row be first if a cost term were 10 % wrong? Every policy replayed at such costs.
And: what are the rules that read seconds worth where the machine is slower than its timing says?

One cost term at a time is scaled; policies that look at costs or at the clock decide anew. The
tuned fixed length stays the one that the costs as they are have chosen. The rows are those that can
be used, so not the ceilings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from experiments.common.statistics import SMALLEST
from policies.base import Policy, reads_seconds
from simulator.replay.replay import replay
from traces.costs.pricing import StepCosts
from traces.schema import Trace

FACTORS = (0.9, 1.1)
SLOWER = (0.8, 1.0, 1.3, 1.5, 2.0)  # the machine's seconds over those of its timing
LEVEL = 0.001  # of the first row's seconds: closer rows are level


@dataclasses.dataclass(frozen=True)
class Race:
    """The winner at the costs as they are against the best of the others, at some costs.

    lead: the rival's decode seconds over the winner's, less 1; negative: the rival is first.
    """

    rival: str
    lead: float

    @property
    def level(self) -> bool:
        """Too close to say who is first."""
        return abs(self.lead) <= LEVEL

    @property
    def lost(self) -> bool:
        """The rival is first."""
        return self.lead < -LEVEL


@dataclasses.dataclass(frozen=True)
class Case:
    """One cost term scaled by `factor`.

    turned: rows that are faster than the tuned fixed length by their verdict and slower here, or
    the other way round.
    """

    term: str
    factor: float
    race: Race
    turned: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Belief:
    """A rule that reads seconds, on a machine `factors` times as slow as the timing that it is
    shown. speed: over the tuned fixed length's, at each factor.
    """

    policy: str
    factors: tuple[float, ...]
    speed: tuple[float, ...]

    @property
    def moves(self) -> bool:
        """The machine's pace against its timing matters to the rule."""
        return max(self.speed) - min(self.speed) > SMALLEST


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """The ranking under perturbed costs. first: the winner at the costs as they are, by its seconds
    on the held-out half; race: its lead there. beliefs: of every entrant that reads seconds.
    """

    first: str
    race: Race
    cases: tuple[Case, ...]
    beliefs: tuple[Belief, ...] = ()

    @property
    def settled(self) -> bool:
        """No case has another winner."""
        return not any(case.race.lost for case in self.cases)


def scale_draft(costs: StepCosts, control_s: float, factor: float) -> StepCosts:
    """All draft forwards."""
    return costs._replace(draft_s=costs.draft_s * factor)


def scale_verify(costs: StepCosts, control_s: float, factor: float) -> StepCosts:
    """Target steps of every width, without the fixed cost of a round as far as it is known."""
    verify_s = costs.verify_s.copy()
    verify_s[..., 1:] = (verify_s[..., 1:] - control_s) * factor + control_s
    return costs._replace(verify_s=verify_s)


def scale_growth(costs: StepCosts, control_s: float, factor: float) -> StepCosts:
    """The price of a target step of n tokens beyond one of a single token."""
    verify_s, narrow = costs.verify_s.copy(), costs.verify_s[..., 1:2]
    verify_s[..., 1:] = narrow + (verify_s[..., 1:] - narrow) * factor
    return costs._replace(verify_s=verify_s)


def scale_signal(costs: StepCosts, control_s: float, factor: float) -> StepCosts:
    """Reading the draft's signals."""
    return costs._replace(signal_s=costs.signal_s * factor)


def scale_control(costs: StepCosts, control_s: float, factor: float) -> StepCosts:
    """The engine's fixed cost per round, which is part of verify_s."""
    verify_s = costs.verify_s.copy()
    verify_s[..., 1:] += (factor - 1.0) * control_s
    return costs._replace(verify_s=verify_s)


TERMS: dict[str, Callable[[StepCosts, float, float], StepCosts]] = {
    "draft steps": scale_draft,
    "verify": scale_verify,
    "growth of verify with width": scale_growth,
    "signals": scale_signal,
    "control": scale_control,
}


def perturbed(costs: StepCosts, control_s: float) -> Iterator[tuple[str, float, StepCosts]]:
    """Term, factor and the costs with that term scaled; terms that cost nothing are left out.

    control_s: the part of verify_s that is the engine's fixed cost per round, 0 if not known.
    """
    for term, scale in TERMS.items():
        for factor in FACTORS:
            scaled = scale(costs, control_s, factor)
            if not same(scaled, costs):
                yield term, factor, scaled


def same(ours: StepCosts, theirs: StepCosts) -> bool:
    """Equal but for rounding."""
    fields = ("draft_s", "verify_s", "signal_s")
    return all(
        np.allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-12, atol=0.0)
        for name in fields
    )


def sensitivity(
    entrants: Mapping[str, Policy],
    test: Trace,
    costs: StepCosts,
    verdicts: Mapping[str, str],
    *,
    reference: str,
    control_s: float = 0.0,
    seed: int = 0,
) -> Sensitivity:
    """Replay all entrants on the held-out half at perturbed costs.

    verdicts: of every entrant against `reference`, the tuned fixed length and one of them, at the
    costs as they are. control_s, seconds: see perturbed.
    """

    def play(at: StepCosts) -> dict[str, float]:
        return {
            name: float(replay(policy, test, at, seed=seed).elapsed_s.sum())
            for name, policy in entrants.items()
        }

    seconds = play(costs)
    first = min(seconds, key=lambda name: seconds[name])
    cases = []
    for term, factor, scaled in perturbed(costs, control_s):
        found = play(scaled)
        cases.append(Case(term, factor, race(found, first), turned(found, verdicts, reference)))
    beliefs = wrong_beliefs(entrants, test, costs, seconds[reference], seed)
    return Sensitivity(first, race(seconds, first), tuple(cases), tuple(beliefs))


def wrong_beliefs(
    entrants: Mapping[str, Policy], test: Trace, costs: StepCosts, reference_s: float, seed: int
) -> Iterator[Belief]:
    """Entrants that read seconds, clocked and paid by `costs` while their View and priced_s are
    those of a timing that says 1 / factor of them. reference_s: of the tuned fixed length.
    """
    for name, policy in entrants.items():
        if reads_seconds(policy):
            logs = (
                replay(policy, test, costs, seed=seed, believed=scale_all(costs, 1.0 / factor))
                for factor in SLOWER
            )
            speed = tuple(reference_s / float(log.elapsed_s.sum()) for log in logs)
            yield Belief(name, SLOWER, speed)


def scale_all(costs: StepCosts, factor: float) -> StepCosts:
    """Every second, the rules' own arithmetic included."""
    own_s = {name: (a * factor, b * factor) for name, (a, b) in (costs.own_s or {}).items()}
    return costs._replace(
        own_s=None if costs.own_s is None else own_s,
        prefill_s=costs.prefill_s * factor,
        draft_s=costs.draft_s * factor,
        verify_s=costs.verify_s * factor,
        start_s=None if costs.start_s is None else costs.start_s * factor,
        signal_s=costs.signal_s * factor,
    )


def race(seconds: Mapping[str, float], first: str) -> Race:
    """`first` against the best of the others, by decode seconds."""
    rival = min((name for name in seconds if name != first), key=lambda name: seconds[name])
    return Race(rival, seconds[rival] / seconds[first] - 1.0)


def turned(
    seconds: Mapping[str, float], verdicts: Mapping[str, str], reference: str
) -> tuple[str, ...]:
    """The rows whose verdict against `reference` these seconds contradict."""
    lead = {name: seconds[reference] / own - 1.0 for name, own in seconds.items()}
    return tuple(
        name
        for name, verdict in verdicts.items()
        if (verdict == "faster" and lead[name] < -LEVEL)
        or (verdict == "slower" and lead[name] > LEVEL)
    )
