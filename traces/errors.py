"""The exception that means "your input, not our bug", and the warning that it may be."""

from __future__ import annotations

import sys

_LONGEST = 1200  # characters of a message


class InputError(ValueError):
    """Bad input. The message is one line naming file, field and remedy; the CLI exits with 2."""


def missing(what: str, library: str, package: str) -> InputError:
    """The error where `what` needs a library that is not installed; package: for pip."""
    return InputError(f"{what} needs {library}: pip install '{package}'")


def brief(message: str) -> str:
    """A message as one line that any terminal can show, whatever value it quotes: file and field
    in front, the remedy at the end, the middle of a long one left out.
    """
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    return (
        line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 4 :]}"
    )


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"gammalab: warning: {brief(message)}", file=sys.stderr)
