"""Other people's recordings -> Trace, one small file per format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from traces.importers import acc_len, jsonl, llama_cpp, sglang, spec_bench, vllm
from traces.importers.common import Options
from traces.schema import Trace

FORMATS: dict[str, Callable[[Path, Options], Trace]] = {
    "spec-bench": spec_bench.read,
    "acc-len": acc_len.read,
    "jsonl": jsonl.read,
    "vllm": vllm.read,
    "sglang": sglang.read,
    "llama.cpp": llama_cpp.read,
}
