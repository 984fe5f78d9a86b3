"""The comparison against hand-computed numbers, and its statistics against known cases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.common.cost_sources import step_costs
from experiments.common.statistics import (
    bootstrap_weights,
    kendall_tau,
    verdict_among,
)
from experiments.comparison.command import run as run_compare
from experiments.comparison.compare import censored_positions, compare, default_policies
from experiments.comparison.compare_text import comparison_text, to_dict
from experiments.comparison.rows import by_question_speed
from experiments.options import CompareOptions
from policies.fixed import Fixed
from policies.registry import REGISTRY, parse_policies
from simulator.replay.metrics import PerRequest
from tests.results import lively_trace, make_timing, make_trace, save_inputs
from traces.errors import InputError
from traces.roundlog import read_roundlog
from traces.schema import Trace
from traces.split import question_of, split_rows, spread_rows

# accept_len of two replies of 6 tokens: one is rejected at position 3, one never.
HARD, EASY = [3, 2, 1, 0, 2, 1], [6, 5, 4, 3, 2, 1]


def four_questions() -> Trace:
    """Two questions of each kind, so that each half of the split holds one of each."""
    return make_trace(
        [HARD, HARD, EASY, EASY], ["1.1", "2.1", "3.1", "4.1"], ["hard", "hard", "easy", "easy"]
    )


def test_hand_computed_table() -> None:
    trace = four_questions()
    found = compare(trace, step_costs(make_timing(), trace), [Fixed(1), Fixed(2)], resamples=50)
    # A draft step is 1 s, a verify 10 s. never: 12 rounds, 120 s. The reply limit is 6 tokens, so
    # room is 5, 4, 3, 2, 1, 0 by position.
    # gamma 1: easy at 0, 2, 4 drafts 1 each: 3 rounds, 33 s. hard at 0, 2 accepts 1; then at 4
    #   again 1: 3 rounds, 33 s. gamma 2: easy at 0, 3 accepts 2: 24 s. hard at 0 accepts 2, at 3
    #   none, at 4 room is 1, accepted, ends: 12 + 12 + 11 = 35 s.
    # gamma 3: easy at 0 accepts 3, at 4 room 1: 13 + 11 = 24. hard at 0 accepts 3, at 4: 24 s.
    # gamma 4: easy at 0 accepts 4, at 5 room 0: 14 + 10 = 24. hard at 0 accepts 3 of 4, at 4: 25.
    assert found.tuned_gamma == found.hindsight_gamma == 3
    assert [120 / s for s in (120, 66, 59, 48, 49)] == pytest.approx(found.fixed_curve)
    never, one, two = (found.row(n) for n in ("never", "fixed:gamma=1", "fixed:gamma=2"))
    assert never.speedup.value == 1.0 and never.tokens_per_s == pytest.approx(12 / 120)
    assert one.speedup.value == pytest.approx(120 / 66)
    assert one.vs_fixed.value == pytest.approx(48 / 66)
    # By question: both replies of gamma 2 hold 6 tokens, at 6/24 and 6/35 tokens/s.
    assert two.speedup_by_question == pytest.approx((6 / 24 + 6 / 35) / 2 / (6 / 60))
    assert two.tasks["easy"].value == pytest.approx(60 / 24)
    assert two.tasks["hard"].value == pytest.approx(60 / 35)
    assert two.mean_drafted == pytest.approx((2 + 2 + 2 + 2 + 1) / 5)
    assert two.tokens_per_round == pytest.approx(12 / 5)
    assert two.acceptance == pytest.approx((2 + 2 + 2 + 0 + 1) / 9)
    # The clairvoyant cannot save a round: two verifies and four accepted drafts a reply are needed.
    assert found.row("clairvoyant").speedup.value == pytest.approx(120 / 48)
    assert found.row("best fixed").verdict == "same"
    assert never.verdict == one.verdict == "too few"  # two questions
    assert one.regret_s == pytest.approx(66 - 48)
    assert found.recommended == "fixed:gamma=3"


def test_speed_by_question_is_the_mean_over_questions() -> None:
    """Turns of a question are taken together, then every question weighs the same (Spec-Bench)."""
    tokens, decode_s = np.array([5, 1, 6]), np.array([3.0, 4.0, 2.0])
    zeros, none = np.zeros(3, dtype=np.int64), np.zeros(3)
    sums = PerRequest(zeros, tokens, zeros, zeros, zeros, decode_s, none, none)
    assert by_question_speed(sums, np.array([0, 0, 1])) == pytest.approx((6 / 7 + 6 / 2) / 2)
    assert by_question_speed(sums, np.arange(3)) == pytest.approx((5 / 3 + 1 / 4 + 3) / 3)


def test_bootstrap_depends_on_the_seed_alone() -> None:
    names = ["a", "b", "c", "d"]
    first, again = (bootstrap_weights(names, seed=5, resamples=9) for _ in range(2))
    assert (first == again).all()
    assert (first != bootstrap_weights(names, seed=6, resamples=9)).any()


def test_kendall_tau() -> None:
    assert kendall_tau([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert kendall_tau([1, 2, 3, 4], [10, 20, 40, 30]) == pytest.approx(4 / 6)


def test_question_of() -> None:
    assert question_of("81.2") == "81"
    assert question_of("synthetic-7") == "synthetic-7"
    assert question_of("v1.x") == "v1.x"


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.8])
def test_split_keeps_turns_together_and_tasks_apart(fraction: float) -> None:
    trace = lively_trace(questions=20)
    train, test = split_rows(trace, fraction, seed=4)
    assert sorted(train + test) == list(range(trace.requests))
    questions = [{question_of(trace.request_id[row]) for row in side} for side in (train, test)]
    assert not questions[0] & questions[1]
    for task in ("easy_talk", "hard"):
        share = sum(trace.category[row] == task for row in train) / 20
        assert share == pytest.approx(fraction, abs=0.06)
    assert split_rows(trace, fraction, seed=4) == (train, test)
    assert split_rows(trace, fraction, seed=5) != (train, test)


def test_split_needs_two_questions() -> None:
    trace = make_trace([HARD, EASY], ["1.1", "1.2"], ["hard", "hard"])
    with pytest.raises(InputError, match="cannot be split"):
        split_rows(trace)
    with pytest.raises(InputError, match="fraction"):
        split_rows(lively_trace(), 1.0)


def test_spread_rows_mix_the_tasks() -> None:
    trace = lively_trace(questions=12)
    rows = spread_rows(trace, 8)
    assert len(rows) == 8
    assert [trace.category[row] for row in rows[::2]] == ["easy_talk", "hard"] * 2
    assert len(spread_rows(trace, 0)) == trace.requests


def test_compare_uses_only_the_training_half_to_choose() -> None:
    """The halves favour different lengths; the tuned one is the training half's."""
    trace = lively_trace(questions=16)
    costs = step_costs(make_timing(verify_s=4.0), trace)
    found = compare(trace, costs, [], resamples=20)
    train = trace.select(list(found.train_rows))
    easy = compare(trace, costs, [Fixed(4)], resamples=20)
    assert set(found.train_rows).isdisjoint(found.test_rows)
    assert train.requests + len(found.test_rows) == trace.requests
    assert easy.row("never").speedup == found.row("never").speedup
    assert found.row("best fixed").speedup.value >= found.rows[1].speedup.value


@pytest.mark.parametrize(("verify_s", "recommended"), [(2.0, "never"), (10.0, "fixed:gamma=1")])
def test_what_loses_to_plain_decoding_is_not_recommended(verify_s: float, recommended: str) -> None:
    """Every draft of the tuning half is accepted, one of four on the held-out half: with a draft
    step of 1 s a round of gamma 1 pays there only if a verify costs more than 3 s.
    """
    names = [f"{number}.1" for number in range(24)]
    train, _ = split_rows(make_trace([EASY] * 24, names, ["t"] * 24))
    rows = [[1] * 8 if row in train else [0, 0, 0, 1] * 2 for row in range(24)]
    trace = make_trace(rows, names, ["t"] * 24, depth=1)
    found = compare(trace, step_costs(make_timing(verify_s=verify_s), trace), [], resamples=50)
    assert found.tuning_first == found.runner_up == "fixed:gamma=1" or recommended != "never"
    assert found.recommended == recommended
    assert found.row("fixed:gamma=1").speedup.value < 1.0 or recommended != "never"


@pytest.mark.parametrize("few", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_no_policy_beats_the_clairvoyant(few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not few:
        monkeypatch.setattr("experiments.comparison.compare.REGISTRY", REGISTRY)
    trace = lively_trace()
    policies, skipped = default_policies(trace)
    found = compare(trace, step_costs(make_timing(), trace), policies, resamples=20)
    best = found.row("clairvoyant").speedup.value
    assert not skipped and len(found.rows) >= len(policies) > 7
    assert all(row.speedup.value <= best + 1e-12 for row in found.rows)
    assert all(row.headroom.value <= 1 + 1e-12 for row in found.rows)


def test_verdicts_on_controllers_are_corrected_and_the_others_are_not() -> None:
    """fixed:gamma=9 drafts 4 tokens, the depth of the trace, so it is the tuned length again."""
    trace = lively_trace()
    policies = parse_policies("gammatune,fixed:gamma=9,fixed:gamma=1")
    costs = step_costs(make_timing(draft_s=0.1), trace)
    found = compare(trace, costs, policies, resamples=200)
    assert found.tuned_gamma == 4
    for row in found.rows:
        if row.role == "policy":
            said = verdict_among(row.vs_fixed.value, row.adjusted_p)
            assert row.verdict == ("same" if row.twin == "fixed:gamma=4" else said)
        else:
            assert np.isnan(row.adjusted_p) and np.isnan(row.detectable_percent)
    same, other = found.row("fixed:gamma=9"), found.row("gammatune")
    assert (same.twin, same.verdict, other.twin) == ("fixed:gamma=4", "same", None)
    assert np.isnan(same.adjusted_p) and np.isnan(same.detectable_percent)
    assert "fixed:gamma=9 = fixed:gamma=4" in comparison_text(found, "t.parquet")
    known = [row.detectable_percent for row in found.rows if not np.isnan(row.detectable_percent)]
    assert len(known) == 2 and other.detectable_percent in known
    assert found.detectable_percent == pytest.approx(np.median(known))
    assert found.detectable_among_percent > found.detectable_percent
    json.dumps(to_dict(found), allow_nan=False)


def test_default_shelf_leaves_out_what_needs_signals() -> None:
    usable, skipped = default_policies(four_questions())
    assert "tail-pruning" in skipped and "gammatune" in [policy.name for policy in usable]


def test_censored_positions_are_counted() -> None:
    rows, censored = [[2, 1, 0, 1], [0, 1, 0, 1]], [[True, True, True, False], [False] * 4]
    names = (["1.1", "2.1"], ["t", "t"])
    assert censored_positions(make_trace(rows, *names)) == 0
    assert censored_positions(make_trace(rows, *names, censored=censored)) == 3


def test_text_fits_a_terminal_and_names_everything() -> None:
    trace = lively_trace()
    costs = step_costs(make_timing(), trace)
    found = compare(trace, costs, parse_policies("gammatune,ucb"), resamples=20)
    text = comparison_text(found, "t.parquet")
    assert max(map(len, text.splitlines())) <= 100
    for word in ("gammatune", "ucb", "clairvoyant", "best fixed", "exact", "censored", "easy"):
        assert word in text
    for words in ("corrected for 2 controllers", "8 times in 10", "perturbed cost models"):
        assert words in text


def test_the_timing_says_what_control_costs(tmp_path: Path) -> None:
    trace, timing = save_inputs(tmp_path)
    make_timing(control_s=0.5).write(timing, overwrite=True)
    result = run_compare(CompareOptions(trace=(trace,), timing=(timing,), policies="gammatune"))
    found = result.content["comparisons"][0]["sensitivity"]
    assert {case["term"] for case in found["cases"]} == {"draft steps", "verify", "control"}
    assert found["settled"] is all(case["race"]["lead"] > -0.001 for case in found["cases"])


def test_files_are_written_and_read_back(tmp_path: Path) -> None:
    trace, timing = save_inputs(tmp_path)
    found = run_compare(
        CompareOptions(trace=(trace,), timing=(timing,), policies="gammatune", out=tmp_path / "out")
    )
    stored = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert stored["comparisons"] == found.content["comparisons"]
    (entry,) = stored["comparisons"]
    for name, file in entry["log_files"].items():
        log = read_roundlog(tmp_path / "out" / entry["logs"] / file)
        row = next(row for row in entry["rows"] if row["name"] == name)
        assert log.emitted.sum() / log.elapsed_s.sum() == pytest.approx(row["tokens_per_s"])
    with pytest.raises(InputError, match="exists"):
        run_compare(
            CompareOptions(
                trace=(trace,), timing=(timing,), policies="gammatune", out=tmp_path / "out"
            )
        )
    run_compare(
        CompareOptions(
            trace=(trace,), timing=(timing,), policies="gammatune", out=tmp_path / "out", force=True
        )
    )


def test_an_old_result_does_not_outlive_its_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while the rounds are overwritten: no comparison stays that names others."""
    trace, timing = save_inputs(tmp_path)
    run_compare(
        CompareOptions(trace=(trace,), timing=(timing,), policies="gammatune", out=tmp_path)
    )

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.comparison.command.write_logs", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_compare(
            CompareOptions(
                trace=(trace,), timing=(timing,), policies="gammatune", out=tmp_path, force=True
            )
        )
    assert not (tmp_path / "compare.json").exists()
