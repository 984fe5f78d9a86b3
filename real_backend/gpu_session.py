"""All that a GPU can tell, as one script: `python -m real_backend.gpu_session --out DIR`.

Captures, measures and decodes with the embedded pair and with pairs of real sizes, most valuable
first. Every stage is a process of its own, running a command that also works by hand: one that
fails, hangs or loses the device leaves the others alone. What is timed or decoded is as much as
fits into a stage's seconds, whatever the pair's size. Results are saved as soon as they exist, a
table of prediction errors is printed behind every run and all of them whenever the session ends;
the same command goes on where the time ran out.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from policies.overhead import charged
from policies.registry import file_name, parse_policy
from real_backend.command_line import Result, run_module
from real_backend.decoding.measured import PLACEBO, read_measured
from real_backend.options import SessionOptions
from real_backend.session_plan import FULL, SMALL, Confirmed, Plan, Stage, plan_of
from traces.costs.log_prices import price_log
from traces.costs.pricing import tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.store import read_trace, write_atomically
from traces.timing import read_timing

ROOT = Path(__file__).parent.parent
After = Callable[[Stage], None]


class Session:
    """Runs stages within a budget and keeps out/session.json, what became of each."""

    def __init__(self, out: Path, minutes: float) -> None:
        self.out, self.budget_s = out, 60 * minutes
        self.began = time.monotonic()
        self.records: list[dict[str, Any]] = []

    @property
    def left_s(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget_s - (time.monotonic() - self.began)

    def run(self, stages: Sequence[Stage], device: str, after: After = lambda _: None) -> None:
        """All stages that are not done and still worth starting; stops if the device is gone.

        after: called with every stage that has just been done.
        """
        for number, stage in enumerate(stages, start=1):
            print(f"[{number}/{len(stages)}] {stage.name}: ", end="", flush=True)
            began, gone = time.monotonic(), False
            if stage.done:
                status, reason = "kept", ""
            elif self.left_s < stage.worth_s:
                status, reason = "skipped", f"{max(0.0, self.left_s):.0f} s of the budget are left"
            else:
                status, reason = self._one(stage)
                gone = status == "failed" and not _answers(device)
            seconds = time.monotonic() - began
            print(f"{status}, {seconds:.0f} s" + (f": {reason}" if reason else ""), flush=True)
            self._record(stage, status, seconds, reason)
            if status == "done":
                after(stage)
            if gone:
                raise InputError(
                    f"{device} does not answer any more; what was finished is saved in {self.out}: "
                    "check the device and run the same command again"
                )

    def _one(self, stage: Stage) -> tuple[str, str]:
        """Run it; a hanging stage may take half of the time that is left, but a minute at least."""
        log = self.out / "logs" / f"{file_name(stage.name)}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        limit_s = min(self.left_s, max(60.0, 0.5 * self.left_s))
        command = [sys.executable, "-m", stage.module, *stage.within(self.left_s)]
        path = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}  # not installed
        with log.open("w") as file:
            print("$", shlex.join(["python", *command[1:]]), file=file, flush=True)
            child = subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT)
            try:
                child.wait(limit_s)
            except subprocess.TimeoutExpired:
                return "cut off", f"after {limit_s:.0f} s; the same command goes on"
            finally:
                _end(child)
        if stage.done:  # with exit code 1 for a finding, which is a result
            return "done", ""
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return "failed", lines[-1][:300]

    def _record(self, stage: Stage, status: str, seconds: float, reason: str) -> None:
        command = shlex.join(["python", "-m", stage.module, *stage.arguments])
        fields = {"stage": stage.name, "status": status, "seconds": round(seconds, 1)}
        self.records.append(fields | {"reason": reason, "command": command})
        text = json.dumps({"kind": "gpu-session", "version": 1, "stages": self.records}, indent=1)
        path = self.out / "session.json"
        write_atomically(
            path, lambda temporary: temporary.write_text(text + "\n", "utf-8"), overwrite=True
        )


def _end(child: subprocess.Popen[bytes]) -> None:
    """Make sure that nothing of a stage goes on."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _answers(device: str) -> bool:
    """True if a fresh process can use the device."""
    probe = f"import torch; torch.ones(1, device={device!r}).sum().item()"
    try:
        done = subprocess.run([sys.executable, "-c", probe], capture_output=True, timeout=120)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def prediction_table(confirmed: Confirmed) -> str:
    """Measured beside predicted tokens/s of every policy, fastest first.

    Predicted is what the timing charges for the very rounds that ran: the replay's prediction where
    decisions are the replay's, which `gammalab validate --measured` checks.
    """
    trace, timing = read_trace(confirmed.trace), read_timing(confirmed.timing).on("wall")
    longest = int(trace.prompt_tokens.max()) + trace.meta.max_new_tokens
    steps = dataclasses.replace(timing, control_s=0.0, signal_s=0.0)
    costs, bare = (
        tabulate(Table(each), max_context=longest, width=trace.meta.depth + 2)
        for each in (timing, steps)
    )
    rows = []
    measured = read_measured(confirmed.folder)
    for name, logs in measured.timed.items():
        policy = parse_policy(measured.baseline if name == PLACEBO else name)
        tokens = sum(int(log.emitted.sum()) for log in logs)
        seconds = sum(float(log.elapsed_s.sum()) for log in logs)
        priced = sum(float(price_log(log, charged(policy, costs)).sum()) for log in logs)
        forwards = sum(float(price_log(log, bare).sum()) for log in logs)
        joules = sum(log.meta.get("energy_j", math.nan) for log in logs)
        energy = "-" if math.isnan(joules) else f"{joules / tokens:.3f}"
        peak = max((log.meta.get("peak_memory_bytes", 0) for log in logs), default=0)
        rows.append((name, tokens / priced, tokens / seconds, forwards / seconds, energy, peak))
    rows.sort(key=lambda row: -row[2])
    about = logs[0].meta
    weights = "random weights" if about["weights"] == "random" else "loaded weights"
    lines = [
        f"{confirmed.title}: {about['device_name']}, {weights}, acceptance {about['acceptance']}",
        f"{'policy':20}{'predicted':>11}{'measured':>11}{'error':>8}{'forwards':>10}"
        f"{'J/token':>9}{'peak MiB':>10}",
    ]
    for name, ours, theirs, share, energy, peak in rows:
        lines.append(
            f"{name:20}{ours:11.1f}{theirs:11.1f}{100 * (ours / theirs - 1):+7.1f}%"
            f"{100 * share:9.0f}%{energy:>9}{peak / 2**20 if peak else 0:10.0f}"
        )
    errors = np.abs([ours / theirs - 1 for _, ours, theirs, *_ in rows])
    ranks = [(a[1] - b[1]) * (a[2] - b[2]) > 0 for k, a in enumerate(rows) for b in rows[:k]]
    winner = max(rows, key=lambda row: row[1])[0]
    lines.append(
        f"error: median {100 * np.median(errors):.1f} %, largest {100 * errors.max():.1f} %; "
        f"{sum(ranks)} of {len(ranks)} pairs of policies are in the predicted order; "
        f"predicted winner {winner}, measured winner {rows[0][0]}"
    )
    return "\n".join(lines)


def run(options: SessionOptions) -> Result:
    """The session."""
    import torch

    if not 0 < options.minutes < math.inf:
        raise InputError(f"--minutes is {options.minutes:g}; it must be above 0")
    device = options.device
    if device == "auto":  # named once, so that no stage silently runs elsewhere later
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not _answers(device):
        raise InputError(f"--device {device} cannot be used; try --device cpu --small")
    options.out.mkdir(parents=True, exist_ok=True)
    shapes = [shape for shape in options.shapes.split(",") if shape]
    if any("+" not in shape for shape in shapes):
        raise InputError(f"--shapes {options.shapes}: give TARGET+DRAFT, separated by commas")
    effort = SMALL if options.small else FULL
    dtype = "float32" if device == "cpu" else "bfloat16"
    plan = plan_of(options.out.resolve(), device, shapes, dtype, effort)
    # A terminated session must not leave its stage behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    runs = {c.title: c for c in plan.confirmed}

    def table(stage: Stage) -> None:
        if stage.name in runs:
            print("\n" + prediction_table(runs[stage.name]) + "\n", flush=True)

    try:
        Session(options.out, options.minutes).run(plan.stages, device, table)
    finally:
        tables = _all_tables(plan, options.out / "predictions.txt")
    return Result(f"\n{tables}")


def _all_tables(plan: Plan, path: Path) -> str:
    """The tables of every run that is there, also written to `path`."""
    finished = {stage.name for stage in plan.stages if stage.done}
    tables = [prediction_table(c) for c in plan.confirmed if c.title in finished]
    text = "\n\n".join(tables) or "no run was finished in the time there was"
    write_atomically(
        path, lambda temporary: temporary.write_text(text + "\n", "utf-8"), overwrite=True
    )
    return text


if __name__ == "__main__":
    sys.exit(run_module("real_backend.gpu_session", __doc__, SessionOptions, run))
