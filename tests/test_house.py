"""The packages resolve to this checkout, keep their imports apart and pin what they test with."""

from __future__ import annotations

import ast
import functools
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


@pytest.mark.long
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


def test_no_file_is_the_first_that_a_folder_names() -> None:
    """The order of a folder's names is the file system's: machines would take different files."""
    for path in python_files(*PACKAGES, "tests"):
        assert not re.search(r"\bnext\([^()\n]*glob\(", path.read_text()), path


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def test_folders_and_files_stay_small() -> None:
    """At most 20 files a folder, 300 lines a file (500 of tests) unless its head says why."""
    for folder in {path.parent for path in python_files(*PACKAGES, "tests")}:
        assert len(list(folder.glob("*.py"))) <= 20, folder
    for path in python_files(*PACKAGES, "tests"):
        text = path.read_text()
        most = 500 if path.is_relative_to(ROOT / "tests") else 300
        assert text.count("\n") <= most or "Longer than other files:" in text, path


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    """All of a file's tree that has a name of its own: the module, classes and functions."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]


def test_functions_stay_short() -> None:
    for path in python_files(*PACKAGES):
        for function in (node for node in nodes(path) if isinstance(node, ast.FunctionDef)):
            begin = (
                function.decorator_list[0].lineno if function.decorator_list else function.lineno
            )
            assert (function.end_lineno or begin) - begin < 60, f"{path}: {function.name}"


def test_the_rules_of_a_round_stand_once() -> None:
    """What a round settles, what its policy is shown and what it costs: each in one file."""
    made_up = {"policies/conformance.py", "policies/overhead.py"}  # rounds that no trace holds
    once = {
        r"min\([^()]*accept_len": {"policies/round.py", "traces/schema.py"},  # its bounds
        r"min\(accepted \+ 1, (left|end|\w+ - at)": {"policies/round.py"},
        r"max_new_tokens - \w+ - 1|min\(limits\.max_gamma": {"policies/round.py"},
        r"(?<!class )\bView\(": {"policies/round.py", *made_up},
        # One round, and all rounds of a log at once: held to each other bit for bit.
        r"draft_s\[.*\blag\b": {"traces/costs/pricing.py", "traces/costs/log_prices.py"},
        r"token_s \* \(": {"policies/overhead.py"},
    }
    for pattern, homes in once.items():
        found = {
            str(path.relative_to(ROOT))
            for path in python_files(*PACKAGES)
            if re.search(pattern, path.read_text())
        }
        assert found == homes, pattern


def test_docstrings_lead_with_what_the_thing_is() -> None:
    """Not with a question, and not with a pointer elsewhere alone."""
    for path in python_files(*PACKAGES):
        for node in nodes(path):
            said = ast.get_docstring(node) or ""
            assert not re.match(r"(What|Who|Whose|Whom) ", said), f"{path}: {said[:60]}"
            assert not re.fullmatch(r"See [^\n]*", said), f"{path}: {said[:60]}"


def test_environments_need_no_import_of_ours() -> None:
    """gymnasium (since 1.0) loads no plugins: the id names the module that registers it."""
    loaded = imported_by(
        "import gymnasium; gymnasium.make('simulator.envs:gammalab/Round-v0').reset(seed=0)"
    )
    assert {"gymnasium", "simulator"} <= loaded
