"""Several policies on the same requests, fairly: all take a chunk before the next one starts.

The order rotates from chunk to chunk and repeat to repeat, so that a machine that slows down slows
all policies alike. A policy starts every chunk with fresh state. Results lie in a folder:
exact/POLICY.parquet, told the cost model's seconds, and measured/POLICY-REPEAT.parquet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from policies.base import Policy
from policies.shelf import file_name, label
from traces.errors import InputError
from traces.roundlog import RoundLog, join_logs, read_roundlog, write_roundlog
from traces.schema import Trace
from traces.store import content_hash

if TYPE_CHECKING:
    from real_backend.prompts import Request

CHUNK_REQUESTS = 12

Step = Callable[[], object]


class Backend(Protocol):
    """What a pass needs of real_backend.engine.Engine."""

    def decode(
        self,
        policy: Policy,
        requests: Sequence[Request],
        *,
        temperature: float,
        top_p: float,
        seed: int,
        max_new_tokens: int,
        clock: str,
        batch: int,
        acceptance: Trace | None,
    ) -> Any:
        """Decode in order with fresh policy state; the result has `tokens` and `log`."""


@dataclasses.dataclass(frozen=True)
class Passes:
    """requests: one per row of `trace`; forced: acceptance is the trace's, see Engine.decode."""

    backend: Backend
    trace: Trace
    requests: Sequence[Request]
    seed: int = 0
    batch: int = 1
    forced: bool = False
    chunk: int = CHUNK_REQUESTS

    def units(self, policies: int, repeats: int) -> int:
        """How often `step` is called: one exact pass and the timed ones, chunk by chunk."""
        return policies * (repeats + 1) * len(chunks_of(len(self.requests), self.chunk))

    def exact(self, policy: Policy, step: Step) -> RoundLog:
        """Every chunk, policies told the cost model's seconds, so that rounds are the replay's.

        Its meta counts replies_equal: those that are the trace's own, token by token (absent if the
        trace has no tokens, is sampled or forced).
        """
        runs = []
        for chunk in chunks_of(len(self.requests), self.chunk):
            runs.append(self._decode(policy, chunk, "model", 0))
            step()
        log = self._joined([run.log for run in runs])
        tokens, meta = self.trace.token_ids, self.trace.meta
        if tokens is None or meta.temperature > 0 or self.forced:
            return log
        expected = np.split(tokens, self.trace.offsets[1:-1])
        replies = (reply for run in runs for reply in run.tokens)
        equal = sum(list(a) == b.tolist() for a, b in zip(replies, expected, strict=True))
        return dataclasses.replace(log, meta=log.meta | {"replies_equal": equal})

    def timed(
        self, policies: Sequence[Policy], repeat: int, repeats: int, step: Step
    ) -> dict[str, RoundLog]:
        """Repeat number `repeat` of `repeats`: one log per policy."""
        parts: dict[str, list[RoundLog]] = {label(policy): [] for policy in policies}
        for number, chunk in enumerate(chunks_of(len(self.requests), self.chunk)):
            for index in rotated(len(policies), repeat, number, repeats):
                run = self._decode(policies[index], chunk, "wall", repeat)
                parts[label(policies[index])].append(run.log)
                step()
        return {name: self._joined(logs) for name, logs in parts.items()}

    def _decode(self, policy: Policy, chunk: range, clock: str, repeat: int) -> Any:
        """One chunk; sampled repeats draw anew, greedy ones repeat the same decisions."""
        meta = self.trace.meta
        return self.backend.decode(
            policy,
            [self.requests[row] for row in chunk],
            temperature=meta.temperature,
            top_p=meta.top_p,
            seed=self.seed + (repeat if meta.temperature > 0 else 0),
            max_new_tokens=meta.max_new_tokens,
            clock=clock,
            batch=self.batch if clock == "wall" else 1,
            acceptance=self.trace.select(list(chunk)) if self.forced else None,
        )

    def _joined(self, logs: Sequence[RoundLog]) -> RoundLog:
        log = join_logs(logs)
        about = {
            "trace_sha256": content_hash(self.trace),
            "requests": list(self.trace.request_id),
            "chunk": self.chunk,
            "seed": self.seed,
        }
        return dataclasses.replace(log, meta=log.meta | about)


def chunks_of(requests: int, size: int = CHUNK_REQUESTS) -> list[range]:
    """Rows 0..requests-1 in runs of `size`."""
    return [range(at, min(at + size, requests)) for at in range(0, requests, size)]


def rotated(count: int, repeat: int, chunk: int, repeats: int) -> list[int]:
    """The order in which `count` policies take a chunk: a rotation by chunk and by repeat."""
    shift = (chunk + repeat * -(-count // repeats)) % count
    return [(k + shift) % count for k in range(count)]


class Measured(NamedTuple):
    """What ran, by policy: the exact pass (empty if there was none) and one log per repeat."""

    exact: dict[str, RoundLog]
    timed: dict[str, list[RoundLog]]


def exact_path(folder: Path, policy: str) -> Path:
    """Where the exact pass of a policy lies."""
    return folder / "exact" / f"{file_name(policy)}.parquet"


def timed_path(folder: Path, policy: str, repeat: int) -> Path:
    """Where repeat number `repeat` (from 0) of a policy lies."""
    return folder / "measured" / f"{file_name(policy)}-{repeat + 1}.parquet"


def write_rounds(logs: Iterable[tuple[Path, RoundLog]]) -> None:
    """Each log to its file, atomically."""
    for path, log in logs:
        write_roundlog(log, path, overwrite=True)


def read_measured(folder: Path) -> Measured:
    """All logs of a folder; raises InputError if it has none or they are not of one run."""
    found = Measured({}, {})
    for path in sorted((folder / "exact").glob("*.parquet")):
        log = read_roundlog(path)
        found.exact[log.meta["policy"]] = log
    for path in sorted((folder / "measured").glob("*.parquet"), key=_repeat_of):
        log = read_roundlog(path)
        found.timed.setdefault(log.meta["policy"], []).append(log)
    if not found.timed:
        raise InputError(f"{folder}/measured holds no round logs; make them with `validate --out`")
    logs = [*found.exact.values(), *(log for some in found.timed.values() for log in some)]
    for field in ("trace_sha256", "requests", "chunk", "seed", "device_name", "dtype", "pair"):
        if any(log.meta.get(field) != logs[0].meta.get(field) for log in logs):
            raise InputError(f"{folder}: its round logs differ in {field}; they are of two runs")
    if len({len(some) for some in found.timed.values()}) > 1:
        raise InputError(f"{folder}: some policies lack a repeat; resume the run first")
    return found


def _repeat_of(path: Path) -> int:
    number = path.stem.rpartition("-")[2]
    return int(number) if number.isdigit() else 0
