"""Capture: the batched rollout against the naive one, sampling, resuming, refusing."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from real_backend.decoding.verify import distribution, draw, signals
from real_backend.load_pair import load_pair
from real_backend.models.kvcache import Reader
from real_backend.options import CaptureOptions, PairOptions
from real_backend.pair_spec import resolve_pair
from real_backend.prompts import (
    Question,
    Request,
    alike,
    read_questions,
    request_for,
    requests_of_trace,
)
from real_backend.recording import capture as capture_module
from real_backend.recording.annotation import run_lengths
from real_backend.recording.capture import capture, run
from real_backend.recording.coupling import CaptureSettings, decode_coupled, draw_uniforms
from real_backend.recording.rollout import Choose, FloatArray
from tests.results import lively_trace
from tests.specimens import save_llama, save_pair, save_tokenizer, write_prompts
from traces.errors import InputError
from traces.store import read_trace
from traces.trace_writer import TraceWriter

SAMPLED = CaptureSettings(max_new_tokens=30, depth=6, temperature=0.8, top_p=0.95, seed=3)
GREEDY = CaptureSettings(max_new_tokens=30, depth=6)


def roll_out_one_by_one(
    draft: Reader,
    ids: list[int],
    prompt: int,
    starts: npt.NDArray[np.int64],
    choose_at: Choose,
    depth: int,
) -> FloatArray:
    """The slow reference: [len(starts), G, 2] signals by drafting afresh from every position.

    ids: prompt and reply. choose_at as in roll_out, for one branch at a time; depth 0 included.
    """
    found = np.zeros((len(starts), depth, 2), dtype=np.float32)
    for row, i in enumerate(starts):
        feed, start = torch.tensor([ids[: prompt + int(i)]]), 0
        for step in range(depth):
            logits = draft.read(feed, start)[0, -1:]
            token, sampling = choose_at(logits, np.asarray([i]), step)
            found[row, step] = signals(sampling)[0].numpy()
            start += feed.shape[1]
            feed = token[None]
    return found


def test_run_lengths_by_hand() -> None:
    flags = np.array([True, True, False, True, False, False, True])
    assert run_lengths(flags).tolist() == [2, 1, 0, 1, 0, 0, 1]


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("lean", [True, False], ids=["lean", "general"])
@torch.inference_mode()
def test_rollout_equals_drafting_afresh_from_every_position(
    pair: Any, general_pair: Any, tmp_path: Path, settings: CaptureSettings, lean: bool
) -> None:
    pair = pair if lean else general_pair
    questions = read_questions(write_prompts(tmp_path / "p.jsonl", questions=3))
    trace = capture(pair, questions, tmp_path / "t.parquet", settings)
    assert trace.top1_prob is not None and trace.entropy is not None
    compared = 0
    for row, request in enumerate(requests_of_trace(questions, trace, pair)):
        span = slice(int(trace.offsets[row]), int(trace.offsets[row + 1]))
        assert trace.token_ids is not None
        reply, accept = trace.token_ids[span].tolist(), trace.accept_len[span]
        prompt = len(request.prompt_ids)
        uniforms = draw_uniforms(settings.seed, request.request_id, 31, settings.depth)

        def choose(
            logits: Tensor, at: npt.NDArray[np.int64], step: int, accept=accept, uniforms=uniforms
        ) -> tuple[Tensor, Tensor]:
            if settings.temperature == 0.0:
                return logits.argmax(-1), torch.softmax(logits.float(), -1)
            sampling = distribution(logits, settings.temperature, settings.top_p)
            start = int(at[0])
            rejected = start + int(accept[start])
            on = start + step <= rejected
            u = (
                uniforms.path[start + step, 0]
                if on
                else uniforms.branch[rejected, start + step - rejected]
            )
            return draw(sampling, float(u)), sampling

        naive = roll_out_one_by_one(
            pair.draft.reader(256),
            request.prompt_ids + reply,
            prompt,
            np.arange(len(reply)),
            choose,
            settings.depth,
        )
        assert np.allclose(trace.top1_prob[span], naive[:, :, 0], atol=2e-5)
        assert np.allclose(trace.entropy[span], naive[:, :, 1], atol=2e-4)
        compared += naive.shape[0] * naive.shape[1]
        if settings.temperature == 0.0:
            assert trace.accept_prob is None
        else:
            assert trace.accept_prob is not None
            depth0 = trace.accept_prob[span][:, 0]
            assert ((depth0 >= 0) & (depth0 <= 1)).all()
            assert (accept[depth0 >= 1.0] > 0).all()  # certain acceptance was accepted
    assert compared > 300 and (trace.accept_len == 0).any() and (trace.accept_len > 2).any()


def test_sampled_path_has_the_targets_law(pair: Any) -> None:
    """First emitted token over many questions with one prompt; acceptance = sum min(p, q)."""
    from scipy import stats

    prompt, runs = [0, 2, 9, 13, 34, 3], 4_000
    asked = [Request(str(k), "qa", prompt) for k in range(runs)]
    settings = CaptureSettings(max_new_tokens=1, depth=1, temperature=1.0, seed=5, batch=runs)
    with torch.inference_mode():
        decoded = decode_coupled(pair, asked, settings)
        samplings = [
            torch.softmax(m.module(torch.tensor([prompt])).logits[0, -1, :64], -1).double().numpy()
            for m in (pair.target, pair.draft)
        ]
    seen = np.bincount([one.tokens[0] for one in decoded], minlength=64)
    big = samplings[0] * runs >= 5
    observed = np.append(seen[big], seen[~big].sum())
    expected = np.append(samplings[0][big], samplings[0][~big].sum()) * runs
    assert stats.chisquare(observed, expected * runs / expected.sum()).pvalue > 1e-3
    accept = np.minimum(samplings[0], samplings[1]).sum()
    taken = np.mean([one.proposals[0] >= 0 for one in decoded])
    assert taken == pytest.approx(accept, abs=4 * 0.5 / np.sqrt(runs))


def test_batched_capture_records_the_same(pair: Any, tmp_path: Path) -> None:
    questions = read_questions(write_prompts(tmp_path / "p.jsonl", questions=5, turns=2))
    one = capture(pair, questions, tmp_path / "a.parquet", GREEDY)
    batched = CaptureSettings(max_new_tokens=30, depth=6, batch=3)
    many = capture(pair, questions, tmp_path / "b.parquet", batched)
    assert np.array_equal(one.token_ids, many.token_ids)
    assert np.array_equal(one.accept_len, many.accept_len)
    assert np.allclose(one.top1_prob, many.top1_prob, atol=1e-5)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_interrupted_capture_resumes_to_the_same_bytes(
    pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: CaptureSettings
) -> None:
    questions = read_questions(write_prompts(tmp_path / "p.jsonl", questions=4, turns=2))
    capture(pair, questions, tmp_path / "whole.parquet", settings)
    out, annotate = tmp_path / "broken.parquet", capture_module.annotate
    for survive in (3, 2):  # two kills, then the rest
        calls = iter(range(survive))

        def dying(*args: Any, calls=calls) -> Any:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return annotate(*args)

        monkeypatch.setattr(capture_module, "annotate", dying)
        with pytest.raises(KeyboardInterrupt):
            capture(pair, questions, out, settings, resume=True)
    monkeypatch.setattr(capture_module, "annotate", annotate)
    with pytest.raises(InputError, match="--resume"):
        capture(pair, questions, out, settings)
    with pytest.raises(InputError, match="other settings"):
        capture(pair, questions, out, CaptureSettings(max_new_tokens=29, depth=6), resume=True)
    capture(pair, questions, out, settings, resume=True)
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not out.with_name("broken.parquet.partial").exists()


@pytest.mark.long
def test_kill_minus_nine_and_resume(pair_folder: Path, tmp_path: Path) -> None:
    """A real process, killed without warning; another goes on."""
    prompts = write_prompts(tmp_path / "p.jsonl", questions=24)
    command = [
        sys.executable,
        "-m",
        "real_backend.recording.capture",
        "--pair",
        str(pair_folder),
        "--prompts",
        str(prompts),
        "--max-new-tokens",
        "40",
        "--depth",
        "4",
        "--threads",
        "1",
    ]
    root = Path(__file__).parents[3]
    whole, broken = tmp_path / "whole.parquet", tmp_path / "broken.parquet"
    asked = CaptureOptions(
        pair=PairOptions(name=str(pair_folder), threads=1),
        prompts=prompts,
        out=whole,
        max_new_tokens=40,
        depth=4,
    )
    run(asked)
    process = subprocess.Popen([*command, "--out", str(broken)], cwd=root, stderr=subprocess.PIPE)
    partial = broken.with_name("broken.parquet.partial")
    while process.poll() is None and len(list(partial.glob("0*.parquet"))) < 3:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not broken.exists() and partial.exists()
    run(dataclasses.replace(asked, out=broken, resume=True))
    assert broken.read_bytes() == whole.read_bytes()
    assert read_trace(broken).requests == 24


def row_of(**changes: Any) -> str:
    """A line of a prompt file, with these fields changed."""
    return json.dumps({"question_id": 1, "category": "qa", "turns": ["w1"]} | changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no questions"),
        ("{bad\n", "line 1 is not JSON"),
        (
            '{"question_id": 1, "category": "qa", "turns": ["w1"]}\n{"question_id": 2}',
            "line 2: field",
        ),
        (row_of(turns=[]), "strings that say something"),
        (row_of(turns=[" \n"]), "strings that say something"),
        (row_of(turns=["a", 1]), "strings that say something"),
        (row_of(question_id=None), "'question_id' must be a whole number or text, not None"),
        (row_of(question_id=float("nan")), "'question_id' must be a whole number or text, not nan"),
        (row_of(question_id=True), "'question_id' must be"),
        (row_of(question_id=""), "'question_id' must be"),
        (row_of(category=""), "'category' must be the name of a task, not ''"),
        (row_of(category=None), "'category' must be"),
        (row_of(turns=["a \ud83d b"]), r"line 1 holds half a character \(\\ud83d\)"),
        ("[" * 100_000, "line 1 is not JSON"),
        ("[1]", "must be an object"),
        ("x" * (1 << 24), "line 1 is too long"),
        ('{"question_id": 1, "category": "qa", "turns": ["a"]}\n' * 2, "occurs twice"),
    ],
    ids=lambda text: text[:12],
)
def test_bad_prompt_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_questions(path)


def test_prompt_longer_than_the_context_is_found_before_decoding(pair: Any, tmp_path: Path) -> None:
    row = {"question_id": 9, "category": "qa", "turns": ["w1 " * 300]}
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match="question 9, turn 1: the prompt has 302 tokens"):
        capture(pair, read_questions(tmp_path / "p.jsonl"), tmp_path / "t.parquet", GREEDY)
    assert not list(tmp_path.glob("t.parquet*"))


def test_pairs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for name, words in (("target", 60), ("draft", 59)):
        save_llama(tmp_path / name, seed=1)
        save_tokenizer(tmp_path / name, words)
    with pytest.raises(InputError, match="different tokenizers"):
        load_pair(resolve_pair(str(tmp_path), None, None), device="cpu")
    for file in (tmp_path / "target").glob("*token*"):
        file.unlink()
    with pytest.raises(InputError, match="has no tokenizer"):
        load_pair(resolve_pair(str(tmp_path), None, None), device="cpu")
    with pytest.raises(InputError, match="holds no config"):
        resolve_pair(str(tmp_path / "nowhere"), None, None)
    with pytest.raises(InputError, match="belong together"):
        resolve_pair(None, "a", None)
    for pair in ("embedded", str(tmp_path)):
        with pytest.raises(InputError, match="beside --target or --draft"):
            resolve_pair(pair, "a", "b")


def test_questions_of_every_task_evenly_spread() -> None:
    tasks = ["qa"] * 5 + ["writing", "rag", "math", "qa"]  # writing and math: conversation
    asked = [Question(str(k), task, ("t",)) for k, task in enumerate(tasks)]
    names = [question.question_id for question in alike(asked, 2)]
    assert names == ["0", "3", "5", "6", "7"]  # of the qa at 0 1 2 3 4 8 the first and the fourth
    assert alike(asked, 0) == asked == alike(asked, 9)


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        (
            1,
            r"0 missing from the files, 9 unexpected in the files \(model.layers.1.input_layernorm",
        ),
        (3, r"9 missing from the files \(model.layers.2.input_\S+, .* 0 unexpected in the files"),
    ],
)
def test_a_config_of_another_model_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], layers: int, told: str
) -> None:
    """The files hold two layers, nine weights each."""
    config = save_pair(tmp_path) / "draft" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": layers}))
    capfd.readouterr()
    with pytest.raises(InputError, match=told):
        load_pair(resolve_pair(str(tmp_path), None, None), device="cpu", threads=1)
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_tied_weights_and_old_buffers_are_no_fault(tmp_path: Path) -> None:
    file = save_pair(tmp_path, tie_word_embeddings=True) / "target" / "model.safetensors"
    weights = load_file(file) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    assert "lm_head.weight" not in weights
    save_file(weights, file, {"format": "pt"})
    assert load_pair(resolve_pair(str(tmp_path), None, None), device="cpu", threads=1).target.lean


def test_a_dialogue_that_outgrows_the_context_ends_with_a_warning(
    pair: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"question_id": 1, "category": "qa", "turns": ["w1", "w2 " * 260, "w3"]},
        {"question_id": 2, "category": "qa", "turns": ["w4", "w5"]},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    questions = read_questions(tmp_path / "p.jsonl")
    trace = capture(pair, questions, tmp_path / "t.parquet", GREEDY)
    assert trace.request_id == ("1.1", "2.1", "2.2")
    assert "question 1, turn 2" in capsys.readouterr().err


def test_a_resumed_capture_has_the_threads_of_the_first(
    pair_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial of threads may choose otherwise on a busier machine; the bytes may depend on it."""
    asked: list[int] = []

    def load(named: PairOptions, threads: int = 0) -> Any:
        asked.append(named.threads or threads)
        raise InputError("enough")

    out = tmp_path / "t.parquet"
    TraceWriter(out, lively_trace().meta, conditions={"threads": 7})
    monkeypatch.setattr("real_backend.recording.capture.pair_from", load)
    prompts = write_prompts(tmp_path / "p.jsonl", questions=1)
    for resume, threads in ((True, 0), (False, 0), (True, 2)):
        named = PairOptions(name=str(pair_folder), threads=threads)
        with pytest.raises(InputError, match="enough"):
            run(CaptureOptions(pair=named, prompts=prompts, out=out, resume=resume))
    assert asked == [7, 0, 2]


def test_resume_under_other_conditions_is_refused(pair: Any, tmp_path: Path) -> None:
    questions = read_questions(write_prompts(tmp_path / "p.jsonl", questions=2))
    out = tmp_path / "t.parquet"
    meta = capture_module.make_meta(pair, questions, GREEDY)
    TraceWriter(out, meta, conditions={"batch": 4})
    with pytest.raises(InputError, match="other settings"):
        capture(pair, questions, out, GREEDY, resume=True)


def test_windowed_attention_is_refused(tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    for name in ("target", "draft"):
        config = MistralConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, sliding_window=16, head_dim=8,
        )  # fmt: skip
        MistralForCausalLM(config).save_pretrained(tmp_path / name)
        save_tokenizer(tmp_path / name, 60)
    with pytest.raises(InputError, match="full attention"):
        load_pair(resolve_pair(str(tmp_path), None, None), device="cpu")


def test_retrained_weights_have_another_fingerprint(tmp_path: Path) -> None:
    hashes = []
    for noise in (0.0, 0.01):
        for name in ("target", "draft"):
            save_llama(tmp_path / name, seed=1, noise=noise)
            save_tokenizer(tmp_path / name, 60)
        loaded = load_pair(resolve_pair(str(tmp_path), None, None), device="cpu")
        hashes.append((loaded.weights_sha256, loaded.tokenizer_sha256))
    assert hashes[0][0] != hashes[1][0] and hashes[0][1] == hashes[1][1]


def test_sampled_replies_have_the_joint_law_beyond_the_first_round(
    pair: Any, tmp_path: Path
) -> None:
    """Tokens one and two with a nucleus: what follows an acceptance and what follows a
    rejection.
    """
    from scipy import stats

    runs, prompt_text = 4000, "w5 w9 w30"
    lines = [
        json.dumps({"question_id": k, "category": "qa", "turns": [prompt_text]})
        for k in range(runs)
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    questions = read_questions(tmp_path / "p.jsonl")
    settings = CaptureSettings(
        max_new_tokens=2, depth=1, temperature=0.7, top_p=0.9, seed=8, batch=100
    )
    requests = [request_for(pair, question, 0, []) for question in questions]
    with torch.inference_mode():
        decoded = [
            one
            for begin in range(0, runs, 100)
            for one in decode_coupled(pair, requests[begin : begin + 100], settings)
        ]

    def sampling(ids: list[int]) -> npt.NDArray[np.float64]:
        with torch.inference_mode():
            logits = pair.target.module(torch.tensor([ids])).logits[0, -1, :64]
        return distribution(logits, 0.7, 0.9).double().numpy()

    prompt = requests[0].prompt_ids
    first = sampling(prompt)
    expected = np.stack([first[a] * sampling([*prompt, a]) for a in range(64)])
    for accepted_first in (True, False):
        # Given the flag, the first token has another law, the second given the first has not.
        seen = np.zeros((64, 64))
        for one in decoded:
            if len(one.tokens) == 2 and (one.proposals[0] >= 0) == accepted_first:
                seen[one.tokens[0], one.tokens[1]] += 1
        rows = seen.sum(1) > 0
        conditional = expected[rows] / expected[rows].sum(1, keepdims=True)
        want = conditional * seen[rows].sum(1, keepdims=True)
        assert seen[rows][want == 0].sum() == 0
        big = want >= 5
        observed = np.append(seen[rows][big], seen[rows][~big].sum())
        hoped = np.append(want[big], want[~big].sum())
        assert big.sum() > 10
        assert stats.chisquare(observed[hoped > 0], hoped[hoped > 0]).pvalue > 1e-3
    totals = np.bincount([one.tokens[0] for one in decoded], minlength=64)
    big = first * runs >= 5
    observed = np.append(totals[big], totals[~big].sum())
    hoped = np.append(first[big], first[~big].sum()) * runs
    assert (
        stats.chisquare(observed[hoped > 0], hoped[hoped > 0] * observed.sum() / hoped.sum()).pvalue
        > 1e-3
    )


def test_plain_text_without_a_chat_template(pair: Any, tmp_path: Path) -> None:
    for name in ("target", "draft"):
        save_llama(tmp_path / name, seed=1)
        save_tokenizer(tmp_path / name, 60, template=None)
    bare = load_pair(resolve_pair(str(tmp_path), None, None), device="cpu")
    questions = read_questions(write_prompts(tmp_path / "p.jsonl", questions=2, turns=2))
    trace = capture(bare, questions, tmp_path / "t.parquet", GREEDY)
    words = [len(t.split()) for t in questions[0].turns]
    assert trace.prompt_tokens[0] == words[0]
    assert trace.prompt_tokens[1] >= sum(words)
