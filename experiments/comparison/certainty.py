"""How sure a comparison is, in sentences: what it could have found, and what the costs decide."""

from __future__ import annotations

import math
from collections.abc import Iterable

from experiments.common.statistics import SMALLEST
from experiments.common.text_table import table
from experiments.comparison.result import Comparison
from experiments.comparison.sensitivity import LEVEL, Case, Sensitivity


def certainty(comparison: Comparison) -> list[str]:
    """The minimum detectable difference, who is first at other costs, which verdicts depend on it,
    and which rules a machine slower or faster than its timing would mislead.

    Of a censored trace the first is left out and the others are about one imputation.
    """
    fixed = f"fixed:gamma={comparison.tuned_gamma}"
    costs = [ranking(comparison.sensitivity), sides(comparison.sensitivity, fixed)]
    if comparison.sensitivity.beliefs:
        costs.append(misled(comparison.sensitivity, fixed))
    if comparison.censoring is not None:
        return [f"{line} (on one imputation)" for line in costs]
    return [*_detectable(comparison, fixed), *costs]


def _detectable(comparison: Comparison, fixed: str) -> list[str]:
    """Empty where no controller differs from the tuned fixed length."""
    alone, among = comparison.detectable_percent, comparison.detectable_among_percent
    if math.isnan(alone):
        return []
    line = (
        f"a difference of {alone:.1f} % or more to {fixed} would have been found 8 times in 10 by "
        "a test of one controller alone"
    )
    together = (
        f", of {among:.1f} % or more by the corrected verdict" if math.isfinite(among) else ""
    )
    return [f"{line}{together} (medians over the controllers)"]


def stale(comparison: Comparison) -> list[str]:
    """Would the first row stay first on a machine that is not as its timing says?"""
    fixed = f"fixed:gamma={comparison.tuned_gamma}"
    found = comparison.sensitivity
    return [ranking(found), *([misled(found, fixed)] if found.beliefs else [])]


def ranking(found: Sensitivity) -> str:
    """Settled or unsettled, by whom and by which cost term."""
    first, total = found.first, len(found.cases)
    models = f"{total} perturbed cost models (each cost term 10 % cheaper, then dearer)"
    lost = [(case.race.rival, case) for case in found.cases if case.race.lost]
    if lost:
        flips = "; ".join(f"{cases}, {name} is first" for name, cases in _grouped(lost, total))
        return f"unsettled: {flips}; {first} is first in {total - len(lost)} of {models}"
    level = [(case.race.rival, case) for case in found.cases if case.race.level]
    if level:
        near = "; ".join(f"{name} {cases}" for name, cases in _grouped(level, total))
        within = f"level (within {100 * LEVEL:.1f} %)"
        return f"settled: {first} stays first or {within} in all {models}; level: {near}"
    return f"settled: {first} stays first in all {models}"


def sides(found: Sensitivity, fixed: str) -> str:
    """The verdicts against the tuned fixed length that other costs would turn round."""
    turned = [(name, case) for case in found.cases for name in case.turned]
    if turned:
        rows = "; ".join(f"{name} {cases}" for name, cases in _grouped(turned, len(found.cases)))
        return f"verdicts against {fixed} that change their sign: {rows}"
    return f"no verdict against {fixed} changes its sign there"


def misled(found: Sensitivity, fixed: str) -> str:
    """The rules that read seconds and decide worse, or better, where the timing is off."""
    factors = found.beliefs[0].factors
    pace = f"a machine {min(factors):g} to {max(factors):g} times as slow as its timing"
    moved = [belief for belief in found.beliefs if belief.moves]
    if not moved:
        return (
            f"on {pace} no rule that reads seconds changes its speed over {fixed} by more than "
            f"{100 * SMALLEST:g} percentage points"
        )
    rows = ", ".join(
        f"{belief.policy} ({min(belief.speed):.3f} to {max(belief.speed):.3f})" for belief in moved
    )
    return f"on {pace} the speed over {fixed} moves for {rows}"


def belief_table(found: Sensitivity) -> str:
    """Speed over the tuned fixed length of every rule that reads seconds, by how slow the machine
    is against its timing.
    """
    factors = found.beliefs[0].factors if found.beliefs else ()
    header = ("machine's seconds\nover its timing's", *(f"{factor:g}" for factor in factors))
    rows = [[b.policy, *(f"{speed:.3f}" for speed in b.speed)] for b in found.beliefs]
    return table(header, [("rules that read seconds", rows)])


def _grouped(pairs: Iterable[tuple[str, Case]], total: int) -> list[tuple[str, str]]:
    """("marginal", "with draft steps 10 % cheaper, verify 10 % dearer"), one pair per name; total:
    the number of cases that there are.
    """
    found: dict[str, list[str]] = {}
    for name, case in pairs:
        found.setdefault(name, []).append(where(case))
    return [
        (name, "in each" if len(cases) == total else f"with {', '.join(cases)}")
        for name, cases in found.items()
    ]


def where(case: Case) -> str:
    """ "draft steps 10 % cheaper"."""
    off = 100 * abs(case.factor - 1)
    return f"{case.term} {off:.0f} % {'cheaper' if case.factor < 1 else 'dearer'}"
