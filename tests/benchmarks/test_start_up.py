"""From process start to a result: --help, and a comparison of the whole registry, cold and warm.

    python -m pytest -m benchmarks -s tests/benchmarks/test_start_up.py

Cold is an empty kernel cache, warm the second to sixth run with it; beside them stands a bare
interpreter that only imports numba, which no comparison can beat.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from traces.shipped import GREEDY, TIMING

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.benchmarks


def seconds(command: list[str], cache: Path) -> float:
    environment = os.environ | {"GAMMALAB_CACHE": str(cache)}
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return time.perf_counter() - began


def test_start_up(tmp_path: Path) -> None:
    gammalab = [sys.executable, "-m", "experiments"]
    whole = [*gammalab, "compare", "--trace", str(GREEDY), "--timing", str(TIMING)]
    contenders = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "gammalab --help": [*gammalab, "--help"],
        "import numba": [sys.executable, "-c", "import numba"],
        "compare, warm": whole,
    }
    print(f"\n{'compare, cold cache':22} {seconds(whole, tmp_path):7.3f} s")
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(5):
        for name, command in contenders.items():
            times[name].append(seconds(command, tmp_path))
    for name, taken in times.items():
        print(f"{name:22} {statistics.median(taken):7.3f} s (min {min(taken):.3f})")
