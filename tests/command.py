"""A gammalab command, run in this process and judged."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any, NamedTuple

from experiments.cli import main


class Outcome(NamedTuple):
    """Exit code and output of one command."""

    code: int
    out: str
    err: str


def gammalab(*argv: object) -> Outcome:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(arg) for arg in argv])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def refused(outcome: Outcome, *words: str) -> None:
    """Exit 2, nothing on stdout, and one line on stderr that holds the words."""
    assert outcome.code == 2 and outcome.out == ""
    (line,) = outcome.err.strip().splitlines()
    assert line.startswith("gammalab: ")
    for word in words:
        assert word in line, line


def read_json(text: str) -> Any:
    """JSON as the standard has it: NaN and Infinity are errors."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)
