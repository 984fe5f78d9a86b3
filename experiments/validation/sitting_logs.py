"""Facts in the round logs of a sitting by themselves, before anything is predicted: the clock that
they can be judged by, seconds, acceptance, energy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from real_backend.decoding.measured import Measured
from traces.errors import InputError
from traces.roundlog import RoundLog
from traces.timing import Timing


def judging_clock(timing: Timing, measured: Measured) -> str:
    """The clock that both the timing and the sitting have kept: the processor's, where one thread
    did the work; events in the stream, on a GPU; else the wall's.
    """
    logs = [log for some in measured.timed.values() for log in some]
    if any(log.cpu_s is None or not bool(np.isfinite(log.cpu_s).all()) for log in logs):
        return "wall"
    devices = {str(log.meta.get("device", "")).partition(":")[0] for log in logs}
    if devices == {"cuda"} and str(timing.meta.get("device", "")).startswith("cuda"):
        return "events"
    alone = devices == {"cpu"} and {log.meta.get("threads") for log in logs} == {1}
    return timing.clock if alone else "wall"


def on_clock(log: RoundLog, clock: str) -> RoundLog:
    """The log with elapsed_s on that clock: cpu_s holds the processor's seconds or the events'."""
    if clock == "wall":
        return log
    assert log.cpu_s is not None
    return dataclasses.replace(log, elapsed_s=log.cpu_s)


def first_rounds(log: RoundLog) -> npt.NDArray[np.intp]:
    """[R] the first round of every request."""
    first: npt.NDArray[np.intp] = np.unique(log.request, return_index=True)[1]
    return first


def speed_of(logs: Sequence[RoundLog]) -> float:
    """Tokens/s of all rounds, by elapsed_s."""
    tokens = sum(int(log.emitted.sum()) for log in logs)
    return tokens / sum(float(log.elapsed_s.sum()) for log in logs)


def waiting_share(logs: Sequence[RoundLog]) -> float:
    """Share of the wall's seconds of all rounds that the processor's clock did not count."""
    if any(log.cpu_s is None for log in logs):
        return float("nan")
    wall = sum(float(log.elapsed_s.sum()) for log in logs)
    cpu = sum(float(log.cpu_s.sum()) for log in logs if log.cpu_s is not None)
    return 1.0 - cpu / wall


def acceptance_of(measured: Measured) -> str:
    """The source of the runs' acceptance: "own" or "trace of PAIR"; raises InputError if both."""
    logs = [log for some in measured.timed.values() for log in some]
    found = {log.meta.get("acceptance", "own") for log in logs}
    if len(found) > 1:
        raise InputError("some of the runs took their acceptance from a trace and some did not")
    return str(found.pop())


def has_energy(log: RoundLog) -> bool:
    """The device counted joules while it ran."""
    return log.meta.get("energy_j") is not None
