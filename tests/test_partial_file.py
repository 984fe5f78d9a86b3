"""Finished parts of a long run: what a kill leaves is found again, what is damaged is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from real_backend import partial_file
from real_backend.partial_file import PartialFile, kept_threads
from traces.errors import InputError

ASKED = {"seed": 0, "threads": 3}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The wall's clock, stopped; set its only element."""
    now = [100.0]
    monkeypatch.setattr(partial_file.time, "time", lambda: now[0])
    return now


def test_gaps_are_those_between_parts(tmp_path: Path, clock: list[float]) -> None:
    """One part at 100 s; tried in vain at 110 s; gone on at 130 s with two more; opened again."""
    path = tmp_path / "x.partial"
    PartialFile(path, ASKED).keep("a")
    clock[0] = 110.0
    PartialFile(path, ASKED)
    clock[0] = 130.0
    file = PartialFile(path, ASKED)
    assert file.gaps == []  # nothing came behind it yet
    file.keep("b")
    clock[0] = 131.0
    file.keep("c")
    assert file.gaps == [(1, 30.0)]
    clock[0] = 200.0
    again = PartialFile(path, ASKED)
    assert again.found == ["a", "b", "c"] and again.gaps == [(1, 30.0)]


def test_a_run_cut_off_anywhere_goes_on_with_its_whole_parts(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    file = PartialFile(path, ASKED)
    head = len(path.read_bytes())
    for part in ("a", "b"):
        file.keep(part)
    written = path.read_bytes()
    ends = [k for k, byte in enumerate(written) if byte == ord("\n")]
    for length in range(head, len(written) + 1):
        path.write_bytes(written[:length])
        found = PartialFile(path, ASKED).found
        assert found == ["a", "b"][: sum(end < length for end in ends) - 1]


@pytest.mark.parametrize("held", [b"", b"{", b"[]\n", b"\xff\n", b"{}\n3\n", b"{}\n{}\n"])
def test_what_no_run_leaves_behind_says_what_to_do(tmp_path: Path, held: bytes) -> None:
    path = tmp_path / "x.partial"
    path.write_bytes(held)
    with pytest.raises(InputError, match=r"x\.partial is damaged; delete it or pass --force"):
        PartialFile(path, {})


def test_parts_of_another_run_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.partial"
    PartialFile(path, ASKED).keep("a")
    with pytest.raises(InputError, match=r"other settings, models or versions \(seed\)"):
        PartialFile(path, ASKED | {"seed": 1})
    assert PartialFile(path, ASKED).found == ["a"]  # still there
    assert kept_threads(path) == 3 and kept_threads(tmp_path / "none") == 0
