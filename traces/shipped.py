"""Recordings and timings that come with the package; commands take them by name."""

from __future__ import annotations

from pathlib import Path

_DATA = Path(__file__).with_name("data")
GREEDY = _DATA / "embedded-greedy.parquet"
SAMPLED = _DATA / "embedded-sampled.parquet"
TIMING = _DATA / "timing-x86_64-cpu.json"


def shipped_or_file(text: str) -> Path:
    """The file that comes with the package under this name, without its suffix ("embedded-greedy",
    "timing-x86_64-cpu"), or the path that the text is; a file or folder here goes first.
    """
    path = Path(text)
    if path.name == text and not path.exists():
        for file in (_DATA / f"{text}.parquet", _DATA / f"{text}.json"):
            if file.is_file():
                return file
    return path
