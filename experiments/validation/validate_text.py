"""A validation as text tables, findings and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.common.results import forced_note, jsonable
from experiments.common.statistics import FEWEST, Estimate
from experiments.common.text_table import fill, number, percent, table, with_interval
from experiments.common.verdict import CONTRADICTED, PLACEBO_CONFIDENCE, Ratio
from experiments.validation.agreement import REASONS, Cell
from experiments.validation.validate import Check, Validation
from real_backend.decoding.measured import timed_path

CLOCKS = {
    "cpu": "the processor's clock",
    "events": "events in the GPU's stream",
    "wall": "the wall's clock",
}


def signed(value: float) -> str:
    """0.031 -> "+3.1%"."""
    return f"{100 * value:+.1f}%"


def claim_line(ratio: Ratio) -> str:
    """ "payback over fixed:gamma=3: predicted 1.057, measured 1.042 (1.031-1.054; ...): word"."""
    found = f"{with_interval(ratio.time, 3)}, with other questions {_range(ratio.others, 3)}"
    return (
        f"{ratio.policy} over {ratio.reference}: predicted {ratio.predicted:.3f}, measured "
        f"{found}: {ratio.word}"
    )


def _range(found: Estimate, digits: int) -> str:
    return f"{number(found.low, digits)}-{number(found.high, digits)}"


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
    """What the sitting says, most important first."""
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


def ratio_table(outcome: Validation) -> str:
    """Every policy over the baseline, fastest first."""
    base = outcome.check(outcome.baseline).recalibrated_tokens_per_s
    rows = []
    for check in sorted(outcome.checks, key=lambda check: -check.measured_tokens_per_s):
        ratio, again = check.ratio, check.recalibrated_tokens_per_s
        if ratio is None:
            rows.append([check.policy, "1", "1", "", "", "", "baseline"])
            continue
        rows.append(
            [
                check.policy,
                _with_error(ratio),
                number(ratio.measured, 3),
                _range(ratio.time, 3),
                _range(ratio.others, 3),
                "-" if again is None or base is None else number(again / base, 3),
                ratio.word,
            ]
        )
    header = (
        f"over {outcome.baseline}",
        "predicted",
        "measured",
        "95 %,\nthese replies",
        "95 %, other\nquestions",
        "by the\nanchors",
        "",
    )
    notes = (
        "ratios of tokens/s; predicted -+ the standard error that the timing's repeats give it\n"
        "contradicted: the prediction lies outside the interval of these replies, the timing's\n"
        "error added; confirmed: inside, and the interval over other questions excludes 1 on its\n"
        "side\n"
        "by the anchors: the prediction with step times measured again during the sitting"
    )
    return table(header, [("", rows)]) + "\n\n" + notes


def _with_error(ratio: Ratio) -> str:
    if not math.isfinite(ratio.timing_error):
        return number(ratio.predicted, 3)
    return f"{ratio.predicted:.3f} -+ {ratio.predicted * ratio.timing_error:.3f}"


def speed_table(outcome: Validation) -> str:
    """Measured beside predicted tokens/s, per policy, fastest first."""
    rows = [
        [
            check.policy,
            number(check.predicted_tokens_per_s, 1),
            number(check.measured_tokens_per_s, 1),
            number(check.wall_tokens_per_s, 1),
            signed(check.error),
            percent(check.request_error, 1),
            _milliseconds(check.measured_s - check.predicted_s),
            _milliseconds(check.costs_s),
            _milliseconds(check.decisions_s),
        ]
        for check in sorted(outcome.checks, key=lambda check: -check.measured_tokens_per_s)
    ]
    header = (
        "tokens/s",
        "predicted",
        "measured",
        "wall clock",
        "error",
        "one reply",
        "missed ms",
        "by costs",
        "by rounds",
    )
    notes = (
        "predicted, measured, error: all tokens over all seconds of all repeats, without prefill,\n"
        f"by {CLOCKS[outcome.clock]}; one reply: the median of their absolute errors, each alone\n"
        "missed: measured - predicted, of which\n"
        "by costs: the rounds that ran cost more than the model says; by rounds: other rounds ran"
    )
    return table(header, [("", rows)]) + "\n\n" + notes


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:+.0f}"


def rounds_table(outcome: Validation) -> str:
    """How many rounds of the first repeat were the replay's."""
    rows = [
        [
            check.policy,
            "-" if check.agreement is None else str(check.agreement.rounds),
            "-" if check.agreement is None else str(check.agreement.differing),
            "-" if check.replies_equal is None else f"{check.replies_equal}/{outcome.requests}",
            why(check, outcome),
        ]
        for check in outcome.checks
    ]
    header = ("policy", "rounds", "differ", "replies=trace", "why")
    return table(header, [("", rows)]) + (
        "\n\nrounds, differ: (drafted, accepted, emitted) against the replay of the same replies"
    )


def why(check: Check, outcome: Validation) -> str:
    """The reason of whatever differs, in a few words."""
    if check.agreement is None:
        return "sampled: only laws agree"
    if not check.agreement.differing:
        return ""
    first = {k: n for k, n in check.agreement.first.items() if n}
    said = "first: " + ", ".join(f"{n} {k}" for k, n in first.items())
    return f"reads the clock; {said}" if check.reads_clock else said


def reasons(outcome: Validation) -> list[str]:
    """The meaning of the words that `why` uses in this validation."""
    used = {k for c in outcome.checks if c.agreement for k, n in c.agreement.first.items() if n}
    return [f"{word}: {REASONS[word]}" for word in REASONS if word in used]


def drift_table(outcome: Validation) -> str:
    """The anchors: steps measured again during the sitting; empty without any."""
    if not outcome.drift:
        return ""
    rows = [
        [
            f"{one.operation} {one.tokens}",
            number(one.factor, 3),
            number(one.begin, 3),
            number(one.end, 3),
            str(len(one.points)),
        ]
        for one in outcome.drift
    ]
    header = ("step, tokens", "of timing", "first third", "last third", "blocks")
    return table(header, [("", rows)]) + (
        "\n\nseconds of a step during the sitting over those of the timing, medians"
    )


def error_table(outcome: Validation) -> str:
    """Where the seconds differ: per kind of round, and fitted to the terms of the cost model."""
    rows = [
        [
            "yes" if cell.signals else "no",
            str(cell.drafted),
            str(cell.rounds),
            number(1000 * cell.priced_s, 3),
            number(1000 * cell.measured_s, 3),
            f"{1000 * cell.residual_s:+.3f}",
        ]
        for cell in frequent(outcome.cells)
    ]
    header = ("signals read", "drafted", "rounds", "model ms", "measured ms", "missed ms")
    fit = outcome.residual
    return table(header, [("", rows)]) + (
        "\n\nmodel, measured: of one round, medians; missed: their difference"
        f"\nfitted: {1e6 * fit.round_s:+.0f} us per round, {1e6 * fit.draft_s:+.0f} us per "
        f"drafted token,\n{1e6 * fit.signal_s:+.0f} us per token whose signals are read"
    )


def frequent(cells: Sequence[Cell]) -> list[Cell]:
    """The kinds of round that make up at least one in a hundred."""
    total = sum(cell.rounds for cell in cells)
    return [cell for cell in cells if cell.rounds * 100 >= total]


def machine_lines(outcome: Validation) -> list[str]:
    """How the machine behaved, and how well speeds and their order were predicted."""
    factor = outcome.machine_factor
    word = "slower" if factor >= 1 else "faster"
    lines = [
        f"the machine ran {100 * abs(factor - 1):.1f} % {word} than its timing says (median over "
        "policies)"
    ]
    if math.isfinite(outcome.waiting):
        lines[0] += f"; {100 * outcome.waiting:.1f} % of the wall's seconds went to others"
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
    held = _range(Estimate(found.tau, found.low, found.high), 2)
    return (
        f"order: Kendall's tau {found.tau:.2f} ({held}) over the {found.pairs} of {found.of} pairs "
        "that the sitting could tell apart, never left out"
    )


def basis_line(outcome: Validation) -> str:
    """Who decoded what, and how it was ordered."""
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
    note = forced_note(next(iter(outcome.measured.timed.values()))[0].meta)
    head = [*claim_lines(outcome), *machine_lines(outcome), basis_line(outcome), note]
    lines = "\n".join(fill(line) for line in head if line)
    rounds = "\n".join([rounds_table(outcome), *reasons(outcome)])
    tables = [ratio_table(outcome), speed_table(outcome), drift_table(outcome)]
    parts = [lines, *tables, energy_table(outcome), rounds, error_table(outcome)]
    prefill = (
        f"prefill of the {outcome.requests} prompts, not part of the speeds: predicted "
        f"{outcome.prefill_predicted_s:.3f} s, measured {outcome.prefill_measured_s:.3f} s\n"
        "(median over policies and repeats)"
    )
    return "\n\n".join([*filter(None, parts), prefill])


def energy_table(outcome: Validation) -> str:
    """Joules per token and peak memory of each policy; empty where the device reports neither."""
    checks = sorted(outcome.checks, key=lambda check: -check.measured_tokens_per_s)
    if all(c.joules_per_token is None and c.peak_memory_bytes is None for c in checks):
        return ""
    rows = [
        [
            check.policy,
            "-" if check.joules_per_token is None else number(check.joules_per_token, 3),
            "-" if check.peak_memory_bytes is None else number(check.peak_memory_bytes / 2**20, 0),
        ]
        for check in checks
    ]
    note = "joules of the whole board, prompts included; MiB that torch held at most"
    return table(("policy", "J/token", "peak MiB"), [("", rows)]) + "\n\n" + note


def findings(outcome: Validation, max_error_percent: float) -> list[str]:
    """What is wrong, one line each: a placebo that is no tie, contradicted claims, and all the
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
    raw["reasons"] = {check.policy: why(check, outcome) for check in outcome.checks}
    raw["lines"] = {"claims": claim_lines(outcome), "machine": machine_lines(outcome)}
    raw["basis"] = basis_line(outcome)
    folder = Path()
    raw["log_files"] = {
        name: [timed_path(folder, name, k).as_posix() for k in range(len(logs))]
        for name, logs in outcome.measured.timed.items()
    }
    return raw
