"""speculate inside transformers' generate: the output of plain generate, or one clear refusal."""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    GPT2Config,
    Qwen2Config,
    Qwen2ForCausalLM,
    TextIteratorStreamer,
)
from transformers.generation import (
    BaseStreamer,
    EosTokenCriteria,
    LogitsProcessor,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from policies.bandits.ucb import UCB
from policies.base import STEP_COSTS, Policy, State, View, reads_seconds
from policies.counts.heuristic import HFHeuristic
from policies.randomness import Rng
from policies.registry import SHELF
from real_backend.huggingface.generate import Speculation, speculate
from real_backend.models.pair import EMBEDDED
from real_backend.prompts import EMBEDDED_PROMPTS, read_questions
from tests.specimens import save_llama
from traces.errors import InputError
from traces.timing import read_timing

POLICIES = ("fixed:gamma=4", "gammatune", "gammatune+", "hf-confidence", "ucb", "never")
SHIPPED_TIMING = Path(__file__).parents[3] / "traces/data/timing-x86_64-cpu.json"
TINY_PROMPT = torch.tensor([[2, 9, 30, 12]])

Models = tuple[Any, Any]


def load(folder: Path) -> Models:
    target, draft = (
        AutoModelForCausalLM.from_pretrained(folder / role, dtype=torch.float32)
        for role in ("target", "draft")
    )
    return target, draft


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """More threads only wait for each other in models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    return [embedded[0].generate(**p, do_sample=False, max_new_tokens=48) for p in prompts]


@pytest.fixture
def tiny(pair_folder: Path) -> Models:
    return load(pair_folder)


def reply_of(output: torch.Tensor, prompt: Any) -> list[int]:
    return [int(token) for token in output[0, prompt["input_ids"].shape[1] :]]


# ---- greedy: token for token -----------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_output_is_that_of_generate(
    embedded: Models, prompts: list[Any], plain: list[torch.Tensor], policy: str
) -> None:
    target, draft = embedded
    spec = speculate(draft, policy)
    for prompt, expected in zip(prompts, plain, strict=True):
        output = target.generate(**prompt, max_new_tokens=48, custom_generate=spec)
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
        spec = speculate(draft, SHELF["goodput"](), timing=timing)
    output = target.generate(**prompts[0], max_new_tokens=48, custom_generate=spec)
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
    plain = target.generate(**prompts[0], max_new_tokens=48)
    reply = reply_of(plain, prompts[0])
    for eos in (reply[20], [reply[9], reply[30]], [2], None):
        for extra in (
            {"eos_token_id": eos},
            {"generation_config": GenerationConfig(eos_token_id=eos)},
        ):
            settings = {**prompts[0], "pad_token_id": 0, **extra}
            if "generation_config" in extra:
                settings.pop("pad_token_id")
            expected = target.generate(**settings, max_new_tokens=48)
            output = target.generate(**settings, max_new_tokens=48, custom_generate=spec)
            assert torch.equal(output, expected)
    ended = target.generate(
        **prompts[0], max_new_tokens=48, eos_token_id=reply[20], custom_generate=spec
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
        max_new_tokens=48,
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


@pytest.mark.parametrize("at_once", [1, 2, 8])
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


# ---- streamers and stopping criteria ---------------------------------------------------------


class Recorder(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        assert not value.is_inference()
        self.seen.append(value.tolist())

    def end(self) -> None:
        self.seen.append("end")


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
    settings = {"max_new_tokens": 48, "streamer": stream}
    loop = speculate(draft, "gammatune")
    worker = threading.Thread(
        target=target.generate, kwargs={**prompts[0], **settings, "custom_generate": loop}
    )
    worker.start()
    text = "".join(stream)
    worker.join()
    assert text == tokenizer.decode(reply_of(plain[0], prompts[0]))


class Watcher(StoppingCriteria):
    """Stops a row at a token, and keeps the lengths it was asked about."""

    def __init__(self, token: int) -> None:
        self.token, self.lengths = token, list[int]()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.lengths.append(input_ids.shape[1])
        return input_ids[:, -1] == self.token


def test_a_criterion_stops_inside_a_round(embedded: Models, prompts: list[Any]) -> None:
    target, draft = embedded
    reply = reply_of(target.generate(**prompts[0], max_new_tokens=48), prompts[0])
    spec = speculate(draft, "fixed:gamma=8")
    for token in sorted(set(reply))[:8]:
        here, there = Watcher(token), Watcher(token)
        expected = target.generate(**prompts[0], max_new_tokens=48, stopping_criteria=[there])
        stream = Recorder()
        output = target.generate(
            **prompts[0],
            max_new_tokens=48,
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
        settings = {**prompts[0], "max_new_tokens": 48, "stopping_criteria": [criterion]}
        expected = target.generate(**settings)
        assert torch.equal(target.generate(**settings, custom_generate=spec), expected)
        assert expected.shape[1] <= width + most


# ---- sampling --------------------------------------------------------------------------------


def joint_law(module: Any, temperature: float, top_p: float) -> np.ndarray:
    """[64 * 64] law of the first two tokens as transformers' own processors make it; the token
    behind an end token is padding, 0.
    """

    def law(ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            scores = module(torch.tensor([ids])).logits[:, -1] / temperature
            if top_p < 1.0:
                scores = TopPLogitsWarper(top_p)(None, scores)
        return scores.double().softmax(-1)[0].numpy()

    prompt = TINY_PROMPT[0].tolist()
    first = law(prompt)
    joint = np.stack([first[a] * law([*prompt, a]) for a in range(64)])
    joint[1] = 0.0
    joint[1, 0] = first[1]
    return joint.ravel()


def chi_square_p(seen: np.ndarray, law: np.ndarray) -> float:
    """p-value of counts against a law; cells that expect fewer than 5 are one cell."""
    expected = law * seen.sum()
    big = expected >= 5
    observed = np.append(seen[big], seen[~big].sum())
    expected = np.append(expected[big], expected[~big].sum())
    if expected[-1] == 0.0:
        return 0.0 if observed[-1] else float(stats.chisquare(observed[:-1], expected[:-1]).pvalue)
    return float(stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 0.9), (1.0, 1.0)])
def test_samples_have_the_targets_law(tiny: Models, temperature: float, top_p: float) -> None:
    target, draft = tiny
    spec = speculate(draft, "fixed:gamma=2")
    torch.manual_seed(5)
    output = target.generate(
        TINY_PROMPT,
        do_sample=True,
        temperature=temperature,
        top_p=top_p,
        top_k=0,
        max_new_tokens=3,
        num_return_sequences=2_000,
        pad_token_id=0,
        custom_generate=spec,
    )
    assert output.shape == (2_000, 7)
    seen = np.bincount((output[:, 4] * 64 + output[:, 5]).numpy(), minlength=64 * 64)
    assert chi_square_p(seen, joint_law(target, temperature, top_p)) > 1e-3
    # Power: the draft's law, another temperature and another nucleus are all found out.
    assert chi_square_p(seen, joint_law(draft, temperature, top_p)) < 1e-6
    assert chi_square_p(seen, joint_law(target, temperature * 1.25, top_p)) < 1e-6
    assert chi_square_p(seen, joint_law(target, temperature, 0.8)) < 1e-6
    assert 0 < spec.log.accepted.sum() < spec.log.drafted.sum()


def test_torch_seeds_decide_the_samples(tiny: Models) -> None:
    target, draft = tiny
    settings = {"do_sample": True, "top_k": None, "max_new_tokens": 20, "pad_token_id": 0}
    spec = speculate(draft, "gammatune")
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs += [target.generate(TINY_PROMPT, **settings, custom_generate=spec) for _ in "ab"]
    texts = [tuple(output[0].tolist()) for output in outputs]
    assert texts[:2] == texts[2:4] and len(set(texts)) == 4
    torch.manual_seed(1)
    state = torch.get_rng_state()
    target.generate(TINY_PROMPT, max_new_tokens=8, custom_generate=spec)
    assert torch.equal(torch.get_rng_state(), state)  # greedy draws nothing


def test_a_nucleus_of_nothing_and_a_top_k_of_everything(tiny: Models) -> None:
    target, draft = tiny
    greedy = target.generate(TINY_PROMPT, max_new_tokens=12, pad_token_id=0)
    output = target.generate(
        TINY_PROMPT,
        do_sample=True,
        top_p=0.0,
        top_k=64,
        max_new_tokens=12,
        pad_token_id=0,
        custom_generate=speculate(draft, "fixed"),
    )
    assert torch.equal(output, greedy)


# ---- refusals --------------------------------------------------------------------------------


class Boost(LogitsProcessor):
    """A processor of the user's own."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": True}, r"TopKLogitsWarper; pass top_k=0 .*top_k=50"),
        ({"do_sample": True, "top_k": 0, "min_p": 0.1}, "MinPLogitsWarper; pass min_p=None"),
        ({"do_sample": True, "top_k": 0, "typical_p": 0.5}, "TypicalLogitsWarper; leave it out"),
        ({"repetition_penalty": 1.2}, "RepetitionPenaltyLogitsProcessor; pass repetition_penalty"),
        ({"no_repeat_ngram_size": 2}, "NoRepeatNGramLogitsProcessor"),
        ({"bad_words_ids": [[5]]}, "NoBadWordsLogitsProcessor"),
        ({"min_new_tokens": 3}, "MinLengthLogitsProcessor; pass min_length=0 and min_new"),
        ({"guidance_scale": 1.5}, "UnbatchedClassifierFreeGuidanceLogitsProcessor"),
        ({"prefix_allowed_tokens_fn": lambda row, ids: [5]}, "PrefixConstrainedLogitsProcessor"),
        ({"logits_processor": [Boost()]}, "Boost; leave it out"),
        (
            {"logits_processor": [TopPLogitsWarper(0.9), TemperatureLogitsWarper(0.5)]},
            "temperature, then top_p, and cannot apply TemperatureLogitsWarper",
        ),
        ({"logits_processor": [TopPLogitsWarper(0.9, min_tokens_to_keep=3)]}, "TopPLogitsWarper"),
        ({"num_beams": 3}, "not beam search; pass num_beams=1"),
        ({"prompt_lookup_num_tokens": 3}, "not assisted generation"),
        ({"use_cache": False}, "leave use_cache=False out"),
        ({"cache_implementation": "offloaded"}, "leave cache_implementation='offloaded' out"),
        ({"return_dict_in_generate": True, "output_scores": True}, "leave output_scores out"),
        ({"position_ids": torch.tensor([[3, 4, 5, 6]])}, "leave position_ids out"),
        ({"inputs_embeds": torch.zeros(1, 4, 32)}, "leave inputs_embeds out"),
        ({"synced_gpus": True}, "one process"),
        ({"max_new_tokens": 300}, r"do not fit into the 256 tokens .*max_new_tokens=252"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_engine_cannot_do_is_refused(
    tiny: Models, settings: dict[str, Any], message: str
) -> None:
    target, draft = tiny
    arguments = {"max_new_tokens": 8, "custom_generate": speculate(draft, "fixed")} | settings
    with pytest.raises(InputError, match=message) as caught:
        target.generate(TINY_PROMPT, **arguments)
    assert "\n" not in str(caught.value)


def test_a_second_draft_a_full_cache_and_rows_that_need_each_other_are_refused(
    tiny: Models,
) -> None:
    target, draft = tiny
    spec = speculate(draft, "fixed")
    cache = target(TINY_PROMPT, use_cache=True).past_key_values
    longer = torch.cat([TINY_PROMPT, TINY_PROMPT], dim=1)
    two = TINY_PROMPT.repeat(2, 1)
    for message, ids, settings in (
        ("both name a draft", TINY_PROMPT, {"assistant_model": draft}),
        ("leave past_key_values out", longer, {"past_key_values": cache}),
        ("a streamer takes one row, not 2", two, {"streamer": Recorder()}),
        ("max_time .* pass speculate\\(batch=9\\)", TINY_PROMPT.repeat(9, 1), {"max_time": 1.0}),
        ("eos_token_id", two, {"stopping_criteria": [Watcher(5)], "eos_token_id": None}),
    ):
        with pytest.raises(InputError, match=message):
            target.generate(ids, max_new_tokens=4, custom_generate=spec, **settings)


def test_an_encoder_decoder_is_refused(tiny: Models) -> None:
    config = BartConfig(
        vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2,
    )  # fmt: skip
    with pytest.raises(InputError, match="decoder-only"):
        BartForConditionalGeneration(config).generate(
            TINY_PROMPT, max_new_tokens=4, num_beams=1, custom_generate=speculate(tiny[1], "fixed")
        )


def test_models_that_do_not_belong_together_are_refused(tiny: Models, tmp_path: Path) -> None:
    target, draft = tiny
    with pytest.raises(InputError, match="must be a loaded model, not 'folder/draft'"):
        speculate("folder/draft", "fixed")
    with pytest.raises(InputError, match="did you mean 'gammatune'"):
        speculate(draft, "gamatune")
    with pytest.raises(InputError, match="max_gamma must be 1 to 64"):
        speculate(draft, "fixed", max_gamma=65)
    save_llama(tmp_path, seed=3, vocab_size=2_000)
    foreign = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    spec = speculate(foreign, "fixed")
    with pytest.raises(InputError, match=r"has 64 tokens, the draft .* 2000"):
        target.generate(TINY_PROMPT, custom_generate=spec)
    other = Qwen2ForCausalLM(small_qwen(vocab_size=72))
    with pytest.raises(InputError, match=r"\(llama\) has 64 tokens, the draft \(qwen2\) 72"):
        target.generate(TINY_PROMPT, custom_generate=speculate(other, "fixed"))
    spec = speculate(draft.to(torch.bfloat16), "fixed")
    with pytest.raises(InputError, match=r"use draft.to\(torch.float32\)"):
        target.generate(TINY_PROMPT, custom_generate=spec)
    spec = speculate(draft.to("meta", torch.float32), "fixed")
    with pytest.raises(InputError, match=r"use draft.to\(torch.device\('cpu'\)\)"):
        target.generate(TINY_PROMPT, custom_generate=spec)


def test_embeddings_may_be_padded_apart(tiny: Models, tmp_path: Path) -> None:
    target, _ = tiny
    save_llama(tmp_path, seed=7, vocab_size=72)
    padded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    expected = target.generate(TINY_PROMPT, max_new_tokens=16)
    spec = speculate(padded, "fixed")
    output = target.generate(TINY_PROMPT, max_new_tokens=16, custom_generate=spec)
    assert torch.equal(output, expected)


# ---- models: what they are afterwards --------------------------------------------------------


def small_qwen(**changes: Any) -> Qwen2Config:
    """Biases and grouped heads."""
    settings: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.35,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return Qwen2Config(**(settings | changes))


def small_gpt2() -> GPT2Config:
    """Learned positions; a layout that the lean forward does not take."""
    return GPT2Config(
        vocab_size=64, n_positions=128, n_embd=32, n_layer=2, n_head=4, initializer_range=0.35,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("make", "path"), [(small_qwen, "lean"), (small_gpt2, "general")], ids=lambda value: value
)
def test_other_architectures(make: Callable[[], Any], path: str) -> None:
    torch.manual_seed(4)
    target, draft = (AutoModelForCausalLM.from_config(make()).eval() for _ in range(2))
    draft.load_state_dict(target.state_dict())
    for weight in draft.parameters():
        weight.data += 0.05 * weight.data.std(correction=0) * torch.randn_like(weight)
    ids = torch.tensor([[0, 0, 9, 30, 12], [5, 40, 41, 9, 30]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    settings = {"attention_mask": mask, "max_new_tokens": 40, "pad_token_id": 0}
    expected = target.generate(ids, **settings)
    spec = speculate(draft, "gammatune")
    assert torch.equal(target.generate(ids, **settings, custom_generate=spec), expected)
    assert spec.log.meta["engine"] == path and spec.log.accepted.sum() > 5
    if path == "general":
        types = torch.zeros_like(ids)
        with pytest.raises(InputError, match="token ids alone; leave token_type_ids out"):
            target.generate(ids, **settings, token_type_ids=types, custom_generate=spec)


def test_the_models_stay_as_they_were(tiny: Models, tmp_path: Path) -> None:
    target, draft = tiny
    target.train()
    before = {name: weight.clone() for name, weight in target.state_dict().items()}
    threads, grads = torch.get_num_threads(), [p.requires_grad for p in target.parameters()]
    plain = target.generate(TINY_PROMPT, max_new_tokens=16)
    speculative = [
        target.generate(TINY_PROMPT, max_new_tokens=16, custom_generate=speculate(draft, "fixed"))
        for _ in "ab"
    ]
    again = target.generate(TINY_PROMPT, max_new_tokens=16)
    assert all(torch.equal(output, plain) for output in (*speculative, again))
    assert torch.get_num_threads() == threads and target.training
    assert [p.requires_grad for p in target.parameters()] == grads
    after = target.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    target(TINY_PROMPT, labels=TINY_PROMPT).loss.backward()  # and can still be trained
    target.save_pretrained(tmp_path)  # and saved
    saved = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    assert all(torch.equal(saved[name], weight) for name, weight in before.items())


def test_weights_are_fused_once(tiny: Models) -> None:
    target, draft = tiny
    places = []
    kept = [speculate(draft, name) for name in ("fixed", "gammatune", "fixed:gamma=2")]
    for spec in kept:
        target.generate(TINY_PROMPT, max_new_tokens=4, custom_generate=spec)
        places.append([p.data_ptr() for m in (target, draft) for p in m.parameters()])
    assert places[0] == places[1] == places[2]


def test_changed_weights_are_read_again(tiny: Models) -> None:
    target, draft = tiny
    spec = speculate(draft, "fixed:gamma=3")

    def check() -> torch.Tensor:
        expected = target.generate(TINY_PROMPT, max_new_tokens=24)
        output = target.generate(TINY_PROMPT, max_new_tokens=24, custom_generate=spec)
        assert torch.equal(output, expected)
        return output

    outputs = [check()]
    with torch.no_grad():  # an optimiser's step
        for weight in target.parameters():
            weight += 0.3 * torch.randn_like(weight)
    outputs.append(check())
    target.lm_head.weight.data.mul_(-1.0)  # unseen by torch, on memory that both see
    outputs.append(check())
    target.double(), draft.double()
    check()
    other = {name: torch.randn_like(w) * 0.3 for name, w in target.state_dict().items()}
    target.load_state_dict(other, assign=True)
    outputs.append(check())
    assert len({tuple(output[0].tolist()) for output in outputs}) == 4


def test_nothing_outlives_the_object(tiny: Models) -> None:
    from real_backend.huggingface.generate import _PREPARED

    target, draft = tiny
    key = id(target), id(draft)
    spec = speculate(draft, "fixed")
    target.generate(TINY_PROMPT, max_new_tokens=4, custom_generate=spec)
    assert key in _PREPARED
    del spec
    gc.collect()
    assert key not in _PREPARED


# ---- policies: memory, costs, rounds ---------------------------------------------------------


def test_policies_remember_as_they_are_meant_to(tiny: Models) -> None:
    target, draft = tiny

    def play(policy: Policy) -> Speculation:
        spec = speculate(draft, policy)
        for _ in range(3):
            target.generate(TINY_PROMPT, max_new_tokens=24, custom_generate=spec)
        return spec

    bandit = play(UCB())
    assert bandit.state.plays.sum() == (bandit.log.gamma > 0).sum()
    for policy, same in ((HFHeuristic(7), True), (HFHeuristic(7, transient=False), False)):
        log = play(policy).log
        starts = [log.gamma[log.request == call][0] for call in range(3)]
        assert starts[0] == 7 and (starts[1] == 7) == same


def test_memory_grows_with_the_batch(tiny: Models) -> None:
    """What a slot and what all slots learned outlives a call with more rows, and one with fewer."""
    target, draft = tiny
    spec = speculate(draft, HFHeuristic(7, transient=False))
    target.generate(TINY_PROMPT, max_new_tokens=24, custom_generate=spec)
    learned = int(spec.state.gamma[0])
    assert learned != 7
    target.generate(TINY_PROMPT.repeat(3, 1), max_new_tokens=24, custom_generate=spec)
    first = {slot: int(spec.log.gamma[spec.log.request == 1 + slot][0]) for slot in range(3)}
    assert first == {0: learned, 1: 7, 2: 7}
    target.generate(TINY_PROMPT, max_new_tokens=24, custom_generate=spec)
    assert len(spec.state.gamma) == 3
    bandit = speculate(draft, UCB())
    for rows in (1, 4, 2):
        ids = TINY_PROMPT.repeat(rows, 1)
        target.generate(ids, max_new_tokens=24, custom_generate=bandit)
    assert bandit.state.plays.sum() == (bandit.log.gamma > 0).sum()


def test_the_log_covers_all_calls(tiny: Models) -> None:
    target, draft = tiny
    spec = speculate(draft, "fixed:gamma=3")
    assert len(spec.log) == 0 and spec.log.meta["policy"] == "fixed:gamma=3"
    two = TINY_PROMPT.repeat(2, 1)
    for ids in (TINY_PROMPT, two, TINY_PROMPT):
        target.generate(ids, max_new_tokens=10, custom_generate=spec)
    log = spec.log
    assert sorted(set(log.request.tolist())) == [0, 1, 2, 3] and len(log.prefill_s) == 4
    assert (np.diff(log.start_s) >= 0).all() and log.request.dtype == np.int32
    assert log.meta["policy"] == "fixed:gamma=3" and (log.gamma <= 3).all()
    per_request = np.bincount(log.request, log.emitted)
    assert len(set(per_request.tolist())) == 1


def dear(view: View) -> float:
    return view.draft_step_s


@dataclasses.dataclass(frozen=True)
class Frugal(Policy):
    """Looks at a cost through a helper."""

    name = "frugal"

    def gamma(self, state: State, slot: int, view: View, rng: Rng) -> int:
        return 1 if dear(view) < 1.0 else 0


def test_policies_that_read_costs_are_known() -> None:
    found = {name for name, policy in SHELF.items() if reads_seconds(policy(), STEP_COSTS)}
    assert found == {
        "profile-guided", "vllm-dynamic", "sglang-throughput", "smartspec", "adaptive-k", "cascade",
        "thompson-beta", "linucb", "lin-thompson", "nightjar", "goodput", "alpha-goodput", "hedge",
        "marginal", "payback", "specstop",
    }  # fmt: skip
    assert reads_seconds(Frugal(), STEP_COSTS)


def test_threads_take_turns(tiny: Models) -> None:
    target, draft = tiny
    expected = target.generate(TINY_PROMPT, max_new_tokens=40)
    spec = speculate(draft, "gammatune")
    outputs: list[torch.Tensor] = []

    def work() -> None:
        for _ in range(3):
            outputs.append(target.generate(TINY_PROMPT, max_new_tokens=40, custom_generate=spec))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(outputs) == 9 and all(torch.equal(output, expected) for output in outputs)
