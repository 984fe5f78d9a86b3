"""Published tables: errors in numbers, the command, and one clear line for every bad file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import cli
from experiments.published.table import errors, errors_by
from tests.experiments.published.published_tables import (
    CHAIN_HEADER,
    COIN,
    write_chains,
    write_layers,
)
from tests.results import save_inputs

# -- errors in numbers


def test_errors_by_hand() -> None:
    found = errors(np.array([0.1, -0.2, 0.3]))
    assert (found.count, found.median, found.largest) == (3, 0.2, 0.3)
    assert found.p90 == pytest.approx(0.28)  # between 0.2 and 0.3, eight tenths of the way
    assert found.mean == pytest.approx(0.2 / 3)
    assert errors_by(np.array([0.1, -0.2, 0.3]), ["a", "b", "a"])["a"].median == 0.2


# -- the command


def run_command(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    try:
        code = cli.main(["study-published", *map(str, argv)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_json_and_file_hold_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = write_chains(tmp_path / "t.csv", COIN), tmp_path / "result.json"
    code, printed, _ = run_command(capsys, "specforge", "--data", data, "--json", "--out", out)
    assert code == 0
    told, kept = json.loads(printed), json.loads(out.read_text())
    assert kept.pop("kind") == "study-published" and kept.pop("version") == 1 and kept == told
    assert told["suite"] == "specforge" and told["data"] == ["t.csv"]
    code, _, message = run_command(capsys, "specforge", "--data", data, "--out", out)
    assert code == 2 and "--force" in message


def test_the_control_runs_from_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, timing = save_inputs(tmp_path)
    code, printed, _ = run_command(capsys, "iid", "--data", trace, "--timing", timing)
    assert code == 0 and "a rate per request" in printed and "hard" in printed


CHAIN_ROW = "m,t,8,3,1,d,2.0,900,0.9"
BAD_CHAINS = {
    "empty": ("", ["is empty", "model"]),
    "header only": (CHAIN_HEADER + "\n", ["no row"]),
    "column": (CHAIN_HEADER.replace("topk", "top") + "\n" + CHAIN_ROW, ["row 1", "'topk'"]),
    "not a number": (f"{CHAIN_HEADER}\n{CHAIN_ROW.replace('900', 'fast')}",
                     ["row 2", "'output_throughput'", "'fast'"]),
    "nan": (f"{CHAIN_HEADER}\n{CHAIN_ROW}\n{CHAIN_ROW.replace('2.0', 'nan').replace('t,', 'u,')}",
            ["row 3", "'accept_length'"]),
    "no whole number": (f"{CHAIN_HEADER}\n{CHAIN_ROW.replace(',8,', ',8.5,')}",
                        ["row 2", "'batch_size'", "8.5"]),
    "too many accepted": (f"{CHAIN_HEADER}\n{CHAIN_ROW.replace('2.0', '4.5')}",
                          ["row 2", "'accept_length'", "1..4"]),
    "empty cell": (f"{CHAIN_HEADER}\n{CHAIN_ROW.replace('m,t', 'm,')}", ["row 2", "'dataset'"]),
    "short row": (f"{CHAIN_HEADER}\nm,t,8", ["row 2", "cells"]),
    "twice": (f"{CHAIN_HEADER}\n{CHAIN_ROW}\n{CHAIN_ROW}", ["row 3", "'steps'", "again"]),
    "one k": (f"{CHAIN_HEADER}\n{CHAIN_ROW}", ["k = 3, 5 and 7"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CHAINS)
def test_bad_files_in_one_line(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, words = BAD_CHAINS[case]
    path = tmp_path / "bad.csv"
    path.write_text(text)
    code, printed, message = run_command(capsys, "specforge", "--data", path)
    assert code == 2 and printed == ""
    (line,) = message.splitlines()
    assert "bad.csv" in line
    for word in words:
        assert word in line


def test_bad_arguments_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], small_run: tuple[Path, Path]
) -> None:
    chains = write_chains(tmp_path / "t.csv", COIN)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    short = write_layers(tmp_path / "short.csv", {1: 1.0, 2: 2.0})
    for argv, words in (
        (("nothing", "--data", chains), ["'nothing'", "specforge", "microbenchmarks"]),
        (("specforge", "--data", tmp_path / "gone.csv"), ["gone.csv", "no such file"]),
        (("specforge", "--data", tmp_path), ["no such file"]),
        (("specforge", "--data", binary), ["binary.csv", "UTF-8"]),
        (("specforge", "--data", chains, "--vanilla", chains), ["--vanilla"]),
        (("microbenchmarks", "--data", chains), ["row 1", "'gpu'"]),
        (("microbenchmarks", "--data", short), ["short.csv", "2 token counts"]),
        (("spec-bench", "--data", small_run[0]), ["--vanilla"]),
        (("spec-bench", "--data", *small_run, "--vanilla", small_run[1]), ["one answer file"]),
        (("spec-bench", "--data", chains, "--vanilla", small_run[1]), ["t.csv, line 1"]),
        (("iid", "--data", chains), ["--timing"]),
    ):
        code, printed, message = run_command(capsys, *argv)
        assert code == 2 and printed == ""
        (line,) = message.splitlines()
        for word in words:
            assert word in line, line
