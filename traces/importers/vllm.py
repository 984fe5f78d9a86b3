"""vLLM: per-request acceptance metrics; or counters, which make no trace.

Read with `--per-request-spec-decode-metrics detailed`: responses, one JSON object per line, whose
metrics.speculative_decoding holds per_step_accepted and per_step_drafted; offline, RequestOutputs
with outputs[0].spec_decode_metrics. Tokens come with `return_token_ids` (prompt_token_ids,
choices[0].token_ids); without them usage gives the lengths. Field names: vllm-project/vllm pull
request 48915 and docs/features/speculative_decoding/acceptance_metrics.md, where the shape is
called experimental. per_step_accepted is what the verifier kept, before a limit or stop cut the
last step. Steps that scheduled no draft, and the prefill's token, are not in it
(vllm/v1/core/sched/scheduler.py); see traces.importers.responses.

`summary` (acceptance_histogram), the Prometheus counters vllm:spec_decode_* and the log's
"SpecDecoding metrics" (vllm/v1/spec_decode/metrics.py) hold counts only.

One field is ours: speculative_decoding.first_step_position, for loggers whose first step drafts
before the first token; vLLM has none, and its steps start at position 1. `response_of` writes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from traces.errors import InputError
from traces.importers.common import Options, label
from traces.importers.marginals import (
    Marginals,
    MarginalsOnly,
    add_up,
    from_histogram,
    from_rates,
)
from traces.importers.responses import (
    RequestSteps,
    count_of,
    counts_of,
    object_of,
    records,
    text_of,
    trace_of_steps,
)
from traces.schema import Trace

_REMEDY = "serve with --per-request-spec-decode-metrics detailed and keep the responses"
_COUNTER = re.compile(
    r"^vllm:spec_decode_(\w+?)(?:_total)?(\{[^}]*\})?\s+(\d{1,15}(?:\.\d+)?(?:[eE][+-]?\d\d?)?)(?!\S)",
    re.M,
)
_SOUGHT = "a 'SpecDecoding metrics' line or a vllm:spec_decode counter of vLLM"
_POSITION = re.compile(r'position="(\d{1,3})"')
_LOG = re.compile(
    r"SpecDecoding metrics:.*?Accepted: (\d{1,15}) tokens, Drafted: (\d{1,15}) tokens, "
    r"Per-position acceptance rate: (\d\.\d+(?:, \d\.\d+)*), Avg"
)


def read(path: Path, options: Options) -> Trace:
    """The requests of a file with ordered steps; raises InputError as `steps_of` does."""
    options.only("vllm")
    requests, counts = steps_of(text_of(path), str(path))
    return trace_of_steps(requests, options, "vllm", str(path), counts)


def steps_of(text: str, file: str) -> tuple[list[RequestSteps], dict[str, int]]:
    """The requests with ordered steps, and how many had none.

    Raises MarginalsOnly for counters, logs and `summary` responses, InputError for anything else.
    """
    if _COUNTER.search(text):
        raise MarginalsOnly(from_counters(text, file), _REMEDY)
    if _LOG.search(text):
        raise MarginalsOnly(from_log(text, file), _REMEDY)
    requests: list[RequestSteps] = []
    summaries: list[dict[str, Any]] = []
    silent = 0
    for place, row in records(text, file, _SOUGHT):
        stats, choice = _parts(row)
        if stats is None:
            silent += 1
        elif "per_step_accepted" in stats:
            requests.append(_steps(place, row, choice, stats))
        else:
            count_of(stats, "num_spec_steps", place)
            summaries.append(stats)
    if not requests and summaries:
        raise MarginalsOnly(_pooled(summaries, file), _REMEDY)
    if not requests:
        raise InputError(
            f"{file} holds no metrics.speculative_decoding; {_REMEDY} (one JSON object per line)"
        )
    return requests, {"without_metrics": silent, "without_steps": len(summaries)}


def _parts(row: dict[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The acceptance object and the one choice of a response, or of an offline RequestOutput."""
    choice = object_of(row.get("choices") or row.get("outputs"))
    stats = object_of(row.get("metrics")).get("speculative_decoding")
    return object_of(stats or choice.get("spec_decode_metrics")) or None, choice


def _steps(
    place: str, row: dict[str, Any], choice: dict[str, Any], stats: dict[str, Any]
) -> RequestSteps:
    accepted = counts_of(stats, "per_step_accepted", place)
    drafted = counts_of(stats, "per_step_drafted", place)
    if len(accepted) != len(drafted):
        raise InputError(
            f"{place}: per_step_accepted has {len(accepted)} steps, per_step_drafted {len(drafted)}"
        )
    for name, values in (("num_draft_tokens", drafted), ("num_accepted_draft_tokens", accepted)):
        if name in stats and stats[name] != sum(values):
            raise InputError(f"{place}: {name} is {stats[name]!r}, the steps sum to {sum(values)}")
    usage = object_of(row.get("usage"))
    holder = row if row.get("prompt_token_ids") else choice
    if holder.get("prompt_token_ids"):
        prompt_tokens = len(counts_of(holder, "prompt_token_ids", place))
    else:
        prompt_tokens = count_of(usage, "prompt_tokens", place)
    tokens = choice.get("token_ids")
    if tokens is not None:
        counts_of(choice, "token_ids", place)
        if "completion_tokens" in usage and usage["completion_tokens"] != len(tokens):
            raise InputError(
                f"{place}: usage.completion_tokens is {usage['completion_tokens']!r}, "
                f"token_ids has {len(tokens)}"
            )
    return RequestSteps(
        place=place,
        request_id=str(row.get("id") or row.get("request_id") or place),
        category=label(row.get("category", row.get("task", "all")), "category", place),
        prompt_tokens=prompt_tokens,
        reply_tokens=len(tokens) if tokens else count_of(usage, "completion_tokens", place),
        first=count_of(stats, "first_step_position", place)
        if "first_step_position" in stats
        else 1,
        accepted=accepted,
        drafted=drafted,
        token_ids=tokens,
    )


def _pooled(summaries: Sequence[dict[str, Any]], file: str) -> Marginals:
    """The counts of `summary` responses, added up."""
    histogram = add_up([counts_of(s, "acceptance_histogram", file) for s in summaries])
    return Marginals(
        format="vllm",
        file=file,
        steps=sum(histogram),
        drafted_tokens=sum(count_of(s, "num_draft_tokens", file) for s in summaries),
        accepted_tokens=sum(k * steps for k, steps in enumerate(histogram)),
        at_least=from_histogram(histogram),
    )


def from_counters(text: str, file: str) -> Marginals:
    """The Prometheus counters, added up over engines and models."""
    totals: dict[str, float] = {}
    depths: dict[int, float] = {}
    for name, labels, value in _COUNTER.findall(text):
        if name == "num_accepted_tokens_per_pos":
            depth = _POSITION.search(labels)
            if depth:
                depths[int(depth[1])] = depths.get(int(depth[1]), 0.0) + float(value)
        else:
            totals[name] = totals.get(name, 0.0) + float(value)
    return Marginals(
        format="vllm",
        file=file,
        steps=round(totals.get("num_drafts", 0.0)),
        drafted_tokens=round(totals.get("num_draft_tokens", 0.0)),
        accepted_tokens=round(totals.get("num_accepted_tokens", 0.0)),
        at_least=tuple(round(depths[depth]) for depth in sorted(depths)),
    )


def from_log(text: str, file: str) -> Marginals:
    """The log's periodic lines, added up; counts come back from rates of three decimals."""
    lines = [
        (int(accepted), int(drafted), [float(rate) for rate in rates.split(",")])
        for accepted, drafted, rates in _LOG.findall(text)
    ]
    counts = [from_rates(accepted, rates) for accepted, _, rates in lines]
    return Marginals(
        format="vllm",
        file=file,
        steps=sum(steps for steps, _ in counts),
        drafted_tokens=sum(drafted for _, drafted, _ in lines),
        accepted_tokens=sum(accepted for accepted, _, _ in lines),
        at_least=add_up([at_least for _, at_least in counts]),
        rounded=True,
    )


def response_of(
    request_id: str,
    category: str,
    prompt_tokens: int,
    token_ids: Sequence[int],
    accepted: Sequence[int],
    drafted: Sequence[int],
) -> dict[str, Any]:
    """The answer of a server that logs as vLLM does for rounds that fill a whole reply.

    For loops of one's own: the first round starts before the first token, rounds without a draft
    count too.
    """
    longest = max(drafted, default=0)
    histogram = [0] * (longest + 1)
    for count in accepted:
        histogram[count] += 1
    return {
        "id": request_id,
        "category": category,
        "choices": [{"index": 0, "token_ids": list(token_ids)}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": len(token_ids)},
        "metrics": {
            "speculative_decoding": {
                "mean_acceptance_length": 1 + sum(accepted) / max(1, len(accepted)),
                "draft_acceptance_rate": sum(accepted) / max(1, sum(drafted)),
                "acceptance_histogram": histogram,
                "num_spec_steps": len(accepted),
                "num_accepted_draft_tokens": sum(accepted),
                "num_draft_tokens": sum(drafted),
                "num_spec_tokens": longest,
                "first_step_position": 0,
                "per_step_accepted": list(accepted),
                "per_step_drafted": list(drafted),
            }
        },
    }
