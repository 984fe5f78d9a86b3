"""What the site makes of the code while it is built: the help of every command, the controllers.

A public name without a docstring ends the build.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = ("traces", "policies", "simulator", "real_backend", "experiments")


def on_pre_build(**_: Any) -> None:
    """Raise if a public module, class, function or method has no docstring."""
    from mkdocs.exceptions import PluginError

    lacking = [name for package in PACKAGES for name in undocumented(ROOT / package)]
    if lacking:
        raise PluginError(f"without a docstring: {', '.join(lacking)}")


def undocumented(folder: Path) -> Iterator[str]:
    """Public names of a package that have no docstring; hooks of policies have their contract's."""
    for path in sorted(folder.rglob("*.py")):
        where = path.relative_to(ROOT).as_posix()
        tree = ast.parse(path.read_text("utf-8"))
        if not ast.get_docstring(tree) and path.name != "__init__.py":
            yield where
        for node in tree.body:
            named = isinstance(node, ast.ClassDef | ast.FunctionDef)
            if named and not node.name.startswith("_") and not ast.get_docstring(node):
                yield f"{where}:{node.name}"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill the places `<!-- commands -->` and `<!-- controllers -->`."""
    if "<!-- commands -->" in markdown:
        markdown = markdown.replace("<!-- commands -->", "\n".join(commands()))
    if "<!-- controllers -->" in markdown:
        markdown = markdown.replace("<!-- controllers -->", "\n".join(controllers()))
    return markdown


def commands() -> Iterator[str]:
    """The help of every verb, a section each."""
    from experiments.cli import VERBS, build_parser

    parser = build_parser()
    for name in VERBS:
        found = parser
        for word in name.split():
            (action,) = (a for a in found._actions if a.choices and a.option_strings == [])
            found = action.choices[word]
        text = re.sub(re.escape(str(ROOT)) + "/", "", found.format_help())
        yield f"## {name}\n\n```text\n{text.strip()}\n```\n"


def controllers() -> Iterator[str]:
    """Every controller by room: its rule, its source."""
    from policies.registry import FAMILIES

    for family, classes in FAMILIES.items():
        yield f"\n## {family}\n\n| name | rule | source |\n|---|---|---|"
        for cls in classes:
            cells = (cls.name, cls.rule, cls.source)
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
