"""Fixtures that several test files share."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# Before anything imports numba or torch. An index out of bounds is an error here, not a wrong
# number, and half the compilation is left out; what ships is compiled without the one and with the
# other, `make test-long` replays that, too. And two workers with two threads each wait for each
# other.
if "benchmarks" not in sys.argv:  # -m benchmarks: times are of what ships
    os.environ["NUMBA_BOUNDSCHECK"] = "1"
    os.environ.setdefault("NUMBA_OPT", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

from tests.specimens import save_pair
from traces.costs.pricing import StepCosts, make_step_costs


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, default=100, help="damaged files in tests/test_fuzz.py")


COMPILING = (
    "test_runtimes_agree.py", "test_server.py", "test_docs.py", "test_serve.py", "test_fleet.py",
    "test_server_invariants.py", "test_export.py", "test_totals.py", "test_frames.py",
    "test_routing.py", "test_neural.py", "test_learning.py", "test_train.py", "test_sweep.py",
    "test_report.py", "test_bandits.py", "test_overhead.py", "test_goodput.py",
)  # fmt: skip
"""Files whose kernels take a minute all the same, in this order."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that compile alternate with the rest, those of real models first: two workers that come
    to the same kernels together would both compile each of them.
    """
    paths = list(dict.fromkeys(item.path for item in items))
    paths.sort(key=lambda path: "real_backend" not in path.parts)
    some = [path for name in COMPILING for path in paths if path.name == name]
    others = [path for path in paths if path.name not in COMPILING]
    place = {path: (i, 0) for i, path in enumerate(some)}
    place |= {path: (i * len(some) / len(others), 1) for i, path in enumerate(others)}
    items.sort(key=lambda item: place[item.path])


@pytest.fixture(scope="session")
def pair_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pair on disk."""
    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def pair(pair_folder: Path) -> Any:
    """The tiny pair, loaded with the lean forward."""
    from real_backend.load_pair import load_pair
    from real_backend.pair_spec import resolve_pair

    return load_pair(resolve_pair(str(pair_folder), None, None), device="cpu")


@pytest.fixture(scope="session")
def general_pair(pair_folder: Path) -> Any:
    """The tiny pair, loaded with transformers' own forward."""
    from real_backend.load_pair import load_pair
    from real_backend.pair_spec import resolve_pair

    return load_pair(resolve_pair(str(pair_folder), None, None), device="cpu", lean=False)


@pytest.fixture(scope="session")
def costs() -> StepCosts:
    """StepCosts that differ by context and width, so that a mix-up shows."""
    width, buckets = 34, 9
    n, c = np.arange(width), np.arange(buckets)[:, None]
    draft = 1e-3 * (1 + 0.1 * n) * (1 + 0.05 * c)
    verify = 6e-3 * (1 + 0.04 * n) * (1 + 0.03 * c)
    draft[:, 0] = verify[:, 0] = 0.0
    prefill = 1e-3 * np.arange(1.0, buckets + 1)
    return make_step_costs(draft, verify, prefill_s=prefill, signal_s=1e-4)
