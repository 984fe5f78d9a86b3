"""Recordings from elsewhere: flags, importers and `gammalab trace import`.

tests/traces/importers/test_importers_engines.py has those of serving engines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.cli import main
from policies.base import Policy
from policies.counts.heuristic import HFHeuristic
from policies.fixed import Fixed
from simulator.replay.replay import replay, replay_interpreted
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.importers import FORMATS
from traces.importers.common import Options
from traces.importers.flags import UNKNOWN, accept_lengths, merge_flags, round_flags
from traces.importers.schedule import Schedule, parse_schedules
from traces.importers.spec_bench_timing import fit_timing
from traces.roundlog import RoundLog
from traces.schema import Trace, TraceMeta
from traces.store import read_trace
from traces.timing import read_timing

DATA = Path(__file__).parents[4] / "shared" / "data" / "spec_bench"
HEURISTIC, VANILLA = DATA / "vicuna-7b_sps-68m_heuristic.jsonl", DATA / "vicuna-7b_vanilla.jsonl"
needs_data = pytest.mark.skipif(not HEURISTIC.exists(), reason="no Spec-Bench answers at hand")

Rows = Sequence[dict[str, Any]]


def write_lines(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flags_in(trace: Trace) -> list[int]:
    """The flags that a trace holds."""
    unknown = np.zeros(trace.positions, bool) if trace.censored is None else trace.censored
    return np.where(trace.accept_len > 0, 1, np.where(unknown, -1, 0)).tolist()


def answer(question: int, rounds: list[int], **changes: Any) -> dict[str, Any]:
    """A Spec-Bench line of one turn that these rounds fill; changes go into choices[0]."""
    choice = {
        "index": 0,
        "turns": ["text"],
        "decoding_steps": [len(rounds)],
        "new_tokens": [sum(rounds)],
        "wall_time": [1.0],
        "accept_lengths": rounds,
    }
    model = "t-7b-sps-68m-float16-temp-0.0"
    row = {"question_id": question, "category": "writing", "model_id": model}
    return row | {"choices": [choice | changes]}


# Flags


def test_flags_by_hand() -> None:
    """Two replies: a run that ends in a rejection, in the unknown, and at the reply's end."""
    flags = np.array([1, 1, 0, 1, -1, 1, 1, 1, -1, 1], dtype=np.int8)
    accept_len, censored = accept_lengths(flags, np.array([0, 7, 10]))
    assert accept_len.tolist() == [2, 1, 0, 1, 0, 2, 1, 1, 0, 1]
    assert accept_len.dtype == np.int16
    assert np.flatnonzero(censored).tolist() == [3, 4, 7, 8]


def test_flags_of_rounds_by_hand() -> None:
    """2 of 5, 3 of 3, 0 of 0, 0 of 1: a rejection, a bonus token, no draft, a rejection."""
    assert round_flags([5, 3, 0, 1], [2, 3, 0, 0]).tolist() == [1, 1, 0, 1, 1, 1, -1, -1, 0]


def test_a_second_recording_resolves_and_contradicts() -> None:
    first = np.array([1, -1, 0, -1, 1, 0], dtype=np.int8)
    second = np.array([1, 1, -1, -1, 0, 1], dtype=np.int8)
    merged, resolved, conflicts = merge_flags(first, second)
    assert (merged.tolist(), resolved, conflicts) == ([1, 1, 0, -1, 1, 0], 1, 2)


def test_runs_longer_than_int16_are_cut() -> None:
    flags = np.ones(40_000, dtype=np.int8)
    accept_len, censored = accept_lengths(flags, np.array([0, 40_000]))
    assert accept_len[0] == accept_len.max() == 32767 and accept_len[-1] == 1
    assert not censored.any()


# Schedules


def test_the_heuristic_by_hand() -> None:
    """5: full -> 7 -> 6 (3 accepted) -> 5 (0) ...; capped by what is left of 20 tokens."""
    heuristic = Schedule("heuristic", 5)
    assert heuristic.drafted([6, 4, 1, 1], limit=1000) == [5, 7, 6, 5]
    assert heuristic.drafted([6, 4, 1, 1], limit=20) == [5, 7, 6, 5]
    assert heuristic.drafted([6, 4, 1, 1], limit=13) == [5, 6, 2, 1]
    assert Schedule("heuristic", 1).drafted([1, 1, 2, 1], limit=99) == [1, 1, 1, 3]
    assert Schedule("fixed", 3).drafted([4, 1, 2], limit=7) == [3, 2, 1]


def test_schedules_are_one_or_one_per_file() -> None:
    a, b = Schedule("heuristic", 5), Schedule("fixed", 7)
    assert parse_schedules("heuristic:5", 2) == [a, a]
    assert parse_schedules("heuristic:5, fixed:7", 2) == [a, b]
    assert parse_schedules("", 2) == [None, None]
    for text in ("heuristic", "fixed:0", "fixed:-1", "fixed:x", "magic:3", "fixed:1,fixed:2", ","):
        with pytest.raises(InputError, match="--schedule"):
            parse_schedules(text, 3)


# Spec-Bench


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


# acc-len


def row(name: str, acc_len: list[Any], tokens: int | None = None) -> dict[str, Any]:
    generated = list(range(len(acc_len) if tokens is None else tokens))
    return {
        "id": name,
        "prompt_token_ids": [7, 8, 9],
        "generated_token_ids": generated,
        "stats": {"acc_len": acc_len},
    }


def test_acc_len_by_hand(tmp_path: Path) -> None:
    """The fourth entry would emit 3 where 2 tokens are left: both of them drafted."""
    path = write_lines(tmp_path / "a.jsonl", [row("a", [3, 2, 1, 4, 2]), row("b", [1, 1])])
    trace = FORMATS["acc-len"](path, Options())
    assert trace.accept_len.tolist() == [2, 1, 0, 2, 1, 0, 0]
    assert trace.token_ids is not None and trace.token_ids.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert trace.prompt_tokens.tolist() == [3, 3] and trace.meta.exactness == "exact"
    assert trace.meta.depth == 2 and trace.meta.source["key"] == "stats"
    assert trace.meta.source["mended"]["clipped_positions"] == 1
    assert trace.meta.source["off_chain"] == 0


def test_acc_len_beyond_its_deepest_acceptance_is_censored(tmp_path: Path) -> None:
    """Nobody says that the recorder drafted more than two tokens; at the end there are no more."""
    path = write_lines(tmp_path / "a.jsonl", [row("a", [3, 3, 2, 1, 3, 2])])
    trace = FORMATS["acc-len"](path, Options(depth=5))
    assert trace.meta.depth == 5 and trace.censored is not None
    assert trace.accept_len.tolist() == [2, 2, 1, 0, 2, 1]
    assert np.flatnonzero(trace.censored).tolist() == [0, 1]


def test_drafters_that_see_more_than_tokens_are_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [row("a", [3, 1, 3, 4, 2, 1, 1])])
    assert FORMATS["acc-len"](path, Options()).meta.source["off_chain"] == 3


def test_lengths_that_disagree_are_mended_and_counted(tmp_path: Path) -> None:
    rows = [row("a", [2, 1, 1, 9], tokens=3), row("b", [2], tokens=3), row("c", [], tokens=0)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    trace = FORMATS["acc-len"](path, Options())
    assert trace.request_id == ("a", "b")
    assert trace.accept_len.tolist() == [1, 0, 0, 1, 0, 0]
    assert trace.censored is not None and trace.censored.tolist() == [False] * 4 + [True] * 2
    mended = trace.meta.source["mended"]
    assert (mended["cut_replies"], mended["cut_positions"]) == (1, 1)
    assert (mended["padded_replies"], mended["padded_positions"]) == (1, 2)
    assert mended["empty_replies_left_out"] == 1
    with pytest.raises(InputError, match="line 1"):
        FORMATS["acc-len"](path, Options(strict=True))


def test_the_key_chooses_among_several(tmp_path: Path) -> None:
    one = row("a", [2, 1])
    one |= {"models": {"eagle": {"acc_len": [1, 1]}, "v1.5": {"acc_len": [1, 2]}}}
    path = write_lines(tmp_path / "a.jsonl", [one])
    with pytest.raises(InputError, match=r"stats or models\.eagle"):
        FORMATS["acc-len"](path, Options())

    def read(key: str) -> list[int]:
        return FORMATS["acc-len"](path, Options(key=key)).accept_len.tolist()

    assert read("stats") == [1, 0] and read("models.eagle") == [0, 0]
    flat = row("a", []) | {"acc_len": [1, 2]}
    del flat["stats"]
    flat["generated_token_ids"] = [1, 2]
    path = write_lines(tmp_path / "b.jsonl", [flat])
    assert read(".") == read("") == [0, 1]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"id": "x", "prompt_token_ids": [], "stats": {"acc_len": [1]}}, "'generated_token_ids'"),
        ({"prompt_token_ids": [], "generated_token_ids": [1], "stats": {"acc_len": [1]}}, "'id'"),
        (row("x", [1, -1]), "-1"),
        (row("x", [1, 0]), "at least 1|1 to"),
        (row("x", [1, 1.5]), "not an integer"),
        (row("x", [1, True]), "not an integer"),
        (row("x", [1, None]), "not an integer"),
        (row("x", [1, 10**30]), "holds 1000"),
        (row("x", "11"), "list of integers"),  # type: ignore[arg-type]
        (row("x", [1]) | {"stats": {"acc": [1]}}, "no 'acc_len' at key 'stats'"),
        (row("x", [1]) | {"generated_token_ids": [-5]}, "-5"),
    ],
)
def test_malformed_rows_are_named_by_line(
    tmp_path: Path, broken: dict[str, Any], message: str
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [row("a", [1]), broken])
    with pytest.raises(InputError, match=message) as error:
        FORMATS["acc-len"](path, Options())
    assert f"{path}, line 2" in str(error.value)


# Our own format


def test_jsonl_by_hand(tmp_path: Path) -> None:
    """2 of 4, then 3 of 3 cut before the bonus; and a request given flag by flag."""
    rows = [
        {"id": "a.1", "task": "qa", "prompt_tokens": 9, "rounds": [[4, 2], [3, 3]], "tokens": 6},
        {"id": 2, "accepts": [1, 0, -1, 1]},
    ]
    trace = FORMATS["jsonl"](write_lines(tmp_path / "a.jsonl", rows), Options())
    assert flags_in(trace) == [1, 1, 0, 1, 1, 1, 1, 0, -1, 1]
    assert trace.request_id == ("a.1", "2") and trace.category == ("qa", "all")
    assert trace.prompt_tokens.tolist() == [9, 0] and trace.meta.depth == 4
    assert trace.token_ids is None and trace.meta.source["rounds"] == 2


def test_sampled_and_complete_is_in_law(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"id": 1, "accepts": [1, 0], "token_ids": [5, 6]}])
    trace = FORMATS["jsonl"](path, Options(temperature=0.8, max_new_tokens=50, depth=3))
    assert (trace.meta.exactness, trace.meta.max_new_tokens, trace.meta.depth) == ("in-law", 50, 3)
    assert trace.token_ids is not None and trace.token_ids.tolist() == [5, 6]
    assert FORMATS["jsonl"](path, Options()).meta.exactness == "exact"


@pytest.mark.parametrize(
    "broken",
    [
        {"id": 1},
        {"id": 1, "accepts": [1], "rounds": [[1, 1]]},
        {"id": 1, "accepts": []},
        {"id": 1, "accepts": [2]},
        {"id": 1, "accepts": [-2]},
        {"id": 1, "rounds": [[1, 2]]},
        {"id": 1, "rounds": [[1]]},
        {"id": 1, "rounds": [[2, 1], [2, 1]], "tokens": 2},
        {"id": 1, "rounds": [[2, 1]], "tokens": 3},
        {"id": 1, "accepts": [1, 1], "token_ids": [1]},
        {"id": 1, "accepts": [1], "promt_tokens": 3},
        {"id": 1, "accepts": [1], "prompt_tokens": -3},
        {"accepts": [1]},
        {"id": None, "accepts": [1]},
        {"id": "a\ud800", "accepts": [1]},
        {"id": 1, "task": "two\nlines", "accepts": [1]},
    ],
)
def test_jsonl_mends_nothing(tmp_path: Path, broken: dict[str, Any]) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"id": 0, "accepts": [1]}, broken])
    with pytest.raises(InputError, match="line 2"):
        FORMATS["jsonl"](path, Options())


def test_a_request_occurs_once(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"id": 1, "accepts": [1]}] * 2)
    with pytest.raises(InputError, match="twice"):
        FORMATS["jsonl"](path, Options())


# The command


def test_import_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, plain = [], []
    for k in range(6):
        rounds = [2, 1, 1 + k % 2, 1] * (3 + k)  # nobody drafts less than one token
        drafted = sum(Schedule("heuristic", 2).drafted(rounds, 1024))
        rows.append(answer(k, rounds, wall_time=[0.1 + 0.02 * len(rounds) + 0.01 * drafted]))
        plain.append(answer(k, [1] * (20 + k), wall_time=[0.019 * (20 + k)]))
    a, v = write_lines(tmp_path / "a.jsonl", rows), write_lines(tmp_path / "v.jsonl", plain)
    out, timing = tmp_path / "t.parquet", tmp_path / "t.json"
    command = ["trace", "import", str(a), "--format", "spec-bench", "--schedule", "heuristic:2"]
    command += ["--out", str(out), "--vanilla", str(v), "--timing-out", str(timing)]
    assert main(command) == 0
    told = capsys.readouterr().out
    trace = read_trace(out)
    assert "6 requests" in told and f"{trace.positions} positions" in told
    assert "violations        0" in told and "censored" in told and "token-weighted" in told
    assert read_timing(timing).meta["fitted"]["round_s"] == pytest.approx(0.02)
    assert main(command) == 2 and main([*command, "--force"]) == 0


def bad_inputs(folder: Path) -> dict[str, Path]:
    files = {
        "missing": folder / "nowhere.jsonl",
        "folder": folder,
        "empty": folder / "empty.jsonl",
        "truncated": folder / "truncated.jsonl",
        "binary": folder / "binary.jsonl",
        "long": folder / "long.jsonl",
        "list": folder / "list.jsonl",
    }
    files["empty"].write_text("\n  \n")
    files["truncated"].write_text(json.dumps(answer(1, [2, 1])) + '\n{"question_id": 2, "cat')
    files["binary"].write_bytes(bytes(range(256)) * 8)
    files["long"].write_text('{"id": "' + "x" * 17_000_000)
    files["list"].write_text("[1, 2]\n")
    return files


@pytest.mark.parametrize("form", ["spec-bench", "acc-len", "jsonl"])
@pytest.mark.parametrize(
    "name", ["missing", "folder", "empty", "truncated", "binary", "long", "list"]
)
def test_bad_files_give_one_line_and_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, name: str
) -> None:
    path, out = bad_inputs(tmp_path)[name], tmp_path / "out" / "t.parquet"
    assert main(["trace", "import", str(path), "--format", form, "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and len(captured.err) < 400
    assert str(path) in captured.err and not out.parent.exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--format", "nope"], "known: spec-bench"),
        (["--format", "jsonl", "--schedule", "fixed:3"], "--schedule means nothing"),
        (["--format", "jsonl", "--key", "x"], "--key means nothing"),
        (["--format", "jsonl", "--timing-out", "t.json"], "--timing-out needs"),
        (["--format", "spec-bench", "--vanilla", "v.jsonl"], "--timing-out"),
        (["--format", "jsonl", "--depth", "99999"], "--depth"),
        (["--format", "jsonl", "{other}"], "one file"),
        (["--format", "jsonl", "{file}"], "named twice"),
        (["--format", "jsonl", "--out", "{file}", "--force"], "also an input"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [{"id": 1, "accepts": [1]}])
    other = write_lines(tmp_path / "b.jsonl", [{"id": 1, "accepts": [1]}])
    out = tmp_path / "t.parquet"
    named = [part.format(file=path, other=other) for part in extra]
    assert main(["trace", "import", "--out", str(out), *named, str(path)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists() and path.read_text().startswith('{"id": 1')


HUGE = 2**31 - 1


@pytest.mark.parametrize(
    ("form", "text", "words"),
    [
        ("jsonl", f'{{"id": 1, "rounds": [[{HUGE}, {HUGE}]]}}', "a reply of 2147483648 tokens"),
        ("jsonl", f'{{"id": 1, "rounds": [[{HUGE}, 1]]}}', "drafts of 2147483647 tokens; at most"),
        ("jsonl", f'{{"id": 1, "prompt_tokens": 1{"0" * 400}, "accepts": [1]}}', "2^31 - 1"),
        ("vllm", "vllm:spec_decode_num_drafts_total{} 1e999", "neither JSON nor"),
        (
            "llama.cpp",
            f"draft acceptance = 0.6 (  1{'0' * 400} accepted /   259 generated), "
            "acceptance rate per position = (0.805, 0.6)",
            "neither JSON nor",
        ),
        (
            "sglang",
            '{"meta_info": {"prompt_tokens": 1, "completion_tokens": 3, '
            f'"speculative_decoding_stats": {{"accept_lengths": [{HUGE}], '
            f'"verify_lengths": [{HUGE}]}}}}}}',
            "a reply of",
        ),
    ],
)
def test_numbers_that_nobody_counts_are_refused(
    form: str, text: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "log.txt"
    path.write_text(text + "\n")
    with pytest.raises(InputError, match=re.escape(words)) as error:
        FORMATS[form](path, Options())
    assert "log.txt" in str(error.value)
