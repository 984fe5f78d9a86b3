"""Exports of drafters that are no independent model: every engine's own fields, or one line."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from experiments.export.engines import find_engine
from experiments.export.export import export
from experiments.export.text import export_text
from policies.registry import parse_policy
from tests.results import lively_trace, make_timing
from traces.errors import InputError
from traces.schema import Trace

KINDS = {
    "eagle3": "head",
    "block": "heads",
    "lookup": "lookup:least=2,greatest=4",
    "suffix": "suffix:factor=2,min_share=0.25",
}


@pytest.fixture(scope="module")
def trace() -> Trace:
    return lively_trace(questions=16)


def of_kind(trace: Trace, kind: str) -> Trace:
    """The same recording as if another drafter had made it."""
    meta = dataclasses.replace(trace.meta, drafter=kind, draft=KINDS[kind])
    return dataclasses.replace(trace, meta=meta)


@pytest.mark.parametrize(
    ("to", "kind", "fields"),
    [
        ("vllm", "lookup", {"method": "ngram", "prompt_lookup_min": 2, "prompt_lookup_max": 4}),
        ("vllm", "suffix", {"method": "suffix", "suffix_decoding_max_spec_factor": 2.0}),
        ("vllm", "eagle3", {"method": "eagle3", "model": "head"}),
        ("vllm", "block", {"method": "medusa", "model": "heads"}),
        ("sglang", "eagle3", {"speculative_algorithm": "EAGLE3", "speculative_num_steps": 3}),
        ("sglang", "lookup", {"speculative_algorithm": "NGRAM"}),
        ("trtllm", "eagle3", {"decoding_type": "Eagle3", "max_draft_len": 3}),
        ("trtllm", "lookup", {"decoding_type": "NGram", "max_matching_ngram_size": 4}),
        ("llama.cpp", "eagle3", {"spec-type": "draft-eagle3", "spec-draft-n-max": 3}),
        ("llama.cpp", "lookup", {"spec-type": "ngram-simple", "spec-ngram-simple-size-m": 3}),
        ("hf", "lookup", {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 4}),
    ],
)
def test_other_drafters_have_their_own_fields(
    trace: Trace, to: str, kind: str, fields: dict[str, Any]
) -> None:
    result = export(
        parse_policy("fixed:gamma=3"), find_engine(to), of_kind(trace, kind), make_timing()
    )
    assert fields.items() <= result.rendered.settings.items()
    assert all(str(value) in result.rendered.text for value in fields.values())
    shown = export_text(result, trace, "t.parquet", make_timing(), "t.json")
    assert "where the fields are from" in shown


def test_prompt_lookup_is_taken_by_generate(trace: Trace) -> None:
    looked_up = of_kind(trace, "lookup")
    result = export(parse_policy("fixed:gamma=3"), find_engine("hf"), looked_up, make_timing())
    from transformers import GenerationConfig

    assert GenerationConfig().update(**result.rendered.settings) == {}


@pytest.mark.parametrize(
    ("to", "kind"), [("hf", "eagle3"), ("sglang", "suffix"), ("llama.cpp", "block")]
)
def test_a_drafter_that_an_engine_lacks_is_refused(trace: Trace, to: str, kind: str) -> None:
    with pytest.raises(InputError, match=f"--to {to}: it has no drafter like that"):
        export(parse_policy("fixed:gamma=3"), find_engine(to), of_kind(trace, kind), make_timing())


@pytest.mark.parametrize("to", ["hf", "llama.cpp"])
def test_a_look_up_is_not_stopped_at_a_doubtful_token(trace: Trace, to: str) -> None:
    looked_up = of_kind(trace, "lookup")
    result = export(parse_policy("hf-confidence"), find_engine(to), looked_up, make_timing())
    assert result.setting.threshold == 0.0 and result.setting.gamma > 0
