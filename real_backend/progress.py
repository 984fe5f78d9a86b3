"""How long a command will take here, by its own first steps, and on a terminal what is left."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

Step = Callable[[], object]

LONG_S = 20.0  # what takes less is not worth a line
SETTLED_S = 1.0  # of steps behind an estimate


class Forecast:
    """Seconds that `total` steps will take, by those that were done.

    The first step is left out: it waits for whatever the others find ready (a compiled kernel, a
    warm cache).
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.total, self.clock, self.done = total, clock, 0
        self.since = 0.0

    def step(self) -> float | None:
        """One more is done; the seconds that are left, or None while that is not known."""
        now = self.clock()
        self.done += 1
        if self.done == 1:
            self.since = now
        spent = now - self.since
        return spent / (self.done - 1) * (self.total - self.done) if spent >= SETTLED_S else None


def readable(seconds: float) -> str:
    """25 -> "25 s", 200 -> "3 min", 9000 -> "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def progress(total: int | None, what: str, done: int = 0) -> Iterator[Step]:
    """A step function, to be called after each of `total` steps of which `done` were there before.

    Once a second of them has passed, one line on stderr says how long the rest will take, if that
    is long. A bar shows it from then on if stderr is a terminal. total None: the bar counts.
    """
    forecast = Forecast((total or 0) - done)
    with tqdm(total=total, initial=done, desc=what, disable=None, leave=False) as bar:
        told = total is None

        def step() -> None:
            nonlocal told
            bar.update()
            left_s = None if told else forecast.step()
            if left_s is not None:
                told = True
                if left_s >= LONG_S:
                    line = (
                        f"gammalab: {what}: about {readable(left_s)} left, by its first steps here"
                    )
                    bar.write(line, file=sys.stderr)

        yield step
