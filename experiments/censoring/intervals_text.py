"""Intervals of censored traces, as text tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.censoring.intervals import Censoring, Completed, Span
from experiments.censoring.rubin import UNDECIDED
from experiments.common.statistics import FEW, TIE, VERDICTS
from experiments.common.text_table import number, table, with_interval
from traces.censoring.survival import by_run, survival
from traces.schema import Trace

NOTES = """\
95 %       where a replay on the unknown truth of these requests lies: imputations of what is
           unknown, with the uncertainty of their model, around their median; "as is": nothing open
extremes   every censored position stops; every one goes on: no model, but no bounds either, a
           controller can be faster or slower than both
vs fixed   tokens/s over {reference}, within each imputation; others: the interval of the
           row alone if the questions were others as well
verdict    of vs fixed, of other questions; {corrected};
           undecided: an end lies so close to 1 that other imputations may say otherwise
           tie: {tie}
           too few: {few}"""


def span_text(span: Span, digits: int = 2) -> str:
    """value low-high; the value as is where nothing is open."""
    if span.high - span.low < 1e-9 * abs(span.value):
        return f"{number(span.value, digits)} as is"
    return with_interval((span.value, span.low, span.high), digits)


def extremes(span: Span, digits: int = 2) -> str:
    """stop..go on; a dash where nothing is open."""
    if abs(span.go_on - span.stop) < 1e-9 * abs(span.stop) and span.high - span.low < 1e-9:
        return "-"
    return f"{number(span.stop, digits)}..{number(span.go_on, digits)}"


def open_table(censoring: Censoring) -> str:
    """Every schedule with its intervals."""
    header = ("what censoring\nleaves open", "tokens/s\n95 %", "tokens/s\nextremes",
              "speed-up\n95 %", "vs fixed\n95 %", "others\n95 %", "\nverdict")  # fmt: skip
    digits = 1 if min(row.tokens_per_s.value for row in censoring.rows) < 200 else 0
    cells = []
    for row in censoring.rows:
        fixed, others = row.name == censoring.reference, row.vs_fixed_others
        cells.append(
            [
                row.name,
                span_text(row.tokens_per_s, digits),
                extremes(row.tokens_per_s, digits),
                span_text(row.speedup),
                "1" if fixed else span_text(row.vs_fixed, 3),
                "-" if fixed else f"{number(others.low)}-{number(others.high)}",
                "-" if fixed else row.verdict,
            ]
        )
    lines = [
        f"{censoring.unknown} of {censoring.positions} positions were never proposed to the "
        f"target; {censoring.draws} imputations,\nwith {censoring.resamples} draws of questions "
        "in each\n"
        f"hidden positions of other recorders miss the model by {number(censoring.spread.task)} "
        f"per task and {number(censoring.spread.common)} in common,\nlog-odds; the imputations "
        "are shifted by as much",
        table(header, [("", cells)]),
        NOTES.format(
            reference=censoring.reference,
            corrected=_corrected(censoring),
            tie=VERDICTS[TIE],
            few=VERDICTS[FEW],
        ),
    ]
    return "\n\n".join(lines)


WORDS = ("faster", "slower", TIE, FEW, UNDECIDED)


def seed_table(found: Sequence[Censoring]) -> str:
    """How often each verdict was given over the seeds; a row is steady if it had one besides
    "undecided".
    """
    header = ("verdicts over\nseeds", *(f"\n{word}" for word in WORDS), "\nsteady",
              "vs fixed\nfrom", "\nto", "others\nlow end", "others\nhigh end")  # fmt: skip
    cells = []
    for name in (row.name for row in found[0].rows if row.name != found[0].reference):
        rows = [one.row(name) for one in found]
        counts = [sum(row.verdict == word for row in rows) for word in WORDS]
        values = [row.vs_fixed_others.value for row in rows]
        ends = np.array([row.vs_fixed_others[1:] for row in rows])
        steady = "yes" if sum(count > 0 for count in counts[:-1]) <= 1 else "NO"
        low, high = (f"{n:.3f}..{x:.3f}" for n, x in zip(ends.min(0), ends.max(0), strict=True))
        cells.append(
            [name, *(str(count or "-") for count in counts), steady,
             number(min(values), 3), number(max(values), 3), low, high]
        )  # fmt: skip
    first = found[0]
    basis = (
        f"{len(found)} seeds, each with {first.draws} imputations of {first.unknown} of "
        f"{first.positions} positions and\n{first.resamples} draws of questions in each; ratio to "
        f"{first.reference}; {_corrected(first)}"
    )
    return f"{basis}\n\n{table(header, [('', cells)])}"


def _corrected(censoring: Censoring) -> str:
    return f"corrected for {censoring.controllers} controllers (min-p, p < 0.05)"


def open_task_table(censoring: Censoring) -> str:
    """Speed-up by task: the median imputation and the half-width of its interval."""
    tasks = list(censoring.rows[0].tasks)
    header = ("speed-up", *(task.replace("_", "\n", 1) for task in tasks), "all")
    cells = [
        [row.name, *(_half(row.tasks[task]) for task in tasks), _half(row.speedup)]
        for row in censoring.rows
    ]
    return table(header, [("", cells)]) + "\n\nmedian, and half the width of its 95 % interval"


def _half(span: Span) -> str:
    half = (span.high - span.low) / 2
    return f"{number(span.value)} {number(half, 3)[1:]}" if half < 1 else span_text(span)


def rate_table(trace: Trace) -> str:
    """Acceptance by the known run before a position, and how many there are unknown."""
    rates = by_run(trace)
    header = ("accepted\nbefore", "known", "accepted of\nknown", "+-", "\nunknown")
    known = (rates.accepted + rates.rejected).tolist()
    last = len(known) - 1
    cells = [
        [
            f"{run} or more" if run == last else str(run),
            str(known[run]),
            number(float(rates.rate[run]), 3),
            number(float(rates.error[run]), 3),
            str(int(rates.unknown[run])),
        ]
        for run in range(last + 1)
    ]
    note = f"{rates.uncovered} unknown positions sit behind runs at which no flag is known"
    return table(header, [("", cells)]) + "\n\n" + note


def survival_table(trace: Trace, completed: Completed, depth: int = 8) -> str:
    """P(A >= d) from every position: Kaplan-Meier, and over the imputations."""
    depth = min(depth, trace.meta.depth)
    known = survival(trace, depth=depth)
    drawn = np.stack([survival(one, depth=depth).survival for one in completed.traces[2:]])
    cells = [
        [
            str(d),
            str(int(known.at_risk[d - 1])),
            number(float(known.survival[d]), 3),
            number(float(drawn[:, d].mean()), 3),
            number(float(drawn[:, d].std(ddof=1)), 3),
        ]
        for d in range(1, depth + 1)
    ]
    header = ("accepted\nat least", "\nat risk", "\nKaplan-Meier", "\nimputed", "of draws\n+-")
    note = (
        "Kaplan-Meier takes a censored run for one like the others of its length; the imputations\n"
        "know what stands before and behind it"
    )
    return table(header, [("", cells)]) + "\n\n" + note
