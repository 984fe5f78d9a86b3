"""SGLang: acceptance of requests; ordered only with a statistic that is not yet in a release.

/generate answers with meta_info; /v1/chat/completions with sglext.spec_tokens_details if asked for
(return_spec_tokens_details, sgl-project/sglang pull request 33518). Both hold counts per request:
spec_verify_ct steps, spec_num_correct_drafts accepted, spec_num_proposed_drafts drafted,
spec_correct_drafts_histogram (steps that accepted 0, 1, 2, ... tokens). Their older names are
spec_accept_token_num, spec_draft_token_num (pull requests 11441, 13754) and spec_accept_histogram
(18332). The oldest files have only completion_tokens and spec_verify_ct (3152).
spec_num_proposed_drafts is steps times the configured length, which is wrong where it adapts.

Pull request 34814, open when this was written, adds `--speculative-decoding-stats detailed`: the
ordered verify_lengths (drafted + 1) and accept_lengths (accepted + 1) of every step, under
speculative_decoding_stats in the same places. Those make a trace. As in vLLM the prefill gives the
first token. Trees of drafts (speculative_eagle_topk above 1) are no chain; nothing in the file
tells them, so do not import them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from traces.errors import InputError
from traces.importers.common import Options, label
from traces.importers.marginals import (
    Marginals,
    MarginalsOnly,
    add_up,
    from_histogram,
)
from traces.importers.responses import (
    RequestSteps,
    count_of,
    counts_of,
    text_of,
    trace_of_steps,
)
from traces.importers.streams import object_of, records
from traces.schema import Trace

_REMEDY = (
    "serve with --speculative-decoding-stats detailed (sglang pull request 34814), or record on "
    "your models with `gammalab capture`"
)
_NAMES = {
    "accepted": ("spec_num_correct_drafts", "spec_accept_token_num"),
    "drafted": ("spec_num_proposed_drafts", "spec_draft_token_num"),
    "histogram": ("spec_correct_drafts_histogram", "spec_accept_histogram"),
}


def read(path: Path, options: Options) -> Trace:
    """The requests of a file with ordered steps; raises InputError as `steps_of` does."""
    options.only("sglang")
    requests, counts = steps_of(text_of(path), str(path))
    return trace_of_steps(requests, options, "sglang", str(path), counts)


def steps_of(text: str, file: str) -> tuple[list[RequestSteps], dict[str, int]]:
    """The requests with ordered steps, and how many had none.

    Raises MarginalsOnly if all have counts only, InputError if the file is something else.
    """
    requests: list[RequestSteps] = []
    counted: list[tuple[str, dict[str, Any]]] = []
    silent = 0
    found, cut = records(text, file, "responses of SGLang")
    for place, row in found:
        meta = _meta_of(row)
        stats = meta.get("speculative_decoding_stats")
        if isinstance(stats, dict) and "accept_lengths" in stats:
            requests.append(_steps(place, row, meta, stats))
        elif "spec_verify_ct" in meta:
            counted.append((place, meta))
        else:
            silent += 1
    if not requests and counted:
        raise MarginalsOnly(_pooled(counted, file, silent + cut), _REMEDY)
    if not requests:
        raise InputError(f"{file} holds no spec_verify_ct of SGLang; {_REMEDY}")
    kept = {"without_metrics": silent, "without_steps": len(counted)}
    return requests, kept | ({"cut_lines": cut} if cut else {})


def _meta_of(row: dict[str, Any]) -> dict[str, Any]:
    """A response's own account of its speculation, wherever it stands, with usage and meta_info."""
    meta = dict(object_of(row.get("usage")))
    choice = object_of(row.get("choices"))
    for part in (row.get("meta_info"), choice.get("meta_info"), row.get("sglext")):
        meta |= object_of(part)
        meta |= object_of(object_of(part).get("spec_tokens_details"))
    return meta


def _steps(
    place: str, row: dict[str, Any], meta: dict[str, Any], stats: dict[str, Any]
) -> RequestSteps:
    lengths = [counts_of(stats, name, place) for name in ("accept_lengths", "verify_lengths")]
    if len(lengths[0]) != len(lengths[1]) or 0 in lengths[0] + lengths[1]:
        raise InputError(
            f"{place}: accept_lengths and verify_lengths must pair up and be at least 1"
        )
    tokens = row.get("output_ids")
    if tokens is not None:
        counts_of(row, "output_ids", place)
    return RequestSteps(
        place=place,
        request_id=str(meta.get("id") or row.get("id") or place),
        category=label(row.get("category", row.get("task", "all")), "category", place),
        prompt_tokens=count_of(meta, "prompt_tokens", place),
        reply_tokens=len(tokens) if tokens else count_of(meta, "completion_tokens", place),
        first=1,
        accepted=[length - 1 for length in lengths[0]],
        drafted=[length - 1 for length in lengths[1]],
        token_ids=tokens,
    )


def _pooled(counted: list[tuple[str, dict[str, Any]]], file: str, left_out: int) -> Marginals:
    """The counts of all requests, added up; depths only if every request has a histogram."""
    names = {
        what: next((n for n in either if all(n in meta for _, meta in counted)), None)
        for what, either in _NAMES.items()
    }
    steps = sum(count_of(meta, "spec_verify_ct", place) for place, meta in counted)

    def total(what: str) -> int | None:
        name = names[what]
        return None if name is None else sum(count_of(m, name, place) for place, m in counted)

    accepted = total("accepted")
    if accepted is None:  # every step emits its accepted tokens and one; the prefill emits one
        whole = sum(count_of(meta, "completion_tokens", place) for place, meta in counted)
        accepted = max(0, whole - steps - len(counted))
    histogram_name = names["histogram"]
    histogram: tuple[int, ...] = ()
    if histogram_name is not None:
        histogram = add_up([counts_of(meta, histogram_name, place) for place, meta in counted])
    return Marginals(
        format="sglang",
        file=file,
        steps=steps,
        drafted_tokens=total("drafted") or 0,
        accepted_tokens=accepted,
        at_least=from_histogram(histogram),
        left_out=left_out,
    )
