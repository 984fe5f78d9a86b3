"""Finished turns of a sitting on disk, bit for bit, so that one that was stopped goes on."""

from __future__ import annotations

import time
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from policies.base import State
from real_backend.partial_file import PartialFile, damaged
from traces.roundlog import OPTIONAL, ROUND_DTYPES, RoundLog


class Pass(NamedTuple):
    """One policy's turn: its replies' tokens, and the rounds."""

    tokens: list[list[int]]
    log: RoundLog


class Turn(NamedTuple):
    """The same requests under all policies. at_s: seconds of the sitting at its end;
    started_unix_s: when the sitting began; anchors: rows, see
    real_backend.decoding.measured.Anchor; states: of the policies that carry them, as `saved_state`
    has them.
    """

    repeat: int
    at_s: float
    started_unix_s: float
    passes: dict[str, Pass]
    anchors: Sequence[tuple[Any, ...]]
    states: dict[str, list[str]]


class TurnFile:
    """The turns of one sitting in `kept`; raises InputError if these are no turns.

    started_unix_s: when the sitting began, for the first time.
    """

    def __init__(self, kept: PartialFile) -> None:
        self.kept = kept
        try:
            self.found = [_read(part) for part in kept.found]
        except (ValueError, TypeError, KeyError):
            raise damaged(kept.path) from None
        first = self.found[0].started_unix_s if self.found else time.time()
        self.started_unix_s = round(first, 3)

    def keep(self, turn: Turn) -> None:
        """One more."""
        self.found.append(turn)
        passes = {seat: _written(one) for seat, one in turn.passes.items()}
        self.kept.keep(turn._replace(passes=passes)._asdict())

    def load(self, states: Mapping[str, State], turn: Turn) -> None:
        """Fill fresh states with those at the end of a turn; InputError if they do not fit."""
        try:
            load_states(states, turn.states)
        except (ValueError, KeyError, zlib.error):
            raise damaged(self.kept.path) from None

    def of(self, repeat: int) -> list[Turn]:
        """The turns of one repeat, in their order."""
        return [turn for turn in self.found if turn.repeat == repeat]


def _written(one: Pass) -> Any:
    log = one.log
    columns = {name: getattr(log, name).tolist() for name in (*ROUND_DTYPES, "prefill_s")}
    present = {name: getattr(log, name) for name in OPTIONAL if getattr(log, name) is not None}
    columns |= {name: column.tolist() for name, column in present.items()}
    tokens = [[int(token) for token in reply] for reply in one.tokens]
    return {"tokens": tokens, "meta": log.meta, **columns}


def _read(part: dict[str, Any]) -> Turn:
    passes = {}
    for seat, raw in part["passes"].items():
        raw.setdefault("verified", raw["drafted"])  # not in older files: nothing was dropped
        columns: dict[str, Any] = {
            name: np.asarray(raw[name], dtype=dtype) for name, dtype in ROUND_DTYPES.items()
        }
        prefill_s = np.asarray(raw["prefill_s"], dtype=np.float64)
        columns |= {
            name: np.asarray(raw[name], dtype=dtype)
            for name, dtype in OPTIONAL.items()
            if raw.get(name) is not None
        }
        log = RoundLog(**columns, prefill_s=prefill_s, meta=raw["meta"])
        passes[seat] = Pass(raw["tokens"], log)
    fields = {**part, "passes": passes, "anchors": [tuple(row) for row in part["anchors"]]}
    return Turn(**fields)


def saved_state(state: State) -> list[str]:
    """The bytes of a policy state's arrays, compressed, as text."""
    return [b64encode(zlib.compress(array.tobytes(), 1)).decode() for array in _arrays(state)]


def load_states(states: Mapping[str, State], saved: Mapping[str, list[str]]) -> None:
    """Fill fresh states with what saved_state gave of others; ValueError if they do not fit."""
    for seat, state in states.items():
        for array, text in zip(_arrays(state), saved[seat], strict=True):
            held = np.frombuffer(zlib.decompress(b64decode(text)), array.dtype)
            array[...] = held.reshape(array.shape)


def _arrays(state: State) -> Iterator[npt.NDArray[Any]]:
    """All arrays of a state: a tuple of arrays, or of tuples."""
    for part in state:
        if isinstance(part, np.ndarray):
            yield part
        elif isinstance(part, tuple):
            yield from _arrays(part)
