"""The command line: light help, exit codes, one clear line for every bad input."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments import cli
from experiments.inspect import show
from policies.registry import REGISTRY
from tests.command import Outcome, refused
from tests.results import lively_trace, make_trace, save_inputs
from traces.store import read_trace, write_trace
from traces.timing import read_timing

ROOT = Path(__file__).parents[2]
HEAVY = {"numpy", "numba", "pandas", "torch", "pyarrow", "scipy", "matplotlib", "transformers"}


@pytest.fixture
def gammalab(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command in this process."""

    def call(*argv: object) -> Outcome:
        try:
            code = cli.main([str(arg) for arg in argv])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[Path, Path]:
    """A trace and a timing that belong together."""
    return save_inputs(tmp_path)


@pytest.mark.parametrize("argv", [["--help"], ["capture", "--help"], ["validate", "--help"]])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    code = (
        "import sys\nfrom experiments.cli import main\n"
        f"try:\n    main({argv})\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "print('modules', *sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    modules = done.stdout.splitlines()[-1].split()
    assert modules[0] == "modules" and "argparse" in modules
    assert not HEAVY & set(modules)


@pytest.mark.parametrize("name", ["traces", "policies"])
@pytest.mark.parametrize("command", ["experiments", "real_backend.recording.capture"])
def test_packages_of_other_projects_are_named(tmp_path: Path, name: str, command: str) -> None:
    """As after `pip install traces`: its __init__.py lies where ours was."""
    for package in ("traces", "policies", "real_backend", "experiments"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=lambda _, files: ["pair", "data"]
        )
    (tmp_path / name / "__init__.py").write_text("from sortedcontainers_of_others import x\n")
    done = subprocess.run(
        [sys.executable, "-m", command, "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and line.startswith(f"gammalab: the package `{name}`")
    assert "an environment of its own" in line


def test_python_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "policies", "nope"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.startswith("gammalab: unknown policy 'nope'")


def test_help_lists_every_command(gammalab: Any) -> None:
    text = gammalab("--help").out
    for name in ("study", "capture", "measure", "compare", "validate", "report", "policies"):
        assert name in text


def test_policies_lists_and_shows(gammalab: Any) -> None:
    listed = gammalab("policies")
    assert listed.code == 0 and "gammatune+" in listed.out and "eta=0.3" in listed.out
    page = gammalab("policies", "gammatune").out
    assert "arXiv 2504.00030" in page and "secondary" in page
    assert "true or false" in page and "int, 0 to 1,000" in page
    raw = json.loads(gammalab("policies", "ucb", "--json").out)
    assert raw["name"] == "ucb" and {f["name"] for f in raw["fields"]} >= {"exploration"}
    assert {f["range"] for f in raw["fields"]} >= {"float, 0 to 1,000,000"}
    assert len(json.loads(gammalab("policies", "--json").out)) >= 10


def test_policies_fit_110_columns_and_names_stand_apart(gammalab: Any) -> None:
    listed = gammalab("policies").out.splitlines()
    for name, cls in REGISTRY.items():
        (line,) = (line for line in listed if line.split()[0] == name)
        beside = line[len(name) :]
        assert beside.startswith("  ") and cls.rule.startswith(beside.split()[0])
        page = gammalab("policies", name).out.splitlines()
        assert max(map(len, page)) <= 110 and len(page) > 5
    assert max(map(len, listed)) <= 110


def test_trace_info_by_hand(gammalab: Any, tmp_path: Path) -> None:
    # Flags 1 1 0 1 | 0 1 1: five of seven accepted, in three runs. Neighbours within replies:
    # (1,1) (1,0) (0,1) | (0,1) (1,1).
    trace = make_trace([[2, 1, 0, 1], [0, 2, 1]], ["1.1", "2.1"], ["a", "b"])
    write_trace(trace, tmp_path / "t.parquet")
    raw = json.loads(gammalab("trace", "info", tmp_path / "t.parquet", "--json").out)
    assert raw["overall"]["token_acceptance"] == pytest.approx(5 / 7)
    assert raw["overall"]["mean_run"] == pytest.approx(5 / 3)
    assert raw["overall"]["mean_accept_len"] == pytest.approx(1.0)
    expected = np.corrcoef([1, 1, 0, 0, 1], [1, 0, 1, 1, 1])[0, 1]
    assert raw["overall"]["lag1"] == pytest.approx(expected)
    assert raw["tasks"]["a"]["tokens_per_reply"] == 4
    text = gammalab("trace", "info", tmp_path / "t.parquet").out
    assert "exact" in text and "0.714" in text


def test_acceptance_of_a_constant_reply_has_no_correlation() -> None:
    facts = show.acceptance(make_trace([[3, 2, 1]], ["1.1"], ["a"]))
    assert facts.token_acceptance == 1.0 and facts.mean_run == 3.0 and np.isnan(facts.lag1)


def test_trace_check_tells_damage_from_unreadable(gammalab: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_trace(lively_trace(), path)
    assert gammalab("trace", "check", path).code == 0
    table = pq.read_table(path)
    changed = [value + 1 for value in table.column("prompt_tokens").to_pylist()]
    k = table.column_names.index("prompt_tokens")
    damaged = table.set_column(k, table.schema.field(k), pa.array(changed, pa.int32()))
    pq.write_table(damaged, tmp_path / "damaged.parquet")
    found = gammalab("trace", "check", tmp_path / "damaged.parquet")
    assert found.code == 1 and "hash" in found.err and not found.out
    (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:-200])
    refused(gammalab("trace", "check", tmp_path / "cut.parquet"), "cut.parquet", "truncated")


def test_trace_split(gammalab: Any, inputs: tuple[Path, Path], tmp_path: Path) -> None:
    train, test = tmp_path / "a.parquet", tmp_path / "b.parquet"
    argv = ("trace", "split", inputs[0], "--out-train", train, "--out-test", test)
    assert gammalab(*argv).code == 0
    whole, parts = read_trace(inputs[0]), (read_trace(train), read_trace(test))
    assert sum(part.requests for part in parts) == whole.requests
    before = train.read_bytes()
    refused(gammalab(*argv), "a.parquet", "--force")
    assert gammalab(*argv, "--force", "--fraction", "0.25").code == 0
    assert train.read_bytes() != before
    refused(gammalab(*argv[:-1], train, "--force"), "same file")


def test_compare_prints_and_speaks_json(gammalab: Any, inputs: tuple[Path, Path]) -> None:
    argv = ("compare", "--trace", inputs[0], "--timing", inputs[1], "--policies")
    done = gammalab(*argv, "fixed:gamma=3,gammatune:eta=0.5")
    assert done.code == 0 and "gammatune:eta=0.5" in done.out and done.err == ""
    raw = json.loads(gammalab(*argv, "gammatune", "--json").out)
    assert raw["comparisons"][0]["recommended"]


def test_compare_writes_nothing_over(
    gammalab: Any, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    argv = ("compare", "--trace", inputs[0], "--timing", inputs[1], "--policies", "ucb")
    assert gammalab(*argv, "--out", out).code == 0
    before = (out / "compare.json").read_bytes()
    refused(gammalab(*argv, "--out", out), "compare.json", "--force")
    assert (out / "compare.json").read_bytes() == before
    assert gammalab(*argv, "--out", out, "--force").code == 0


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("gammatun", ["unknown policy 'gammatun'", "did you mean 'gammatune'?"]),
        ("gammatune:et=1", ["no field 'et'", "did you mean 'eta'?"]),
        ("fixed:gamma=many", ["policy 'fixed': field gamma must be int, 0 to 1,000, not 'many'"]),
        (",", ["no policy given"]),
    ],
)
def test_bad_policies(
    gammalab: Any, inputs: tuple[Path, Path], spec: str, words: list[str]
) -> None:
    argv = ("compare", "--trace", inputs[0], "--timing", inputs[1], "--policies", spec)
    refused(gammalab(*argv), *words)


def test_bad_files(gammalab: Any, inputs: tuple[Path, Path], tmp_path: Path) -> None:
    trace, timing = inputs

    def compare(bad_trace: Path = trace, bad_timing: Path = timing) -> Outcome:
        return gammalab("compare", "--trace", bad_trace, "--timing", bad_timing)

    refused(compare(tmp_path / "no.parquet"), "no.parquet: no such file")
    refused(compare(bad_timing=tmp_path / "no.json"), "no.json", "gammalab measure")
    cut, foreign = tmp_path / "cut.parquet", tmp_path / "foreign.parquet"
    cut.write_bytes(trace.read_bytes()[:500])
    refused(compare(cut), "cut.parquet", "truncated or foreign")
    pq.write_table(pa.table({"a": [1]}), foreign)
    refused(compare(foreign), "foreign.parquet", "not a GammaLab trace")
    (tmp_path / "half.json").write_text(timing.read_text()[:300])
    refused(compare(bad_timing=tmp_path / "half.json"), "half.json is not JSON")
    (tmp_path / "other.json").write_text('{"kind": "compare"}')
    refused(compare(bad_timing=tmp_path / "other.json"), "not a GammaLab timing")
    gap = read_timing(timing)
    gap = dataclasses.replace(gap, cells=gap.cells[:-1])
    gap.write(tmp_path / "gap.json")
    refused(compare(bad_timing=tmp_path / "gap.json"), "gap.json", "lacks", "measure again")


def test_trace_too_small_to_split_is_named(
    gammalab: Any, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    write_trace(make_trace([[1, 0]], ["1.1"], ["a"]), tmp_path / "one.parquet")
    argv = ("compare", "--trace", tmp_path / "one.parquet", "--timing", inputs[1])
    refused(gammalab(*argv, "--policies", "ucb"), "one.parquet", "cannot be split")


@pytest.mark.parametrize("field", ["pair", "device_name", "dtype", "tokenizer_sha256"])
def test_timing_of_something_else_warns(gammalab: Any, tmp_path: Path, field: str) -> None:
    trace, timing = save_inputs(tmp_path, **{field: "another"})
    done = gammalab("compare", "--trace", trace, "--timing", timing, "--policies", "ucb")
    assert done.code == 0 and "speed-up" in done.out
    (line,) = done.err.strip().splitlines()
    assert line.startswith("gammalab: warning: ") and "'another'" in line
    assert field.removesuffix("_name") in line


def test_policies_that_need_signals(
    gammalab: Any, inputs: tuple[Path, Path], tmp_path: Path
) -> None:
    bare = tmp_path / "bare.parquet"
    rows = [[1, 0, 1]] * 4
    write_trace(make_trace(rows, ["1", "2", "3", "4"], ["a"] * 4), bare)
    argv = ("compare", "--trace", bare, "--timing", inputs[1])
    refused(gammalab(*argv, "--policies", "tail-pruning"), "bare.parquet", "signals")
    done = gammalab(*argv)
    assert done.code == 0 and "left out" in done.err and "tail-pruning" in done.err


def test_missing_options_are_one_line(gammalab: Any) -> None:
    refused(gammalab("compare"), "--trace", "--timing", "gammalab compare --help")
    refused(gammalab("trace"), "info", "check", "split", "import")
    refused(gammalab("nonsense"), "invalid choice")
    refused(gammalab("validate", "--max-error", "0"), "above 0")


def test_validate_of_a_foreign_pair_asks_for_prompts(
    gammalab: Any, inputs: tuple[Path, Path]
) -> None:
    argv = ("validate", "--pair", "somewhere", "--trace", inputs[0], "--timing", inputs[1])
    refused(gammalab(*argv), "--prompts")


def test_report_of_an_empty_folder(gammalab: Any, tmp_path: Path) -> None:
    refused(gammalab("report", tmp_path), "compare.json", "gammalab compare")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.json"), 2, "x.json: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "y"), 2, "y: Permission denied"),
        (MemoryError(), 2, "out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_trouble_is_one_line(
    gammalab: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr(show, "show_policies", fail)
    done = gammalab("policies")
    (line,) = done.err.strip().splitlines()
    assert done.code == code and line.startswith("gammalab: ") and words in line


def test_bugs_and_debug_show_the_traceback(
    gammalab: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no such file"):
        gammalab("--debug", "trace", "info", tmp_path / "no.parquet")
    with pytest.raises(ValueError, match="no such file"):
        gammalab("trace", "info", tmp_path / "no.parquet", "--debug")

    def fail(*_: object, **__: object) -> int:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(show, "show_policies", fail)
    with pytest.raises(ZeroDivisionError):
        gammalab("policies")


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    trace, _ = save_inputs(tmp_path)
    code = (
        "import sys\nfrom experiments.cli import main\n"
        "sys.stdin.readline()\n"  # the reader is gone by then
        f"sys.exit(main(['trace', 'info', {str(trace)!r}]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout and process.stderr
    process.stdout.close()
    process.stdin.write("\n")
    process.stdin.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait() == 141
