"""Exports: chosen lengths against closed forms and hand counts, texts against what reads them."""

from __future__ import annotations

import ast
import dataclasses
import json
import shlex
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from experiments.common.cost_sources import step_costs
from experiments.export.engines import ENGINES, EngineSetting, find_engine
from experiments.export.export import THRESHOLDS, Export, export
from experiments.export.replay import (
    best_ranges,
    measured_sizes,
    run_batches,
    stand_in,
)
from experiments.export.text import advice, export_text, lost
from policies.confidence.roc import HFRocConfidence
from policies.confidence.thresholds import HFConfidence, LlamaPMin
from policies.counts.heuristic import HFHeuristic
from policies.fixed import Fixed, Never
from policies.registry import REGISTRY, parse_policy
from simulator.replay.hindsight import best_fixed
from simulator.replay.replay import replay
from simulator.replay.theory import expected_emitted
from tests.results import lively_trace, make_timing, make_trace
from tests.specimens import few_or_slow
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.pricing import StepCosts
from traces.schema import Trace
from traces.split import split_rows
from traces.timing import Cell, Timing

ALPHA, DEPTH = 0.7, 8
# What one more token to verify costs the whole batch, beside a draft step of 2 and a verify of 10.
PER_TOKEN = {1: 0.0, 8: 3.0, 32: 20.0}


def timing_of(models: dict[int, Affine], widest: int = DEPTH + 2) -> Timing:
    """A timing whose cells at each batch size are those of a model."""
    cells = []

    def add(operation: str, batch: int, tokens: int, context: int, seconds: float) -> None:
        cells.append(Cell(operation, batch, tokens, context, seconds, seconds, seconds, 9))

    for batch, model in models.items():
        for tokens in (8, 64):
            add("prefill", batch, tokens, 0, 1.0)
        for context in (8, 512):
            for tokens in (1, 2):
                add("first", batch, tokens, context, model.draft_fixed)
            add("draft", batch, 1, context, model.draft_fixed)
            for tokens in (1, widest):
                add("verify", batch, tokens, context, model.verify_s(tokens, 1, context))
    about = {"pair": "synthetic/constant", "device_name": "none", "dtype": "none"}
    return Timing(about | {"tokenizer_sha256": ""}, tuple(cells), 0.0, 0.0)


def crowded() -> Timing:
    """Verifying a drafted token costs nothing alone and two target steps among 32."""
    return timing_of(
        {
            b: Affine(draft_fixed=2.0, target_fixed=10.0, target_token=c)
            for b, c in PER_TOKEN.items()
        }
    )


def closed_form_best(per_token: float) -> int:
    """The length with the most tokens per second, Leviathan et al.'s tokens over Affine seconds."""
    speeds = [
        expected_emitted(ALPHA, gamma) / (10.0 + gamma * (2.0 + per_token))
        for gamma in range(DEPTH + 1)
    ]
    return int(np.argmax(speeds))


@pytest.fixture(scope="module")
def trace() -> Trace:
    """Every draft accepted with chance 0.7; the draft's signals tell a little of it."""
    return synthetic.constant(
        ALPHA, np.random.default_rng(0), requests=80, reply_tokens=200, depth=DEPTH, signals=True
    )


@pytest.fixture(scope="module")
def exported(trace: Trace) -> Any:
    """Export a policy to an engine, once."""
    done: dict[tuple[str, str], Export] = {}

    def call(spec: str, to: str) -> Export:
        if (spec, to) not in done:
            done[spec, to] = export(parse_policy(spec), find_engine(to), trace, crowded())
        return done[spec, to]

    return call


def text_of(result: Export, trace: Trace) -> str:
    return export_text(result, trace, "t.parquet", crowded(), "t.json")


def test_best_length_by_batch_is_the_closed_forms(exported: Any) -> None:
    # By hand at batch 1: 1.7 / 12 = .1417, 2.19 / 14 = .1564, 2.533 / 16 = .1583, 2.773 / 18 =
    # .1541. At 8, five seconds a draft: 1 / 10, 1.7 / 15 = .1133, 2.19 / 20 = .1095. At 32: 1.7 /
    # 32 is less than 1 / 10.
    assert [closed_form_best(c) for c in PER_TOKEN.values()] == [3, 1, 0]
    result = exported("gammatune", "vllm")
    assert [row.best_gamma for row in result.predicted.batches] == [3, 1, 0]
    assert [result.setting.at(batch) for batch in PER_TOKEN] == [3, 1, 0]
    plain = result.predicted.batches[2]
    assert plain.best_tokens_per_s == plain.plain_tokens_per_s == pytest.approx(0.1)
    # vLLM's 0 still costs a draft forward: 12 s a token, not 10.
    assert plain.tokens_per_s == pytest.approx(1 / 12)
    one = result.predicted.batches[0]
    assert one.tokens_per_s == pytest.approx(expected_emitted(ALPHA, 3) / 16, rel=0.01)


def test_ranges_between_measured_sizes_are_interpolated() -> None:
    # gamma 1 costs 8, 10, 12, 14 at batch 1 to 4, gamma 0 always 10: at 2 a tie, to the shorter.
    seconds = np.array([[10.0, 8.0], [10.0, 14.0]])
    assert best_ranges((1, 4), seconds, 1) == ((1, 1, 1), (2, 4, 0))
    assert best_ranges((1, 4), seconds, 0) == ((1, 4, 0),)
    assert best_ranges((1,), seconds[:1], 1) == ((1, 1, 1),)


def test_batches_price_what_a_replay_prices(trace: Trace) -> None:
    timing = crowded()
    costs = step_costs(timing, trace)
    batches = run_batches(trace, timing, costs, measured_sizes(timing))
    assert batches.sizes == (1, 8, 32) and batches.tokens == trace.positions
    for gamma in (0, 3):
        alone = replay(Fixed(gamma), trace, costs).elapsed_s.sum()
        assert batches.seconds[0, gamma] == pytest.approx(alone)
    assert batches.idle == pytest.approx(2.0 * trace.positions)
    assert batches.priced(True)[:, 0] == pytest.approx(12.0 * trace.positions)
    assert (batches.priced(True)[:, 1:] == batches.seconds[:, 1:]).all()
    assert batches.tokens_per_s(8, 20) == batches.tokens_per_s(8, DEPTH)


def test_vllm_reads_its_table(exported: Any) -> None:
    result = exported("gammatune", "vllm")
    argv = shlex.split(result.rendered.text)
    assert argv[:4] == ["vllm", "serve", "none", "--speculative-config"]
    config = json.loads(argv[4])
    assert config == result.rendered.settings and config["method"] == "draft_model"
    rows = config["num_speculative_tokens_per_batch_size"]
    # vLLM's rules: from 1 on, no gaps, no length above the maximum.
    assert rows[0][0] == 1 and rows[-1][1] == 32
    assert all(below[1] + 1 == above[0] for below, above in pairwise(rows))
    assert config["num_speculative_tokens"] == max(row[2] for row in rows) == 3


def test_trtllm_reads_its_schedule(exported: Any, trace: Trace) -> None:
    result = exported("gammatune", "trtllm")
    config = yaml.safe_load(text_of(result, trace))["speculative_config"]
    assert config == result.rendered.settings
    schedule = config["draft_len_schedule"]
    assert config["max_draft_len"] == schedule[min(schedule)] == max(schedule.values()) == 3

    def scheduled(batch: int) -> int:
        """The largest batch of a length is its key; behind the last nothing is drafted."""
        return next((gamma for key, gamma in sorted(schedule.items()) if batch <= key), 0)

    assert [scheduled(batch) for batch in (*PER_TOKEN, 33)] == [3, 1, 0, 0]
    # A draft costs 2 + 3 + 17 (B - 8) / 24 seconds between 8 and 32, so one is worth it while 1.7 /
    # (12 + c) > 1 / 10: up to 10. vLLM's 0 brings only 1 / 12: up to 15.
    assert [scheduled(batch) for batch in (10, 11)] == [1, 0]
    other = exported("gammatune", "vllm").setting
    assert [other.at(batch) for batch in (11, 15, 16)] == [1, 1, 0]


def test_trtllm_lets_no_batch_draft_more_than_the_smallest(trace: Trace) -> None:
    rising = {1: Affine(2.0, 10.0, target_token=3.0), 4: Affine(2.0, 10.0)}
    free, bound = (
        export(parse_policy("ucb"), find_engine(to), trace, timing_of(rising))
        for to in ("vllm", "trtllm")
    )
    assert [row.gamma for row in free.predicted.batches] == [1, 3]
    assert [row.gamma for row in bound.predicted.batches] == [1, 1]
    assert [row.best_gamma for row in bound.predicted.batches] == [1, 3]
    hopeless = {1: Affine(2.0, 1.0), 4: Affine(2.0, 10.0)}
    off = export(parse_policy("ucb"), find_engine("trtllm"), trace, timing_of(hopeless))
    assert off.setting == EngineSetting(0) and off.rendered.settings == {}
    assert off.predicted.loss < 0


def test_sglang_gets_one_length(exported: Any) -> None:
    result = exported("gammatune", "sglang")
    argv = shlex.split(result.rendered.text)
    assert argv[:5] == ["python3", "-m", "sglang.launch_server", "--model-path", "none"]
    flags = dict(zip(argv[5::2], argv[6::2], strict=True))
    assert flags == {
        "--speculative-algorithm": "STANDALONE",
        "--speculative-draft-model-path": "none",
        "--speculative-num-steps": "3",
        "--speculative-eagle-topk": "1",
        "--speculative-num-draft-tokens": "4",
    }
    # What the missing table costs stands in the rows: 3 everywhere, though 1 and 0 are faster.
    assert [row.gamma for row in result.predicted.batches] == [3, 3, 3]
    crowd = result.predicted.batches[2]
    assert crowd.tokens_per_s < 0.5 * crowd.best_tokens_per_s


def test_llama_cpp_gets_both_models_and_its_type(exported: Any) -> None:
    argv = shlex.split(exported("hf-confidence:gamma_max=6", "llama.cpp").rendered.text)
    assert argv[:3] == ["llama-server", "-m", "none.gguf"]
    assert dict(zip(argv[3::2], argv[4::2], strict=True)) == {
        "-md": "none.gguf",
        "--spec-type": "draft-simple",
        "--spec-draft-n-max": "6",
        "--spec-draft-n-min": "0",
        "--spec-draft-p-min": "0.4",
    }


@pytest.mark.parametrize("spec", few_or_slow(REGISTRY))
def test_transformers_takes_every_export(exported: Any, spec: str) -> None:
    """The text runs, and no field of it is unknown to the installed GenerationConfig."""
    from transformers import GenerationConfig

    result = exported(spec, "hf")
    config = GenerationConfig()
    assert config.update(**result.rendered.settings) == {}
    assistant = SimpleNamespace(generation_config=GenerationConfig())
    exec(compile(ast.parse(result.rendered.text), "export", "exec"), {"assistant_model": assistant})
    assert assistant.generation_config.to_dict() == config.to_dict()
    if result.setting.gamma:
        assert config.num_assistant_tokens == result.setting.gamma


def test_transformers_moves_a_threshold_that_is_left_out() -> None:
    """Why a fixed length is exported with a threshold of 0: the default is another controller."""
    from transformers import GenerationConfig

    defaults = GenerationConfig._get_default_generation_params()
    assert defaults["assistant_confidence_threshold"] == 0.4
    assert defaults["num_assistant_tokens"] == 20
    assert defaults["num_assistant_tokens_schedule"] == "constant"


@pytest.mark.parametrize("to", ENGINES)
def test_a_fixed_length_stays_what_it_is(exported: Any, to: str) -> None:
    result = exported("fixed:gamma=4", to)
    lengths = {
        "vllm": {"num_speculative_tokens": 4},
        "sglang": {"speculative_num_steps": 4, "speculative_num_draft_tokens": 5},
        "trtllm": {"max_draft_len": 4},
        "llama.cpp": {"spec-draft-n-max": 4, "spec-draft-p-min": 0.0},
        "hf": {"num_assistant_tokens": 4, "assistant_confidence_threshold": 0.0},
    }[to]
    assert lengths.items() <= result.rendered.settings.items()
    assert not result.setting.table and result.predicted.loss == pytest.approx(0.0, abs=1e-12)
    assert all(row.gamma == 4 for row in result.predicted.batches)


@pytest.mark.parametrize("to", ENGINES)
def test_never_is_the_engine_without_a_draft(exported: Any, trace: Trace, to: str) -> None:
    result = exported("never", to)
    assert result.setting == EngineSetting(0) and result.rendered.settings == {}
    pasted = [line for line in text_of(result, trace).splitlines() if not line.startswith("#")]
    assert not any("spec" in line for line in pasted if line != "speculative_config: null")
    assert result.predicted.loss == pytest.approx(0.0, abs=1e-12)
    assert all(row.tokens_per_s == row.plain_tokens_per_s for row in result.predicted.batches)


def test_settings_that_lose_to_plain_decoding_say_so(exported: Any, trace: Trace) -> None:
    """A draft step costs two verifies of 10 s: 4 drafts bring 5 tokens at best in 90 s, not 50."""
    timing = timing_of({1: Affine(draft_fixed=20.0, target_fixed=10.0, target_token=0.0)})
    found = export(parse_policy("fixed:gamma=4"), find_engine("vllm"), trace, timing)
    ratio = found.predicted.exported_tokens_per_s / found.predicted.plain_tokens_per_s
    assert ratio < 5 / 9
    assert f"decode {ratio:.2f} times as fast" in advice(found)
    assert "# DO NOT DRAFT" in text_of(found, trace)
    assert advice(exported("fixed:gamma=3", "vllm")) == advice(exported("never", "vllm")) == ""


def test_loss_is_the_policys_speed_against_the_tuned_fixed_length(
    exported: Any, trace: Trace
) -> None:
    train, test = (trace.select(rows) for rows in split_rows(trace))
    costs = step_costs(crowded(), trace)
    gamma, _ = best_fixed(train, costs)
    ours = replay(parse_policy("gammatune"), test, costs).elapsed_s.sum()
    theirs = replay(Fixed(gamma), test, costs).elapsed_s.sum()
    for to in ENGINES:
        found = exported("gammatune", to)
        assert found.setting.at(1) == gamma == 3
        assert found.predicted.policy_tokens_per_s == pytest.approx(test.positions / ours)
        assert found.predicted.loss == pytest.approx(1.0 - ours / theirs)


@pytest.mark.parametrize(
    ("spec", "setting"),
    [
        ("hf-heuristic", EngineSetting(5, schedule="heuristic_transient")),
        ("hf-heuristic:gamma0=7,transient=false", EngineSetting(7, schedule="heuristic")),
        ("hf-confidence:gamma_max=6,threshold=0.3", EngineSetting(6, 0.3)),
        ("hf-roc:gamma_max=6", EngineSetting(6, 0.4, moving=True)),
    ],
)
def test_transformers_own_rules_are_not_translated(
    exported: Any, spec: str, setting: EngineSetting
) -> None:
    result = exported(spec, "hf")
    assert result.setting == setting and stand_in(setting, find_engine("hf")) == parse_policy(spec)
    assert result.predicted.loss == pytest.approx(0.0, abs=1e-12)
    assert result.rendered.settings["num_assistant_tokens_schedule"] == setting.schedule
    assert lost(result).startswith("Nothing is lost")


def test_transformers_has_one_weight_for_misses(exported: Any) -> None:
    result = exported("hf-roc:gamma_max=6,miss_weight=9", "hf")
    assert result.setting == exported("hf-roc:gamma_max=6", "hf").setting
    assert lost(result).endswith("the rule with transformers' own weights.")
    assert result.predicted.loss != 0.0


def test_scikit_learn_is_another_controller(exported: Any, trace: Trace) -> None:
    _, test = (trace.select(rows) for rows in split_rows(trace))
    costs = step_costs(crowded(), trace)
    still, moving = HFConfidence(6), HFRocConfidence(6)
    for spec, other, words in (
        ("hf-confidence:gamma_max=6", moving, "exported, with scikit-learn"),
        ("hf-roc:gamma_max=6", still, "exported, without scikit-learn"),
        ("gammatune", HFRocConfidence(), "transformers' own defaults"),
    ):
        seconds = replay(other, test, costs).elapsed_s.sum()
        found = exported(spec, "hf").predicted.alternatives
        assert found == {words: pytest.approx(test.positions / seconds)}


def test_gammatune_plus_keeps_its_threshold_and_tail_pruning_gets_one(
    exported: Any, trace: Trace
) -> None:
    train, _ = (trace.select(rows) for rows in split_rows(trace))
    costs = step_costs(crowded(), trace)

    def seconds(cap: int, threshold: float) -> float:
        return float(replay(HFConfidence(cap, threshold), train, costs).elapsed_s.sum())

    kept = exported("gammatune+:tau=0.3", "hf").setting
    assert kept.threshold == 0.3 and not kept.moving
    assert kept.gamma == min(range(1, 11), key=lambda cap: seconds(cap, 0.3))
    tuned = exported("tail-pruning:gamma_max=6", "hf").setting
    assert tuned.gamma == 6
    assert tuned.threshold == min(THRESHOLDS, key=lambda threshold: seconds(6, threshold))
    # Where nothing stops at doubt, they are fixed lengths.
    assert exported("tail-pruning:gamma_max=6", "sglang").setting == EngineSetting(3)


def dropping_s(trace: Trace, costs: StepCosts, cap: int) -> float:
    """Decode seconds under llama.cpp's stop at 0.5."""
    return float(replay(LlamaPMin(cap, 0.5), trace, costs).elapsed_s.sum())


def test_a_dropped_token_by_hand() -> None:
    """A draft step is 1 s, the first of a round 3 s, a verify of any width 10 s."""
    timing = make_timing()
    cells = [
        dataclasses.replace(cell, median_s=3.0) if cell.operation == "first" else cell
        for cell in timing.cells
    ]
    timing = dataclasses.replace(timing, cells=tuple(cells))
    trace = make_trace([[2, 1, 0]], ["1"], ["t"], signals=True)
    costs = step_costs(timing, trace)
    assert costs.start_s == pytest.approx(2.0)
    shown = np.full((3, 4), 0.9, dtype=np.float32)
    # Sure of both tokens that the limit of 3 leaves room for: 3 + 1 + 10 s, and the reply is over.
    assert dropping_s(trace, costs, 4) == pytest.approx(14.0)
    shown[0, 1] = 0.1
    # The second is dropped, though it would have been accepted: two tokens for 14 s, then no room.
    doubtful = dataclasses.replace(trace, top1_prob=shown)
    assert dropping_s(doubtful, costs, 4) == pytest.approx(24.0)
    shown[:, 0] = 0.1
    # The first is dropped: a draft step and a plain verify, twice, and one without room.
    assert dropping_s(doubtful, costs, 4) == pytest.approx(13.0 + 13.0 + 10.0)


def test_without_doubt_the_drop_is_the_replay_of_the_same_cap() -> None:
    trace = lively_trace()
    timing = dataclasses.replace(make_timing(), signal_s=0.25)
    costs = step_costs(timing, trace)
    for cap in (1, 3, 4):
        kept = replay(HFConfidence(cap, 0.5), trace, costs).elapsed_s.sum()
        assert dropping_s(trace, costs, cap) == pytest.approx(kept)


def test_one_batch_size_makes_no_table(trace: Trace) -> None:
    alone = timing_of({1: Affine(2.0, 10.0)})
    for to in ("vllm", "trtllm"):
        result = export(parse_policy("gammatune"), find_engine(to), trace, alone)
        assert result.setting == EngineSetting(3)
        text = export_text(result, trace, "t.parquet", alone, "t.json")
        assert "would have one row" in text.replace("\n# ", " ")
    same = {1: Affine(2.0, 10.0), 4: Affine(2.0, 10.0)}
    for to, setting in (
        ("vllm", EngineSetting(3)),
        ("trtllm", EngineSetting(3, table=((1, 4, 3),))),
    ):
        result = export(parse_policy("gammatune"), find_engine(to), trace, timing_of(same))
        assert result.setting == setting


def test_sampled_traces_and_shallow_ones_are_pointed_out(trace: Trace) -> None:
    warm = dataclasses.replace(trace, meta=dataclasses.replace(trace.meta, temperature=0.7))
    for to, said in (("vllm", True), ("llama.cpp", True), ("hf", False)):
        result = export(Fixed(20), find_engine(to), warm, crowded())
        text = export_text(result, warm, "t", crowded(), "t").replace("\n#  ", "")
        assert ("temperature 0.7" in text) == said
        assert f"{DEPTH} drafts deep; 20 is replayed as that" in text


@pytest.mark.parametrize("to", ENGINES)
@pytest.mark.parametrize("spec", ["gammatune", "hf-confidence", "fixed:gamma=4", "never"])
def test_text_is_comments_and_then_what_to_paste(
    exported: Any, trace: Trace, spec: str, to: str
) -> None:
    result = exported(spec, to)
    text = text_of(result, trace)
    comments, pasted = text.removesuffix(result.rendered.text), result.rendered.text
    assert text.endswith(pasted) and max(map(len, comments.splitlines())) <= 100
    assert all(line.startswith("#") for line in comments.splitlines())
    assert shlex.split(text, comments=True) == shlex.split(pasted, comments=True)


@pytest.mark.parametrize("spec", few_or_slow(REGISTRY))
def test_every_policy_of_the_shelf_can_be_exported(exported: Any, spec: str) -> None:
    for to in ("vllm", "llama.cpp"):
        found = exported(spec, to).predicted
        assert found.exported_tokens_per_s > 0 and np.isfinite(found.loss)


def test_a_trace_without_signals_exports_what_needs_none(trace: Trace) -> None:
    blind = dataclasses.replace(trace, top1_prob=None, entropy=None)
    result = export(parse_policy("gammatune"), find_engine("hf"), blind, crowded())
    assert result.setting == EngineSetting(3) and not result.predicted.alternatives
    with pytest.raises(Exception, match="signals"):
        export(parse_policy("hf-confidence"), find_engine("hf"), blind, crowded())


def test_stand_ins() -> None:
    hf = find_engine("hf")
    assert stand_in(EngineSetting(3), hf) == Fixed(3)
    assert stand_in(EngineSetting(3, table=((1, 2, 1), (3, 4, 3))), hf) == Fixed(1)
    assert stand_in(EngineSetting(3, schedule="heuristic"), hf) == HFHeuristic(3, transient=False)
    assert stand_in(EngineSetting(0), hf) == Fixed(0) != Never()
    assert stand_in(EngineSetting(3, 0.5), hf) == HFConfidence(3, 0.5)
    assert stand_in(EngineSetting(3, 0.5), find_engine("llama.cpp")) == LlamaPMin(3, 0.5)
