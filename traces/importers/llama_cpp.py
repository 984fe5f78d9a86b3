"""llama.cpp: what its server says of drafts, which is counts per request and no order.

Responses carry timings.draft_n and timings.draft_n_accepted (ggml-org/llama.cpp pull request
12603). The log's line per request reads "draft acceptance = 0.64479 (  167 accepted /   259
generated), mean acceptance length =  2.92, acceptance rate per position = (0.805, 0.632, 0.483)"
(pull request 24536), before that "draft acceptance rate = 0.57576 (  171 accepted /   297
generated)". Drafts end early by confidence (--draft-p-min), so even the shares are lower bounds.
"""

from __future__ import annotations

import re
from pathlib import Path

from traces.errors import InputError
from traces.importers.common import Options
from traces.importers.marginals import (
    Marginals,
    MarginalsOnly,
    add_up,
    from_rates,
)
from traces.importers.responses import count_of, records, text_of
from traces.schema import Trace

_LOG = re.compile(
    r"draft acceptance(?: rate)? = [0-9.]+ \(\s*(\d{1,15}) accepted /\s*(\d{1,15}) generated\)"
    r"(?:.*?acceptance rate per position = \((\d\.\d+(?:, \d\.\d+)*)\))?"
)
_REMEDY = (
    "llama.cpp logs no order; record on your models with `gammalab capture`, or log each round "
    "yourself and import it as jsonl"
)


def read(path: Path, options: Options) -> Trace:
    """Always raises: MarginalsOnly with the file's counts, or InputError if it has none."""
    options.only("llama.cpp")
    raise MarginalsOnly(counts_in(text_of(path), str(path)), _REMEDY)


def counts_in(text: str, file: str) -> Marginals:
    """Counts in the log or the responses of a server; raises InputError if there is nothing."""
    if _LOG.search(text):
        return from_log(text, file)
    drafted = accepted = found = 0
    for place, row in records(text, file, "a 'draft acceptance' line of llama.cpp's server"):
        timings = row.get("timings", row)
        if isinstance(timings, dict) and "draft_n" in timings:
            found += 1
            drafted += count_of(timings, "draft_n", place)
            accepted += count_of(timings, "draft_n_accepted", place)
    if not found:
        raise InputError(
            f"{file} holds no timings.draft_n and no 'draft acceptance' line of llama.cpp's server"
        )
    return Marginals("llama.cpp", file, 0, drafted, accepted, ())


def from_log(text: str, file: str) -> Marginals:
    """The log's lines, added up; steps and depths only if every line has rates per position."""
    lines = _LOG.findall(text)
    counts = [
        from_rates(int(accepted), [float(rate) for rate in rates.split(",")])
        for accepted, _, rates in lines
        if rates.strip()
    ]
    whole = len(counts) == len(lines)
    return Marginals(
        format="llama.cpp",
        file=file,
        steps=sum(steps for steps, _ in counts) if whole else 0,
        drafted_tokens=sum(int(drafted) for _, drafted, _ in lines),
        accepted_tokens=sum(int(accepted) for accepted, _, _ in lines),
        at_least=add_up([at_least for _, at_least in counts]) if whole else (),
        rounded=whole,
    )
