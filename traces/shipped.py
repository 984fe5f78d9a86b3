"""The recordings and the timing of the embedded pair that come with the package."""

from __future__ import annotations

from pathlib import Path

_DATA = Path(__file__).with_name("data")
GREEDY = _DATA / "embedded-greedy.parquet"
SAMPLED = _DATA / "embedded-sampled.parquet"
TIMING = _DATA / "timing-x86_64-cpu.json"
