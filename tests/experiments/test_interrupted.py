"""Every command stopped at every file that it puts into place, and run again: as if never stopped.

A stop comes in turn just before and just behind the renaming that ends a write; what a kill at any
other moment leaves is what one of these left.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments import cli
from experiments.common.results import read_result
from policies.fixed import Fixed
from tests.specimens import few_or_slow, write_prompts
from traces.roundlog import read_roundlog
from traces.timing import read_timing

Made = dict[str, Any]


class Stops:
    """Renamings under a folder are counted; Ctrl-C comes at number `at`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.seen, self.at = 0, -1
        rename = Path.replace

        def counted(source: Path, target: Any) -> Path:
            ours = source.is_relative_to(folder)  # not a kernel that is cached on the way
            self.seen += ours
            if ours and self.seen == self.at and self.at % 2:
                raise KeyboardInterrupt
            moved = rename(source, target)
            if ours and self.seen == self.at:
                raise KeyboardInterrupt
            return moved

        monkeypatch.setattr(Path, "replace", counted)

    def run(self, argv: list[str], at: int = -1) -> int:
        self.seen, self.at = 0, at
        return cli.main(argv)


def of_capture(out: Path) -> Made:
    return {"trace": (out / "t.parquet").read_bytes()}


def of_measure(out: Path) -> Made:
    cells = read_timing(out / "m.json").cells
    return {"cells": [(c.operation, c.batch, c.tokens, c.context, c.repeats) for c in cells]}


def of_sweep(out: Path) -> Made:
    files = {path.name: path.read_bytes() for path in out.rglob("*.parquet")}
    return files | {"text": (out / "sweep.txt").read_text()}


def of_train(out: Path) -> Made:
    weights = load_file(out / "net.safetensors")
    return {name: array.tobytes() for name, array in weights.items()}


def of_validate(out: Path) -> Made:
    found = read_result("validate", out / "validate.json")
    rounds: Made = {"order": sorted(found["log_files"])}
    for name, files in found["log_files"].items():
        log = read_roundlog(out / files[0])
        rounds[name] = np.stack([log.request, log.gamma, log.drafted, log.accepted]).tolist()
    return rounds


CASES: dict[str, tuple[list[str], str, Callable[[Path], Made]]] = {
    "capture": (["--max-new-tokens", "12"], "t.parquet", of_capture),
    "measure": (["--batch", "1", "--context", "12", "--repeats", "20"], "m.json", of_measure),
    "sweep": (["cost-ratio", "--policies", "fixed", "--cost", "c=4"], "", of_sweep),
    "train": (["--iterations", "4", "--lanes", "4", "--no-warm-start"], "net.json", of_train),
    "validate": (["--policies", "fixed:gamma=2,gammatune", "--max-error", "1e6"], "", of_validate),
}


@pytest.fixture(scope="module")
def inputs(
    pair_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[str]]:
    """The options of a command that say what it reads; a trace and a timing are made for the first
    that reads one.
    """
    folder = tmp_path_factory.mktemp("inputs")
    prompts = write_prompts(folder / "prompts.jsonl", questions=6)
    pair = ["--pair", str(pair_folder)]
    trace, timing = folder / "t.parquet", folder / "m.json"
    asked = ["--prompts", str(prompts)]
    read = ["--trace", str(trace), "--timing", str(timing)]
    options = {
        "capture": pair + asked,
        "measure": pair,
        "sweep": read[:2],
        "train": read,
        "validate": [*pair, *asked, *read],
    }

    def of(command: str) -> list[str]:
        if command not in ("capture", "measure") and not timing.exists():
            capture = ["capture", *options["capture"], *CASES["capture"][0]]
            assert cli.main([*capture, "--out", str(trace)]) == 0
            measure = ["measure", *options["measure"], *CASES["measure"][0]]
            assert cli.main([*measure, "--out", str(timing)]) == 0
        return options[command]

    return of


@pytest.mark.parametrize("command", few_or_slow(CASES, ["capture"]))
@pytest.mark.long
def test_stopped_at_every_write(
    command: str,
    inputs: Callable[[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    options, name, made = CASES[command]
    read = inputs(command)
    stops = Stops(monkeypatch, tmp_path)
    monkeypatch.setattr("real_backend.recording.measure.REGISTRY", {"fixed": Fixed})
    monkeypatch.setattr("real_backend.recording.measure.DRAFTED", (0, 1, 2))  # saves ten seconds

    def argv(folder: str) -> list[str]:
        out = str(tmp_path / folder / name)
        return [command, *options, *read, "--out", out]

    ended = stops.run(argv("whole"))
    assert ended in (0, 1)
    writes, whole = stops.seen, made(tmp_path / "whole")
    assert writes >= 2
    for at in range(1, writes + 1):
        folder = tmp_path / str(at)
        assert stops.run(argv(str(at)), at) == 130, at
        assert not list(folder.rglob(".*")), at
        again = ["--resume"] if command == "capture" else []
        if (folder / name).is_file() or (folder / "validate.json").exists():
            again = ["--force"]  # it was stopped behind its last write
        assert stops.run([*argv(str(at)), *again]) in (0, 1), at
        assert made(folder) == whole, at
        assert not list(folder.rglob("*.partial")), at
