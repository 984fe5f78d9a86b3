"""The first screen: in order, from files alone, and never more than was measured."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.common.verdict import CONFIRMED, CONTRADICTED, NOISY
from experiments.comparison.command import run as run_compare
from experiments.comparison.headline import headline, headline_text
from experiments.options import CompareOptions
from experiments.validation.validate_text import validation_dict
from tests.experiments.validation.test_validate import run
from tests.results import save_inputs
from traces.json_text import dumps, jsonable

HEADS = [
    "Set",
    "Predicted",
    "Arithmetic",
    "Order",
    "Stale timing",
    "Runner-up",
    "Headroom",
    "Scope",
]


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A comparison of two controllers, as compare.json has it."""
    trace, timing = save_inputs(tmp_path_factory.mktemp("headline"))
    result = run_compare(CompareOptions(trace=(trace,), timing=(timing,), policies="gammatune,ucb"))
    found: dict[str, Any] = jsonable(result.content["comparisons"][0])
    return found


def by_head(lines: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in lines:
        found.setdefault(line.head, []).append(line.text)
    return found


def measured(**changes: Any) -> dict[str, Any]:
    """validate.json of a sitting of the fake engine, with other words where asked."""
    raw: dict[str, Any] = jsonable(validation_dict(run(noise=0.01)))
    return raw | {"findings": []} | changes


def test_without_a_sitting_it_predicts(part: dict[str, Any]) -> None:
    lines = headline(part, None)
    assert [line.head for line in lines] == HEADS
    said = by_head(lines)
    assert part["recommended"] in said["Set"][0] and "fixed:gamma=" in said["Predicted"][0]
    assert "nothing was measured" in said["Predicted"][0]
    assert f"{part['orders']} shuffled orders" in said["Order"][0]
    assert "greedy, batch 1" in said["Scope"][0] and "6 held-out questions" in said["Scope"][0]
    assert "confirmed" not in headline_text(part, None).lower()


def test_with_a_sitting_it_says_what_was_measured(part: dict[str, Any]) -> None:
    found = measured()
    said = by_head(headline(part, found))
    assert "Predicted" not in said and len(said["Measured"]) == len(found["claims"])
    for claim, text in zip(found["claims"], said["Measured"], strict=True):
        assert claim["policy"] in text and text.endswith(claim["word"].upper())
    assert "a second copy of fixed:gamma=2" in said["Placebo"][0] and "a tie" in said["Placebo"][0]
    assert "the machine ran" in said["Machine"][0].lower()


@pytest.mark.parametrize("word", [CONFIRMED, CONTRADICTED, NOISY])
def test_the_word_is_the_sittings(part: dict[str, Any], word: str) -> None:
    found = measured()
    found["claims"] = [claim | {"word": word} for claim in found["claims"]]
    text = headline_text(part, found)
    others = {CONFIRMED, CONTRADICTED, NOISY} - {word}
    assert word.upper() in " ".join(text.split())
    assert not any(other.upper() in " ".join(text.split()) for other in others)


def test_a_failed_placebo_and_findings_stand_there(part: dict[str, Any]) -> None:
    found = measured(placebo_tie=False, findings=["a policy missed its bound"])
    found["claims"] = [claim | {"word": NOISY} for claim in found["claims"]]
    lines = headline(part | {"mismatches": ["the trace has another device"]}, found)
    said = by_head(lines)
    assert all(text.endswith("for the placebo was no tie") for text in said["Measured"])
    assert said["Finding"] == ["a policy missed its bound"]
    assert said["Note"] == ["the trace has another device"]


def test_a_long_policy_is_cut_in_the_first_line_and_whole_in_the_second(
    part: dict[str, Any],
) -> None:
    name = "gammatune:" + ",".join(f"field{k}=0.123456" for k in range(9))
    row = next(row for row in part["rows"] if row["name"] == "gammatune")
    long = part | {"rows": [*part["rows"], row | {"name": name}]}
    long |= dict.fromkeys(("recommended", "tuning_first"), name)
    first, second, *_ = headline(long, None)
    assert len(first.text) < 80 and second == ("In full", name)


def test_what_loses_is_not_what_to_set(part: dict[str, Any]) -> None:
    """On the held-out half, and in the sitting, each with its number."""
    rows = [
        row | ({"speedup": row["speedup"] | {"value": 0.76}} if row["name"] == "ucb" else {})
        for row in part["rows"]
    ]
    lost = part | {"recommended": "never", "tuning_first": "ucb", "rows": rows}
    (said,) = by_head(headline(lost, None))["Set"]
    assert said.startswith("no draft: ucb") and "0.76 times as fast as the target alone" in said
    found, name = measured(), part["recommended"]
    speeds = {check["policy"]: check["measured_tokens_per_s"] for check in found["checks"]}
    assert name in speeds and name in by_head(headline(part, found))["Set"][0][: len(name)]
    for check in found["checks"]:
        if check["policy"] == name:
            check["measured_tokens_per_s"] = 0.5 * speeds["never"]
    (said,) = by_head(headline(part, found))["Set"]
    assert said.startswith(f"no draft: {name}") and "0.50 times as fast" in said


def test_plain_and_constant_recommendations_say_so(part: dict[str, Any]) -> None:
    tuned = next(row["name"] for row in part["rows"] if row["role"] == "tuned")
    assert (
        "no draft"
        in headline(part | dict.fromkeys(("recommended", "tuning_first"), "never"), None)[0].text
    )
    assert "a constant length" in headline(part | {"recommended": tuned}, None)[0].text
    alone = part | {"runner_up": part["recommended"]}
    assert "no other controller" in by_head(headline(alone, None))["Runner-up"][0]


def test_unknown_arithmetic_is_said(part: dict[str, Any]) -> None:
    (text,) = by_head(headline(part, None))["Arithmetic"]
    assert "not known" in text  # a timing of version 1
    known = part | {"unpriced": []}
    assert "charged" in by_head(headline(known, None))["Arithmetic"][0]


def test_terminal_lines_fit_and_the_file_holds_no_nan(part: dict[str, Any]) -> None:
    assert max(map(len, headline_text(part, measured()).splitlines())) <= 98
    assert "NaN" not in dumps(part)


@pytest.mark.parametrize(
    ("again", "said"),
    [(1.3, "30.0 % faster, which fits: "), (1.5, "50.0 % faster, which does not fit"), (None, "")],
)
def test_a_contradiction_is_held_against_the_steps_of_the_sitting(
    part: dict[str, Any], again: float | None, said: str
) -> None:
    found = measured()
    claim = found["claims"][0] | {"word": CONTRADICTED, "timing_error": 0.001}
    claim |= {"measured": 1.3, "time": {"value": 1.3, "low": 1.28, "high": 1.32}}
    checks = [
        check | {"recalibrated_tokens_per_s": None if again is None else 1000.0 * ratio}
        for check in found["checks"]
        for ratio in ((again or 1.0) if check["policy"] == claim["policy"] else 1.0,)
    ]
    (text,) = by_head(headline(part, found | {"claims": [claim], "checks": checks}))["Measured"]
    assert text.partition("CONTRADICTED")[2].startswith(said and ". By steps timed again")
    assert said in text
