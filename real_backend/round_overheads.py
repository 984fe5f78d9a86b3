"""What the engine adds to a round beyond its steps, timed on real rounds.

The rules that play here do next to nothing, and what that takes is taken off
(policies.overhead.own_seconds): no rule's arithmetic is in an overhead, since every rule is charged
for its own.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from policies.base import Draft, Policy, State, View
from policies.overhead import own_seconds
from policies.randomness import Rng
from real_backend.engine import Engine
from real_backend.models import Pair
from real_backend.prompts import Request
from real_backend.steps import Steps
from traces.costs import Table, price_log, tabulate
from traces.roundlog import RoundLog
from traces.timing import CPU, WALL, Repeats, StepCosts, Timing

_REPEATS = 5
_NANOSECONDS = 9  # digits kept


@dataclasses.dataclass(frozen=True)
class _Length(Policy):
    """As many tokens as it is told, its hooks as short as hooks can be."""

    gamma_tokens: int = 0

    name = "length"

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        return self.gamma_tokens


@dataclasses.dataclass(frozen=True)
class _Looking(_Length):
    """... which also has the signals of every token read."""

    name = "looking"

    def proceed(self, state: State, slot: int, draft: Draft) -> bool:
        return True


class _Stopwatch:
    """Steps that note, by one clock, when each round's verify ended and the seconds spent in steps
    since the one before.
    """

    def __init__(self, steps: Steps, clock: Callable[[], float]) -> None:
        self._steps, self._clock = steps, clock
        self.ends: list[float] = []
        self.inside: list[float] = []
        self._spent = 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._steps, name)
        if name not in ("draft_first", "draft_next", "verify"):
            return found

        def timed(*args: Any) -> Any:
            began = self._clock()
            result = found(*args)
            ended = self._clock()
            self._spent += ended - began
            if name == "verify":
                self.ends.append(ended)
                self.inside.append(self._spent)
                self._spent = 0.0
            return result

        setattr(self, name, timed)  # found at once from now on
        return timed


class _Rounds:
    """Real rounds of one engine on a random prompt, as `_Length` and `_Looking` have them: what is
    drafted or accepted does not change what a step costs.
    """

    def __init__(self, pair: Pair, costs: StepCosts, prompt_tokens: int, tokens: int) -> None:
        self.tokens = tokens
        self.engine = Engine(pair, costs, max_gamma=8)
        self.steps = self.engine.steps(1, prompt_tokens + tokens + 9)
        prompt = np.random.default_rng(0).integers(pair.vocab_size, size=prompt_tokens).tolist()
        self.request = [Request("control.1", "", prompt)]

    def play(self, policy: Policy, clock: Callable[[], float]) -> tuple[RoundLog, _Stopwatch]:
        """One reply; the rounds, and when they ended by this clock."""
        watch = _Stopwatch(self.steps, clock)
        self.engine.use(watch)
        return self.engine.decode(policy, self.request, max_new_tokens=self.tokens).log, watch


def _overheads_once(rounds: _Rounds, costs: StepCosts, clock: str) -> tuple[float, float]:
    """(signal_s, control_s) by one clock, without the arithmetic of the rules that play.

    control_s: median seconds from one verify's end to the next outside of steps, so that a machine
    that drifts between two runs leaves no trace in it. signal_s: what a drafted token costs more if
    its signals are read. A round after the first of a reply counts.
    """
    tick = time.thread_time if clock == CPU else time.perf_counter
    outside: list[float] = []
    added, tokens = 0.0, 0
    for gamma in (0, 1, 2, 4, 8):
        beyond = []
        for policy in (_Length(gamma), _Looking(gamma))[: 1 + (gamma > 0)]:
            log, watch = rounds.play(policy, tick)
            spent = np.diff(watch.ends)
            beyond.append(float(np.median(spent - price_log(log, costs, signals=False)[1:])))
            if type(policy) is _Length:
                outside += (spent - np.asarray(watch.inside[1:])).tolist()
        if gamma:
            added += beyond[1] - beyond[0]
            tokens += gamma
    return added / tokens, float(np.median(outside))


def round_overheads(
    pair: Pair, timing: Timing, prompt_tokens: int, tokens: int
) -> tuple[Repeats, Repeats]:
    """Repeats of signal_s and control_s on every clock of the timing; tokens: of each reply."""
    costs = {
        clock: tabulate(Table(timing.on(clock)), max_context=prompt_tokens + 256)
        for clock in timing.clocks
    }
    rounds = _Rounds(pair, costs[WALL], prompt_tokens, tokens)
    round_s, token_s = own_seconds(_Looking(8))
    signal: dict[str, list[float]] = {WALL: [], CPU: []}
    control: dict[str, list[float]] = {WALL: [], CPU: []}
    for _ in range(_REPEATS):
        for clock in timing.clocks:
            signal_s, control_s = _overheads_once(rounds, costs[clock], clock)
            signal[clock].append(round(signal_s - token_s, _NANOSECONDS))
            control[clock].append(round(control_s - round_s, _NANOSECONDS))
    return (
        Repeats(tuple(signal[WALL]), tuple(signal[CPU])),
        Repeats(tuple(control[WALL]), tuple(control[CPU])),
    )
