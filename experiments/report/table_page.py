"""The page of a result that is one table: a serving run, or the answer to a fleet question."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from experiments.common.frames import frame_of, page_meanings, page_of
from experiments.common.plots import Json
from traces.errors import InputError


def table_view(kind: str, found: Json, folder: Path) -> dict[str, Any]:
    """A result of `gammalab serve` or `gammalab fleet` for the template.

    Raises InputError if a figure that it names is not in folder/figures.
    """
    # Serving brings the compiler, which takes a second.
    from experiments.serving.columns import COLUMNS
    from experiments.serving.fleet.command import QUESTIONS

    part = found["answer"] if kind == "fleet" else found
    frame = frame_of(part["rows"])
    if kind == "fleet" and found["question"] not in QUESTIONS:
        raise InputError(f"{folder}/fleet.json: question {found['question']!r} is not known")
    columns = QUESTIONS[found["question"]].columns(frame) if kind == "fleet" else COLUMNS
    return {
        "title": f"GammaLab {kind} {found.get('question', '')}".strip(),
        "about": [*part["basis"].splitlines(), part.get("about", "")],
        "table": page_of(columns, [("", frame)]),
        "meanings": page_meanings(columns),
        "notes": part.get("notes", ()),
        "pictures": [picture | {"data": _read(picture["name"], folder)}
                     for picture in part["pictures"]],
        "facts": {name: found[name] for name in ("trace", "costs", "server", "workload", "versions")
                  if name in found} | {"command": found["command"]},
    }  # fmt: skip


def _read(name: str, folder: Path) -> str:
    path = folder / "figures" / f"{name}.png"
    if not path.is_file():
        raise InputError(f"{path}: no such file; run the command again with --force")
    return base64.b64encode(path.read_bytes()).decode()
