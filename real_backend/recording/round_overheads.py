"""The engine's overhead of a round beyond its steps, timed on real rounds.

The rule that plays here does next to nothing, and what that takes is taken off
(policies.overhead.measured_overhead): no rule's arithmetic is in it, since every rule is charged
for its own.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from policies.base import Policy, State, View
from policies.overhead import measured_overhead
from policies.randomness import Rng
from real_backend.decoding.bench import PERIOD
from real_backend.decoding.engine import Engine
from real_backend.decoding.steps import Sampling, Steps
from real_backend.load_pair import Pair
from real_backend.prompts import Request
from traces.costs.pricing import StepCosts, tabulate
from traces.costs.table import Table
from traces.roundlog import RoundLog
from traces.timing import CPU, WALL, Repeats, Timing

CONTROL_REPEATS, FEWEST_CONTROL_REPEATS = 5, 3
_DRAFTED = (0, 1, 2, 4, 8)
CONTROL_REPLIES = len(_DRAFTED) * len((WALL, CPU))  # of a repeat
_NANOSECONDS = 9  # digits kept


@dataclasses.dataclass(frozen=True)
class _Length(Policy):
    """As many tokens as it is told, its hooks as short as hooks can be."""

    gamma_tokens: int = 0

    name = "length"

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        return self.gamma_tokens


class _Stopwatch:
    """Steps that note, by one clock, the seconds spent in them, round by round."""

    def __init__(self, steps: Steps, clock: Callable[[], float]) -> None:
        self._steps, self._clock = steps, clock
        self.inside: list[float] = []
        self._spent = 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._steps, name)
        if name not in ("offers", "draft_first", "draft_next", "verify"):
            return found

        def timed(*args: Any) -> Any:
            began = self._clock()
            result = found(*args)
            self._spent += self._clock() - began
            if name == "verify":
                self.inside.append(self._spent)
                self._spent = 0.0
            return result

        setattr(self, name, timed)  # found at once from now on
        return timed


class _Rounds:
    """Real rounds of one engine on a random prompt: what is drafted or accepted does not change
    what a step costs.
    """

    def __init__(
        self, pair: Pair, costs: StepCosts, prompt_tokens: int, tokens: int, sampling: Sampling
    ) -> None:
        self.tokens, self.sampling = tokens, sampling
        self.engine = Engine(pair, costs, max_gamma=8)
        self.steps = self.engine.steps(1, prompt_tokens + tokens + 9)
        period = min(prompt_tokens, PERIOD)  # or a look-up would find nothing
        text = np.random.default_rng(0).integers(pair.vocab_size, size=period)
        prompt = np.resize(text, prompt_tokens).tolist()
        self.request = [Request("control.1", "", prompt)]

    def play(self, policy: Policy, clock: Callable[[], float]) -> tuple[RoundLog, _Stopwatch]:
        """One reply; its rounds, and the seconds of their steps by this clock."""
        watch = _Stopwatch(self.steps, clock)
        self.engine.use(watch)
        ran = self.engine.decode(
            policy, self.request, max_new_tokens=self.tokens, **self.sampling._asdict()
        )
        return ran.log, watch


def _control_once(rounds: _Rounds, clock: str) -> float:
    """Median seconds of a round outside of its steps by one clock, over rounds that draft 0, 1, 2,
    4 and 8 tokens; the rule that plays is in it. The first round of a reply does not count.
    """
    tick = time.thread_time if clock == CPU else time.perf_counter
    outside: list[float] = []
    for gamma in _DRAFTED:
        log, watch = rounds.play(_Length(gamma), tick)
        spent = log.cpu_s if clock == CPU else log.elapsed_s
        assert spent is not None
        outside += (spent - np.asarray(watch.inside))[1:].tolist()
    return float(np.median(outside))


def round_overheads(
    pair: Pair, timing: Timing, prompt_tokens: int, repeats: int, tokens: int, sampling: Sampling
) -> Repeats:
    """Repeats of control_s on every clock of the timing, without the arithmetic of the rule that
    plays; tokens: of each reply.
    """
    costs = tabulate(Table(timing.on(WALL)), max_context=prompt_tokens + 256)
    rounds = _Rounds(pair, costs, prompt_tokens, tokens, sampling)
    round_s, _ = measured_overhead(_Length(8))
    control: dict[str, list[float]] = {WALL: [], CPU: []}
    for _ in range(repeats):
        for clock in timing.clocks:
            control[clock].append(round(_control_once(rounds, clock) - round_s, _NANOSECONDS))
    return Repeats(tuple(control[WALL]), tuple(control[CPU]))
