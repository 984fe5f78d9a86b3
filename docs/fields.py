"""Docstrings on the site: lines that begin with a field's name and a colon become a list."""

from __future__ import annotations

import re
from typing import Any

import griffe

FIELD = re.compile(r"^([a-z_][\w*]*(?:, [\w*]+)*(?: \[[^\]]*\])?[^:.`]{0,60}): ", re.MULTILINE)


def as_list(text: str) -> str:
    """The docstring with its paragraphs of fields as lists."""
    return "\n\n".join(map(_paragraph, text.split("\n\n")))


def _paragraph(text: str) -> str:
    lines = text.split("\n")
    heads = [line for line in lines if not line.startswith("    ")]
    if not heads or not all(FIELD.match(line) for line in heads):
        return text
    return FIELD.sub(lambda found: f"- `{found[1]}`: ", text)


class Fields(griffe.Extension):
    """Applied to everything that has a docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite its docstring."""
        if obj.docstring:
            obj.docstring.value = as_list(obj.docstring.value)
