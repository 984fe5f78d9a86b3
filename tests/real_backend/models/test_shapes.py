"""Random weights in real shapes: names, sizes, building, refusals and labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from experiments import cli
from experiments.common.results import mismatches
from policies.fixed import Fixed
from real_backend.decoding.engine import Engine
from real_backend.load_pair import load_pair
from real_backend.models import shapes
from real_backend.pair_spec import resolve_pair
from real_backend.prompts import Request, read_questions
from real_backend.recording.capture import capture
from real_backend.recording.coupling import CaptureSettings
from real_backend.recording.measure import measure
from tests.results import make_timing, make_trace, save_inputs
from tests.specimens import write_prompts
from traces.costs.pricing import StepCosts, tabulate
from traces.costs.table import Table
from traces.errors import InputError

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.5,  # a shape keeps its own scale
    "bos_token_id": 0,
    "eos_token_id": [1, 2],
    "pad_token_id": 3,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
QWEN = {k: v for k, v in LLAMA.items() if k != "rope_scaling"} | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 80,
    "num_hidden_layers": 1,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama/config.json and qwen.json."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "llama").mkdir()
    (folder / "llama" / "config.json").write_text(json.dumps(LLAMA))
    (folder / "qwen.json").write_text(json.dumps(QWEN))
    return folder


def load(tiny: Path, draft: str = "qwen.json", **options: Any) -> Any:
    spec = resolve_pair(f"shape:{tiny}/llama+{tiny}/{draft}", None, None)
    return load_pair(spec, device="cpu", **options)


# The sizes that the hub shows for the published checkpoints; the 68 M and 160 M by their names.
PARAMETERS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "vicuna-68m": 68_030_208,
    "vicuna-160m": 162_417_408,
    "vicuna-7b": 6_738_415_616,
    "vicuna-13b": 13_015_864_320,
}


def test_every_shape_has_the_parameters_of_its_model() -> None:
    assert set(shapes.SHAPES) == set(PARAMETERS)
    for name, count in PARAMETERS.items():
        assert shapes._skeleton(name, torch.bfloat16).num_parameters() == count, name


@pytest.mark.parametrize(
    ("pair", "target", "draft"),
    [
        ("shape:llama-3.1-8b+llama-3.2-1b", "llama-3.1-8b", "llama-3.2-1b"),
        ("shape:llama-3.1-70b+llama-3.1-8b", "llama-3.1-70b", "llama-3.1-8b"),
        ("shape:llama-3.1-70b+8b", "llama-3.1-70b", "llama-3.1-8b"),
        ("shape:vicuna-7b+68m", "vicuna-7b", "vicuna-68m"),
        ("shape:Vicuna-13B+160M", "vicuna-13b", "vicuna-160m"),
        ("shape:qwen2.5-7b+0.5b", "qwen2.5-7b", "qwen2.5-0.5b"),
    ],
)
def test_names_and_short_forms(pair: str, target: str, draft: str) -> None:
    spec = resolve_pair(pair, None, None)
    assert (spec.target, spec.draft, spec.random) == (target, draft, True)
    assert spec.name == f"shape:{target}+{draft}"


def test_paths_stand_for_names(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny)
    spec = resolve_pair("shape:llama/config.json+qwen.json", None, None)
    assert (spec.target, spec.draft) == (str(tiny / "llama"), str(tiny / "qwen.json"))
    assert spec.name == "shape:llama+qwen.json"
    assert resolve_pair("shape:vicuna-7b+llama", None, None).draft == str(tiny / "llama")


@pytest.mark.parametrize("pair", ["shape:gpt-5+68m", "shape:vicuna-7b+1b", "shape:vicuna-7b+/no"])
def test_unknown_names_are_told_the_known_ones(pair: str) -> None:
    with pytest.raises(InputError, match=r"known shapes: .*llama-3.1-8b.*vicuna-13b"):
        resolve_pair(pair, None, None)


@pytest.mark.parametrize("pair", ["shape:", "shape:vicuna-7b", "shape:+68m", "shape:vicuna-7b+"])
def test_half_a_pair_is_shown_the_notation(pair: str) -> None:
    with pytest.raises(InputError, match=r"write shape:TARGET\+DRAFT"):
        resolve_pair(pair, None, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("part", ["llama", "qwen.json"])
@torch.inference_mode()
def test_built_is_what_from_pretrained_would_load(
    tiny: Path, tmp_path: Path, part: str, dtype: torch.dtype
) -> None:
    """Nothing that a checkpoint leaves out, such as rotary frequencies, is missing or rounded."""
    ids = torch.arange(60)[None]
    (built, _) = shapes.build_pair("", [str(tiny / part)] * 2, "cpu", dtype)
    built.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    logits = built(ids).logits
    assert logits.dtype == dtype and bool(logits.isfinite().all())
    assert torch.equal(logits, loaded(ids).logits)
    assert len({w.device for w in built.parameters()}) == 1
    assert not any(w.requires_grad for w in built.parameters())


def test_weights_are_small_normals_and_norms_are_one(tiny: Path) -> None:
    module = load(tiny, "qwen.json", lean=False).draft.module
    assert module.lm_head.weight is module.model.embed_tokens.weight  # tied, allocated once
    weights = dict(module.named_parameters())
    assert float(weights["model.layers.0.mlp.up_proj.weight"].std()) == pytest.approx(0.02, rel=0.1)
    assert float(weights["model.layers.0.self_attn.q_proj.bias"].std()) > 0.01
    assert bool((weights["model.norm.weight"] == 1).all())


def test_the_same_shape_has_the_same_weights_every_time(tiny: Path) -> None:
    torch.manual_seed(5)
    first = load(tiny)
    state = torch.random.get_rng_state()
    second = load(tiny)
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody else's draws are disturbed
    assert first.weights_sha256 == second.weights_sha256
    ours, theirs = (p.target.module.state_dict() for p in (first, second))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    twins = load(tiny, "llama")
    target, draft = (m.module.lm_head.weight for m in (twins.target, twins.draft))
    assert not torch.equal(target, draft)


def test_fields_of_a_shape_pair(tiny: Path, pair: Any) -> None:
    random = load(tiny)
    assert random.tokenizer is None and random.tokenizer_sha256 == ""
    assert random.eos_ids == frozenset() and random.vocab_size == 80 and random.max_context == 256
    about = random.describe()
    assert about["weights"] == "random" and about["pair"] == "shape:llama+qwen.json"
    assert (about["target"], about["draft"], about["dtype"]) == ("llama", "qwen.json", "float32")
    assert load(tiny, dtype="bfloat16").dtype == "bfloat16"
    assert pair.describe()["weights"] == "loaded"


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "general"])
def test_engine_decodes_it(tiny: Path, costs: StepCosts, lean: bool) -> None:
    prompt = [5, 6, 7]
    for draft in ("llama", "qwen.json"):
        random = load(tiny, draft, lean=lean)
        engine = Engine(random, costs, max_gamma=4)
        run = engine.decode(Fixed(3), [Request("a", "qa", prompt)], max_new_tokens=24)
        (reply,) = run.tokens
        assert len(reply) == 24 and max(reply) < random.vocab_size  # no token ends a reply
        assert run.log.meta["weights"] == "random"
        if draft == "llama":  # the whole vocabulary is shared
            ids = torch.tensor([prompt])
            plain = random.target.module.generate(ids, do_sample=False, max_new_tokens=24)
            assert plain[0, 3:].tolist() == reply


def test_measure_times_it_and_says_so(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("real_backend.recording.measure.DRAFTED", (0, 1, 2, 8))
    timing = measure(load(tiny), batches=[1], contexts=[16], repeats=1)
    assert timing.meta["weights"] == "random" and timing.meta["pair"] == "shape:llama+qwen.json"
    assert timing.grid("verify").seconds.shape == (1, 1, 4)
    assert np.isfinite(tabulate(Table(timing), max_context=64).verify_s).all()


def test_too_little_memory_is_told_before_anything_is_allocated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("allocated")

    monkeypatch.setattr(shapes, "_materialise", fail)
    monkeypatch.setattr(shapes, "free_bytes", lambda device: 80 << 30)
    pair = resolve_pair("shape:llama-3.1-70b+8b", None, None)
    with pytest.raises(InputError) as error:
        load_pair(pair, device="cpu", dtype="bfloat16")
    told = str(error.value)
    # 2 bytes x (70.55 + 8.03) 10^9 = 146.4 GiB; 2 bytes x 2 x 2048 x 1024 x (80 + 32) = 0.9 GiB.
    assert "shape:llama-3.1-70b+llama-3.1-8b needs 147.2 GiB on cpu in bfloat16" in told
    assert "weights 146.4, caches 0.9" in told and "80.0 are free" in told
    assert "smaller pair" in told and "--dtype" not in told
    with pytest.raises(InputError, match=r"needs 294.5 GiB on cpu in float32 .*--dtype bfloat16"):
        load_pair(pair, device="cpu")


def test_free_memory_of_this_machine() -> None:
    free = shapes.free_bytes("cpu")
    assert free is not None and 1 << 20 < free < 1 << 50
    assert shapes.free_bytes("meta") is None


def test_an_allocation_that_fails_is_one_line(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 224.00 MiB.")

    monkeypatch.setattr(shapes, "_materialise", fail)
    with pytest.raises(
        InputError, match=r"out of memory loading shape:llama\+qwen.json on cpu; try"
    ):
        load(tiny)


def test_unusable_configurations_are_one_line(tmp_path: Path) -> None:
    for name, text in (("cut.json", '{"model_type": "lla'), ("odd.json", '{"model_type": "odd"}')):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=f"{name}: no model can be built") as error:
            load_pair(resolve_pair(f"shape:{tmp_path / name}+vicuna-68m", None, None))
        assert len(str(error.value).splitlines()) == 1


def test_text_is_refused(tiny: Path, tmp_path: Path) -> None:
    questions = read_questions(write_prompts(tmp_path / "p.jsonl"))
    with pytest.raises(InputError, match="random weights and no tokenizer"):
        capture(load(tiny), questions, tmp_path / "t.parquet", CaptureSettings())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["measure", "--pair", "shape:gpt-5+68m", "--out", "t.json"], ["known shapes", "vicuna"]),
        (["capture", "--pair", "shape:vicuna-7b+68m", "--out", "t"], ["--acceptance trace"]),
        (["study", "--pair", "shape:vicuna-7b+68m", "--out", "s"], ["--acceptance trace"]),
        (["study", "--quick", "--pair", "shape:nobody", "--out", "s"], ["study takes no shape"]),
    ],
)
def test_commands_refuse_in_one_line(
    argv: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gammalab: --pair shape:") and all(word in line for word in words)
    assert not list(tmp_path.iterdir())


def test_measure_command_prints_the_label(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("real_backend.recording.measure.DRAFTED", (0, 1, 2))
    argv = ["measure", "--pair", f"shape:{tiny}/llama+{tiny}/qwen.json", "--device", "cpu"]
    argv += ["--out", str(tmp_path / "t.json"), "--batch", "2", "--context", "16", "--repeats", "1"]
    assert cli.main(argv) == 0
    assert "cells of shape:llama+qwen.json, random weights, on" in capsys.readouterr().out


RANDOM = {"weights": "random", "pair": "shape:vicuna-7b+vicuna-68m", "tokenizer_sha256": ""}
RANDOM |= {"target": "vicuna-7b", "draft": "vicuna-68m", "dtype": "bfloat16"}


def test_a_trace_beside_random_weights_is_one_honest_line() -> None:
    trace = make_trace([[1, 0]], ["1.1"], ["a"])
    (line,) = mismatches(trace, make_timing(**RANDOM))
    assert line.startswith("timing: random weights in the shape of vicuna-7b and vicuna-68m")
    assert line.endswith("acceptance comes from the trace of pair 'tiny'")
    assert mismatches(trace, make_timing()) == []


def test_compare_and_report_carry_the_label(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, timing = save_inputs(tmp_path, **RANDOM)
    out = tmp_path / "out"
    argv = ["compare", "--trace", str(trace), "--timing", str(timing), "--out", str(out)]
    assert cli.main([*argv, "--policies", "ucb"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("timing: random weights in the shape of vicuna-7b")
    (warning,) = printed.err.splitlines()
    assert "random weights" in warning and "acceptance comes from the trace" in warning
    assert cli.main(["report", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert "Timing: random weights in the shape of vicuna-7b and vicuna-68m" in page
    assert "<td>weights</td><td>random</td>" in page


@pytest.mark.gpu
@torch.inference_mode()
def test_on_a_gpu_it_is_bfloat16_and_the_same_every_time(tiny: Path) -> None:
    spec = resolve_pair(f"shape:{tiny}/llama+{tiny}/qwen.json", None, None)
    first, second = (load_pair(spec, device="cuda") for _ in range(2))
    assert first.dtype == "bfloat16" and first.weights_sha256 == second.weights_sha256
    logits = first.target.module(torch.arange(60, device="cuda")[None]).logits
    assert logits.is_cuda and bool(logits.isfinite().all())
    assert (shapes.free_bytes("cuda") or 0) > 0
