"""One sitting: several policies decode the same requests for real, so that their ratios hold.

Request by request all of them run, one after another in a random order of its own, each with a
policy state of its own that lasts as long as the sitting. Neighbours in time share the machine's
mood, so a ratio of two policies is a hundred times surer than two runs an hour apart. The *placebo*
is a second copy of the baseline: what tells it from the baseline is chance alone. Between requests
steps of the timing are measured again (*anchors*), so that the sitting carries its own calibration.

Results lie in a folder: measured/SEAT-REPEAT.parquet and measured/anchors.json. Until they do,
finished turns are kept in a partial file, and a sitting that was stopped goes on behind them.
Run by hand: `python -m real_backend.decoding.sitting`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from policies.base import Policy, State
from policies.fixed import Fixed
from policies.registry import file_name, label, parse_policies
from real_backend.decoding.sitting_file import Pass, Turn, TurnFile, saved_state
from real_backend.options import add_decode_arguments, add_pair_arguments, run_module
from real_backend.partial_file import PartialFile, finished, partial_path
from real_backend.progress import Step, progress
from traces.costs.pricing import StepCosts, tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.json_text import read_json
from traces.roundlog import RoundLog, join_logs, read_roundlog, write_roundlog
from traces.schema import Trace
from traces.split import held_out_rows, named_generator
from traces.store import content_hash, read_trace, refuse_existing, write_atomically
from traces.timing import Timing, read_timing

if TYPE_CHECKING:
    from real_backend.prompts import Request

PLACEBO = "placebo"


class Anchor(NamedTuple):
    """One step of the timing, measured again: seconds since the sitting began, the cell, and the
    median seconds of a block of it by the wall and by the processor's clock (NaN without one).
    """

    at_s: float
    operation: str
    tokens: int
    context: int
    wall_s: float
    cpu_s: float


class Backend(Protocol):
    """What a sitting needs of real_backend.decoding.engine.Engine."""

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


class Measured(NamedTuple):
    """What ran, by seat: one log per repeat. A seat is a policy's label, or PLACEBO, a second copy
    of `baseline`.
    """

    timed: dict[str, list[RoundLog]]
    baseline: str
    anchors: list[Anchor]


@dataclasses.dataclass(frozen=True)
class Sitting:
    """requests: one per row of `trace`; forced: acceptance is the trace's, see Engine.decode.

    block: requests that a policy decodes in one turn. carries: its state lasts from turn to turn,
    as a replay's does. anchors: called after each turn of all policies with the moment at which the
    sitting began (time.perf_counter) and the turn's number; None: no anchors. kept: where finished
    turns are kept until somebody removes them, and found again if `about` (models, timing), the
    requests and all settings are the same; None: nowhere.
    """

    backend: Backend
    trace: Trace
    requests: Sequence[Request]
    seed: int = 0
    batch: int = 1
    forced: bool = False
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
        """What decides the rounds of a sitting."""
        settings = {
            name: getattr(self, name) for name in ("seed", "batch", "forced", "block", "carries")
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
        self, policy: Policy, block: range, state: State | None, repeat: int, began: float
    ) -> Any:
        """One turn; sampled repeats draw anew, greedy ones repeat the same decisions."""
        meta = self.trace.meta
        return self.backend.decode(
            policy,
            [self.requests[row] for row in block],
            temperature=meta.temperature,
            top_p=meta.top_p,
            seed=self.seed + (repeat if meta.temperature > 0 and not self.forced else 0),
            max_new_tokens=meta.max_new_tokens,
            batch=self.batch,
            state=state,
            first=block[0] if self.carries else 0,
            began=began,
            acceptance=self.trace.select(list(block)) if self.forced else None,
        )

    def _warm_up(self, seats: Mapping[str, Policy]) -> None:
        """The first turn of every policy, not kept."""
        for policy in seats.values():
            self._decode(policy, self.blocks()[0], None, 0, time.perf_counter())

    def _joined(
        self, name: str, turns: Sequence[Turn], baseline: str, gaps: Sequence[tuple[int, float]]
    ) -> RoundLog:
        """One log of a seat. Its meta counts replies_equal: those that are the trace's own, token
        by token (absent if the trace has no tokens, is sampled or forced).
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
        if tokens is not None and meta.temperature == 0.0 and not self.forced:
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
    """Whose second copy is the placebo where nobody says: the first fixed length, or else the
    first policy.
    """
    return next((policy for policy in policies if isinstance(policy, Fixed)), policies[0])


def anchor_context(timing: Timing) -> int:
    """The context of a timing's steps that is measured again: the shortest, tokens."""
    return min(cell.context for cell in timing.cells if cell.operation == "verify")


def timed_path(folder: Path, seat: str, repeat: int) -> Path:
    """Where repeat number `repeat` (from 0) of a seat lies."""
    return folder / "measured" / f"{file_name(seat)}-{repeat + 1}.parquet"


def anchors_path(folder: Path) -> Path:
    """Where the anchors of a sitting lie."""
    return folder / "measured" / "anchors.json"


def write_rounds(logs: Iterable[tuple[Path, RoundLog]]) -> None:
    """Each log to its file, atomically."""
    for path, log in logs:
        write_roundlog(log, path, overwrite=True)


def write_measured(measured: Measured, folder: Path) -> None:
    """All logs and anchors into a folder, in place of those of an earlier sitting; read_measured
    reads them back. The logs come last: what has them all has the anchors.
    """
    for old in (folder / "measured").glob("*"):
        if old.suffix in (".parquet", ".json"):
            old.unlink()
    rows = [
        [None if isinstance(x, float) and math.isnan(x) else x for x in row]
        for row in measured.anchors
    ]
    text = json.dumps({"kind": "anchors", "fields": list(Anchor._fields), "rows": rows})
    write_atomically(
        anchors_path(folder),
        lambda temporary: temporary.write_text(text + "\n", "utf-8"),
        overwrite=True,
    )
    write_rounds(
        (timed_path(folder, seat, repeat), log)
        for seat, logs in measured.timed.items()
        for repeat, log in enumerate(logs)
    )


def read_measured(folder: Path) -> Measured:
    """All of a folder; raises InputError if it has no logs or they are not of one sitting."""
    timed: dict[str, list[RoundLog]] = {}
    for path in sorted((folder / "measured").glob("*.parquet"), key=_repeat_of):
        log = read_roundlog(path)
        if not all(isinstance(log.meta.get(field), str) for field in ("seat", "baseline")):
            raise InputError(f"{path} is not of a sitting; run `validate --out` again")
        timed.setdefault(log.meta["seat"], []).append(log)
    if not timed:
        raise InputError(f"{folder}/measured holds no round logs; make them with `validate --out`")
    logs = [log for some in timed.values() for log in some]
    same = ("baseline", "trace_sha256", "requests", "block", "carries", "seed")
    for field in (*same, "started_unix_s", "device_name", "dtype", "pair"):
        if any(log.meta.get(field) != logs[0].meta.get(field) for log in logs):
            raise InputError(f"{folder}: its round logs differ in {field}; they are of two runs")
    if len({len(some) for some in timed.values()}) > 1:
        raise InputError(f"{folder}: some policies lack a repeat; they are of two runs")
    baseline = logs[0].meta["baseline"]
    for seat in (PLACEBO, baseline):
        if seat not in timed:
            raise InputError(f"{folder}/measured lacks the rounds of {seat}; copy the whole folder")
    return Measured(timed, baseline, read_anchors(anchors_path(folder)))


def read_anchors(path: Path) -> list[Anchor]:
    """The anchors of a sitting, none if there is no file; raises InputError if it is damaged."""
    if not path.exists():
        return []
    try:
        raw = read_json(path)
        return [_anchor(*row) for row in raw["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no anchors ({error}); run `validate --out` again") from None


def _anchor(
    at_s: Any, operation: Any, tokens: Any, context: Any, wall_s: Any, cpu_s: Any
) -> Anchor:
    cpu = float("nan") if cpu_s is None else float(cpu_s)
    return Anchor(float(at_s), str(operation), int(tokens), int(context), float(wall_s), cpu)


def _repeat_of(path: Path) -> int:
    number = path.stem.rpartition("-")[2]
    return int(number) if number.isdigit() else 0


def sitting_from_args(
    args: argparse.Namespace,
    trace: Trace,
    costs: StepCosts,
    timing: Timing,
    *,
    limit: int = 0,
    batch: int = 1,
    kept: Path | None = None,
) -> Sitting:
    """Load the pair that `args` name and make its engine ready for about `limit` of the held-out
    requests.

    costs: as for Engine, of `timing`, whose steps are the anchors at batch 1. args: pair options,
    prompts, acceptance, seed. kept: see Sitting. Raises InputError if the pair is not the trace's,
    unless acceptance is "trace".
    """
    from real_backend.decoding.anchors import Anchors
    from real_backend.decoding.engine import Engine
    from real_backend.models.pair import pair_from_args
    from real_backend.prompts import forced_requests, questions_of, requests_of_trace

    forced = args.acceptance == "trace"
    questions = None if forced else questions_of(args)
    pair = pair_from_args(args, kept)
    if questions is None:
        requests = forced_requests(trace, pair)
    else:
        requests = requests_of_trace(questions, trace, pair)
    rows = held_out_rows(trace, limit, args.seed)
    engine = Engine(pair, costs, max_gamma=trace.meta.depth)
    chosen = [requests[row] for row in rows]
    longest = max(len(request.prompt_ids) for request in chosen)
    engine.steps(batch, longest + trace.meta.max_new_tokens + trace.meta.depth + 1)
    return Sitting(
        engine,
        trace.select(rows),
        chosen,
        args.seed,
        batch,
        forced,
        block=1 if batch == 1 else 4 * batch,
        anchors=Anchors(pair, timing, args.seed) if batch == 1 else None,
        kept=kept,
        about=pair.describe() | {"steps": "", "gpu": "", "timing": timing.sha256()},
    )


def begin_sitting(folder: Path, result: Path, force: bool) -> Path:
    """Where the sitting of a folder keeps its finished turns.

    force: begin anew. Raises InputError if `result`, what the sitting ends in, is there, unless
    force or a sitting that was begun with it goes on.
    """
    kept = partial_path(folder / "measured")
    if force:
        kept.unlink(missing_ok=True)
    refuse_existing(result, force or kept.exists())
    return kept


def run(args: argparse.Namespace) -> None:
    """Decode a trace's held-out requests under every policy in one sitting, and save it."""
    policies = parse_policies(args.policies)
    trace, timing = read_trace(args.trace), read_timing(args.timing)
    kept = begin_sitting(args.out, args.out / "measured", args.force)
    longest = int(trace.prompt_tokens.max()) + trace.meta.max_new_tokens
    sizes, width = range(1, args.batch + 1), trace.meta.depth + 2
    costs = tabulate(Table(timing), sizes, max_context=longest, width=width)
    sitting = sitting_from_args(
        args, trace, costs, timing, limit=args.limit, batch=args.batch, kept=kept
    )
    measured = sitting.run(
        policies,
        baseline_of(policies),
        repeats=args.repeats,
        seconds=args.seconds or math.inf,
    )
    write_measured(measured, args.out)
    finished(kept)
    for seat, logs in measured.timed.items():
        speed = sum(log.emitted.sum() for log in logs) / sum(log.elapsed_s.sum() for log in logs)
        print(f"{seat:32} {speed:9.1f} tokens/s, {logs[0].meta['device_name']}")


if __name__ == "__main__":
    sys.exit(
        run_module("decoding.sitting", __doc__, [add_pair_arguments, add_decode_arguments], run)
    )
