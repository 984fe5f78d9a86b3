"""A device that runs out of memory or goes away: one line, with what caused it and what to try."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from experiments.cli import one_line
from policies.fixed import Fixed
from real_backend.decoding.engine import Engine
from real_backend.device_errors import DeviceLost, device_faults, fault_of
from real_backend.prompts import Request
from real_backend.recording.measure import measure
from traces.errors import InputError

LOST = "CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronously reported"
REQUEST = Request("1.1", "qa", [5, 6, 7])


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "out of memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] can't allocate memory"),
            "out of memory",
        ),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "out of memory"),
        (MemoryError(), "out of memory"),
        (RuntimeError(LOST), "device failed at work (CUDA error: unspecified launch failure)"),
        (torch.AcceleratorError(LOST), "device failed at work (CUDA error"),
    ],
)
def test_faults_are_told_and_bugs_are_not(error: Exception, words: str) -> None:
    with pytest.raises(InputError) as told, device_faults("at work", "less"):
        raise error
    assert words in str(told.value) and "\n" not in str(told.value)
    assert words.split(" at work")[0] in (one_line(error) or "")
    assert fault_of(RuntimeError("shape '[2]' is invalid"), "at work", "less") is None
    with pytest.raises(RuntimeError, match="is invalid"), device_faults("at work", "less"):
        raise RuntimeError("shape '[2]' is invalid")


def test_caches_that_do_not_fit_say_what_they_need(pair: Any) -> None:
    with pytest.raises(InputError, match=r"caches of \d+ tokens .* GiB.*try a smaller --batch"):
        measure(pair, batches=[900_000_000], contexts=[128], repeats=10)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (RuntimeError(LOST), DeviceLost, "decoding at batch 1, in 36 tokens of cache"),
        (torch.OutOfMemoryError("CUDA out of memory."), InputError, "a smaller --batch"),
    ],
)
def test_a_fault_in_the_middle_of_a_run(
    pair: Any,
    costs: Any,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[Exception],
    words: str,
) -> None:
    calls = []

    def break_later(*args: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) > 6:
            raise error
        return forward(*args, **keywords)

    forward = pair.target.lean.forward
    monkeypatch.setattr(pair.target.lean, "forward", break_later)
    with pytest.raises(kind, match=words):
        Engine(pair, costs).decode(Fixed(1), [REQUEST], max_new_tokens=16)
    assert len(calls) == 7
