"""Engines' names for drafters that are no independent model: fields, and where each is from.

Read in September to November 2026, in the sources named; transformers' in its installed source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from traces.errors import InputError
from traces.notation import parse_fields
from traces.schema import DRAFTERS

Fields = dict[str, Any]
"""An engine's fields and their values."""
Writes = Callable[[int, str, Mapping[str, float]], Fields]
"""(gamma, name of the draft, its settings) -> fields."""

SETTINGS: dict[str, dict[str, type]] = {
    "lookup": {"least": int, "greatest": int},
    "suffix": {"factor": float, "min_share": float},
}
"""Of drafters without weights, as a trace's meta names them (lookup:least=1,greatest=3)."""


def _vllm_head(method: str) -> Writes:
    return lambda gamma, draft, _: {
        "method": method,
        "model": draft,
        "num_speculative_tokens": gamma,
    }


def _sglang_head(gamma: int, draft: str, _: Mapping[str, float]) -> Fields:
    return {
        "speculative_algorithm": "EAGLE3",
        "speculative_draft_model_path": draft,
        "speculative_num_steps": gamma,
        "speculative_eagle_topk": 1,
        "speculative_num_draft_tokens": gamma + 1,
    }


WRITES: dict[tuple[str, str], tuple[Writes, str]] = {
    ("vllm", "eagle3"): (
        _vllm_head("eagle3"),
        "method eagle3: docs/features/speculative_decoding/eagle.md",
    ),
    ("vllm", "block"): (_vllm_head("medusa"), "method medusa: vllm/config/speculative.py"),
    ("vllm", "lookup"): (
        lambda gamma, _, found: {
            "method": "ngram",
            "num_speculative_tokens": gamma,
            "prompt_lookup_min": found["least"],
            "prompt_lookup_max": found["greatest"],
        },
        "method ngram, prompt_lookup_min and _max: docs/features/speculative_decoding/n_gram.md",
    ),
    ("vllm", "suffix"): (
        lambda gamma, _, found: {
            "method": "suffix",
            "num_speculative_tokens": gamma,
            "suffix_decoding_max_spec_factor": found["factor"],
            "suffix_decoding_min_token_prob": found["min_share"],
            "suffix_decoding_max_cached_requests": 0,
        },
        "method suffix and its fields: vllm/config/speculative.py; 0 cached requests, since the "
        "recording searched each request alone",
    ),
    ("sglang", "eagle3"): (
        _sglang_head,
        "EAGLE3 and its flags: docs/advanced_features/speculative_decoding.md",
    ),
    ("sglang", "lookup"): (
        lambda gamma, _, found: {
            "speculative_algorithm": "NGRAM",
            "speculative_num_draft_tokens": gamma + 1,
            "speculative_ngram_min_match_window_size": found["least"],
            "speculative_ngram_max_match_window_size": found["greatest"],
            "speculative_ngram_max_bfs_breadth": 1,
        },
        "NGRAM and its flags: docs/advanced_features/speculative_decoding.md; breadth 1 keeps a "
        "chain, and its cache is of all requests, not of each alone",
    ),
    ("trtllm", "eagle3"): (
        lambda gamma, draft, _: {
            "decoding_type": "Eagle3",
            "max_draft_len": gamma,
            "speculative_model": draft,
        },
        "Eagle3: tensorrt_llm/llmapi/llm_args.py (Eagle3DecodingConfig)",
    ),
    ("trtllm", "lookup"): (
        lambda gamma, _, found: {
            "decoding_type": "NGram",
            "max_draft_len": gamma,
            "max_matching_ngram_size": found["greatest"],
            "is_public_pool": False,
        },
        "NGram: tensorrt_llm/llmapi/llm_args.py (NGramDecodingConfig); it knows no least n",
    ),
    ("llama.cpp", "eagle3"): (
        lambda gamma, draft, _: {
            "md": f"{draft}.gguf",
            "spec-type": "draft-eagle3",
            "spec-draft-n-max": gamma,
            "spec-draft-n-min": 0,
        },
        "--spec-type draft-eagle3: docs/speculative.md; the head is converted to GGUF with "
        "--target-model-dir",
    ),
    ("llama.cpp", "lookup"): (
        lambda gamma, _, found: {
            "spec-type": "ngram-simple",
            "spec-ngram-simple-size-n": found["greatest"],
            "spec-ngram-simple-size-m": gamma,
        },
        "--spec-type ngram-simple: tools/server/README.md; it takes the last occurrence of one n, "
        "not the first of the longest; older builds: --spec-ngram-size-n, -m",
    ),
    ("hf", "lookup"): (
        lambda gamma, _, found: {
            "prompt_lookup_num_tokens": gamma,
            "max_matching_ngram_size": found["greatest"],
        },
        "both: transformers 5.23, generation/configuration_utils.py, given to generate(); least is "
        "1 there",
    ),
}
"""By engine and kind of drafter: what it writes, and where that is from."""


def drafter_fields(engine: str, kind: str, gamma: int, draft: str) -> tuple[Fields, str]:
    """The fields of a drafter that is no independent model, and their source.

    Raises InputError if the engine has no such drafter.
    """
    if (engine, kind) not in WRITES:
        raise InputError(
            f"--to {engine}: it has no drafter like that of this trace ({DRAFTERS[kind]})"
        )
    writes, source = WRITES[engine, kind]
    _, _, said = draft.partition(":")
    return writes(gamma, draft, parse_fields(said, SETTINGS.get(kind, {})) if said else {}), source
