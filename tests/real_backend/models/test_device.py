"""The device: who waits for it, what it must hold, how many threads it gets, and how it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from policies.fixed import Fixed
from real_backend.command_line import Parser, read_options
from real_backend.decoding import engine
from real_backend.decoding.eager import EagerSteps
from real_backend.decoding.engine import Engine
from real_backend.device_errors import DeviceLost, fault_of
from real_backend.load_pair import load_pair, pair_from
from real_backend.models import checkpoint, device, threads
from real_backend.models.kvcache import LeanReader
from real_backend.options import MeasureOptions, PairOptions
from real_backend.pair_spec import resolve_pair
from real_backend.prompts import Request, read_questions
from real_backend.recording.capture import capture
from real_backend.recording.coupling import CaptureSettings
from tests.specimens import write_prompts
from traces.costs.pricing import StepCosts
from traces.errors import InputError


class Later:
    """A clock, and a device that returns at once and works on until it is waited for."""

    def __init__(self) -> None:
        self.now, self.owed = 0.0, 0.0

    def perf_counter(self) -> float:
        """Seconds."""
        return self.now

    def wait(self, *_: Any) -> None:
        """Until what was given is done."""
        self.now, self.owed = self.now + self.owed, 0.0


def test_a_prompt_is_not_on_the_bill_of_the_first_round(
    pair: Any, costs: StepCosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefill 7 s, a draft step 1 s, a verify 2 s, all done later: only a read-back waits."""
    later = Later()

    class Asynchronous(EagerSteps):
        def prefill(self, feed: Any) -> None:
            super().prefill(feed)
            later.owed += 7.0

        def draft_next(self, rows: Any) -> Any:
            later.owed += 1.0
            return super().draft_next(rows)

        def verify(self, *args: Any) -> Any:
            later.owed += 2.0
            later.wait()
            return super().verify(*args)

    monkeypatch.setattr(engine.time, "perf_counter", later.perf_counter)
    monkeypatch.setattr(engine, "wait_for", later.wait)
    ran = Engine(pair, costs, max_gamma=4)
    ran.use(Asynchronous(pair, 1, 64))
    log = ran.decode(Fixed(4), [Request("a", "", [3, 4, 5, 6])], max_new_tokens=20).log
    assert log.prefill_s.tolist() == [7.0]
    assert log.elapsed_s[0] == 3.0 + 2.0 and log.start_s[0] == 7.0


def test_nobody_waits_for_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from real_backend.decoding.clock import wait_for

    waited: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    wait_for("cpu")
    wait_for("cuda:1")
    assert waited == ["cuda:1"]


def test_only_the_logits_that_are_needed(
    pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt's logits are megabytes a token at a real vocabulary; a capture needs the last."""
    asked: list[tuple[int, int | None]] = []
    real = LeanReader.read

    def noted(self: Any, tokens: Any, start: int, *rest: Any, last: Any = None) -> Any:
        asked.append((tokens.shape[1], last))
        return real(self, tokens, start, *rest, last=last)

    monkeypatch.setattr(LeanReader, "read", noted)
    questions = read_questions(write_prompts(tmp_path / "p.jsonl", questions=3))
    for batch in (1, 3):
        settings = CaptureSettings(max_new_tokens=6, depth=1, batch=batch)
        capture(pair, questions, tmp_path / f"{batch}.parquet", settings)
    assert max(width for width, _ in asked) > 8
    assert all(last is not None and last <= 7 for width, last in asked)


SAID = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", SAID, ids=str)
def test_every_way_to_say_that_memory_is_short(error: BaseException) -> None:
    told = fault_of(error, "decoding", "a smaller --batch")
    assert told is not None and not isinstance(told, DeviceLost)
    assert str(told) == "out of memory decoding; try a smaller --batch"


def test_a_lost_device_is_another_matter() -> None:
    told = fault_of(RuntimeError("CUDA error: unspecified launch failure"), "decoding", "x")
    assert isinstance(told, DeviceLost)
    assert fault_of(RuntimeError("shapes differ"), "decoding", "x") is None


def test_weights_that_cannot_fit_are_not_read(
    pair_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum(
        4 * sum(p.numel() for p in set(model.module.parameters()))
        for pair in [load_pair(resolve_pair(str(pair_folder), None, None), device="cpu")]
        for model in (pair.target, pair.draft)
    )
    parts = [pair_folder / "target", pair_folder / "draft"]
    assert sum(device.weights_bytes(part, None) for part in parts) == needed
    assert sum(device.weights_bytes(part, torch.bfloat16) for part in parts) == needed // 2
    monkeypatch.setattr(checkpoint, "free_bytes", lambda _: needed - 1)
    monkeypatch.setattr(checkpoint.AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(InputError, match=r"the weights need .* GiB on cpu"):
        load_pair(resolve_pair(str(pair_folder), None, None), device="cpu")


class Big:
    """A model of 100 M parameters."""

    def num_parameters(self) -> int:
        """Parameters."""
        return 100_000_000


@pytest.mark.parametrize(
    ("seconds", "chosen", "tried"),
    [
        ({1: 0.055, 2: 1.0, 4: 1.0}, 1, [1, 2]),  # a busy neighbour: two wait for each other
        ({1: 0.4, 2: 0.22, 4: 0.12}, 4, [1, 2, 4]),
        ({1: 0.4, 2: 0.22, 4: 0.21}, 2, [1, 2, 4]),  # not worth two more
    ],
)
def test_threads_are_tried(
    seconds: dict[int, float], chosen: int, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr(threads, "_cores", lambda: 4)
        monkeypatch.setattr(threads, "forward_s", lambda _: seconds[torch.get_num_threads()])
        found, figures = threads.choose_threads(Big())
        assert (found, list(figures), torch.get_num_threads()) == (chosen, tried, chosen)
    finally:
        torch.set_num_threads(before)


def test_a_small_model_gets_one_thread_untried(pair: Any) -> None:
    before = torch.get_num_threads()
    assert threads.choose_threads(pair.target.module) == (1, {})
    torch.set_num_threads(before)


class FakeNvml:
    """pynvml of a device at 1,410 of 1,980 MHz."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2
    NVMLError = RuntimeError

    def nvmlSystemGetDriverVersion(self) -> str:
        """The driver."""
        return "570.1"

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int) -> int:
        """Now."""
        return 1410 * kind

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, kind: int) -> int:
        """At most."""
        return 1980 * kind


def test_a_cuda_device_is_made_current_settled_and_described(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []
    cuda: Any = torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "set_device", lambda name: asked.append(name))
    monkeypatch.setattr(torch, "empty", lambda *_, **options: asked.append(options["device"]))
    before = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    try:
        assert device.choose_device("cuda:1") == "cuda:1" and asked == ["cuda:1", "cuda:1"]
        monkeypatch.setattr(device, "nvml_of", lambda _: (FakeNvml(), "handle"))
        found = device.describe_device("cuda:1")["gpu"]
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)  # type: ignore[no-untyped-call]
    assert found["driver"] == "570.1" and {"cuda", "cudnn"} <= found.keys()
    assert found["clocks_mhz"] == {"sm": [1410, 1980], "memory": [2820, 3960]}
    assert "cudnn" not in found["sdpa"] and "math" in found["sdpa"]
    assert device.describe_device("cpu") == {}


def test_graphs_can_be_forbidden(pair_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from real_backend.decoding import graph_check

    monkeypatch.setattr(graph_check, "graphs_possible", lambda _: True)
    plain = pair_from(PairOptions(name=str(pair_folder), device="cpu", no_graphs=True))
    assert graph_check.recorder_of(plain) is None and plain.describe()["steps"] == "eager"


@pytest.mark.parametrize("threads", [-1, 1_000_000])
def test_impossible_threads_are_refused(pair_folder: Path, threads: int) -> None:
    with pytest.raises(InputError, match=f"--threads {threads}"):
        load_pair(resolve_pair(str(pair_folder), None, None), device="cpu", threads=threads)


@pytest.mark.parametrize("seconds", ["-5", "nan", "inf", "soon"])
def test_impossible_seconds_are_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options(MeasureOptions, Parser(), ["--out", "t.json", "--seconds", seconds])
    assert "--seconds" in capsys.readouterr().err
