"""Acceptance by position, and what it can tell of rounds of another length.

An engine counts, of the rounds of one length R, how often at least j drafted tokens were accepted,
a_j. For a length L <= R it then seems to take 1 + a_1 + ... + a_L tokens per round. A replay of the
same recording says how many there are: rounds of another length start elsewhere. The counts allow
for that, see traces.censoring.rates; this holds both against the replay.
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
from traces.censoring.rates import estimate
from traces.costs.affine import Affine
from traces.costs.of_trace import tabulate_for
from traces.roundlog import RoundLog
from traces.schema import Trace
from traces.store import read_trace

FloatArray = npt.NDArray[np.float64]
LENGTHS = (1, 2, 3, 5, 8, 12, 16)


class ByPosition(NamedTuple):
    """Rounds of one length: length, rounds, tokens emitted; rates [length]: of the rounds, those
    with at least 1, 2, ... accepted tokens; corrected [length]: tokens per round of the lengths 1,
    2, ... up to this one by these counts, allowing for where rounds start.
    """

    length: int
    rounds: int
    tokens: int
    rates: tuple[float, ...]
    corrected: tuple[float, ...]

    @property
    def tokens_per_round(self) -> float:
        """Accepted by a round, and one: a last round may emit one less."""
        return self.promised(self.length)

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
    counts = [int((log.accepted >= j).sum()) for j in range(1, length + 1)]
    rates = tuple(count / len(log) for count in counts)
    corrected = tuple(estimate(len(log), counts).tolist())
    return ByPosition(length, len(log), int(log.emitted.sum()), rates, corrected)


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
    plain, corrected = [], []
    for one in found.found:
        then = one.rates[1] / one.rates[0] if one.length > 1 and one.rates[0] > 0 else None
        row = [str(one.length), percent(one.rates[0], 1), percent(then, 1)]
        row.append(f"{one.tokens_per_round:.3f}")
        others = [other for other in found.found if other.length <= one.length]
        left = [""] * (len(found.found) - len(others))
        by_rates = [one.promised(o.length) / o.tokens_per_round - 1.0 for o in others]
        by_counts = [one.corrected[o.length - 1] / o.tokens_per_round - 1.0 for o in others]
        plain.append([*row, *(f"{missed:+z.1%}" for missed in by_rates), *left])
        corrected.append([*row, *(f"{missed:+z.1%}" for missed in by_counts), *left])
    note = (
        "first accepted: of all rounds, those whose first drafted token was; second, then: of "
        "these, those whose second was, too. promises L: by how much the counts of this row miss "
        "the tokens per round (accepted and one) of length L in the replay: added up as 1 + a1 + "
        "... + aL, and allowing for where rounds start."
    )
    groups = [("1 + a1 + ... + aL", plain), ("allowing for where rounds start", corrected)]
    return f"{found.trace}\n{table(header, groups)}\n\n{fill(note)}"


def run(options: PositionsOptions) -> Result:
    """`gammalab studies positions`."""
    found = [positions(read_trace(path), Path(path).stem) for path in options.trace]
    return Result("\n\n\n".join(map(text_of, found)), [dataclasses.asdict(one) for one in found])
