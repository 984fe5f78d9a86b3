"""What the documentation shows is run: every `>>>`, every example; and it names what there is."""

from __future__ import annotations

import dataclasses
import doctest
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("traces", "policies", "simulator", "real_backend", "experiments")
PAGES = sorted((ROOT / "docs").rglob("*.md"))
EXAMPLES = {
    "compare_three": r"hf-confidence +1\.\d{3} times as fast as plain decoding",
    "train_on_rounds": r"mean reward -?\d+\.\d{3} a round after 512 steps",
}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_examples_of_the_docs_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", sys.modules[__name__])
    result = doctest.testfile(str(page), module_relative=False)
    assert result.failed == 0


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (ROOT / "docs/examples").glob("*.py"))
)
def test_examples_print_what_they_promise(name: str) -> None:
    """As a reader runs them; a new one needs its line in EXAMPLES."""
    script = ROOT / "docs/examples" / f"{name}.py"
    done = subprocess.run(
        [sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(EXAMPLES[name], done.stdout)
    line = f'--8<-- "docs/examples/{name}.py"'  # a formatter that takes it for Python unmakes it
    assert any(line in page.read_text().splitlines() for page in PAGES)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 900


def test_the_number_of_controllers_is_that_of_the_registry() -> None:
    """Other pages say how many were measured, which a new one does not change."""
    from policies.registry import REGISTRY

    said = re.findall(r"(\d+) controllers", (ROOT / "README.md").read_text())
    assert str(len(REGISTRY)) in said


def test_the_help_names_every_format() -> None:
    from experiments.inspect.options import TraceImportOptions
    from traces.importers import FORMATS

    (field,) = (f for f in dataclasses.fields(TraceImportOptions) if f.name == "format")
    about = field.metadata["argument"]["about"]
    pages = (ROOT / "docs/importing.md").read_text()
    assert all(name in about and name in pages for name in FORMATS)


def test_links_of_readme_and_contributing_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text()):
            assert target.startswith("http") or (ROOT / target).exists(), f"{name}: {target}"


def test_the_tree_of_the_house_is_the_tree_on_disk() -> None:
    """Two levels: every file and room of the five packages has its line, and no other has."""
    text = (ROOT / "docs/house.md").read_text()
    block = text.split("```text\n", 1)[1].split("```", 1)[0]
    named, package = set(), ""
    for line in block.splitlines():
        match = re.match(r"^( *)([\w./-]+)", line)
        assert match, line
        if not match[1]:
            package = match[2].rstrip("/")
        else:
            named.add(f"{package}/{match[2].rstrip('/')}")
    on_disk = {
        f"{package}/{path.name}"
        for package in PACKAGES
        for path in (ROOT / package).iterdir()
        if (path.is_dir() or path.suffix == ".py") and not path.name.startswith("__")
    }
    assert named == on_disk


def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs/hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_a_docstring() -> None:
    assert not [name for package in PACKAGES for name in hooks().undocumented(ROOT / package)]


def test_a_name_without_a_docstring_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = hooks()
    monkeypatch.setattr(made, "ROOT", tmp_path)
    (tmp_path / "a.py").write_text('"""A."""\n\n\ndef said():\n    """B."""\n\n\ndef bare(): ...\n')
    (tmp_path / "b.py").write_text("x = 1\n")
    assert list(made.undocumented(tmp_path)) == ["a.py:bare", "b.py"]


def test_the_site_shows_every_command_and_controller() -> None:
    from experiments.cli import VERBS
    from policies.registry import REGISTRY

    made = hooks()
    text = made.on_page_markdown("<!-- commands -->\n<!-- controllers -->")
    assert all(f"\n## {name}\n" in f"\n{text}" for name in VERBS)
    assert all(f"\n| {name} |" in text for name in REGISTRY)
    assert str(ROOT) not in text
