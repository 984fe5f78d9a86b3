"""A validation as sentences, text, findings and JSON."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from experiments.common.frames import described
from experiments.common.results import replayed_note
from experiments.common.statistics import FEWEST, Estimate
from experiments.common.text_table import fill, with_interval
from experiments.common.verdict import CONTRADICTED, PLACEBO_CONFIDENCE, Ratio
from experiments.validation.columns import RATIOS, SPEEDS
from experiments.validation.result import Validation
from experiments.validation.validate_tables import (
    error_table,
    low_to_high,
    reasons,
    signed,
    tables,
    why,
)
from real_backend.decoding.measured import timed_path
from traces.json_text import jsonable


def claim_line(ratio: Ratio) -> str:
    """ "payback over fixed:gamma=3: predicted 1.057, measured 1.042 (1.031-1.054; ...): word"."""
    found = f"{with_interval(ratio.time, 3)}, with other questions {low_to_high(ratio.others, 3)}"
    return (
        f"{ratio.policy} over {ratio.reference}: predicted {ratio.predicted:.3f}, measured "
        f"{found}: {ratio.word}"
    )


def placebo_line(outcome: Validation) -> str:
    """The placebo by name, its ratio, and whether it is the tie that it must be."""
    found = outcome.placebo
    if outcome.placebo_tie:
        said = "a tie, as it must be"
    elif not math.isfinite(found.time.low):
        said = "one turn alone cannot be judged"
    else:
        said = f"NOT a tie at {100 * PLACEBO_CONFIDENCE:.0f} %: this sitting confirms nothing"
    return f"placebo, a second copy of {outcome.baseline}: {with_interval(found.time, 3)}, {said}"


def claim_lines(outcome: Validation) -> list[str]:
    """Claims of the sitting, most important first."""
    lines = [claim_line(claim) for claim in outcome.claims]
    if outcome.questions < FEWEST:
        lines.append(
            f"questions: {outcome.questions}, too few to judge by (fewer than {FEWEST}); raise "
            "--limit"
        )
    found = outcome.claims[0].detectable_percent if outcome.claims else math.nan
    if math.isfinite(found) and outcome.questions >= FEWEST:
        lines.append(
            f"the smallest gain that this sitting could have found 8 times in 10 is {found:.1f} %"
        )
    return [*lines, placebo_line(outcome)]


def machine_lines(outcome: Validation) -> list[str]:
    """How the machine behaved, and how well speeds and their order were predicted."""
    factor = outcome.machine_factor
    word = "slower" if factor >= 1 else "faster"
    lines = [
        f"the machine ran {100 * abs(factor - 1):.1f} % {word} than its timing says (median over "
        "policies)"
    ]
    if math.isfinite(outcome.waiting):
        away = max(0.0, outcome.waiting)  # the two clocks' grains differ
        lines[0] += f"; {100 * away:.1f} % of the wall's seconds went to others"
    lines.append(
        f"prediction error of tokens/s over {len(outcome.checks)} policies: median "
        f"{100 * outcome.median_error:.1f} %, largest {100 * outcome.max_error:.1f} %; without "
        f"that factor median {100 * outcome.median_error_scaled:.1f} %, largest "
        f"{100 * outcome.max_error_scaled:.1f} %"
    )
    lines.append(ranking_line(outcome))
    return lines


def ranking_line(outcome: Validation) -> str:
    """Rank agreement over the pairs that the sitting could tell apart."""
    found = outcome.ranking
    if found.pairs == 0:
        return (
            "order: no two policies were far enough apart to compare predicted and measured order"
        )
    held = low_to_high(Estimate(found.tau, found.low, found.high), 2)
    return (
        f"order: Kendall's tau {found.tau:.2f} ({held}) over the {found.pairs} of {found.of} pairs "
        "that the sitting could tell apart, never left out"
    )


def basis_line(outcome: Validation) -> str:
    """The basis of the sitting: requests, policies and their order."""
    times = "once" if outcome.repeats == 1 else f"{outcome.repeats} times"
    return (
        f"{outcome.requests} held-out replies of {outcome.questions} questions, {times}; for each, "
        f"all policies ({len(outcome.checks)} shown) and the placebo in a random order (seed "
        f"{outcome.seed}); trace {outcome.exactness}; {outcome.sitting_s:.0f} s{_gaps(outcome)}"
    )


def _gaps(outcome: Validation) -> str:
    """How often the sitting was interrupted, and for how long it was away."""
    gaps = next(iter(outcome.measured.timed.values()))[0].meta.get("gaps", [])
    away_s = sum(seconds for _, seconds in gaps)
    return f", interrupted {len(gaps)} times, {away_s:.0f} s not counted" if gaps else ""


def validation_text(outcome: Validation) -> str:
    """Everything `gammalab validate` prints."""
    note = replayed_note(next(iter(outcome.measured.timed.values()))[0].meta)
    head = [*claim_lines(outcome), *machine_lines(outcome), basis_line(outcome), note]
    lines = "\n".join(fill(line) for line in head if line)
    found = validation_dict(outcome)
    *first, rounds = tables(found)
    rounds = "\n".join([rounds, *reasons(outcome)])
    prefill = (
        f"prefill of the {outcome.requests} prompts, not part of the speeds: predicted "
        f"{outcome.prefill_predicted_s:.3f} s, measured {outcome.prefill_measured_s:.3f} s\n"
        "(median over policies and repeats)"
    )
    return "\n\n".join([lines, *first, rounds, error_table(found), prefill])


def findings(outcome: Validation, max_error_percent: float) -> list[str]:
    """Findings, one line each: a placebo that is no tie, contradicted claims, and all the
    policies whose prediction missed the bound.
    """
    found = [] if outcome.placebo_tie else [placebo_line(outcome)]
    found += [claim_line(claim) for claim in outcome.claims if claim.word == CONTRADICTED]
    missed = [check for check in outcome.checks if abs(check.error) > max_error_percent / 100]
    if missed:
        each = ", ".join(f"{check.policy} {signed(check.error)}" for check in missed)
        found.append(
            f"predicted tokens/s of {len(missed)} of {len(outcome.checks)} policies are off by "
            f"more than the allowed {max_error_percent:g} %: {each}"
        )
    return found


def validation_dict(outcome: Validation) -> dict[str, Any]:
    """JSON-ready; the logs are named, not held."""
    raw = {
        field: jsonable(getattr(outcome, field))
        for field in outcome.__dataclass_fields__
        if field not in ("measured", "predicted")
    }
    for check, shown in zip(outcome.checks, raw["checks"], strict=True):
        if check.agreement is not None:
            shown["agreement"]["differing"] = check.agreement.differing
    raw["columns"] = {"ratios": described(RATIOS), "speeds": described(SPEEDS)}
    raw["reasons"] = {check.policy: why(check) for check in outcome.checks}
    raw["lines"] = {"claims": claim_lines(outcome), "machine": machine_lines(outcome)}
    raw["basis"] = basis_line(outcome)
    folder = Path()
    raw["log_files"] = {
        name: [timed_path(folder, name, k).as_posix() for k in range(len(logs))]
        for name, logs in outcome.measured.timed.items()
    }
    return raw
