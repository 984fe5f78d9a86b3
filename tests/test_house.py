"""The packages resolve to this checkout, keep their imports apart and pin what they test with."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("traces", "policies", "simulator", "real_backend", "experiments")


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_are_this_checkouts(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__file__ is not None
    assert Path(module.__file__).resolve() == ROOT / name / "__init__.py"


def imported_by(statement: str) -> set[str]:
    """Top-level modules loaded by a fresh interpreter after the statement."""
    code = f"{statement}; import sys; print(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_a_gpu_host_needs_no_simulator() -> None:
    heavy = {"numba", "simpy", "gymnasium", "pandas", "seaborn", "matplotlib", "scipy"}
    stages = (
        *("recording.capture", "recording.measure", "decoding.engine", "decoding.sitting"),
        *("lossless", "gpu_session"),
    )
    loaded = imported_by("import " + ", ".join(f"real_backend.{name}" for name in stages))
    assert "torch" in loaded and not loaded & (heavy - {"scipy"})
    assert not {"simulator", "experiments"} & loaded


def test_the_simulator_needs_no_torch() -> None:
    loaded = imported_by(
        "import simulator.replay.replay, simulator.replay.hindsight, simulator.replay.metrics"
    )
    assert not {"torch", "transformers", "pandas", "matplotlib"} & loaded


def test_pins_cover_the_requirements() -> None:
    text = (ROOT / "constraints.txt").read_text().lower().replace("_", "-")
    pinned = set(re.findall(r"^([a-z0-9.-]+)==", text, re.M))
    required = re.findall(
        r'^  "([A-Za-z0-9-]+)(?:[<>=].*)?",$', (ROOT / "pyproject.toml").read_text(), re.M
    )
    assert len(required) > 15
    assert {name.lower() for name in required} <= pinned
    assert "torch==2.13.0" in text


def test_no_pickle_and_no_remote_code() -> None:
    """Loading a stranger's file must not run code."""
    forbidden = re.compile(
        r"\bpickle\.loads?\(|allow_pickle=True|torch\.load\(|trust_remote_code=True|\beval\("
    )
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text().replace(".eval()", "")
            assert not forbidden.search(text), path
