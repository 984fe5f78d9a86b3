"""The whole loop in one folder: end to end on a tiny pair, and what resuming may and may not do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import cli, study
from experiments.common.results import read_result
from experiments.common.verdict import CONFIRMED, CONTRADICTED, NOISY
from policies.registry import REGISTRY
from tests.results import lively_trace
from tests.specimens import FEW, write_prompts
from traces.roundlog import read_roundlog
from traces.shipped import GREEDY
from traces.store import read_trace, write_trace


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages that only write their file, and the order in which they ran."""
    ran: list[str] = []

    def stand_in(name: str, *files: str) -> Any:
        def stage(args: Any, *rest: Any) -> None:
            ran.append(name)
            for file in files:
                kind = file.partition(".")[0]
                held = {"comparisons": [{}], "findings": ["x"]}
                (args.out / file).write_text(json.dumps({"kind": kind, "version": 1} | held))

        return stage

    monkeypatch.setattr(study, "_capture", stand_in("capture", "trace.parquet"))
    monkeypatch.setattr(study, "_measure", stand_in("measure", "timing.json"))
    monkeypatch.setattr(study, "_compare", stand_in("compare", "compare.json", "compare.txt"))
    monkeypatch.setattr(study, "_validate", stand_in("validate", "validate.json", "validate.txt"))
    monkeypatch.setattr(study, "headline_text", lambda _, found: f"Finding {found['findings']}")
    monkeypatch.setattr(study, "write_report", lambda compared: compared.with_name("report.html"))
    monkeypatch.setattr(study, "inputs_of", lambda *_: {})
    return ran


ALL = ["capture", "measure", "compare", "validate"]


def test_a_study_goes_on_where_it_was(stages: list[str], tmp_path: Path) -> None:
    assert cli.main(["study", "--out", str(tmp_path)]) == 0
    assert stages == ALL
    assert cli.main(["study", "--out", str(tmp_path)]) == 0
    assert stages == ALL  # nothing ran again


@pytest.mark.parametrize(
    ("missing", "again"),
    [
        ("trace.parquet", ["capture"]),
        ("timing.json", ["measure"]),
        ("compare.json", ["compare"]),
        ("compare.txt", ["compare"]),
        ("validate.json", ["validate"]),
        ("validate.txt", ["validate"]),
    ],
)
def test_a_missing_stage_is_made_again(
    stages: list[str], tmp_path: Path, missing: str, again: list[str]
) -> None:
    """And no other: what was made again here is of the same trace and timing."""
    assert cli.main(["study", "--out", str(tmp_path)]) == 0
    (tmp_path / missing).unlink()
    assert cli.main(["study", "--out", str(tmp_path)]) == 0
    assert stages == [*ALL, *again]


@pytest.mark.parametrize("input_", ["trace", "timing"])
def test_what_is_of_another_input_is_made_again(
    stages: list[str], tmp_path: Path, input_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["study", "--out", str(tmp_path)]) == 0
    monkeypatch.setattr(study, "inputs_of", lambda *_: {f"{input_}_sha256": "another"})
    assert cli.main(["study", "--out", str(tmp_path)]) == 0
    assert stages == [*ALL, "compare", "validate"]


def test_other_settings_need_another_folder(
    stages: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["study", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert cli.main(["study", "--out", str(tmp_path), "--seed", "1"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "seed = 0" in line and "now it is 1" in line and "--force" in line
    assert cli.main(["study", "--pair", "embedded", "--out", str(tmp_path)]) == 0  # the same
    assert stages == ALL
    assert cli.main(["study", "--out", str(tmp_path), "--seed", "1", "--force"]) == 0
    assert stages == ALL * 2


def test_findings_are_said_but_do_not_fail_a_study(
    stages: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["study", "--out", str(tmp_path)]) == 0
    assert "Finding ['x']" in capsys.readouterr().out


def test_a_missing_prompt_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["study", "--out", str(tmp_path / "out"), "--prompts", str(tmp_path / "no.jsonl")]
    assert cli.main(argv) == 2
    assert "no.jsonl: no such file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_study_that_cannot_begin_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    argv = ["study", "--out", str(tmp_path / "out"), "--prompts", str(prompts)]
    assert cli.main([*argv, "--pair", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_timed_contexts_fit_the_pair() -> None:
    trace = lively_trace(reply=24)  # prompts of 8 tokens
    assert study.contexts_of(trace) == [8, 32]


@pytest.mark.long
def test_the_whole_loop_on_a_tiny_pair(
    pair_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only what does not depend on the clock is asserted."""
    few = {name: REGISTRY[name] for name in FEW[:5]}
    for module in ("real_backend.recording.measure", "experiments.comparison.compare"):
        monkeypatch.setattr(f"{module}.REGISTRY", few)
    monkeypatch.setattr("real_backend.recording.measure.DRAFTED", (0, 1, 4, 16))
    monkeypatch.setattr(study, "QUICK", study.QUICK._replace(max_new_tokens=20, measure_repeats=10))
    write_trace(read_trace(GREEDY).select(range(4)), tmp_path / "short.parquet")
    monkeypatch.setattr(study, "GREEDY", tmp_path / "short.parquet")  # what is compiled is the same
    prompts = write_prompts(tmp_path / "prompts.jsonl", questions=5, turns=2)
    out = tmp_path / "study"
    argv = ["study", "--pair", str(pair_folder), "--prompts", str(prompts), "--quick"]
    assert cli.main([*argv, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    told = " ".join(printed.out.split())
    assert "clairvoyant" in told and "placebo, a second copy of" in told
    first = told[told.index("Set ") :]  # the first screen comes last
    assert sum(word.upper() in first for word in (CONFIRMED, CONTRADICTED, NOISY)) >= 1
    for head in (
        "Measured",
        "Placebo",
        "Arithmetic",
        "Order",
        "Stale timing",
        "Runner-up",
        "Scope",
    ):
        assert head in first
    assert printed.out.strip().endswith("report.html")
    trace = read_trace(out / "trace.parquet")
    assert trace.requests == 10 and trace.meta.exactness == "exact"
    found = read_result("validate", out / "validate.json")
    # Whoever does not read the clock takes the replay's rounds; every reply is the trace's.
    blind = [check for check in found["checks"] if not check["reads_clock"]]
    assert [check["agreement"]["differing"] for check in blind] == [0] * len(blind) != []
    assert {check["replies_equal"] for check in found["checks"]} == {found["requests"]}
    for name, files in found["log_files"].items():
        assert len(files) == 1
        log = read_roundlog(out / files[0])
        assert log.meta["seat"] == name and log.meta["clock"] == "measured"
    assert (out / "report.html").read_text().count("data:image/png") == 7
    # A second run keeps everything and prints the same tables.
    before = {path: path.read_bytes() for path in out.glob("*.json")}
    assert cli.main([*argv, "--out", str(out)]) == 0
    assert capsys.readouterr().out == printed.out
    assert {path: path.read_bytes() for path in out.glob("*.json")} == before
