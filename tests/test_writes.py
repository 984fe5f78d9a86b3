"""Every file is written whole or not at all: there is one writer, and nobody goes round it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("traces", "policies", "simulator", "real_backend", "experiments")
METHODS = {"write_text", "write_bytes", "write_table", "save", "save_pretrained"}
FUNCTIONS = {"save_file"}
WHY = {  # file and function: the reason
    "simulator/replay/kernels.py _cached": "renamed by hand: processes race, and a cache may fail",
    "simulator/replay/stored_code.py save_overload": "numba's own writer of whole files",
    "real_backend/training/export.py export": "into a folder whose files are renamed afterwards",
    "real_backend/training/onpolicy/train_draft.py write_draft": "as export does",
    "real_backend/partial_file.py keep": "a line behind others; what is cut off is left out",
    "experiments/servers/launch.py _begun": "the log of a server, for the eye",
    "real_backend/gpu_session.py _one": "the log of a stage, for the eye",
}


def opens_to_write(call: ast.Call) -> bool:
    """open(..., "w") and its kin; reading is "r" or nothing."""
    modes = [a.value for a in call.args if isinstance(a, ast.Constant)]
    return any(isinstance(mode, str) and mode[:1] in ("w", "a", "x") for mode in modes)


def writes(call: ast.Call) -> bool:
    """True for what fills a file."""
    if isinstance(call.func, ast.Name):
        return call.func.id in FUNCTIONS or (call.func.id == "open" and opens_to_write(call))
    if isinstance(call.func, ast.Attribute):
        return call.func.attr in METHODS or (call.func.attr == "open" and opens_to_write(call))
    return False


def direct_writes(node: ast.AST, function: str = "") -> Iterator[str]:
    """The functions below that write a file without being asked by write_atomically, which calls a
    lambda.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Lambda):
            continue
        name = child.name if isinstance(child, ast.FunctionDef) else function
        if isinstance(child, ast.Call) and writes(child):
            yield name
        yield from direct_writes(child, name)


def test_nothing_is_written_past_the_atomic_writer() -> None:
    found = {
        f"{path.relative_to(ROOT).as_posix()} {function}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for function in direct_writes(ast.parse(path.read_text("utf-8")))
    }
    assert found - set(WHY) == set()
    assert set(WHY) <= found  # or it is no exception any more
