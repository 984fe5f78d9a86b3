"""The stages of a GPU session (gpu_session.py), most valuable first, and how much each one does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from policies.registry import file_name, label, parse_policies
from real_backend.decoding.measured import PLACEBO, timed_path

REGISTRY = (
    "never,fixed:gamma=2,fixed:gamma=4,fixed:gamma=8,gammatune,gammatune+,hf-heuristic,"
    "hf-confidence,hf-roc,tail-pruning,ucb,goodput"
)


class SessionEffort(NamedTuple):
    """How much of everything; the small one is for a CPU and for trying the script.

    questions: recorded.
    replies: decoded in a sitting.
    timed: repeats of a step.
    measure_s: seconds that a measurement may take.
    decode_s: seconds that a sitting may take.
    max_new_tokens: of a reply.
    batches, contexts: that are timed, as `measure` takes them.
    policies: of a sitting.
    """

    questions: int  # 0: all
    replies: int  # at most
    timed: int  # rounds of a kind, at most
    measure_s: float
    decode_s: float
    max_new_tokens: int
    batches: str
    contexts: str
    policies: str


FULL = SessionEffort(60, 0, 100, 40.0, 60.0, 128, "1,2,4,8", "96,380", REGISTRY)
SMALL = SessionEffort(6, 4, 10, 3.0, 5.0, 32, "1", "96", "never,fixed:gamma=3,hf-confidence")


class Stage(NamedTuple):
    """One command: `python -m MODULE ARGUMENTS`, done once all `results` are there.

    worth_s: seconds below which there is no point in starting it. seconds: what its --seconds
    allows at most, less if less is left; 0: it takes no such option.
    """

    name: str
    module: str
    arguments: list[str]
    results: list[Path]
    worth_s: float
    seconds: float = 0.0

    def within(self, left_s: float) -> list[str]:
        """Its arguments if so much of the budget is left: start and overheads take worth_s."""
        if not self.seconds:
            return self.arguments
        allowed = max(1.0, min(self.seconds, left_s - self.worth_s))
        return [*self.arguments, "--seconds", f"{allowed:.0f}"]

    @property
    def done(self) -> bool:
        """True if its results are there."""
        return all(path.exists() for path in self.results)


class Confirmed(NamedTuple):
    """A folder of decoded rounds, and the trace and timing that predict them."""

    title: str
    folder: Path
    trace: Path
    timing: Path


class Plan(NamedTuple):
    """The stages in order of value, and what the last table is made of."""

    stages: list[Stage]
    confirmed: list[Confirmed]


class _Planner:
    """Collects stages; every method adds one and names its result."""

    def __init__(self, out: Path, device: str, effort: SessionEffort) -> None:
        self.out, self.device, self.effort = out, device, effort
        self.plan = Plan([], [])

    def _add(
        self,
        name: str,
        module: str,
        arguments: Sequence[object],
        results: list[Path],
        worth_s: int,
        seconds: float = 0.0,
    ) -> None:
        words = [str(argument) for argument in arguments] + ["--device", self.device]
        stage = Stage(name, f"real_backend.{module}", words, results, worth_s, seconds)
        self.plan.stages.append(stage)

    def capture(self, dtype: str, temperature: float = 0.0) -> Path:
        """A trace of the embedded pair."""
        kind = "sampled" if temperature else "greedy"
        trace = self.out / f"embedded-{dtype}-{kind}.parquet"
        arguments = ["--dtype", dtype, "--out", trace, "--limit", self.effort.questions]
        arguments += ["--max-new-tokens", self.effort.max_new_tokens, "--temperature", temperature]
        self._add(
            f"capture {dtype} {kind}", "recording.capture", [*arguments, "--resume"], [trace], 20
        )
        return trace

    def measure(self, pair: str, dtype: str) -> Path:
        """A timing."""
        timing = self.out / f"timing-{file_name(pair.removeprefix('shape:'))}-{dtype}.json"
        arguments = ["--pair", pair, "--dtype", dtype, "--out", timing]
        arguments += ["--batch", self.effort.batches, "--context", self.effort.contexts]
        arguments += ["--repeats", self.effort.timed]
        seconds = self.effort.measure_s
        self._add(f"measure {pair} {dtype}", "recording.measure", arguments, [timing], 40, seconds)
        return timing

    def decode(self, pair: str, dtype: str, trace: Path, timing: Path, batch: int = 1) -> None:
        """Rounds of the registry on the real engine."""
        replayed = pair.startswith("shape:")
        name = file_name(pair.removeprefix("shape:")) + f"-{dtype}"
        folder = self.out / "runs" / (name if batch == 1 else f"{name}-batch-{batch}")
        arguments = ["--pair", pair, "--dtype", dtype, "--trace", trace, "--timing", timing]
        arguments += ["--acceptance", "trace" if replayed else "own", "--out", folder]
        arguments += ["--limit", self.effort.replies]
        arguments += ["--policies", self.effort.policies, "--batch", batch]
        seats = [*map(label, parse_policies(self.effort.policies)), PLACEBO]
        results = [timed_path(folder, seat, 0) for seat in seats]
        title = f"decode {pair} {dtype}" + (f" batch {batch}" if batch > 1 else "")
        if batch == 1:
            self.plan.confirmed.append(Confirmed(title, folder, trace, timing))
        self._add(title, "decoding.sitting", arguments, results, 30, self.effort.decode_s)

    def lossless(self, dtype: str) -> None:
        """Speculative output beside plain output, differences explained."""
        report = self.out / f"lossless-{dtype}.json"
        arguments = ["--dtype", dtype, "--out", report, "--limit", self.effort.questions]
        arguments += ["--max-new-tokens", self.effort.max_new_tokens]
        self._add(f"lossless {dtype}", "lossless", arguments, [report], 30)


def plan_of(
    out: Path, device: str, shapes: Sequence[str], dtype: str, effort: SessionEffort
) -> Plan:
    """The whole session; dtype: number format of the shapes."""
    planner = _Planner(out, device, effort)
    greedy = planner.capture("float32")
    planner.decode("embedded", "float32", greedy, planner.measure("embedded", "float32"))
    for number, shape in enumerate(shapes):
        pair = f"shape:{shape}"
        planner.decode(pair, dtype, greedy, planner.measure(pair, dtype))
        if number == 0:  # what the embedded pair can still tell comes before further sizes
            planner.lossless("float32")
            _half_precision(planner, device)
            planner.capture("float32", temperature=1.0)
            timing = out / "timing-embedded-float32.json"
            planner.decode("embedded", "float32", greedy, timing, batch=8)
    return planner.plan


def _half_precision(planner: _Planner, device: str) -> None:
    if device == "cpu":  # emulated there, and slow
        return
    for dtype in ("bfloat16", "float16"):
        trace = planner.capture(dtype)
        planner.lossless(dtype)
        if dtype == "bfloat16":
            planner.decode("embedded", dtype, trace, planner.measure("embedded", dtype))
