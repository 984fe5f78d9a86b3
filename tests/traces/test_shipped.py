"""What comes with the package goes by its name; files of the user's go first."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import cli
from traces.shipped import GREEDY, TIMING, shipped_or_file


def test_a_name_is_a_shipped_file_and_a_path_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped_or_file("embedded-greedy") == GREEDY
    assert shipped_or_file("timing-x86_64-cpu") == TIMING
    for path in ("embedded", "embedded-greedy.parquet", "data/embedded-greedy", "../x", ""):
        assert shipped_or_file(path) == Path(path)
    Path("embedded-greedy").touch()
    assert shipped_or_file("embedded-greedy") == Path("embedded-greedy")


def test_commands_take_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trace", "info", "embedded-greedy"]) == 0
    assert "target" in capsys.readouterr().out
    assert cli.main(["trace", "info", "embedded-gready"]) == 2
    assert "embedded-gready: no such file" in capsys.readouterr().err
