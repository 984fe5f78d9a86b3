"""speculate inside transformers' generate: the output of plain generate, and where it stops."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    TextIteratorStreamer,
)
from transformers.generation import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StopStringCriteria,
)

from policies.registry import REGISTRY
from real_backend.huggingface.generate import speculate
from real_backend.pair_spec import EMBEDDED
from real_backend.prompts import EMBEDDED_PROMPTS, read_questions
from tests.real_backend.huggingface.models import TINY_PROMPT, Models, Recorder, Watcher, load
from tests.specimens import few_or_slow
from traces.errors import InputError
from traces.timing import read_timing

NEW = 32  # tokens of a reply
POLICIES = ("fixed:gamma=4", "gammatune", "gammatune+", "hf-confidence", "ucb", "never")
PLAIN = ("fixed:gamma=4", "hf-confidence", "ucb", "never")
"""Without gammatune, which batches and dictionaries below are asked with."""
SHIPPED_TIMING = Path(__file__).parents[3] / "traces/data/timing-x86_64-cpu.json"


@pytest.fixture(scope="module")
def embedded() -> Models:
    return load(EMBEDDED)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(EMBEDDED / "target", padding_side="left")


@pytest.fixture(scope="module")
def texts(tokenizer: Any) -> list[str]:
    """One chat prompt of every fourth task, as text."""
    chosen = {q.task: q for q in read_questions(EMBEDDED_PROMPTS)}
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question.turns[0]}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for question in list(chosen.values())[::2]
    ]


@pytest.fixture(scope="module")
def prompts(tokenizer: Any, texts: list[str]) -> list[Any]:
    return [tokenizer(text, return_tensors="pt", add_special_tokens=False) for text in texts]


@pytest.fixture(scope="module")
def batch(tokenizer: Any, texts: list[str]) -> Any:
    encoded = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    assert len({int(n) for n in encoded["attention_mask"].sum(1)}) == len(texts)
    return encoded


@pytest.fixture(scope="module")
def plain(embedded: Models, prompts: list[Any]) -> list[torch.Tensor]:
    """What generate returns without us, before any weight was fused."""
    return [embedded[0].generate(**p, do_sample=False, max_new_tokens=NEW) for p in prompts]


def reply_of(output: torch.Tensor, prompt: Any) -> list[int]:
    return [int(token) for token in output[0, prompt["input_ids"].shape[1] :]]


# ---- greedy: token for token -----------------------------------------------------------------


@pytest.mark.parametrize("policy", few_or_slow(POLICIES, PLAIN))
def test_output_is_that_of_generate(
    embedded: Models, prompts: list[Any], plain: list[torch.Tensor], policy: str
) -> None:
    target, draft = embedded
    spec = speculate(draft, policy)
    for prompt, expected in zip(prompts, plain, strict=True):
        output = target.generate(**prompt, max_new_tokens=NEW, custom_generate=spec)
        assert torch.equal(output, expected) and output.dtype == expected.dtype
        assert not output.is_inference()
    assert spec.log.emitted.sum() == sum(
        len(reply_of(o, p)) for o, p in zip(plain, prompts, strict=True)
    )
    assert spec.log.request.tolist() == sorted(spec.log.request.tolist())
    assert set(spec.log.request) == set(range(len(prompts))) == set(range(len(spec.log.prefill_s)))


def test_a_policy_object_and_a_timing(
    embedded: Models, prompts: list[Any], plain: list[torch.Tensor]
) -> None:
    target, draft = embedded
    with pytest.raises(InputError, match=r"goodput.*gammalab measure"):
        speculate(draft, "goodput")
    for timing in (SHIPPED_TIMING, str(SHIPPED_TIMING)):
        spec = speculate(draft, REGISTRY["goodput"](), timing=timing)
    output = target.generate(**prompts[0], max_new_tokens=NEW, custom_generate=spec)
    assert torch.equal(output, plain[0])
    assert 0 < spec.log.drafted.max() <= 12


def test_a_timing_of_another_pair_is_announced(tiny: Models) -> None:
    timing = read_timing(SHIPPED_TIMING)
    foreign = dataclasses.replace(timing, meta={**timing.meta, "weights_sha256": "0" * 64})
    spec = speculate(tiny[1], "goodput", timing=foreign)
    with pytest.warns(UserWarning, match="the timing was measured with weights_sha256"):
        tiny[0].generate(TINY_PROMPT, max_new_tokens=4, custom_generate=spec)


def test_any_end_token_ends_the_reply(embedded: Models, prompts: list[Any]) -> None:
    target, draft = embedded
    spec = speculate(draft, "fixed:gamma=6")
    plain = target.generate(**prompts[0], max_new_tokens=NEW)
    reply = reply_of(plain, prompts[0])
    for eos in (reply[20], [reply[9], reply[30]], [2], None):
        for extra in (
            {"eos_token_id": eos},
            {"generation_config": GenerationConfig(eos_token_id=eos)},
        ):
            settings = {**prompts[0], "pad_token_id": 0, **extra}
            if "generation_config" in extra:
                settings.pop("pad_token_id")
            expected = target.generate(**settings, max_new_tokens=NEW)
            output = target.generate(**settings, max_new_tokens=NEW, custom_generate=spec)
            assert torch.equal(output, expected)
    ended = target.generate(
        **prompts[0], max_new_tokens=NEW, eos_token_id=reply[20], custom_generate=spec
    )
    assert int(ended[0, -1]) == reply[20] and ended.shape[1] < plain.shape[1]


@pytest.mark.parametrize("length", [{}, {"max_length": 90}, {"max_new_tokens": 1}])
def test_length_limits(embedded: Models, prompts: list[Any], length: dict[str, int]) -> None:
    target, draft = embedded
    prompt = min(prompts, key=lambda p: p["input_ids"].shape[1])
    assert prompt["input_ids"].shape[1] < 90
    spec = speculate(draft, "fixed:gamma=5")
    expected = target.generate(**prompt, **length)
    assert torch.equal(target.generate(**prompt, **length, custom_generate=spec), expected)


def test_a_dictionary_is_returned_where_asked(
    embedded: Models, prompts: list[Any], plain: list[torch.Tensor]
) -> None:
    target, draft = embedded
    output = target.generate(
        **prompts[1],
        max_new_tokens=NEW,
        return_dict_in_generate=True,
        custom_generate=speculate(draft, "gammatune"),
    )
    assert type(output).__name__ == "GenerateDecoderOnlyOutput"
    assert torch.equal(output.sequences, plain[1]) and output.scores is None


def test_a_prompt_of_one_token(tiny: Models) -> None:
    target, draft = tiny
    expected = target.generate(TINY_PROMPT[:, :1], max_new_tokens=12)
    spec = speculate(draft, "fixed")
    output = target.generate(TINY_PROMPT[:, :1], max_new_tokens=12, custom_generate=spec)
    assert torch.equal(output, expected)


# ---- batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", few_or_slow([1, 2, 8], [2]))
def test_left_padded_rows(embedded: Models, batch: Any, at_once: int) -> None:
    target, draft = embedded
    spec = speculate(draft, "gammatune", batch=at_once)
    width = batch["input_ids"].shape[1]
    expected = target.generate(**batch, max_new_tokens=32)
    assert torch.equal(target.generate(**batch, max_new_tokens=32, custom_generate=spec), expected)
    # End tokens that end the rows at different lengths; with and without a pad token of its own.
    stops = [int(expected[row, width + 4 + 7 * row]) for row in range(len(expected))]
    for settings in ({"eos_token_id": stops}, {"eos_token_id": stops, "pad_token_id": 7}):
        expected = target.generate(**batch, max_new_tokens=32, **settings)
        output = target.generate(**batch, max_new_tokens=32, custom_generate=spec, **settings)
        assert torch.equal(output, expected)
        assert len({row.tolist().index(s) for row, s in zip(output, stops, strict=True)}) > 1
    assert spec.log.batch_size.max() == min(at_once, len(output))


def test_the_padding_is_found_without_a_mask(embedded: Models, batch: Any) -> None:
    target, draft = embedded
    ids = batch["input_ids"]
    expected = target.generate(ids, max_new_tokens=12)
    output = target.generate(ids, max_new_tokens=12, custom_generate=speculate(draft, "fixed"))
    assert torch.equal(output, expected)


@pytest.mark.parametrize("mask", [[1, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 0]])
def test_other_padding_is_refused(tiny: Models, mask: list[int]) -> None:
    with pytest.raises(InputError, match="left padding"):
        tiny[0].generate(
            TINY_PROMPT,
            attention_mask=torch.tensor([mask]),
            custom_generate=speculate(tiny[1], "fixed"),
        )


def test_a_streamer_sees_what_generate_would_show(embedded: Models, prompts: list[Any]) -> None:
    target, draft = embedded
    spec = speculate(draft, "fixed:gamma=6")
    wrapped = [spec, lambda *args, **named: spec(*args, **named)]
    expected, *streams = Recorder(), Recorder(), Recorder()
    target.generate(**prompts[0], max_new_tokens=24, streamer=expected)
    for loop, stream in zip(wrapped, streams, strict=True):
        target.generate(**prompts[0], max_new_tokens=24, streamer=stream, custom_generate=loop)
        assert stream.seen == expected.seen
    assert expected.seen[-1] == "end" and len(expected.seen) > 10


def test_text_streams_to_another_thread(
    embedded: Models, tokenizer: Any, prompts: list[Any], plain: list[torch.Tensor]
) -> None:
    target, draft = embedded
    stream = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    settings = {"max_new_tokens": NEW, "streamer": stream}
    loop = speculate(draft, "gammatune")
    worker = threading.Thread(
        target=target.generate, kwargs={**prompts[0], **settings, "custom_generate": loop}
    )
    worker.start()
    text = "".join(stream)
    worker.join()
    assert text == tokenizer.decode(reply_of(plain[0], prompts[0]))


def test_a_criterion_stops_inside_a_round(embedded: Models, prompts: list[Any]) -> None:
    target, draft = embedded
    reply = reply_of(target.generate(**prompts[0], max_new_tokens=NEW), prompts[0])
    spec = speculate(draft, "fixed:gamma=8")
    for token in sorted(set(reply))[:4]:
        here, there = Watcher(token), Watcher(token)
        expected = target.generate(**prompts[0], max_new_tokens=NEW, stopping_criteria=[there])
        stream = Recorder()
        output = target.generate(
            **prompts[0],
            max_new_tokens=NEW,
            stopping_criteria=[here],
            streamer=stream,
            custom_generate=spec,
        )
        assert torch.equal(output, expected) and here.lengths == there.lengths
        assert [x[0] for x in stream.seen[1:-1]] == reply_of(expected, prompts[0])
    assert (spec.log.emitted > 2).any()


def test_criteria_stop_each_row(embedded: Models, batch: Any) -> None:
    target, draft = embedded
    width = batch["input_ids"].shape[1]
    token = int(target.generate(**batch, max_new_tokens=9)[1, -1])
    spec = speculate(draft, "fixed:gamma=8")
    settings = {**batch, "max_new_tokens": 40}
    expected = target.generate(**settings, stopping_criteria=[Watcher(token)])
    output = target.generate(**settings, stopping_criteria=[Watcher(token)], custom_generate=spec)
    assert torch.equal(output, expected) and (expected[:, width:] == 0).any()


def test_stop_strings_lengths_and_time(
    embedded: Models, tokenizer: Any, prompts: list[Any], plain: list[torch.Tensor]
) -> None:
    target, draft = embedded
    spec = speculate(draft, "fixed:gamma=8")
    width = prompts[0]["input_ids"].shape[1]
    word = tokenizer.decode(reply_of(plain[0], prompts[0])[10:12]).strip()
    for criterion, most in (
        (StopStringCriteria(tokenizer, [word]), 12),
        (MaxLengthCriteria(width + 7), 7),
        (MaxTimeCriteria(0.0, initial_timestamp=0.0), 1),
        (EosTokenCriteria(reply_of(plain[0], prompts[0])[5]), 6),
    ):
        settings = {**prompts[0], "max_new_tokens": NEW, "stopping_criteria": [criterion]}
        expected = target.generate(**settings)
        assert torch.equal(target.generate(**settings, custom_generate=spec), expected)
        assert expected.shape[1] <= width + most
