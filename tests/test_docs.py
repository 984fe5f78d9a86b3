"""What the documentation shows is run: every `>>>` of docs/, and the files that README names."""

from __future__ import annotations

import doctest
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_examples_of_the_docs_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", sys.modules[__name__])
    result = doctest.testfile(str(page), module_relative=False)
    assert result.failed == 0


def test_tree_in_the_readme_is_the_tree_on_disk() -> None:
    """Every Python file of the five packages has its line in the README, and no other has."""
    text = (ROOT / "README.md").read_text()
    packages = ("traces", "policies", "simulator", "real_backend", "experiments")
    block = text.split("```text\n", 1)[1].split("```", 1)[0]
    named, folders = set(), []
    for line in block.splitlines():
        match = re.match(r"^( *)([\w./-]+)", line)
        if not match:
            continue
        level, name = len(match[1]) // 2, match[2]
        folders = folders[:level]
        if name.endswith("/"):
            folders.append(name.rstrip("/"))
        elif name.endswith(".py"):
            named.add("/".join([*folders, name]))
    on_disk = {
        str(path.relative_to(ROOT))
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }
    assert named == on_disk
