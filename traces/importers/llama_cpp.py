"""llama.cpp: what its server says of drafts, which is counts per request and no order.

Responses carry timings.draft_n and timings.draft_n_accepted (ggml-org/llama.cpp pull request
12603); with timings_per_token every chunk of a stream does, and the last holds them all. mlx-vlm's
server answers alike and adds timings.draft_rounds (Blaizzy/mlx-vlm pull requests 1788, 2324): its
counts are taken before a stop or limit cuts the reply, so draft_n_accepted may exceed predicted_n,
and they are one request's only if no other ran beside it.

The log's line per request reads "draft acceptance = 0.66667 (   47 accepted /    70 generated),
mean len =  4.92", and at trace verbosity another, "acc per pos = (0.900, 0.810)"; before, "mean
acceptance length =  2.92, acceptance rate per position = (0.805, 0.632, 0.483)" (pull request
24536) or "draft acceptance rate = 0.57576 (  171 accepted /   297 generated)" alone. The mean
counts the bonus token, so steps are accepted / (mean - 1). /metrics has llamacpp:spec_decode_*, see
counters.py. Drafts end early by confidence (--draft-p-min), so shares are lower bounds.
"""

from __future__ import annotations

import re
from pathlib import Path

from traces.errors import InputError
from traces.importers.common import Options
from traces.importers.counters import from_counters
from traces.importers.marginals import Marginals, MarginalsOnly, from_rates, pooled
from traces.importers.responses import count_of, text_of
from traces.importers.streams import records
from traces.schema import Trace

_RATES = r"\((\d\.\d+(?:, \d\.\d+)*)\)"
_LOG = re.compile(
    r"draft acceptance(?: rate)? = [0-9.]+ \(\s*(\d{1,15}) accepted /\s*(\d{1,15}) generated\)"
    r"(?:, mean (?:acceptance length|len) =\s*(\d{1,6}\.\d+))?"
    rf"(?:, acceptance rate per position = {_RATES}|[^\n]*\n[^\n]*acc per pos = {_RATES})?"
)
_SOUGHT = "a 'draft acceptance' line or a llamacpp:spec_decode counter of llama.cpp's server"
_REMEDY = (
    "llama.cpp logs no order; record on your models with `gammalab capture`, or log each round "
    "yourself and import it as jsonl"
)


def read(path: Path, options: Options) -> Trace:
    """Always raises: MarginalsOnly with the file's counts, or InputError if it has none."""
    options.only("llama.cpp")
    raise MarginalsOnly(counts_in(text_of(path), str(path)), _REMEDY)


def counts_in(text: str, file: str) -> Marginals:
    """Counts of a server's metrics, log or responses; raises InputError if there is nothing."""
    counted = from_counters(text, file, "llamacpp", "llama.cpp")
    if counted is not None:
        return counted
    if _LOG.search(text):
        return from_log(text, file)
    found, cut = records(text, file, _SOUGHT)
    answers: list[Marginals] = []
    for place, row in found:
        timings = row.get("timings", row)
        if isinstance(timings, dict) and timings.get("draft_n") is not None:
            asked = timings.get("draft_rounds") is not None
            rounds = count_of(timings, "draft_rounds", place) if asked else 0
            drafted = count_of(timings, "draft_n", place)
            accepted = count_of(timings, "draft_n_accepted", place)
            answers.append(Marginals("llama.cpp", file, rounds, drafted, accepted, ()))
    if not answers:
        raise InputError(f"{file} holds no timings.draft_n and not {_SOUGHT}")
    return pooled(answers, len(found) - len(answers) + cut)


def from_log(text: str, file: str) -> Marginals:
    """The log's lines, added up; steps and depths only if every line tells them."""
    return pooled([_of_line(file, *line) for line in _LOG.findall(text)])


def _of_line(
    file: str, accepted: str, drafted: str, mean: str, rates: str, more_rates: str
) -> Marginals:
    """The counts of one request. mean: tokens per step with the bonus, two decimals, or empty."""
    tokens = int(drafted), int(accepted)
    shares = [float(rate) for rate in (rates or more_rates).split(",") if rate.strip()]
    steps = 0
    at_least: tuple[int, ...] = ()
    if shares:
        steps, at_least = from_rates(tokens[1], tokens[0], shares)
    elif mean and float(mean) > 1:
        steps = round(tokens[1] / (float(mean) - 1))
    return Marginals("llama.cpp", file, steps, *tokens, at_least, rounded=steps > 0)
