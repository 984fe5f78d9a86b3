"""Spec-Bench answer files: by hand, against replays of known truth, and the published run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.base import Policy
from policies.counts.heuristic import HFHeuristic
from policies.fixed import Fixed
from simulator.replay.replay import replay, replay_interpreted
from tests.traces.importers.recordings import answer, flags_in, write_lines
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.importers import FORMATS
from traces.importers.common import Options
from traces.importers.flags import UNKNOWN, accept_lengths
from traces.importers.schedule import Schedule
from traces.importers.spec_bench_timing import fit_timing
from traces.roundlog import RoundLog
from traces.schema import Trace, TraceMeta

DATA = Path(__file__).parents[4] / "shared" / "data" / "spec_bench"
HEURISTIC, VANILLA = DATA / "vicuna-7b_sps-68m_heuristic.jsonl", DATA / "vicuna-7b_vanilla.jsonl"
needs_data = pytest.mark.skipif(not HEURISTIC.exists(), reason="no Spec-Bench answers at hand")


def test_spec_bench_by_hand(tmp_path: Path) -> None:
    """Heuristic from 2, two turns. Turn 1: 2 of 2 and the bonus, 1 of 4, 0 of 3 (the end). Turn 2
    starts at 2 again: 0 of 2, 1 of 1 and the bonus, 3 of 3 at the end.
    """
    row = answer(81, [3, 2, 1, 1, 2, 4], turns=["a", "b"], new_tokens=[6, 7])
    row["choices"][0] |= {"decoding_steps": [3, 3], "wall_time": [1.0, 2.0]}
    path = write_lines(tmp_path / "a.jsonl", [row])
    trace = FORMATS["spec-bench"](path, Options(schedule="heuristic:2"))
    assert trace.request_id == ("81.1", "81.2") and trace.category == ("conversation",) * 2
    assert trace.offsets.tolist() == [0, 6, 13]
    assert flags_in(trace) == [1, 1, -1, 1, 0, -1, 0, 1, -1, 1, 1, 1, -1]
    assert trace.accept_len.tolist() == [2, 1, 0, 1, 0, 0, 0, 1, 0, 3, 2, 1, 0]
    assert trace.meta.exactness == "censored" and trace.prompt_tokens.tolist() == [0, 0]
    assert (trace.meta.target, trace.meta.draft, trace.meta.dtype) == ("t-7b", "68m", "float16")
    assert trace.meta.depth == 4 and trace.meta.max_new_tokens == 1024
    source = trace.meta.source
    assert (source["rounds"], source["violations"], source["full"]) == (6, 0, 3)
    assert source["mean_gamma"] == round((2 + 4 + 3 + 2 + 1 + 3) / 6, 4)


def test_a_schedule_that_was_not_in_force_is_noticed(tmp_path: Path) -> None:
    """5 accepted of a fixed draft of 3; what the target put there stays unknown."""
    path = write_lines(tmp_path / "a.jsonl", [answer(1, [6, 1, 1])])
    trace = FORMATS["spec-bench"](path, Options(schedule="fixed:3"))
    assert trace.meta.source["violations"] == 1
    assert flags_in(trace) == [1, 1, 1, 1, 1, -1, 0, -1]


def test_without_a_schedule_the_targets_own_tokens_are_unknown(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [answer(1, [3, 1, 1])])
    assert flags_in(FORMATS["spec-bench"](path, Options())) == [1, 1, -1, -1, -1]


def test_a_round_cut_by_the_end_of_its_reply(tmp_path: Path) -> None:
    """The last round kept 4 + 1 tokens, of which the reply has 3: all of them drafted."""
    row = answer(1, [1, 5], new_tokens=[4])
    trace = FORMATS["spec-bench"](
        write_lines(tmp_path / "a.jsonl", [row]), Options(schedule="fixed:6")
    )
    assert flags_in(trace) == [0, 1, 1, 1] and trace.meta.exactness == "exact"
    assert trace.meta.source["mended"] == {"cut_rounds": 1}


@pytest.mark.parametrize(
    ("lengths", "tokens"), [([2, 2], 9), ([2, 2, 2], 3), ([2], 0)], ids=["few", "many", "empty"]
)
def test_rounds_that_do_not_fill_the_reply(tmp_path: Path, lengths: list[int], tokens: int) -> None:
    rows = [answer(1, lengths, new_tokens=[tokens]), answer(2, [2, 1])]
    path = write_lines(tmp_path / "a.jsonl", rows)
    trace = FORMATS["spec-bench"](path, Options(schedule="fixed:6"))
    assert trace.request_id == ("2.1",)
    assert trace.meta.source["mended"] == {"turns_left_out": 1}
    with pytest.raises(InputError, match="line 1"):
        FORMATS["spec-bench"](path, Options(schedule="fixed:6", strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"accept_lengths": [2, 0]},
        {"accept_lengths": [2, 1.5]},
        {"accept_lengths": None},
        {"new_tokens": [-1]},
        {"new_tokens": [3, 3]},
        {"turns": "text"},
        {"wall_time": ["1"]},
    ],
)
def test_malformed_answers_are_named_by_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write_lines(tmp_path / "a.jsonl", [answer(1, [2, 1]), answer(2, [2, 1], **changes)])
    with pytest.raises(InputError, match="line 2"):
        FORMATS["spec-bench"](path, Options())


def test_runs_merge_where_the_text_agrees(tmp_path: Path) -> None:
    """Truth 1 1 1 0 1 1. fixed:2 leaves position 2 unknown, fixed:4 resolves it; the third reply
    has another text, the fourth is in the second run only, the second reply's flags contradict.
    """
    short = [answer(1, [3, 1, 2]), answer(2, [1, 2]), answer(3, [1, 1])]
    long = [answer(1, [4, 2]), answer(2, [2, 1]), answer(3, [2], turns=["no"]), answer(4, [1])]
    a = write_lines(tmp_path / "a.jsonl", short)
    b = write_lines(tmp_path / "b.jsonl", long)
    trace = FORMATS["spec-bench"](a, Options(schedule="fixed:2,fixed:4", merge=(b,)))
    assert flags_in(trace)[:6] == [1, 1, 1, 0, 1, -1]
    assert flags_in(trace)[6:] == [0, 1, -1, 0, -1]
    (merged,) = trace.meta.source["merged"]
    counts = {name: merged[name] for name in ("agree", "differ", "only_here", "resolved")}
    assert counts == {"agree": 2, "differ": 1, "only_here": 1, "resolved": 1}
    assert merged["conflicts"] == 2
    assert merged["file"] == "b.jsonl" and merged["schedule"] == "fixed:4"


def test_sampled_runs_are_not_merged(tmp_path: Path) -> None:
    row = answer(1, [2, 1]) | {"model_id": "x-float16-temp-0.7"}
    path = write_lines(tmp_path / "a.jsonl", [row])
    assert FORMATS["spec-bench"](path, Options(schedule="fixed:2")).meta.temperature == 0.7
    with pytest.raises(InputError, match="sampled"):
        FORMATS["spec-bench"](path, Options(schedule="fixed:2", merge=(path,)))


def exact_trace(flags: list[list[int]], depth: int) -> Trace:
    """Complete truth: accepted or rejected at every position of every reply."""
    offsets = np.cumsum([0, *map(len, flags)])
    joined = np.array([f for reply in flags for f in reply], dtype=np.int8)
    lengths, _ = accept_lengths(joined, offsets)
    meta = TraceMeta("p", "t", "d", "", "cpu", "float32", "exact", depth=depth, max_new_tokens=60)
    names = tuple(f"{k}.1" for k in range(len(flags)))
    prompts = np.zeros(len(flags), dtype=np.int32)
    return Trace(meta, offsets, prompts, names, ("writing",) * len(flags), lengths)


def recorded(log: RoundLog, column: str, request: int) -> list[int]:
    return getattr(log, column)[log.request == request].tolist()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=60), min_size=1, max_size=4),
    st.integers(1, 6),
    st.booleans(),
)
def test_what_is_known_is_true(
    tmp_path: Path, flags: list[list[int]], gamma: int, adaptive: bool
) -> None:
    """Rounds that a policy played on a known truth come back: its gammas, and a flag wherever it
    looked, none where it did not. The reply's last token apart, which Spec-Bench does not tell.
    """
    truth = exact_trace(flags, depth=200)
    policy: Policy = HFHeuristic(gamma0=gamma) if adaptive else Fixed(gamma_tokens=gamma)
    log = replay_interpreted(policy, truth, tabulate(Affine(), width=202))
    runs = [recorded(log, "emitted", r) for r in range(truth.requests)]
    rule = "heuristic" if adaptive else "fixed"
    for r, rounds in enumerate(runs):
        assert Schedule(rule, gamma).drafted(rounds, 60) == recorded(log, "drafted", r)
    answers = write_lines(tmp_path / "a.jsonl", [answer(r, runs[r]) for r in range(len(runs))])
    options = Options(schedule=f"{rule}:{gamma}", max_new_tokens=60)
    spec = FORMATS["spec-bench"](answers, options)
    pairs = [
        [
            list(p)
            for p in zip(recorded(log, "drafted", r), recorded(log, "accepted", r), strict=True)
        ]
        for r in range(len(runs))
    ]
    rows = [{"id": r, "rounds": pairs[r], "tokens": len(flags[r])} for r in range(len(runs))]
    ours = FORMATS["jsonl"](write_lines(tmp_path / "b.jsonl", rows), Options())
    assert spec.meta.source["violations"] == 0
    for r, reply in enumerate(flags):
        looked, at = [], 0
        for drafted, accepted in pairs[r]:
            looked += [*range(at, at + min(drafted, accepted + 1))]
            at += accepted + 1
        expected = [f if i in set(looked) else UNKNOWN for i, f in enumerate(reply)]
        span = slice(int(truth.offsets[r]), int(truth.offsets[r + 1]))
        assert flags_in(ours)[span] == expected
        assert flags_in(spec)[span] == [*expected[:-1], UNKNOWN]


@needs_data
def test_the_published_heuristic_run() -> None:
    """The rebuilt gamma contradicts no round, and the heuristic replayed takes every one again."""
    trace = FORMATS["spec-bench"](HEURISTIC, Options(schedule="heuristic:5"))
    source = trace.meta.source
    assert (source["rounds"], source["violations"]) == (40632, 0)
    assert round(source["tokens_per_round"], 3) == 2.278
    assert round(source["mean_gamma"], 2) == 3.24
    assert round(source["full"] / source["rounds"], 3) == 0.289
    log = replay(HFHeuristic(gamma0=5), trace, tabulate(Affine(), width=trace.meta.depth + 2))
    rows = [json.loads(line) for line in HEURISTIC.read_text().splitlines()]
    lengths = [n for row in rows for n in row["choices"][0]["accept_lengths"]]
    assert log.emitted.tolist() == lengths
    assert log.accepted.tolist() == [n - 1 for n in lengths]
    tasks = np.array(trace.category)[log.request]
    mean = {task: round(float(log.emitted[tasks == task].mean()), 2) for task in set(tasks)}
    assert mean == {
        "conversation": 2.35, "translation": 1.45, "summarization": 2.42,
        "qa": 2.24, "math_reasoning": 2.09, "rag": 2.46,
    }  # fmt: skip


@needs_data
def test_the_fit_to_the_published_run() -> None:
    """Costs and speed-ups as they are known, and the replay at the fitted costs gives the fit."""
    options = Options(schedule="heuristic:5", vanilla=VANILLA)
    timing = fit_timing(HEURISTIC, options)
    fit = timing.meta["fitted"]
    assert round(1e3 * fit["round_s"], 1) == 22.3 and round(fit["r2"], 3) == 0.986
    assert 1e3 * fit["drafted_token_s"] == pytest.approx(1.92, abs=0.03)
    assert round(1e3 * fit["vanilla"]["token_s"], 2) == 22.97
    measured = fit["speedup"]["measured"]
    assert round(measured["token_weighted"], 2) == 1.79
    assert round(measured["mean_of_questions"], 2) == 1.64
    trace = FORMATS["spec-bench"](HEURISTIC, Options(schedule="heuristic:5"))
    costs = tabulate(Table(timing), width=trace.meta.depth + 2)
    log = replay(HFHeuristic(gamma0=5), trace, costs)
    rows = [json.loads(line) for line in HEURISTIC.read_text().splitlines()]
    wall = sum(sum(row["choices"][0]["wall_time"]) for row in rows)
    assert float(log.elapsed_s.sum() + log.prefill_s.sum()) == pytest.approx(wall, rel=1e-9)


def test_the_fit_finds_the_costs_it_was_made_from(tmp_path: Path) -> None:
    """0.5 s a reply, 0.02 a round, 0.003 a drafted token; vanilla 0.1 and 0.03 a token."""
    generator = np.random.default_rng(0)
    rows, plain = [], []
    for k in range(40):
        rounds = generator.integers(1, 4, size=int(generator.integers(3, 60))).tolist()
        drafted = Schedule("heuristic", 5).drafted(rounds, 1024)
        seconds = 0.5 + 0.02 * len(rounds) + 0.003 * sum(drafted)
        rows.append(answer(k, rounds, wall_time=[seconds]))
        tokens = sum(rounds)
        plain.append(answer(k, [1] * tokens, wall_time=[0.1 + 0.03 * tokens]))
    path = write_lines(tmp_path / "a.jsonl", rows)
    vanilla = write_lines(tmp_path / "v.jsonl", plain)
    timing = fit_timing(path, Options(schedule="heuristic:5", vanilla=vanilla))
    table = Table(timing)
    for drafted in (1, 2, 7, 60):
        seconds = drafted * table.draft_step_s(1, 500.0) + table.verify_s(drafted + 1, 1, 500.0)
        assert seconds == pytest.approx(0.02 + 0.003 * drafted)
    assert table.draft_step_s(1, 0.0, tokens=2) == pytest.approx(0.003)
    assert table.verify_s(1, 1, 0.0) == pytest.approx(0.03)
    assert table.prefill_s(900, 1) == pytest.approx(0.5)
    assert timing.meta["fitted"]["r2"] == pytest.approx(1.0)
    assert timing.meta["fitted"]["max_error_per_question"] < 1e-9


def test_a_timing_needs_a_gamma_that_varies(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [answer(k, [2] * (20 + k)) for k in range(5)])
    with pytest.raises(InputError, match="cannot be told apart"):
        fit_timing(path, Options(schedule="fixed:3"))
    with pytest.raises(InputError, match="--schedule"):
        fit_timing(path, Options())
