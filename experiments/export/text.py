"""The text of an export: what to paste, under comments that say what was lost; and its JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

from experiments.common.results import command_line, describe_inputs, versions
from experiments.common.text_table import number, percent, table
from experiments.export.engines import EngineSetting, field_sources
from experiments.export.replay import stand_in
from experiments.export.result import BatchRow, Export
from policies.base import uses_signals
from policies.confidence.thresholds import HFConfidence
from policies.fixed import Fixed, Never
from policies.registry import label
from traces.schema import Trace
from traces.timing import Timing

WIDTH = 98


def export_text(
    result: Export, trace: Trace, trace_name: str, timing: Timing, timing_name: str
) -> str:
    """The pasted text with everything else above it as comments."""
    lines = [f"{label(result.policy)} for {result.engine.title}"]
    lines += wrapped(
        f"made by gammalab export from {trace_name} ({trace.meta.exactness}) and {timing_name} "
        f"({timing.meta.get('device_name', 'unknown device')}, "
        f"{timing.meta.get('engine', 'unknown')} engine); target and draft are named as there"
    )
    lines += ["", *wrapped(advice(result)), *wrapped(lost(result)), *speed_lines(result)]
    if result.predicted.batches:
        lines += ["", *batch_table(result.predicted.batches).splitlines()]
    lines += listed("", notes(result))
    lines += listed(
        "where the fields are from:", field_sources(result.engine, result.setting, result.names)
    )
    comments = "\n".join(f"# {line}".rstrip() for line in lines)
    return f"{comments}\n{result.rendered.text}"


def export_dict(
    result: Export, trace: Trace, trace_name: str, timing: Timing, timing_name: str
) -> dict[str, Any]:
    """The same for programs, JSON-ready."""
    return {
        "policy": label(result.policy),
        "engine": result.engine.name,
        "settings": result.rendered.settings,
        "command": result.rendered.text,
        "advice": advice(result),
        "lost": lost(result),
        "notes": notes(result),
        "sources": field_sources(result.engine, result.setting, result.names),
        "predicted": result.predicted,
        "made_by": command_line(),
        "versions": versions(),
        **describe_inputs(trace, trace_name, timing),
        "timing": timing_name,
    }


def advice(result: Export) -> str:
    """Not to draft, where the exported settings are slower than that; else empty."""
    found = result.predicted
    speed = found.exported_tokens_per_s / found.plain_tokens_per_s
    if speed >= 1.0 or result.setting == EngineSetting(0):
        return ""
    return (
        f"DO NOT DRAFT: on the held-out half these settings decode {speed:.2f} times as fast as "
        "the engine without a draft model."
    )


def lost(result: Export) -> str:
    """The parts of the policy that the engine cannot do."""
    policy, engine, name = result.policy, result.engine, label(result.policy)
    if isinstance(policy, Never):
        return "Nothing is lost: this is the engine without a draft model."
    if isinstance(policy, Fixed):
        return "Nothing is lost: a fixed length is a setting of every engine."
    if engine.name == "hf" and stand_in(result.setting, engine) == policy:
        return f"Nothing is lost: {name} is a rule of transformers."
    if not (engine.stops and uses_signals(policy)):
        kept = "the best fixed length"
    elif isinstance(policy, HFConfidence):
        kept = "the longest draft and the threshold"
    elif result.setting.moving:
        kept = "the rule with transformers' own weights"
    else:
        kept = "a stop at a doubtful token, tuned where the policy leaves it open"
    return f"{engine.title} {engine.limits}. Of {name} remains {kept}."


def speed_lines(result: Export) -> list[str]:
    """The replayed speeds, one a line, each beside the policy's."""
    found = result.predicted
    speeds = {
        label(result.policy): found.policy_tokens_per_s,
        "exported": found.exported_tokens_per_s,
        "plain decoding": found.plain_tokens_per_s,
        **found.alternatives,
    }
    rows = [
        [what, number(speed, 1), against(1.0 - speed / found.policy_tokens_per_s)]
        for what, speed in speeds.items()
    ]
    rows[0][2] = ""
    header = ("replayed at batch 1, held-out half", "tokens/s", "")
    return ["", *table(header, [("", rows)]).splitlines()]


def against(loss: float) -> str:
    """A loss in words: 0.031 -> 3.1% slower."""
    if abs(loss) < 5e-4:
        return "the same"
    return f"{percent(abs(loss), 1)} {'slower' if loss > 0 else 'faster'}"


def batch_table(rows: Iterable[BatchRow]) -> str:
    """Tokens per second of one request by batch size."""
    cells = [
        [
            str(row.batch),
            str(row.gamma),
            number(row.tokens_per_s, 1),
            number(row.plain_tokens_per_s, 1),
            str(row.best_gamma),
            number(row.best_tokens_per_s, 1),
        ]
        for row in rows
    ]
    header = (
        "requests\nside by side",
        "exported\nlength",
        "tokens/s\nof each",
        "plain\ndecoding",
        "best\nlength",
        "tokens/s\nof each",
    )
    return table(header, [("", cells)], left=0)


def notes(result: Export) -> list[str]:
    """Caveats of this translation."""
    setting, engine = result.setting, result.engine
    if setting.gamma == 0:
        return []
    found = list(_NOTES.get(engine.name, ()))
    if setting.gamma > result.depth:
        found.append(
            f"the trace is {result.depth} drafts deep; {setting.gamma} is replayed as that"
        )
    if engine.batches and len(result.predicted.batches) == 1:
        found.append(
            "the timing holds batch 1 only, so a table by batch size would have one row; "
            "`gammalab measure --batch 1,2,4,8` makes more"
        )
    elif engine.table and not setting.table and not isinstance(result.policy, Fixed):
        found.append("one length is best at every measured batch size, so a table says nothing")
    if setting.table:
        largest = setting.table[-1][1]
        found += [note.format(largest=largest) for note in _TABLE_NOTES[engine.name]]
    elif result.predicted.batches:
        largest = result.predicted.batches[-1].batch
        found.append(f"above {largest} running requests the length stays; that was not measured")
    if engine.idle_draft and any(gamma == 0 for _, _, gamma in setting.table):
        found.append("a 0 in the table still runs one draft forward (issue #49548); it is priced")
    if engine.name == "vllm" and uses_signals(result.policy):
        found.append(
            "vLLM's own stop at a doubtful token, draft_confidence_threshold of PR #35301, was not "
            "merged in September 2026"
        )
    if setting.threshold > 0:
        found += _STOP_NOTES[engine.name, setting.moving]
    if result.temperature > 0 and engine.sampling:
        found.append(
            f"the trace sampled its drafts at temperature {result.temperature:g}; {engine.title} "
            f"{engine.sampling}, so it will accept other lengths"
        )
    found.append("all speeds are replayed at the timing's seconds; the engine's own will be others")
    return found


_NOTES = {
    "sglang": (
        "no table by batch size: --speculative-adaptive takes EAGLE and EAGLE3 only "
        "(python/sglang/srt/speculative/adaptive_spec_params.py)",
    ),
    "llama.cpp": (
        "both models must be GGUF files",
        "its draft also reads every verified batch (common/speculative.cpp); that is not priced",
    ),
    "hf": ("assisted generation takes one request at a time",),
}

_TABLE_NOTES = {
    "vllm": (
        "above {largest} running requests vLLM goes on with the last row, which was not measured",
        "model runner V2 has ignored the table with a draft model that runs token by token (issue "
        "#51510, open in September 2026); vLLM's own examples set VLLM_USE_V2_MODEL_RUNNER=0",
        "model runner V1 gives up full CUDA graphs for a table; --data-parallel-size above 1 drops "
        "the table",
    ),
    "trtllm": (
        "above {largest} running requests TensorRT-LLM stops drafting; that was not measured",
        "TensorRT-LLM allows no length above that of the smallest batch",
    ),
}

_STOP_NOTES = {
    ("llama.cpp", False): (
        "llama.cpp drops the doubtful token unverified (PR #22506), and so does this replay; its "
        "probability is among the ten likeliest tokens, so a little higher than the trace's",
    ),
    ("hf", False): (
        "scikit-learn must not be installed: with it transformers moves the threshold",
    ),
    ("hf", True): ("scikit-learn must be installed: without it the threshold does not move",),
}


def listed(title: str, items: Iterable[str]) -> list[str]:
    """A blank line, a title and the items as a list; nothing if there are none."""
    lines = [line for item in items for line in wrapped(item, "- ")]
    return ["", *([title] if title else []), *lines] if lines else []


def wrapped(text: str, bullet: str = "") -> list[str]:
    """Lines that fit behind a comment sign."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=bullet,
        subsequent_indent=" " * len(bullet),
        break_long_words=False,
        break_on_hyphens=False,
    )
