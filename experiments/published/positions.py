"""Acceptance by position, and what it cannot tell: rates belong to the rounds of their own length.

An engine counts, of the rounds of one length R, how often at least j drafted tokens were accepted,
a_j. For a length L <= R it then seems to take 1 + a_1 + ... + a_L tokens per round. A replay of the
same recording says how many there are: rounds of another length start elsewhere.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from experiments.common.text_table import fill, percent, table
from experiments.studies import PositionsOptions
from policies.fixed import Fixed
from real_backend.command_line import Result
from simulator.replay.replay import replay
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate_for
from traces.roundlog import RoundLog
from traces.schema import Trace
from traces.store import read_trace

FloatArray = npt.NDArray[np.float64]
LENGTHS = (1, 2, 3, 5, 8, 12, 16)


class ByPosition(NamedTuple):
    """Rounds of one length: length, rounds, tokens emitted; rates [length]: of the rounds, those
    with at least 1, 2, ... accepted tokens.
    """

    length: int
    rounds: int
    tokens: int
    rates: tuple[float, ...]

    @property
    def tokens_per_round(self) -> float:
        """Emitted by a round."""
        return self.tokens / self.rounds

    def promised(self, length: int) -> float:
        """Tokens per round of a length that is not above this one, by these rates."""
        return 1.0 + sum(self.rates[:length])


@dataclasses.dataclass(frozen=True)
class Positions:
    """The rounds of every length on one recording."""

    trace: str
    found: tuple[ByPosition, ...]


def by_position(log: RoundLog, length: int) -> ByPosition:
    """Counts of a log of fixed length, as an engine's counters have them."""
    rates = tuple(float((log.accepted >= j).mean()) for j in range(1, length + 1))
    return ByPosition(length, len(log), int(log.emitted.sum()), rates)


def positions(trace: Trace, name: str) -> Positions:
    """Every length of LENGTHS that the recording is deep enough for, replayed."""
    costs = tabulate_for(trace, Affine())
    lengths = [length for length in LENGTHS if length <= trace.meta.depth]
    logs = [replay(Fixed(length), trace, costs) for length in lengths]
    return Positions(name, tuple(map(by_position, logs, lengths)))


def text_of(found: Positions) -> str:
    """By recorded length, the rates, and how far they miss the tokens per round of others."""
    lengths = [one.length for one in found.found]
    header = ["rounds of", "first\naccepted", "second,\nthen", "tokens/\nround"]
    header += [f"promises\n{length}" for length in lengths]
    rows = []
    for one in found.found:
        then = one.rates[1] / one.rates[0] if one.length > 1 and one.rates[0] > 0 else None
        row = [str(one.length), percent(one.rates[0], 1), percent(then, 1)]
        row.append(f"{one.tokens_per_round:.3f}")
        for other in found.found:
            missed = one.promised(other.length) / other.tokens_per_round - 1.0
            row.append(f"{missed:+.1%}" if other.length <= one.length else "")
        rows.append(row)
    note = (
        "first accepted: of all rounds, those whose first drafted token was; second, then: of "
        "these, those whose second was, too. promises L: tokens per round of length L by the rates "
        "of this row, 1 + a1 + ... + aL, against the replay. (A last round may end before the "
        "target's own token: a row misses its own length by that.)"
    )
    return f"{found.trace}\n{table(header, [('', rows)])}\n\n{fill(note)}"


def run(options: PositionsOptions) -> Result:
    """`gammalab studies positions`."""
    found = [positions(read_trace(path), Path(path).stem) for path in options.trace]
    return Result("\n\n\n".join(map(text_of, found)), [dataclasses.asdict(one) for one in found])
