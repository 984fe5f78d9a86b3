"""The GPU session with stages that fail, hang and die, and its last table by hand."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from policies.registry import parse_policy
from real_backend import gpu_session
from real_backend.decoding.measured import PLACEBO, timed_path, write_rounds
from real_backend.gpu_session import Session, prediction_table
from real_backend.options import SESSION_SHAPES
from real_backend.session_plan import FULL, SMALL, Confirmed, Stage, plan_of
from simulator.replay.replay import replay
from tests.results import lively_trace, make_timing
from traces.costs.pricing import tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.store import write_trace

WORK = """
import sys, time
from pathlib import Path
what, out = sys.argv[1], Path(sys.argv[2])
if what == "fail":
    sys.exit("work: no room in the oven; try a smaller --batch")
if what == "hang":
    out.with_suffix(".began").touch()
    time.sleep(600)
out.write_text(what)
sys.exit(what == "finding")
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `work` that does what its first argument says."""
    (tmp_path / "work.py").write_text(WORK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def stage(folder: Path, what: str, worth_s: float = 0.0) -> Stage:
    return Stage(what, "work", [what, str(folder / what)], [folder / what], worth_s)


def statuses(folder: Path) -> dict[str, str]:
    raw = json.loads((folder / "session.json").read_text())
    return {entry["stage"]: entry["status"] for entry in raw["stages"]}


@pytest.mark.slow
def test_a_stage_that_fails_leaves_the_others_alone(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [stage(work, name) for name in ("good", "fail", "finding")]
    stages.append(stage(work, "long", worth_s=1e6))
    Session(work, minutes=1).run(stages, "cpu")
    told = capsys.readouterr().out
    assert statuses(work) == {
        "good": "done",
        "fail": "failed",
        "finding": "done",
        "long": "skipped",
    }
    assert "[2/4] fail: failed" in told and "no room in the oven; try a smaller --batch" in told
    Session(work, minutes=1).run(stages[:2], "cpu")
    assert statuses(work) == {"good": "kept", "fail": "failed"}


def test_a_stage_that_hangs_is_cut_off(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    Session(work, minutes=0.02).run([stage(work, "hang"), stage(work, "late", 1.0)], "cpu")
    assert statuses(work) == {"hang": "cut off", "late": "skipped"}
    assert time.monotonic() - began < 30


def test_a_device_that_disappears_ends_the_session(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_session, "_answers", lambda device: False)
    stages = [stage(work, name) for name in ("good", "fail", "finding")]
    with pytest.raises(InputError, match="cuda does not answer any more; what was finished is sav"):
        Session(work, minutes=1).run(stages, "cuda")
    assert statuses(work) == {"good": "done", "fail": "failed"}
    monkeypatch.undo()


@pytest.mark.long
def test_a_device_answers_or_does_not() -> None:
    assert gpu_session._answers("cpu")
    assert not gpu_session._answers("cuda:77")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_an_ended_session_takes_its_stage_along(work: Path, how: signal.Signals) -> None:
    script = (
        "import signal, sys; from pathlib import Path;"
        "from tests.real_backend.test_gpu_session import *;"
        # also SIGINT, which whoever runs the tests in the background has set to be ignored
        "[signal.signal(s, signal.default_int_handler) for s in (signal.SIGTERM, signal.SIGINT)];"
        f"Session(Path({str(work)!r}), 5).run([stage(Path({str(work)!r}), 'hang')], 'cpu')"
    )
    path = os.pathsep.join([str(gpu_session.ROOT), str(work)])
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    for _ in range(600):
        if (work / "hang.began").exists():
            break
        time.sleep(0.1)
    child.send_signal(how)
    assert child.wait(30) != 0
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert f"-m work hang {work}" not in running


def test_the_plan_is_in_order_of_value(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "cuda", SESSION_SHAPES, "bfloat16", FULL)
    names = [stage.name for stage in plan.stages]
    assert names[:5] == [
        "capture float32 greedy",
        "measure embedded float32",
        "decode embedded float32",
        "measure shape:llama-3.1-8b+llama-3.2-1b bfloat16",
        "decode shape:llama-3.1-8b+llama-3.2-1b bfloat16",
    ]
    assert len(set(names)) == len(names)
    for dtype in ("float32", "bfloat16", "float16"):
        assert f"lossless {dtype}" in names
    made: set[Path] = set()
    for entry in plan.stages:  # nothing is read before it is made, nothing made twice
        for option, value in zip(entry.arguments, entry.arguments[1:], strict=False):
            if option in ("--trace", "--timing"):
                assert Path(value) in made
        assert not made & set(entry.results)
        made |= set(entry.results)
        assert entry.arguments[-2:] == ["--device", "cuda"]
    assert all(c.trace in made and c.timing in made for c in plan.confirmed)


def test_a_cpu_gets_no_half_precision(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "cpu", ("vicuna-160m+vicuna-68m",), "float32", SMALL)
    assert not any("float16" in word for stage in plan.stages for word in stage.arguments)


def test_prediction_table_by_hand(tmp_path: Path) -> None:
    """never runs 25 % slower than priced, fixed 3 in half of the priced time."""
    own_s = {"never": (1e-3, 0.0), "fixed": (0.5, 0.0)}  # paid in the replay, and in the table
    trace, timing = lively_trace(), dataclasses.replace(make_timing(), own_s=own_s)
    write_trace(trace, tmp_path / "t.parquet")
    timing.write(tmp_path / "m.json")
    costs = tabulate(Table(timing), max_context=1024, width=trace.meta.depth + 2)
    for seat, factor in (("never", 1.25), ("fixed:gamma=3", 0.5), (PLACEBO, 0.5)):
        text = "fixed:gamma=3" if seat == PLACEBO else seat
        log = replay(parse_policy(text), trace, costs)
        about = {
            "seat": seat,
            "baseline": "fixed:gamma=3",
            "policy": text,
            "device_name": "X",
            "weights": "random",
            "acceptance": "trace of p",
        }
        about |= {"energy_j": 2.0 * float(log.emitted.sum()), "peak_memory_bytes": 3 << 20}
        log = dataclasses.replace(log, elapsed_s=log.elapsed_s * factor, meta=about)
        write_rounds([(timed_path(tmp_path, seat, k), log) for k in range(2)])
    text = prediction_table(
        Confirmed("a run", tmp_path, tmp_path / "t.parquet", tmp_path / "m.json")
    )
    rows = {line.split()[0]: line.split() for line in text.splitlines()[2:5]}
    assert rows["never"][3] == "+25.0%" and rows["fixed:gamma=3"][3] == "-50.0%"
    assert rows[PLACEBO][1:] == rows["fixed:gamma=3"][1:]
    assert rows["never"][5:] == ["2.000", "3"]
    assert "a run: X, random weights, acceptance trace of p" in text
    assert "error: median 50.0 %, largest 50.0 %" in text
