"""The first screen: what to set, what was measured, what it hangs on. From result files alone, so
that terminal and page cannot disagree.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from experiments.common.plots import Json
from experiments.common.statistics import Estimate
from experiments.common.text_table import fill
from experiments.common.verdict import CONTRADICTED, NOISY, inside
from experiments.comparison.compare_text import percent_change
from policies.registry import title


class Line(NamedTuple):
    """One point of the first screen: a word or two, and a sentence."""

    head: str
    text: str


def headline(part: Json, validation: Json | None) -> list[Line]:
    """part: a comparison of compare.json; validation: validate.json, None if nothing ran yet."""
    found = [
        Line("Set", _set(part, validation)),
        *_in_full(part),
        *_measured(part, validation),
        Line("Arithmetic", _arithmetic(part)),
        Line("Order", _order(part)),
        Line("Stale timing", _stale(part)),
        Line("Runner-up", _others(part)),
        Line("Headroom", _headroom(part)),
        Line("Scope", _scope(part, validation)),
    ]
    if validation is not None:
        found.append(
            Line("Machine", ". ".join(_sentence(x) for x in validation["lines"]["machine"]))
        )
        told = validation["lines"]["claims"]  # above, as what was measured
        found += [Line("Finding", line) for line in validation["findings"] if line not in told]
    return [*found, *(Line("Note", line) for line in part.get("mismatches", []))]


def headline_text(part: Json, validation: Json | None) -> str:
    """The first screen of a terminal."""
    lines = headline(part, validation)
    width = max(len(line.head) for line in lines) + 2
    return "\n".join(fill(line.head.ljust(width) + line.text, indent=width) for line in lines)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def row_of(part: Json, name: str) -> Json:
    """The row of that name; of a censored trace with what all its imputations say."""
    found: Json = next(row for row in part["rows"] if row["name"] == name)
    if part.get("censoring") and found["role"] != "tuned":
        known = next(row for row in part["censoring"]["rows"] if row["name"] == name)
        return found | {"vs_fixed": known["vs_fixed_others"], "verdict": known["verdict"]}
    return found


def _tuned(part: Json) -> str:
    return str(next(row["name"] for row in part["rows"] if row["role"] == "tuned"))


def _in_full(part: Json) -> list[Line]:
    """The recommended policy as `--policies` reads it, where that is too long for a headline."""
    name = part["recommended"]
    return [] if title(name) == name else [Line("In full", name)]


def _set(part: Json, validation: Json | None) -> str:
    """The setting to use; never one that decodes slower than the target alone, predicted or
    measured.
    """
    name = part["recommended"]
    row, first = row_of(part, name), part["tuning_first"]
    if row["role"] == "never":
        if first == name or row_of(part, first)["twin"] == name:
            return "no draft: no controller decoded faster than the target alone on the tuning half"
        speed = row_of(part, first)["speedup"]["value"]
        return (
            f"no draft: {title(first)}, the fastest on the tuning half, decodes {speed:.2f} times "
            "as fast as the target alone on the held-out half"
        )
    speed = _measured_speedup(name, validation)
    if speed < 1.0:
        return (
            f"no draft: {title(name)}, chosen on the tuning half, decoded {speed:.2f} times as "
            "fast as the target alone in the sitting"
        )
    if row["role"] == "tuned":
        return f"{title(name)}, a constant length: no controller beat it on the tuning half"
    return f"{title(name)}, chosen on the tuning half"


def _measured_speedup(name: str, validation: Json | None) -> float:
    """Tokens/s over those of plain decoding in the sitting; NaN if it did not decode both."""
    checks = validation["checks"] if validation else []
    speeds = {check["policy"]: float(check["measured_tokens_per_s"]) for check in checks}
    return speeds.get(name, math.nan) / speeds.get("never", math.nan)


def _measured(part: Json, validation: Json | None) -> list[Line]:
    """The gain over the tuned fixed length and over the runner-up, measured beside predicted."""
    if validation is None:
        row = row_of(part, part["recommended"])
        return [
            Line(
                "Predicted",
                f"{percent_change(row['vs_fixed']['value'])} than {_tuned(part)} "
                f"({row['verdict']}); nothing was measured on the real models yet: `gammalab "
                "validate` does it",
            )
        ]
    lines = []
    for claim in validation["claims"]:
        again = "" if validation["placebo_tie"] else ", for the placebo was no tie"
        lines.append(
            Line(
                "Measured",
                f"{title(claim['policy'])} {percent_change(claim['measured'])} than "
                f"{title(claim['reference'])} "
                f"({_span(claim['time'])} on these replies, {_span(claim['others'])} with other "
                f"questions); predicted {percent_change(claim['predicted'])}: "
                f"{claim['word'].upper()}{again if claim['word'] == NOISY else ''}"
                f"{_why(claim, validation) if claim['word'] == CONTRADICTED else ''}",
            )
        )
    placebo = next(x for x in validation["lines"]["claims"] if x.startswith("placebo"))
    return [*lines, Line("Placebo", placebo.removeprefix("placebo, "))]


def _why(claim: Json, validation: Json) -> str:
    """Whether the step times of the sitting itself would have promised what was measured."""
    rates = {c["policy"]: c["recalibrated_tokens_per_s"] for c in validation["checks"]}
    first, second = rates.get(claim["policy"]), rates.get(claim["reference"])
    if first is None or second is None or claim["time"]["low"] is None:
        return ""
    error = claim["timing_error"]
    fits = inside(first / second, Estimate(**claim["time"]), math.nan if error is None else error)
    said = f". By steps timed again during the sitting {percent_change(first / second)}, which "
    if fits:
        return f"{said}fits: the machine has left its timing, measure it again"
    return f"{said}does not fit either"


def _span(found: Json) -> str:
    if found["low"] is None:
        return "no interval"
    return f"{100 * (found['low'] - 1):+.1f} to {100 * (found['high'] - 1):+.1f} %"


def _arithmetic(part: Json) -> str:
    row = row_of(part, part["recommended"])
    if part["unpriced"]:
        return "what some rules' own arithmetic costs is not known to the timing: not charged"
    return (
        f"predicted ratio to {_tuned(part)} {row['vs_fixed']['value']:.3f} with every rule's own "
        f"arithmetic charged, {row['uncharged']:.3f} without"
    )


def _order(part: Json) -> str:
    row = row_of(part, part["recommended"])
    found = row["orders"]
    return (
        f"{found['value']:.3f} over {part['orders']} shuffled orders of the replies "
        f"({found['low']:.3f} to {found['high']:.3f}), {found['recorded']:.3f} in the recorded one"
    )


def _stale(part: Json) -> str:
    return ". ".join(_sentence(line) for line in part["stale"])


def _others(part: Json) -> str:
    first, second, simple = (part[key] for key in ("recommended", "runner_up", "simplest"))
    if second == first:
        return "no other controller was compared"
    gain = row_of(part, second)["vs_fixed"]["value"]
    said = f"{title(second)}, predicted {percent_change(gain)} than {_tuned(part)}"
    if simple == first:
        return f"{said}; no simpler rule is as fast as the first"
    gain = row_of(part, simple)["vs_fixed"]["value"]
    return (
        f"{said}; the simplest rule whose interval reaches the first's: {title(simple)}, predicted "
        f"{percent_change(gain)}"
    )


def _headroom(part: Json) -> str:
    left = row_of(part, "clairvoyant")["vs_fixed"]["value"]
    left /= row_of(part, part["recommended"])["vs_fixed"]["value"]
    return f"a schedule that knew what will be accepted would be {percent_change(left)} still"


def _scope(part: Json, validation: Json | None) -> str:
    meta, timing = part["trace_meta"], part["timing_meta"]
    sampling = (
        "greedy" if meta["temperature"] == 0 else f"sampled at temperature {meta['temperature']:g}"
    )
    where = timing.get("device_name", "an unknown device")
    said = f"pair {meta['pair']}, {timing.get('dtype', '?')} on {where}, {sampling}, batch 1"
    said += f"; {part['questions']} held-out questions"
    if validation is not None and validation["acceptance"] != "own":
        said += f"; acceptance: {validation['acceptance']}"
    return said
