"""Several policies decode the same requests turn by turn, in one process and one sitting."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from policies.base import Policy, State
from policies.fixed import Fixed
from policies.registry import label
from real_backend.decoding.measured import PLACEBO, Anchor, Measured
from real_backend.decoding.sitting_file import Pass, Turn, TurnFile, saved_state
from real_backend.partial_file import PartialFile
from real_backend.progress import Step, progress
from traces.errors import InputError
from traces.roundlog import RoundLog, join_logs
from traces.schema import Trace
from traces.split import named_generator
from traces.store import content_hash

if TYPE_CHECKING:
    from real_backend.prompts import Request

_WARM_TOKENS = 8  # of a reply that is not kept: a target alone settles within as many rounds


class Backend(Protocol):
    """The part of real_backend.decoding.engine.Engine that a sitting needs."""

    def decode(
        self,
        policy: Policy,
        requests: Sequence[Request],
        *,
        temperature: float,
        top_p: float,
        seed: int,
        max_new_tokens: int,
        batch: int,
        state: State | None,
        first: int,
        began: float,
        acceptance: Trace | None,
    ) -> Any:
        """Decode in order; the result has `tokens` and `log`. See Engine.decode."""


@dataclasses.dataclass(frozen=True)
class Sitting:
    """Policies that decode the same requests in turns.

    requests: one per row of `trace`.
    replayed: acceptance is the trace's, see Engine.decode.
    block: requests that a policy decodes in one turn.
    carries: its state lasts from turn to turn, as a replay's does.
    anchors: called after each turn of all policies with the moment at which the sitting began
        (time.perf_counter) and the turn's number; None: no anchors.
    kept: where finished turns are kept until somebody removes them, and found again if `about`
        (models, timing), the requests and all settings are the same; None: nowhere.
    """

    backend: Backend
    trace: Trace
    requests: Sequence[Request]
    seed: int = 0
    batch: int = 1
    replayed: bool = False
    block: int = 1
    carries: bool = True
    anchors: Callable[[float, int], list[Anchor]] | None = None
    kept: Path | None = None
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def blocks(self) -> list[range]:
        """The requests of every turn."""
        count = len(self.requests)
        return [range(at, min(at + self.block, count)) for at in range(0, count, self.block)]

    def run(
        self,
        policies: Sequence[Policy],
        baseline: Policy,
        *,
        repeats: int = 1,
        seconds: float = math.inf,
        what: str = "sitting",
    ) -> Measured:
        """All policies and the placebo, `repeats` times with fresh states and other orders.

        baseline: one of the policies. seconds: after so many no other turn begins, so that fewer
        requests may be in the result, the first ones, by every policy; one turn there always is.
        what: name of the progress bar. An interrupted sitting's clock stands still meanwhile; the
        gaps are in the logs' meta, as (turns before, seconds away).
        Raises InputError if the baseline is no policy of these, one is there twice, or the kept
        turns are of another sitting.
        """
        seats = seats_of(policies, baseline)
        file = PartialFile(self.kept, self._asked(seats, baseline, repeats))
        turns = TurnFile(file)
        passes = len(seats) * len(self.blocks()) * repeats
        done = len(seats) * len(turns.found)
        if done < passes:
            self._warm_up(seats)
        at_s = turns.found[-1].at_s if turns.found else 0.0
        began = time.perf_counter() - at_s
        sitting = self
        with progress(passes, what, done) as step:
            for repeat in range(repeats):
                until = began + seconds / repeats if repeat == 0 else math.inf
                sitting._one(seats, repeat, began, until, turns, step)
                sitting = sitting._first(len(turns.of(repeat)))
        timed = {
            name: [
                sitting._joined(name, turns.of(repeat), label(baseline), file.gaps)
                for repeat in range(repeats)
            ]
            for name in seats
        }
        anchors = [Anchor(*row) for turn in turns.found for row in turn.anchors]
        return Measured(timed, label(baseline), anchors)

    def _asked(self, seats: Mapping[str, Policy], baseline: Policy, repeats: int) -> dict[str, Any]:
        """Facts that decide the rounds of a sitting."""
        settings = {
            name: getattr(self, name) for name in ("seed", "batch", "replayed", "block", "carries")
        }
        asked = {"requests": content_hash(self.trace), "policies": list(seats), "repeats": repeats}
        return {**self.about, **asked, **settings, "baseline": label(baseline)}

    def _first(self, turns: int) -> Sitting:
        """With the requests of so many turns."""
        rows = list(range(self.blocks()[turns - 1].stop))
        if len(rows) == len(self.requests):
            return self
        return dataclasses.replace(
            self, trace=self.trace.select(rows), requests=self.requests[: len(rows)]
        )

    def _one(
        self,
        seats: Mapping[str, Policy],
        repeat: int,
        began: float,
        until: float,
        turns: TurnFile,
        step: Step,
    ) -> None:
        """The turns of one repeat that are missing, kept one by one."""
        found = turns.of(repeat)
        if turns.of(repeat + 1):  # it was over, maybe before its last block
            return
        states = {name: policy.new_state(self.batch) for name, policy in seats.items()}
        if found and self.carries:
            turns.load(states, found[-1])
        for number, (block, order) in enumerate(self._orders(len(seats), repeat)):
            if number < len(found):
                continue
            if number and time.perf_counter() > until:
                break
            passes: dict[str, Pass] = {}
            for index in order:
                name = list(seats)[index]
                state = states[name] if self.carries else None
                run = self._decode(seats[name], block, state, repeat, began)
                passes[name] = Pass(run.tokens, run.log)
                step()
            count = repeat * len(self.blocks()) + number
            anchors = [] if self.anchors is None else self.anchors(began, count)
            at_s = time.perf_counter() - began
            saved = {name: saved_state(state) for name, state in states.items() if self.carries}
            turns.keep(Turn(repeat, at_s, turns.started_unix_s, passes, anchors, saved))

    def _orders(self, seats: int, repeat: int) -> Iterator[tuple[range, list[int]]]:
        """The requests of every turn, and the order in which the seats take them."""
        generator = named_generator(self.seed, f"sitting {repeat}")
        for block in self.blocks():
            yield block, generator.permutation(seats).tolist()

    def _decode(
        self,
        policy: Policy,
        block: range,
        state: State | None,
        repeat: int,
        began: float,
        tokens: int = 1 << 30,
    ) -> Any:
        """One turn, at most `tokens` of each reply. Sampled repeats draw anew, greedy ones repeat
        the same decisions.
        """
        meta = self.trace.meta
        return self.backend.decode(
            policy,
            [self.requests[row] for row in block],
            temperature=meta.temperature,
            top_p=meta.top_p,
            seed=self.seed + (repeat if meta.temperature > 0 and not self.replayed else 0),
            max_new_tokens=min(tokens, meta.max_new_tokens),
            batch=self.batch,
            state=state,
            first=block[0] if self.carries else 0,
            began=began,
            acceptance=self.trace.select(list(block)) if self.replayed else None,
        )

    def _warm_up(self, seats: Mapping[str, Policy]) -> None:
        """The first rounds of the first turn of every policy, not kept."""
        for policy in seats.values():
            self._decode(policy, self.blocks()[0], None, 0, time.perf_counter(), _WARM_TOKENS)

    def _joined(
        self, name: str, turns: Sequence[Turn], baseline: str, gaps: Sequence[tuple[int, float]]
    ) -> RoundLog:
        """One log of a seat. Its meta counts replies_equal: those that are the trace's own, token
        by token (absent if the trace has no tokens, is sampled or replayed).
        """
        runs = [turn.passes[name] for turn in turns]
        log = join_logs([run.log for run in runs], one_clock=True)
        about: dict[str, Any] = {
            "seat": name,
            "baseline": baseline,
            "trace_sha256": content_hash(self.trace),
            "requests": list(self.trace.request_id),
            "block": self.block,
            "carries": self.carries,
            "seed": self.seed,
            "started_unix_s": turns[0].started_unix_s,
        }
        if gaps:
            about["gaps"] = list(gaps)
        tokens, meta = self.trace.token_ids, self.trace.meta
        if tokens is not None and meta.temperature == 0.0 and not self.replayed:
            expected = np.split(tokens, self.trace.offsets[1:-1])
            replies = [reply for run in runs for reply in run.tokens]
            equal = sum(list(a) == b.tolist() for a, b in zip(replies, expected, strict=True))
            about["replies_equal"] = equal
        return dataclasses.replace(log, meta=log.meta | about)


def seats_of(policies: Sequence[Policy], baseline: Policy) -> dict[str, Policy]:
    """All policies by label and, last, the placebo; raises InputError as Sitting.run says."""
    seats = {label(policy): policy for policy in policies}
    if len(seats) < len(policies):
        raise InputError("--policies names the same policy twice")
    if label(baseline) not in seats:
        raise InputError(f"the baseline {label(baseline)} is not among the policies")
    return seats | {PLACEBO: baseline}


def baseline_of(policies: Sequence[Policy]) -> Policy:
    """The policy whose second copy is the placebo by default: the first fixed length, or else the
    first policy.
    """
    return next((policy for policy in policies if isinstance(policy, Fixed)), policies[0])
