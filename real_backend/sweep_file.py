"""Finished sweeps of a measurement on disk, so that one that was stopped goes on.

JSON lines: what was asked for, then one line a sweep with the seconds of every cell. A last line
that was cut off is left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from traces.errors import InputError
from traces.store import write_atomically

Key = tuple[str, int, int, int]
"""(operation, batch, tokens, context) of one cell."""
Spent = tuple[float, float]
"""Seconds by the wall, or in a GPU's stream; and by the processor's clock of this thread, NaN on a
GPU."""
Samples = dict[Key, list[Spent]]


class SweepFile:
    """The sweeps of one measurement. path None: nothing is kept. asked: what must be the same for
    sweeps to belong together; JSON-ready.

    Raises InputError if the file holds another measurement.
    """

    def __init__(self, path: Path | None, asked: dict[str, Any]) -> None:
        self.path, self.found = path, list[Samples]()
        if path is None:
            return
        if path.exists():
            self._read(path, asked)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            _put(path, json.dumps(asked) + "\n")

    def _read(self, path: Path, asked: dict[str, Any]) -> None:
        whole = path.read_text("utf-8").split("\n")[
            :-1
        ]  # what follows the last line end was cut off
        try:
            head, *lines = [json.loads(line) for line in whole]
            sweeps = [{tuple(cell[0]): [tuple(s) for s in cell[1]] for cell in x} for x in lines]
        except (ValueError, TypeError, IndexError):
            raise InputError(f"{path} is damaged; delete it and measure again") from None
        if head != json.loads(json.dumps(asked)):
            raise InputError(
                f"{path} was begun with other settings, models or versions; delete it, or choose "
                "another --out"
            )
        self.found = sweeps
        _put(path, "".join(line + "\n" for line in whole))

    def keep(self, sweep: Samples) -> None:
        """One more."""
        self.found.append(sweep)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps([[list(key), spent] for key, spent in sweep.items()]) + "\n")


def _put(path: Path, text: str) -> None:
    """The whole text or, after a kill, what was there before."""
    write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8"), overwrite=True)
