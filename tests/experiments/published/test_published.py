"""Published tables: predictions against tables made by hand, the public files where at hand, and
one clear line for every bad one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from experiments import cli
from experiments.published import control, layers, spec_bench, specforge
from experiments.published.laws import LAWS, MAIN_LAW, first_then, fit_alpha, fit_survival
from experiments.published.table import errors, errors_by, read_csv
from policies.counts.heuristic import HFHeuristic
from simulator.replay.replay import replay
from simulator.replay.theory import expected_emitted
from tests.results import make_timing, save_inputs
from traces import synthetic
from traces.costs.pricing import tabulate
from traces.costs.roofline import Roofline, roofline_s
from traces.costs.table import Table
from traces.importers.common import Options
from traces.importers.spec_bench import read, read_run, read_runs

SHARED = Path(__file__).parents[4] / "shared" / "data"
SPECFORGE = SHARED / "specforge" / "spec_bundle_flat.csv"
LAYERS = SHARED / "vidur" / "linear_layer_latency_compact.csv"
SPEC_BENCH = SHARED / "spec_bench" / "vicuna-7b_sps-68m_heuristic.jsonl"
VANILLA = SHARED / "spec_bench" / "vicuna-7b_vanilla.jsonl"

CHAIN_HEADER = "model,dataset,batch_size,steps,topk,draft,accept_length,output_throughput,speedup"
LAYER_HEADER = "gpu,model,tp,num_tokens,linear_ms_per_layer"

# S_j = 0.8 * 0.5 ** (j - 1), so E_3 = 1 + 0.8 + 0.4 + 0.2 and so on.
FIRST_THEN = {3: 2.4, 5: 2.55, 7: 2.5875}
# A coin of 1/2: E_k = 2 - 2 ** -k.
COIN = {3: 1.875, 5: 1.96875, 7: 1.9921875}


def needs(path: Path) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not path.exists(), reason=f"no {path.name} beside the checkout")


def write_chains(
    path: Path,
    tokens: dict[int, float],
    *,
    draft: str = "d",
    round_s: tuple[float, float, float] = (0.010, 0.012, 0.014),
) -> Path:
    """One series of batch 8 over 1,000 tokens/s; seconds per round at k = 3, 5, 7."""
    lines = []
    for (k, emitted), seconds in zip(tokens.items(), round_s, strict=True):
        per_s = 8 * emitted / seconds
        lines.append(f"m,t,8,{k},1,{draft},{emitted},{per_s!r},{per_s / 1000!r}")
    path.write_text("\n".join([CHAIN_HEADER, *lines]) + "\n")
    return path


def write_layers(path: Path, ms: dict[int, float]) -> Path:
    """One series of a device and model that nobody knows."""
    rows = [f"gpu,net,1,{tokens},{value!r}" for tokens, value in ms.items()]
    path.write_text("\n".join([LAYER_HEADER, *rows]) + "\n")
    return path


def arguments(*data: Path, **more: Path) -> argparse.Namespace:
    return argparse.Namespace(data=list(data), **more)


# -- errors in numbers


def test_errors_by_hand() -> None:
    found = errors(np.array([0.1, -0.2, 0.3]))
    assert (found.count, found.median, found.largest) == (3, 0.2, 0.3)
    assert found.p90 == pytest.approx(0.28)  # between 0.2 and 0.3, eight tenths of the way
    assert found.mean == pytest.approx(0.2 / 3)
    assert errors_by(np.array([0.1, -0.2, 0.3]), ["a", "b", "a"])["a"].median == 0.2


# -- laws


def test_first_then_is_found_from_two_numbers() -> None:
    assert first_then(0.8, 0.5)[:4].tolist() == pytest.approx([0.8, 0.4, 0.2, 0.1])
    survival = fit_survival(MAIN_LAW, FIRST_THEN[3], FIRST_THEN[7])
    np.testing.assert_allclose(survival, first_then(0.8, 0.5), rtol=1e-8)


@pytest.mark.parametrize("name", LAWS)
def test_every_law_agrees_with_both_numbers_and_contains_the_coin(name: str) -> None:
    for tokens in (COIN, FIRST_THEN, {3: 3.4, 7: 5.1}):
        survival = fit_survival(name, tokens[3], tokens[7])
        assert 1 + survival[:3].sum() == pytest.approx(tokens[3], abs=1e-8)
        assert 1 + survival.sum() == pytest.approx(tokens[7], abs=1e-8)
        assert (np.diff(survival) <= 0).all() and survival[0] <= 1
    np.testing.assert_allclose(
        fit_survival(name, COIN[3], COIN[7]), 0.5 ** np.arange(1.0, 8.0), rtol=1e-6
    )


@pytest.mark.parametrize("name", LAWS)
def test_no_law_breaks_where_longer_drafts_gave_less(name: str) -> None:
    survival = fit_survival(name, 2.5, 2.4)
    assert np.isfinite(survival).all() and survival[3:].sum() < 0.05


def test_alpha_by_hand() -> None:
    assert fit_alpha({1: 1.7}) == pytest.approx(0.7)
    assert fit_alpha({3: COIN[3]}) == pytest.approx(0.5)
    assert fit_alpha({3: COIN[3], 7: COIN[7]}) == pytest.approx(0.5, abs=1e-6)
    assert fit_alpha({3: 4.0}) == 1.0


# -- SpecForge


def test_chains_by_hand(tmp_path: Path) -> None:
    """Tokens follow first-then and seconds are affine: nothing is left to be wrong about."""
    path = write_chains(tmp_path / "t.csv", FIRST_THEN)
    text, result = specforge.study(arguments(path))
    assert result["series"] == 1 and result["incomplete_series"] == 0
    (row,) = result["rows"]
    assert row["accept_length_predicted"] == pytest.approx(2.55)
    assert row["speedup_predicted"] == pytest.approx(8 * 2.55 / 0.012 / 1000)
    assert result["accept_length"][MAIN_LAW].largest < 1e-8
    alpha = fit_alpha({3: 2.4})
    wrong = expected_emitted(alpha, 5) / 2.55 - 1
    assert wrong > 0.05 and result["accept_length"]["iid at 3"].mean == pytest.approx(wrong)
    assert result["acceptance_falls_with_depth"] == 1
    # S_4 + S_5 is at least half of 0.1875, and at most all of it (2 S_3 allows more).
    assert result["bounds"] == {"inside": 1, "width": pytest.approx(0.09375 / 2.55)}
    assert "first-then" in text


def test_seconds_that_are_not_affine_show_as_an_error_of_the_speedup(tmp_path: Path) -> None:
    path = write_chains(tmp_path / "t.csv", FIRST_THEN, round_s=(0.010, 0.0132, 0.014))
    _, result = specforge.study(arguments(path))
    assert result["accept_length"][MAIN_LAW].largest < 1e-8
    assert result["speedup"][MAIN_LAW].mean == pytest.approx(0.1)  # 13.2 ms taken for 12
    assert result["speedup_if_published_tokens"].mean == pytest.approx(0.1)
    assert result["speedup_if_published_seconds"].largest < 1e-8


def test_the_coin_is_right_about_coins(tmp_path: Path) -> None:
    _, result = specforge.study(arguments(write_chains(tmp_path / "t.csv", COIN)))
    for found in result["accept_length"].values():
        assert found.largest < 1e-6
    assert all(beyond.largest < 1e-6 for beyond in result["iid_beyond"].values())


def test_broken_names_trees_and_incomplete_series(tmp_path: Path) -> None:
    path = write_chains(tmp_path / "t.csv", COIN, draft="Draft-Forge")
    text = path.read_text().replace("t,8,3,1,Draft-Forge", "T,8,3,1,draft for ge")
    path.write_text(text + "m,t,8,3,4,d,2.0,900,0.9\nm,other,8,3,1,d,2.0,900,0.9\n")
    chains = specforge.read_chains(read_csv([path], specforge.COLUMNS))
    assert len(chains.model) == 1 and (chains.incomplete, chains.other_rows) == (1, 1)


def test_choice_by_hand(tmp_path: Path) -> None:
    chains = specforge.read_chains(
        read_csv([write_chains(tmp_path / "t.csv", FIRST_THEN)], specforge.COLUMNS)
    )
    best = chains.speedup[0]  # 1.92, 1.70, 1.48
    assert specforge.choose(chains, np.array([[1.0, 2.0, 0.5]])) == (
        specforge.Choice(0, pytest.approx(1 - 1.7 / 1.92), pytest.approx(1 - 1.7 / 1.92))
    )
    assert specforge.choose(chains, best[None]).right == 1


@needs(SPECFORGE)
def test_specforge_as_published() -> None:
    _, result = specforge.study(arguments(SPECFORGE))
    assert result["series"] == 88 and result["incomplete_series"] == 0
    ours, control = result["accept_length"][MAIN_LAW], result["accept_length"]["iid at 3"]
    assert ours.median < 0.004 and ours.largest < 0.026
    assert control.median > 0.025 and control.mean > 0.025
    assert result["speedup"][MAIN_LAW].median < 0.01 < result["speedup"][MAIN_LAW].p90
    assert result["bounds"]["inside"] == 86 and result["acceptance_falls_with_depth"] == 82


# -- roofline and layers


def test_roofline_by_hand() -> None:
    assert roofline_s(10, memory_s=3.0, token_s=0.2, fixed_s=1.0) == 4.0
    assert roofline_s(20, memory_s=3.0, token_s=0.2, fixed_s=1.0) == 5.0
    model = Roofline(
        target_bytes=100.0, target_flops=30.0, draft_bytes=10.0, draft_flops=2.0,
        bytes_per_s=10.0, flops_per_s=5.0, target_context_bytes=1.0, draft_context_bytes=0.5,
        fixed=0.25, signal=7.0, control=9.0,
    )  # fmt: skip
    assert model.verify_s(1, 1, 0) == 0.25 + 10.0  # 100 bytes; 30 operations take 6 s
    assert model.verify_s(3, 2, 20) == 0.25 + 36.0  # six tokens; 140 bytes take 14 s
    assert model.verify_s(1, 2, 20) == 0.25 + 14.0
    assert model.draft_step_s(1, 8) == 0.25 + 1.4
    assert model.draft_step_s(1, 8, tokens=5) == 0.25 + 2.0
    assert model.prefill_s(4, 1) == 0.5 + 24.0 + 1.6
    assert (model.signal_s(), model.control_s()) == (7.0, 9.0)
    costs = tabulate(model, max_context=64, width=6)
    assert costs.verify_s[0, 2] == model.verify_s(2, 1, 16) + 9.0


def test_a_roofline_is_found_again() -> None:
    tokens = np.array([1.0, 2, 4, 8, 16, 32, 48, 64, 96, 128, 256])
    seconds = np.array([roofline_s(t, 0.64, 0.01, 0.2) for t in tokens])
    for fit in layers.fit_rooflines(tokens, seconds, 1 - np.eye(len(tokens))):
        assert (fit.memory_s, fit.token_s) == (pytest.approx(0.64), pytest.approx(0.01))
        assert fit.fixed_s == pytest.approx(0.2) and fit.knee_tokens == 64


def slow_roofline(tokens: np.ndarray, seconds: np.ndarray, knees: np.ndarray) -> float:
    """The least sum of squares over these knees, by a general solver for each."""
    lost = []
    for knee in knees:
        parts = np.column_stack([np.ones_like(tokens), np.maximum(0, tokens - knee)])
        (level, slope), *_ = np.linalg.lstsq(parts / seconds[:, None], np.ones_like(tokens))
        if slope < 0 or level < slope * knee:
            bound = np.maximum(tokens, knee)
            slope = (bound / seconds).sum() / ((bound / seconds) ** 2).sum()
            level = slope * knee
        told = level + slope * parts[:, 1]
        lost.append(((told / seconds - 1) ** 2).sum())
    return float(min(lost))


@pytest.mark.parametrize("seed", range(8))
def test_fast_fit_is_the_slow_fit(seed: int) -> None:
    generator = np.random.default_rng(seed)
    tokens = np.sort(generator.choice(np.arange(1.0, 200), 12, replace=False))
    seconds = np.maximum(0.5, 0.01 * tokens) * generator.uniform(0.7, 1.3, 12)
    weight = 1 - np.eye(12)
    knees = np.concatenate([tokens, (tokens[1:] + tokens[:-1]) / 2])
    for keep, fit in zip(weight > 0, layers.fit_rooflines(tokens, seconds, weight), strict=True):
        told = np.array([fit.at(t) for t in tokens[keep]])
        lost = float(((told / seconds[keep] - 1) ** 2).sum())
        assert fit.fixed_s >= -1e-12
        assert lost == pytest.approx(slow_roofline(tokens[keep], seconds[keep], knees), rel=1e-6)


def test_layers_by_hand(tmp_path: Path) -> None:
    """Before its first point a table holds the value, behind its last one the slope goes on."""
    path = write_layers(tmp_path / "t.csv", {1: 1.0, 2: 2.0, 4: 4.0, 8: 16.0})
    rows = read_csv([path], layers.COLUMNS)
    (layer,) = layers.read_layers(rows)
    predicted = layers.predictions(layer)
    # Left out: 1 -> the value at 2; 2 on the line; 4 between 2 and 16; 8 on the line 2-4.
    np.testing.assert_allclose(1000 * predicted["table"], [2.0, 2.0, 2 + 14 / 3, 8.0])
    assert set(predicted) == {"roofline", "table"}  # all are powers of 2, and no shape is known
    _, result = layers.study(arguments(path))
    assert result["errors"]["all"]["table"]["all"].largest == pytest.approx(1.0)
    assert result["worst"]["table"]["tokens"] == 1


def test_table_of_powers_of_two_by_hand(tmp_path: Path) -> None:
    """It never sees 3 and 6, and is not asked for what it holds."""
    path = write_layers(tmp_path / "t.csv", {1: 1.0, 2: 2.0, 3: 9.0, 4: 4.0, 6: 9.0, 8: 6.0})
    (layer,) = layers.read_layers(read_csv([path], layers.COLUMNS))
    sparse = 1000 * layers.predictions(layer)["table of powers of 2"]
    np.testing.assert_allclose(sparse, [np.nan, np.nan, 3.0, np.nan, 5.0, np.nan])


def test_jumps_by_hand() -> None:
    tokens = np.array([64.0, 128, 136, 144])
    layer = layers.Layer("g", "m", 1, tokens, np.ones(4))
    told = [(layer, np.array([1.2, 0.8, 1.11, 1.05]))]
    assert layers.jumps(told) == {"large_errors": 3, "at_multiples_of_128": 2}


def test_data_sheet_by_hand() -> None:
    one = np.ones(1)
    layer = layers.Layer("a100", "microsoft_phi-2", 2, one, one)
    sheet = layers.data_sheet(layer)
    assert sheet is not None  # 78,643,200 weights, two bytes and two operations each, two devices
    assert sheet.at(1) == pytest.approx(78_643_200 / 2.039e12)
    assert sheet.at(4096) == pytest.approx(4096 * 78_643_200 / 312e12)
    assert layers.data_sheet(dataclasses.replace(layer, gpu="b200")) is None


@needs(LAYERS)
def test_layers_as_published() -> None:
    _, result = layers.study(arguments(LAYERS))
    assert (result["series"], result["points"]) == (22, 6466)
    found = result["errors"]["all"]
    assert found["table"]["all"].median < found["roofline"]["all"].median < 0.04
    assert found["table"]["1..64"].median < 0.012 and found["table"]["all"].largest > 0.3
    assert found["data sheet"]["all"].mean < -0.3  # no layer runs at the data sheet's rates


# -- the i.i.d. control on a trace


def test_coin_with_reply_ends_by_hand() -> None:
    """Two tokens, one draft: one round if it is accepted, else two."""
    trace = synthetic.constant(0.5, np.random.default_rng(0), requests=1, reply_tokens=2)
    trace = dataclasses.replace(trace, meta=dataclasses.replace(trace.meta, max_new_tokens=128))
    found = control.coin_tokens_per_round(trace, np.array([0.5]), 1)
    assert found == pytest.approx(2 / 1.5)
    tight = dataclasses.replace(trace, meta=dataclasses.replace(trace.meta, max_new_tokens=2))
    assert control.coin_tokens_per_round(tight, np.array([0.5]), 9) == found
    assert control.coin_tokens_per_round(tight, np.array([0.5]), 0) == 1.0


def test_control_is_right_about_coins_and_wrong_about_bursts() -> None:
    timing = Table(make_timing())
    for world, is_coin in (("constant", True), ("bursty", False)):
        generator = np.random.default_rng(1)
        if is_coin:
            trace = synthetic.constant(0.7, generator, requests=64, reply_tokens=512)
        else:
            trace = synthetic.bursty(0.95, 0.3, generator, requests=64, reply_tokens=512)
        costs = tabulate(timing, max_context=600, width=18)
        curve = control.fixed_curve(trace, costs)
        alpha = fit_alpha({1: float(curve.tokens_per_round[1])})
        told = np.array([expected_emitted(alpha, gamma) for gamma in range(13)])
        wrong = np.abs(told / curve.tokens_per_round - 1)
        assert (wrong.max() < 0.03) == is_coin, (world, wrong)
        hazard = control.hazards(trace, 6)
        assert (abs(hazard[5] - hazard[0]) < 0.03) == is_coin


def test_best_gamma_by_hand() -> None:
    curve = control.Curve(
        tokens=np.array([10.0, 10, 10]), rounds=np.array([10.0, 8, 5]),
        seconds=np.array([10.0, 8, 20]),
    )  # fmt: skip
    found = control.best_gamma(curve, np.array([1.0, 1.25, 6.0]))
    assert (found["chosen"], found["best"]) == (2, 1)
    assert found["promised"] == pytest.approx(1.5)  # thrice the tokens of a round of speed 0.5
    assert (found["replayed"], found["best_replayed"]) == (0.5, 1.25)
    assert found["loss"] == pytest.approx(0.6)


# -- Spec-Bench


def answers(path: Path, rows: list[tuple[int, str, list[int], list[int], list[float]]]) -> Path:
    """question, category, tokens of each turn, accept_lengths, wall times."""
    lines = [
        {
            "question_id": question,
            "category": category,
            "model_id": "t-sps-d-float16-temp-0.0",
            "choices": [
                {
                    "turns": ["text"] * len(tokens),
                    "new_tokens": tokens,
                    "accept_lengths": lengths,
                    "wall_time": seconds,
                }
            ],
        }
        for question, category, tokens, lengths, seconds in rows
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def small_run(tmp_path: Path) -> tuple[Path, Path]:
    """Four replies priced as 0.1 s a round and 0.01 s a draft; gamma 5, then 7 or 4, ..."""
    run = answers(
        tmp_path / "run.jsonl",
        [
            (1, "qa", [8], [6, 1, 1], [0.3 + 0.05 + 0.07 + 0.06]),
            (2, "qa", [3], [2, 1], [0.2 + 0.05 + 0.04]),
            (3, "rag", [4], [1, 1, 1, 1], [0.4 + 0.05 + 0.04 + 0.03 + 0.02]),
            (4, "rag", [15], [6, 8, 1], [0.3 + 0.05 + 0.07 + 0.09]),
        ],
    )
    plain = answers(
        tmp_path / "plain.jsonl",
        [
            (1, "qa", [8], [1] * 8, [0.8]),
            (2, "qa", [3], [1] * 3, [0.3]),
            (3, "rag", [4], [1] * 4, [0.4]),
            (4, "rag", [15], [1] * 15, [1.5]),
        ],
    )
    return run, plain


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


# -- the command


def run_command(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    try:
        code = cli.main(["study-published", *map(str, argv)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_json_and_file_hold_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_chains(tmp_path / "t.csv", COIN), tmp_path / "result.json"
    code, printed, _ = run_command(capsys, "specforge", "--data", data, "--json", "--out", out)
    assert code == 0
    told, kept = json.loads(printed), json.loads(out.read_text())
    assert kept.pop("kind") == "study-published" and kept.pop("version") == 1 and kept == told
    assert told["suite"] == "specforge" and told["data"] == ["t.csv"]
    code, _, message = run_command(capsys, "specforge", "--data", data, "--out", out)
    assert code == 2 and "--force" in message


def test_the_control_runs_from_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, timing = save_inputs(tmp_path)
    code, printed, _ = run_command(capsys, "iid", "--data", trace, "--timing", timing)
    assert code == 0 and "a rate per request" in printed and "hard" in printed


CHAIN_ROW = "m,t,8,3,1,d,2.0,900,0.9"
BAD_CHAINS = {
    "empty": ("", ["is empty", "model"]),
    "header only": (CHAIN_HEADER + "\n", ["no row"]),
    "column": (CHAIN_HEADER.replace("topk", "top") + "\n" + CHAIN_ROW, ["row 1", "'topk'"]),
    "not a number": (f"{CHAIN_HEADER}\n{CHAIN_ROW.replace('900', 'fast')}",
                     ["row 2", "'output_throughput'", "'fast'"]),
    "nan": (f"{CHAIN_HEADER}\n{CHAIN_ROW}\n{CHAIN_ROW.replace('2.0', 'nan').replace('t,', 'u,')}",
            ["row 3", "'accept_length'"]),
    "no whole number": (f"{CHAIN_HEADER}\n{CHAIN_ROW.replace(',8,', ',8.5,')}",
                        ["row 2", "'batch_size'", "8.5"]),
    "too many accepted": (f"{CHAIN_HEADER}\n{CHAIN_ROW.replace('2.0', '4.5')}",
                          ["row 2", "'accept_length'", "1..4"]),
    "empty cell": (f"{CHAIN_HEADER}\n{CHAIN_ROW.replace('m,t', 'm,')}", ["row 2", "'dataset'"]),
    "short row": (f"{CHAIN_HEADER}\nm,t,8", ["row 2", "cells"]),
    "twice": (f"{CHAIN_HEADER}\n{CHAIN_ROW}\n{CHAIN_ROW}", ["row 3", "'steps'", "again"]),
    "one k": (f"{CHAIN_HEADER}\n{CHAIN_ROW}", ["k = 3, 5 and 7"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CHAINS)
def test_bad_files_in_one_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, words = BAD_CHAINS[case]
    path = tmp_path / "bad.csv"
    path.write_text(text)
    code, printed, message = run_command(capsys, "specforge", "--data", path)
    assert code == 2 and printed == ""
    (line,) = message.splitlines()
    assert "bad.csv" in line
    for word in words:
        assert word in line


def test_bad_arguments_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], small_run: tuple[Path, Path]
) -> None:
    chains = write_chains(tmp_path / "t.csv", COIN)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    short = write_layers(tmp_path / "short.csv", {1: 1.0, 2: 2.0})
    for argv, words in (
        (("nothing", "--data", chains), ["'nothing'", "specforge", "microbenchmarks"]),
        (("specforge", "--data", tmp_path / "gone.csv"), ["gone.csv", "no such file"]),
        (("specforge", "--data", tmp_path), ["no such file"]),
        (("specforge", "--data", binary), ["binary.csv", "UTF-8"]),
        (("specforge", "--data", chains, "--vanilla", chains), ["--vanilla"]),
        (("microbenchmarks", "--data", chains), ["row 1", "'gpu'"]),
        (("microbenchmarks", "--data", short), ["short.csv", "2 token counts"]),
        (("spec-bench", "--data", small_run[0]), ["--vanilla"]),
        (("spec-bench", "--data", *small_run, "--vanilla", small_run[1]), ["one answer file"]),
        (("spec-bench", "--data", chains, "--vanilla", small_run[1]), ["t.csv, line 1"]),
        (("iid", "--data", chains), ["--timing"]),
    ):
        code, printed, message = run_command(capsys, *argv)
        assert code == 2 and printed == ""
        (line,) = message.splitlines()
        for word in words:
            assert word in line, line
