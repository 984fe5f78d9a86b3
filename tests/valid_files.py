"""A tiny valid file of every kind that commands read, with the cheapest commands that read it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from policies.counts.gammatune import GammaTune
from policies.fixed import Fixed
from policies.learned.neural import neural_policy, quantise
from policies.learned.observation import ROUND
from policies.registry import write_policies
from real_backend.decoding.measured import write_measured
from tests.experiments.validation.test_validate import run
from tests.results import lively_trace, make_timing
from tests.specimens import write_prompts
from traces.importers import vllm
from traces.importers.schedule import Schedule
from traces.store import read_trace, write_trace
from traces.timing import Repeats

Command = tuple[object, ...]
FIXED = ("--policies", "fixed:gamma=2")
POISSON = "poisson:rate=0.01"


class Kind(NamedTuple):
    """write: makes the file in a folder, with what it needs beside it. commands: those that read
    it, given it and a folder for what they write. layout: json, lines, log, parquet, safetensors.
    code: of the commands while the file is whole. named: what a refusal must name, if not the file.
    """

    name: str
    layout: str
    write: Callable[[Path], Path]
    commands: Callable[[Path, Path], list[Command]]
    code: int = 0
    named: str = ""


def _trace(folder: Path) -> Path:
    trace, _ = _inputs(folder)
    return trace


def _timing(folder: Path) -> Path:
    _, timing = _inputs(folder)
    return timing


def _inputs(folder: Path) -> tuple[Path, Path]:
    """A trace and a timing with three sweeps and both clocks."""
    trace, path = folder / "trace.parquet", folder / "timing.json"
    write_trace(lively_trace(questions=6, reply=8), trace)
    timing = make_timing(threads="1")
    cells = tuple(
        dataclasses.replace(cell, blocks_s=(cell.median_s,) * 3, cpu_blocks_s=(cell.median_s,) * 3)
        for cell in timing.cells
    )
    repeats = Repeats((0.25, 0.5), (0.25, 0.5))
    meta = timing.meta | {"threads": 1, "temperature": 0.0, "top_p": 1.0, "weights": "loaded"}
    dataclasses.replace(
        timing,
        meta=meta,
        cells=cells,
        own_s={"fixed": (0.0, 0.0)},
        signal_s=0.375,
        control_s=0.375,
        signal_repeats=repeats,
        control_repeats=repeats,
    ).write(path)
    return trace, path


def _policies(folder: Path) -> Path:
    _inputs(folder)
    write_policies([Fixed(2), GammaTune()], folder / "policies.json", {"seed": 0})
    return folder / "policies.json"


def _network(folder: Path) -> Path:
    """A network that says 2 whatever it sees, and the policy file that names it."""
    _inputs(folder)
    inputs, outputs = len(ROUND), 4
    bias = np.eye(outputs)[2]
    zeros = np.zeros((inputs, 2)), np.zeros(2), np.zeros((2, 2)), np.zeros(2), np.zeros((2, 4))
    write_policies([neural_policy(quantise(*zeros, bias))], folder / "net.json", {})
    return folder / "net.safetensors"


def _workload(folder: Path) -> Path:
    _inputs(folder)
    raw = {"kind": "workload", "version": 1, "requests": 20, "process": "recorded"}
    raw |= {"arrival_s": [10.0 * k for k in range(20)], "order": "drawn"}
    raw |= {"weights": {"easy_talk": 1, "hard": 2}, "priorities": {"hard": 1}}
    (folder / "workload.json").write_text(json.dumps(raw))
    return folder / "workload.json"


def _sitting(folder: Path) -> Path:
    """The rounds of three policies and the placebo on a fake engine."""
    trace, _ = _inputs(folder)
    measured = run(trace=read_trace(trace)).measured
    timed = {
        seat: [dataclasses.replace(log, meta=log.meta | {"batch": 1}) for log in logs]
        for seat, logs in measured.timed.items()
    }
    write_measured(measured._replace(timed=timed), folder / "sitting")
    return sorted((folder / "sitting/measured").glob("*.parquet"))[0]


def _prompts(folder: Path) -> Path:
    """Prompts, and what looks like a pair; the test brings a real one."""
    for name in ("target", "draft"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    return write_prompts(folder / "p.jsonl", 3)


# ---- what commands there are


def compare_of(folder: Path, out: Path, *policies: object) -> Command:
    files = "--trace", folder / "trace.parquet", "--timing", folder / "timing.json"
    return ("compare", *files, *(policies or FIXED), "--out", out)


def serve_of(folder: Path, out: Path, workload: object = POISSON) -> Command:
    files = "--trace", folder / "trace.parquet", "--timing", folder / "timing.json"
    few = "--requests", 20, "--seeds", 1
    return ("serve", *files, "--workload", workload, *few, "--policies", "never", "--out", out)


def export_of(folder: Path, out: Path) -> Command:
    files = "--trace", folder / "trace.parquet", "--timing", folder / "timing.json"
    return ("export", "fixed:gamma=2", "--to", "hf", *files, "--out", out / "hf.txt")


def _of_inputs(path: Path, out: Path) -> list[Command]:
    return [each(path.parent, out) for each in (compare_of, serve_of, export_of)]


def _of_trace(path: Path, out: Path) -> list[Command]:
    parts = "--out-train", out / "a.parquet", "--out-test", out / "b.parquet"
    return [
        *_of_inputs(path, out),
        ("trace", "info", path),
        ("trace", "split", path, *parts),
    ]


def _of_policies(path: Path, out: Path) -> list[Command]:
    return [compare_of(path.parent, out, "--policies", path.with_suffix(".json"))]


def _of_sitting(path: Path, out: Path) -> list[Command]:
    folder = path.parents[2]
    files = "--trace", folder / "trace.parquet", "--timing", folder / "timing.json"
    return [("validate", *files, "--measured", folder / "sitting", "--max-error", 1e6)]


def _of_workload(path: Path, out: Path) -> list[Command]:
    return [serve_of(path.parent, out, path)]


def _of_prompts(path: Path, out: Path) -> list[Command]:
    small = "--max-new-tokens", 2, "--depth", 2, "--threads", 1, "--pair", path.parent
    return [("capture", *small, "--prompts", path, "--out", out / "t.parquet")]


# ---- recordings


def spec_bench_rows() -> list[dict[str, Any]]:
    """Four replies whose seconds are 0.1 + 0.03 a round + 0.01 a drafted token."""
    schedule, rows = Schedule("heuristic", 2), []
    for number, rounds in enumerate(([3, 5, 1, 2], [1, 1, 2], [3, 1, 1], [1, 3, 4, 2, 1])):
        drafted = sum(schedule.drafted(rounds, 1024))
        choice = {
            "turns": ["said"],
            "new_tokens": [sum(rounds)],
            "wall_time": [0.1 + 0.03 * len(rounds) + 0.01 * drafted],
            "decoding_steps": [len(rounds)],
            "accept_lengths": rounds,
        }
        about = {"question_id": number, "category": "writing", "model_id": "p-float16-temp-0.0"}
        rows.append(about | {"choices": [choice]})
    return rows


def jsonl_rows() -> list[dict[str, Any]]:
    rounds = [[3, 2], [3, 3], [2, 0]]
    return [
        {"id": "a", "task": "qa", "prompt_tokens": 3, "rounds": rounds, "tokens": 8},
        {"id": "b", "accepts": [1, 0, -1, 1]},
    ]


def acc_len_rows() -> list[dict[str, Any]]:
    row = {"prompt_token_ids": [1, 2], "generated_token_ids": [5, 6, 7, 8], "category": "qa"}
    return [row | {"id": k, "model": {"acc_len": [3, 2, 1, 2]}} for k in range(2)]


def vllm_rows() -> list[dict[str, Any]]:
    return [
        vllm.response_of(name, "qa", 3, list(range(8)), [2, 3, 0], [3, 3, 2]) for name in ("a", "b")
    ]


def sglang_rows() -> list[dict[str, Any]]:
    stats = {"accept_lengths": [3, 4, 1], "verify_lengths": [4, 4, 3]}
    meta = {"id": "a", "prompt_tokens": 3, "completion_tokens": 9, "spec_verify_ct": 3}
    meta["speculative_decoding_stats"] = stats
    return [{"text": "said", "output_ids": list(range(9)), "meta_info": meta}]


VLLM_LOG = (
    "INFO SpecDecoding metrics: Mean acceptance length: 2.01, Accepted: 206 tokens, Drafted: 609 "
    "tokens, Per-position acceptance rate: 0.601, 0.286, 0.128, Avg Draft acceptance rate: 33.8%\n"
)
VLLM_COUNTERS = """vllm:spec_decode_num_drafts_total{engine="0"} 40.0
vllm:spec_decode_num_draft_tokens_total{engine="0"} 120.0
vllm:spec_decode_num_accepted_tokens_total{engine="0"} 10.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{position="0"} 7.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{position="1"} 3.0
"""
LLAMA_COUNTERS = """llamacpp:spec_decode_num_drafts_total 40
llamacpp:spec_decode_num_draft_tokens_total 80
llamacpp:spec_decode_num_accepted_tokens_total 45
llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="0"} 30
llamacpp:spec_decode_num_accepted_tokens_per_pos_total{position="1"} 15
"""
BENCH = """{"model_id": "m", "spec_decode_num_drafts": 12, "spec_decode_draft_tokens": 24,
"spec_decode_accepted_tokens": 18, "spec_decode_per_position_acceptance_rates": [1.0, 0.5]}
"""
STREAM = """data: {"id": "a", "choices": [{"index": 0, "token_ids": [1, 2]}]}

data: {"id": "a", "choices": [], "metrics": {"speculative_decoding": {
"acceptance_histogram": [3, 2, 1], "num_draft_tokens": 12}}}

data: [DONE]
""".replace("{\n", "{")
LLAMA = (
    "draft acceptance = 0.64479 (  167 accepted /   259 generated), mean acceptance length =  "
    "2.92, acceptance rate per position = (0.805, 0.632, 0.483)\n"
)


def _recording(name: str, rows: Callable[[], list[dict[str, Any]]], *more: Command) -> Kind:
    def write(folder: Path) -> Path:
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
        return path

    def commands(path: Path, out: Path) -> list[Command]:
        base = ("trace", "import", path, "--format", name, "--out", out / "t.parquet")
        return [(*base, *each) for each in (more or ((),))]

    return Kind(name, "lines", write, commands)


def _fitted(path: Path, out: Path) -> list[Command]:
    base = ("trace", "import", path, "--format", "spec-bench", "--out", out / "t.parquet")
    timing = "--timing-out", out / "timing.json"
    return [
        base,
        (*base, "--schedule", "heuristic:2"),
        (*base, "--schedule", "heuristic:2", *timing),
    ]


def _log(name: str, form: str, text: str) -> Kind:
    """Counts only, so shown and refused."""

    def write(folder: Path) -> Path:
        (folder / "server.log").write_text(text)
        return folder / "server.log"

    def commands(path: Path, out: Path) -> list[Command]:
        return [("trace", "import", path, "--format", form, "--out", out / "t.parquet")]

    return Kind(name, "log", write, commands, code=2)


KINDS = (
    Kind("trace", "parquet", _trace, _of_trace),
    Kind("timing", "json", _timing, _of_inputs),
    Kind("policies", "json", _policies, _of_policies),
    Kind("network", "safetensors", _network, _of_policies),
    Kind("workload", "json", _workload, _of_workload),
    Kind("prompts", "lines", _prompts, _of_prompts),
    _recording("spec-bench", spec_bench_rows)._replace(commands=_fitted),
    _recording("acc-len", acc_len_rows),
    _recording("jsonl", jsonl_rows),
    _recording("vllm", vllm_rows),
    _recording("sglang", sglang_rows),
    _log("vllm-log", "vllm", VLLM_LOG),
    _log("vllm-counters", "vllm", VLLM_COUNTERS),
    _log("vllm-bench", "vllm", BENCH),
    _log("vllm-stream", "vllm", STREAM),
    _log("llama.cpp", "llama.cpp", LLAMA * 2),
    _log("llama.cpp-counters", "llama.cpp", LLAMA_COUNTERS),
    Kind("sitting", "parquet", _sitting, _of_sitting, code=1, named="sitting"),
)
