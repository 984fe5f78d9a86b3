"""Prometheus counters of speculative decoding, which vLLM and llama.cpp name alike.

vllm:spec_decode_num_drafts, _num_draft_tokens, _num_accepted_tokens and, with a `position` label
from 0, _num_accepted_tokens_per_pos (vllm/v1/spec_decode/metrics.py); llamacpp: for vllm: in
ggml-org/llama.cpp (tools/server/server-task.cpp). Both may end in _total.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from traces.errors import InputError
from traces.importers.marginals import Marginals

_POSITION = re.compile(r'(?<!\w)position="(\d{1,3})"')
_MODEL = re.compile(r'(?<!\w)model(?:_name)?="((?:[^"\\]|\\.)*)"')
_KNOWN = ("num_drafts", "num_draft_tokens", "num_accepted_tokens", "num_accepted_tokens_per_pos")


def from_counters(text: str, file: str, prefix: str, form: str) -> Marginals | None:
    """The counters of one model, added up over engines; None if the text has none.

    prefix: "vllm" or "llamacpp"; form: the importer's. Raises InputError if several models count.
    """
    totals: dict[str, float] = {}
    depths: dict[int, float] = {}
    models: set[str] = set()
    for name, labels, value in _lines(prefix).findall(text):
        if name not in _KNOWN:
            continue
        models.update(_MODEL.findall(labels))
        position = _POSITION.search(labels)
        if name != "num_accepted_tokens_per_pos":
            totals[name] = totals.get(name, 0.0) + float(value)
        elif position:
            depths[int(position[1])] = depths.get(int(position[1]), 0.0) + float(value)
    if not totals and not depths:
        return None
    one_model(models, file, "model_name")
    return Marginals(
        format=form,
        file=file,
        steps=round(totals.get("num_drafts", 0.0)),
        drafted_tokens=round(totals.get("num_draft_tokens", 0.0)),
        accepted_tokens=round(totals.get("num_accepted_tokens", 0.0)),
        at_least=tuple(round(depths[depth]) for depth in sorted(depths)),
    )


def one_model(names: Iterable[str], file: str, field: str) -> None:
    """Raise InputError if there are several: their acceptance is that of no pair."""
    found = sorted(set(names))
    if len(found) > 1:
        raise InputError(
            f"{file}: {field} names {len(found)} models ({', '.join(found)}), whose counts do not "
            "add up to any pair's; keep the lines of one"
        )


def _lines(prefix: str) -> re.Pattern[str]:
    """Name without _total, labels, value."""
    return re.compile(
        rf"^{prefix}:spec_decode_(\w+?)(?:_total)?(\{{[^}}]*\}})?\s+"
        r"(\d{1,15}(?:\.\d+)?(?:[eE][+-]?\d\d?)?)(?!\S)",
        re.M,
    )
