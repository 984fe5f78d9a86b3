"""speculate where the engine cannot: one clear refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    Qwen2ForCausalLM,
)
from transformers.generation import (
    LogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from real_backend.huggingface.generate import speculate
from tests.real_backend.huggingface.models import TINY_PROMPT, Models, Recorder, Watcher, small_qwen
from tests.specimens import save_llama
from traces.errors import InputError


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
    with pytest.raises(
        InputError, match=r"must be a loaded model, a look-up .*, not 'folder/draft'"
    ):
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
