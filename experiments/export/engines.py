"""Settings of five engines: their fields, the text a user pastes, and where each field is from.

Every field was read in the engine's source, documentation or pull request named beside it, last in
September 2026; transformers' in its installed source. Nothing here computes; see
experiments.export.export for how the numbers come about.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.export.drafters import drafter_fields
from traces.errors import InputError

Range = tuple[int, int, int]
"""First and last batch size (running requests), and the tokens to draft there."""


@dataclasses.dataclass(frozen=True)
class EngineSetting:
    """An engine's setting. gamma: most tokens to draft in a round, 0: do not speculate.

    threshold: draft no further than a token whose probability is below it; 0: no such stop.
    moving: transformers adapts the threshold. schedule: its num_assistant_tokens_schedule.
    table: the tokens to draft by batch size, in order and without gaps; empty: `gamma` everywhere.
    """

    gamma: int
    threshold: float = 0.0
    moving: bool = False
    schedule: str = "constant"
    table: tuple[Range, ...] = ()

    def at(self, batch: int) -> int:
        """The tokens to draft at a batch size; beyond the table, those of its last row."""
        rows = [gamma for first, _, gamma in self.table if first <= batch]
        return rows[-1] if rows else self.gamma


class Names(NamedTuple):
    """Target and draft as the trace names them: the last part of a path or of a hub name. kind: of
    the drafter, as in traces.schema.DRAFTERS.
    """

    target: str
    draft: str
    kind: str = "model"

    def others(self, engine: str, gamma: int) -> dict[str, Any] | None:
        """The fields of a drafter that is no independent model; None if it is one."""
        if self.kind == "model":
            return None
        return drafter_fields(engine, self.kind, gamma, self.draft)[0]


class Rendered(NamedTuple):
    """settings: the engine's own fields and values; text: what to paste; language of the text."""

    settings: dict[str, Any]
    text: str


@dataclasses.dataclass(frozen=True)
class ServingEngine:
    """One engine, and what about it matters here.

    limits: what it can be told at most.
    batches: it serves many requests at once, all drafting in step.
    table: it takes a length per batch size.
    ends: it stops drafting behind the table's last row.
    falling: no row may exceed the first.
    idle_draft: a 0 in the table still costs a draft forward.
    stops: it can stop at a doubtful token.
    discards: it drops that token unverified.
    sampling: how it differs from sampled drafts and the usual rejection rule; empty: it does not.
    """

    name: str
    title: str
    render: Callable[[EngineSetting, Names], Rendered]
    limits: str
    batches: bool = True
    table: bool = False
    ends: bool = False
    stops: bool = False
    discards: bool = False
    idle_draft: bool = False
    falling: bool = False
    sampling: str = ""


def _vllm(setting: EngineSetting, names: Names) -> Rendered:
    command = ["vllm", "serve", names.target]
    if setting.gamma == 0:
        return Rendered({}, shlex.join(command))
    fields = names.others("vllm", setting.gamma) or {
        "method": "draft_model",
        "model": names.draft,
        "num_speculative_tokens": setting.gamma,
    }
    if setting.table:
        fields["num_speculative_tokens_per_batch_size"] = [list(row) for row in setting.table]
    return Rendered(fields, shlex.join([*command, "--speculative-config", json.dumps(fields)]))


def _sglang(setting: EngineSetting, names: Names) -> Rendered:
    command = ["python3", "-m", "sglang.launch_server", "--model-path", names.target]
    if setting.gamma == 0:
        return Rendered({}, shlex.join(command))
    fields = names.others("sglang", setting.gamma) or {
        "speculative_algorithm": "STANDALONE",
        "speculative_draft_model_path": names.draft,
        "speculative_num_steps": setting.gamma,
        "speculative_eagle_topk": 1,
        "speculative_num_draft_tokens": setting.gamma + 1,
    }
    for field, value in fields.items():
        command += ["--" + field.replace("_", "-"), str(value)]
    return Rendered(fields, shlex.join(command))


def _trtllm(setting: EngineSetting, names: Names) -> Rendered:
    use = f"# trtllm-serve {shlex.quote(names.target)} --config THIS_FILE"
    if setting.gamma == 0:
        return Rendered({}, f"{use}\nspeculative_config: null")
    fields = names.others("trtllm", setting.gamma) or {
        "decoding_type": "Draft_Target",
        "max_draft_len": setting.gamma,
        "speculative_model": names.draft,
    }
    lines = [use, "speculative_config:"]
    # A JSON string is a YAML string, whatever the name holds.
    lines += [f"  {field}: {json.dumps(value)}" for field, value in fields.items()]
    if setting.table:
        fields["draft_len_schedule"] = {last: gamma for _, last, gamma in setting.table}
        lines.append("  draft_len_schedule:")
        lines += [f"    {last}: {gamma}" for _, last, gamma in setting.table]
    return Rendered(fields, "\n".join(lines))


def _llama_cpp(setting: EngineSetting, names: Names) -> Rendered:
    command = ["llama-server", "-m", f"{names.target}.gguf"]
    if setting.gamma == 0:
        return Rendered({}, shlex.join(command))
    fields = names.others("llama.cpp", setting.gamma) or {
        "md": f"{names.draft}.gguf",
        "spec-type": "draft-simple",
        "spec-draft-n-max": setting.gamma,
        "spec-draft-n-min": 0,
        "spec-draft-p-min": setting.threshold,
    }
    for field, value in fields.items():
        command += [f"{'-' if field == 'md' else '--'}{field}", str(value)]
    return Rendered(fields, shlex.join(command))


def _transformers(setting: EngineSetting, names: Names) -> Rendered:
    if setting.gamma == 0:
        return Rendered({}, "# nothing to set: call generate() without assistant_model")
    if found := names.others("hf", setting.gamma):
        given = "\n".join(f"    {field}={json.dumps(value)}," for field, value in found.items())
        return Rendered(found, f"model.generate(\n    **inputs,\n{given}\n)")
    fields: dict[str, Any] = {
        "num_assistant_tokens": setting.gamma,
        "num_assistant_tokens_schedule": setting.schedule,
        "assistant_confidence_threshold": setting.threshold,
    }
    lines = [f"    {field}={json.dumps(value)}," for field, value in fields.items()]
    text = ["assistant_model.generation_config.update(", *lines, ")"]
    return Rendered(fields, "\n".join(text))


ENGINES = {
    engine.name: engine
    for engine in (
        ServingEngine(
            "vllm",
            "vLLM",
            _vllm,
            "has one draft length for all running requests, chosen by their number alone",
            table=True,
            idle_draft=True,
            sampling='drafts greedily unless "draft_sample_method": "probabilistic" is added',
        ),
        ServingEngine(
            "sglang",
            "SGLang",
            _sglang,
            "has one draft length for a two-model pair, whatever the text and the batch",
            sampling="accepts otherwise unless --speculative-use-rejection-sampling is added",
        ),
        ServingEngine(
            "trtllm",
            "TensorRT-LLM",
            _trtllm,
            "has one draft length for all running requests, chosen by their number alone",
            table=True,
            ends=True,
            falling=True,
            sampling="accepts exact matches unless use_rejection_sampling: true is added",
        ),
        ServingEngine(
            "llama.cpp",
            "llama.cpp",
            _llama_cpp,
            "has a longest draft and a least probability, and learns from neither",
            batches=False,
            stops=True,
            discards=True,
            sampling="drafts greedily and accepts exact matches",
        ),
        ServingEngine(
            "hf",
            "transformers",
            _transformers,
            "has a longest draft, a least probability and two rules of its own for them",
            batches=False,
            stops=True,
        ),
    )
}


def find_engine(name: str) -> ServingEngine:
    """The engine of that name; raises InputError with those that there are."""
    if name not in ENGINES:
        raise InputError(f"unknown engine {name!r}; --to takes {', '.join(ENGINES)}")
    return ENGINES[name]


def field_sources(engine: ServingEngine, setting: EngineSetting, names: Names) -> list[str]:
    """Where the fields in use come from, and since when; one line each."""
    if setting.gamma == 0:
        return []
    if names.kind == "model":
        found = list(_SOURCES[engine.name])
    else:
        found = [drafter_fields(engine.name, names.kind, setting.gamma, names.draft)[1]]
    if setting.table:
        found.append(_TABLE_SOURCES[engine.name])
    return found


_SOURCES = {
    "vllm": (
        "method, model, num_speculative_tokens: docs/features/speculative_decoding/draft_model.md; "
        "draft models since PR #24322, not in 0.10",
    ),
    "sglang": (
        "STANDALONE and its flags: docs/advanced_features/speculative_decoding.md, PR #10090; "
        "with topk 1 the server itself sets num-draft-tokens to num-steps + 1",
    ),
    "trtllm": (
        "max_draft_len, speculative_model, Draft_Target: tensorrt_llm/llmapi/llm_args.py "
        "(DraftTargetDecodingConfig); its documentation spells the type DraftTarget",
        "--config: docs/source/features/speculative-decoding.md; older: --extra_llm_api_options",
    ),
    "llama.cpp": (
        "--spec-draft-n-max, -n-min: PR #22397 (April 2026), which removed --draft-max and "
        "--draft-min; older builds: --draft-max, --draft-min, --draft-p-min",
        "--spec-type draft-simple: PR #22964 (May 2026); without it the draft is loaded and never "
        "used (issue #25345)",
        "--spec-draft-p-min: given even if 0, since its default was 0.75 and is 0 now",
    ),
    "hf": (
        "all three: transformers 5.23, generation/configuration_utils.py and "
        "candidate_generator.py; read from the assistant's generation_config, not from generate()",
        "the threshold is given even if 0: left out it is 0.4, and moves",
    ),
}

_TABLE_SOURCES = {
    "vllm": (
        "num_speculative_tokens_per_batch_size: PR #32374 (2026), "
        "docs/features/speculative_decoding/dynamic_speculative_decoding.md, which names EAGLE and "
        "DFlash as tested, not draft models"
    ),
    "trtllm": (
        "draft_len_schedule: keys are the largest batch of each length since PR #10860, for "
        "Draft_Target since PR #12262 (both 2026); before, they were the smallest"
    ),
}
