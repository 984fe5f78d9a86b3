"""Machine code of single functions: found again, and never in the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numba
import pytest

from simulator.replay.stored_code import StoredCode


def doubled(x: int) -> int:
    return 2 * x


def tripled(x: int) -> int:
    return 3 * x


def compiled(function: Any, fingerprint: str) -> tuple[int, int]:
    """f(7), and how often its code was found."""
    made = numba.njit(function)
    made._cache = StoredCode(fingerprint)
    return made(7), sum(made.stats.cache_hits.values())


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GAMMALAB_CACHE", str(tmp_path / "kernels"))
    return tmp_path / "kernels"


def test_code_is_found_by_its_fingerprint_alone() -> None:
    assert compiled(doubled, "a") == (14, 0)
    assert compiled(doubled, "a") == (14, 1)
    assert compiled(tripled, "b") == (21, 0)
    assert compiled(tripled, "a") == (14, 1)  # so the fingerprint has to tell all


def test_other_argument_types_are_other_code() -> None:
    made = numba.njit(doubled)
    made._cache = StoredCode("a")
    assert (made(7), made(0.5)) == (14, 1.0)
    again = numba.njit(doubled)
    again._cache = StoredCode("a")
    assert (again(0.5), again(7)) == (1.0, 14)
    assert sum(again.stats.cache_hits.values()) == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign"])
@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_damaged_code_is_compiled_anew(folder: Path, kind: str, damage: str) -> None:
    compiled(doubled, "a")
    (file,) = folder.glob(f"*.{kind}")
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "foreign": b"hello"}[damage])
    assert compiled(doubled, "a") == (14, 0)
    assert compiled(doubled, "a") == (14, 1)


def test_without_a_folder_it_is_compiled(folder: Path) -> None:
    folder.write_text("a file stands where the folder should be")
    assert compiled(doubled, "a") == (14, 0)
    assert folder.read_text() == "a file stands where the folder should be"
