"""vLLM: per-request acceptance metrics; or counters, which make no trace.

Read with `--per-request-spec-decode-metrics detailed`: responses, whose
metrics.speculative_decoding holds per_step_accepted and per_step_drafted (in a stream that of the
last chunk, which comes with stream_options.include_usage); offline, RequestOutputs with
outputs[0].spec_decode_metrics. Tokens come with `return_token_ids` (prompt_token_ids,
choices[0].token_ids, in a stream chunk by chunk); without them usage gives the lengths. Field
names: vllm-project/vllm pull request 48915 and
docs/features/speculative_decoding/acceptance_metrics.md, where the shape is called experimental.
per_step_accepted is what the verifier kept, before a limit or stop cut the last step. Steps that
scheduled no draft, and the prefill's token, are not in it (vllm/v1/core/sched/scheduler.py); see
traces.importers.responses.

`summary` (acceptance_histogram), the Prometheus counters vllm:spec_decode_*, the log's
"SpecDecoding metrics" (vllm/v1/spec_decode/metrics.py) and the result of `vllm bench serve`
(spec_decode_*, vllm/benchmarks/serve.py) hold counts only.

One field is ours: speculative_decoding.first_step_position, for loggers whose first step drafts
before the first token; vLLM has none, and its steps start at position 1. `response_of` writes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from traces.errors import InputError
from traces.importers.common import Options, label
from traces.importers.counters import from_counters, one_model
from traces.importers.marginals import (
    Marginals,
    MarginalsOnly,
    from_histogram,
    from_rates,
    pooled,
)
from traces.importers.responses import (
    RequestSteps,
    count_of,
    counts_of,
    text_of,
    trace_of_steps,
)
from traces.importers.streams import object_of, records
from traces.schema import DEEPEST, Trace

_REMEDY = "serve with --per-request-spec-decode-metrics detailed and keep the responses"
_NO_USAGE = (
    "'prompt_tokens' is missing: ask for usage (stream_options.include_usage) or return_token_ids"
)
_SOUGHT = "a 'SpecDecoding metrics' line or a vllm:spec_decode counter of vLLM"
_LOG = re.compile(
    r"SpecDecoding metrics:.*?Accepted: (\d{1,15}) tokens, Drafted: (\d{1,15}) tokens, "
    r"Per-position acceptance rate: (\d\.\d+(?:, \d\.\d+)*), Avg"
)
_BENCH = "spec_decode_num_drafts"


class _Answer(NamedTuple):
    """place: for messages; row: the response; choice: its one choice; stats: its acceptance."""

    place: str
    row: dict[str, Any]
    choice: dict[str, Any]
    stats: dict[str, Any]

    @property
    def has_lengths(self) -> bool:
        """True if the prompt's and the reply's length are said."""
        usage = object_of(self.row.get("usage"))
        prompt = self.row.get("prompt_token_ids") or self.choice.get("prompt_token_ids")
        reply = self.choice.get("token_ids")
        return bool(
            (prompt or "prompt_tokens" in usage) and (reply or "completion_tokens" in usage)
        )


def read(path: Path, options: Options) -> Trace:
    """The requests of a file with ordered steps; raises InputError as `steps_of` does."""
    options.only("vllm")
    requests, counts = steps_of(text_of(path), str(path))
    return trace_of_steps(requests, options, "vllm", str(path), counts)


def steps_of(text: str, file: str) -> tuple[list[RequestSteps], dict[str, int]]:
    """The requests with ordered steps, and how many had none.

    Raises MarginalsOnly for counters, logs, results of the benchmark, `summary` responses and
    responses of unknown length, InputError for anything else.
    """
    counted = from_counters(text, file, "vllm", "vllm")
    if counted is not None:
        raise MarginalsOnly(counted, _REMEDY)
    if _LOG.search(text):
        raise MarginalsOnly(from_log(text, file), _REMEDY)
    found, cut = records(text, file, _SOUGHT)
    answers = [_answer(place, row) for place, row in found]
    ordered = [a for a in answers if a.stats.get("per_step_accepted") is not None]
    placed = [answer for answer in ordered if answer.has_lengths]
    telling = [a for a in answers if a.stats or _BENCH in a.row]
    if not placed and telling:
        one_model(
            (str(a.row["model_id"]) for a in telling if "model_id" in a.row), file, "model_id"
        )
        counts = pooled([_totals(a, file) for a in telling], len(found) - len(telling) + cut)
        raise MarginalsOnly(counts, _NO_USAGE if ordered else _REMEDY)
    if not placed:
        raise InputError(
            f"{file} holds no metrics.speculative_decoding; {_REMEDY} (one JSON object per line)"
        )
    kept = {
        "without_metrics": len(found) - len(telling),
        "without_steps": len(telling) - len(ordered),
        "without_usage": len(ordered) - len(placed),
        "cut_lines": cut,
    }
    always = ("without_metrics", "without_steps")
    return [_steps(answer) for answer in placed], {
        name: count for name, count in kept.items() if count or name in always
    }


def _answer(place: str, row: dict[str, Any]) -> _Answer:
    """The parts of a response, or of an offline RequestOutput."""
    choice = object_of(row.get("choices") or row.get("outputs"))
    stats = object_of(row.get("metrics")).get("speculative_decoding")
    return _Answer(place, row, choice, object_of(stats or choice.get("spec_decode_metrics")))


def _totals(answer: _Answer, file: str) -> Marginals:
    """The counts of one response, of its histogram or its steps, or of a benchmark."""
    stats, place = answer.stats, answer.place
    if not stats:
        return _benchmark(place, answer.row, file)
    if stats.get("per_step_accepted") is None:
        histogram = counts_of(stats, "acceptance_histogram", place)
        drafted_tokens = count_of(stats, "num_draft_tokens", place)
    else:
        accepted, drafted = _rounds(answer)
        longest = max([*accepted, *drafted], default=0)
        if longest > DEEPEST:
            raise InputError(f"{place}: a draft of {longest} tokens; at most {DEEPEST}")
        histogram = [accepted.count(k) for k in range(longest + 1)]
        drafted_tokens = sum(drafted)
    return Marginals(
        format="vllm",
        file=file,
        steps=sum(histogram),
        drafted_tokens=drafted_tokens,
        accepted_tokens=sum(k * steps for k, steps in enumerate(histogram)),
        at_least=from_histogram(histogram),
    )


def _benchmark(place: str, row: dict[str, Any], file: str) -> Marginals:
    """The counts of one result of `vllm bench serve`; its rates are ratios of counts."""
    steps = count_of(row, _BENCH, place)
    rates = row.get("spec_decode_per_position_acceptance_rates") or []
    if not isinstance(rates, list) or not all(
        type(rate) in (int, float) and 0 <= rate <= 1 for rate in rates
    ):
        raise InputError(f"{place}: spec_decode_per_position_acceptance_rates must be 0 to 1 each")
    return Marginals(
        format="vllm",
        file=file,
        steps=steps,
        drafted_tokens=count_of(row, "spec_decode_draft_tokens", place),
        accepted_tokens=count_of(row, "spec_decode_accepted_tokens", place),
        at_least=tuple(round(rate * steps) for rate in rates),
    )


def _rounds(answer: _Answer) -> tuple[list[int], list[int]]:
    """per_step_accepted and per_step_drafted; raises InputError if they do not pair up."""
    accepted, drafted = (
        counts_of(answer.stats, name, answer.place)
        for name in ("per_step_accepted", "per_step_drafted")
    )
    if len(accepted) != len(drafted):
        raise InputError(
            f"{answer.place}: per_step_accepted has {len(accepted)} steps, per_step_drafted "
            f"{len(drafted)}"
        )
    return accepted, drafted


def _steps(answer: _Answer) -> RequestSteps:
    """Its steps and lengths; raises InputError if one number contradicts another."""
    place, row, choice, stats = answer
    accepted, drafted = _rounds(answer)
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


def from_log(text: str, file: str) -> Marginals:
    """The log's periodic lines, added up; counts come back from rates of three decimals."""
    lines = []
    for accepted, drafted, rates in _LOG.findall(text):
        tokens = int(drafted), int(accepted)
        steps, at_least = from_rates(tokens[1], tokens[0], [float(r) for r in rates.split(",")])
        lines.append(Marginals("vllm", file, steps, *tokens, at_least, rounded=True))
    return pooled(lines)


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
