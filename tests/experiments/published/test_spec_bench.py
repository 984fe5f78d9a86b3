"""The Spec-Bench study: a small run by hand, the public one where at hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from experiments.published import spec_bench
from policies.counts.heuristic import HFHeuristic
from simulator.replay.replay import replay
from tests.experiments.published.published_tables import SHARED, arguments, needs
from tests.results import make_timing
from traces.costs.pricing import tabulate
from traces.costs.table import Table
from traces.importers.common import Options
from traces.importers.spec_bench import read, read_run, read_runs

SPEC_BENCH = SHARED / "spec_bench" / "vicuna-7b_sps-68m_heuristic.jsonl"
VANILLA = SHARED / "spec_bench" / "vicuna-7b_vanilla.jsonl"


def test_small_run_by_hand(small_run: tuple[Path, Path]) -> None:
    text, result = spec_bench.study(arguments(small_run[0], vanilla=small_run[1]))
    assert (result["rounds"], result["violations"], result["replayed_differently"]) == (12, 0, 0)
    assert result["tokens_per_round"] == pytest.approx(30 / 12)
    assert result["mean_gamma"] == pytest.approx((18 + 9 + 14 + 21) / 12)
    assert result["full"] == pytest.approx(3 / 12)
    assert result["fitted"]["round_s"] == pytest.approx(0.1)
    assert result["fitted"]["drafted_token_s"] == pytest.approx(0.01)
    assert result["tasks"]["rag"]["tokens_per_round"] == pytest.approx(19 / 7)
    assert result["seconds_error"]["largest"] < 1e-9
    assert result["published"] is None and "-" in text


def test_a_task_without_a_plain_run_is_left_out(small_run: tuple[Path, Path]) -> None:
    run, plain = small_run
    plain.write_text("".join(plain.read_text().splitlines(keepends=True)[:2]))
    _, result = spec_bench.study(arguments(run, vanilla=plain))
    assert set(result["tasks"]) == {"qa"} and result["questions"] == 2


def test_speedup_conventions_by_hand() -> None:
    ours = {"a": np.array([10.0, 1.0]), "b": np.array([30.0, 6.0])}
    plain = {"a": np.array([10.0, 2.0]), "b": np.array([30.0, 6.0])}
    found = spec_bench.speedups(ours, plain, ["a", "b"])
    assert found == {"token_weighted": pytest.approx(8 / 7), "mean_of_questions": 1.5}


def test_a_round_played_otherwise_is_counted(small_run: tuple[Path, Path]) -> None:
    options = Options(schedule="heuristic:5")
    trace, (run,) = read(small_run[0], options), read_runs(small_run[0], options)
    costs = tabulate(Table(make_timing()), max_context=64, width=trace.meta.depth + 2)
    rounds = spec_bench.recorded_rounds(run, trace)
    log = replay(HFHeuristic(gamma0=5), trace, costs)
    assert spec_bench.differing_rounds(rounds, log) == 0
    drafted = rounds.drafted.copy()
    drafted[0] += 1
    other = dataclasses.replace(rounds, drafted=drafted)
    assert spec_bench.differing_rounds(other, log) == 1
    fewer = spec_bench.Rounds(rounds.reply[:-2], rounds.drafted[:-2], rounds.emitted[:-2])
    assert spec_bench.differing_rounds(fewer, log) == 2


@needs(SPEC_BENCH)
@needs(VANILLA)
def test_spec_bench_as_published() -> None:
    _, result = spec_bench.study(arguments(SPEC_BENCH, vanilla=VANILLA))
    known = spec_bench.PUBLISHED
    assert (result["rounds"], result["violations"], result["replayed_differently"]) == (40632, 0, 0)
    assert result["tokens_per_round"] == pytest.approx(known["tokens_per_round"], abs=5e-4)
    assert result["mean_gamma"] == pytest.approx(known["mean_gamma"], abs=5e-3)
    for task, tokens in known["tasks"].items():
        assert result["tasks"][task]["tokens_per_round"] == pytest.approx(tokens, abs=5e-3)
    for convention, times in known["speedup"].items():
        assert result["speedup"][convention] == pytest.approx(times, abs=5e-3)
        assert result["speedup_replayed"][convention] == pytest.approx(times, abs=0.04)
    assert result["fitted"]["r2"] == pytest.approx(known["r2"], abs=1e-3)
    assert len(read_run(VANILLA, Options()).turns) == 560
