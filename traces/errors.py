"""The one exception that means "your input, not our bug"."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input. The message is one line naming file, field and remedy; the CLI exits with 2."""


def missing(what: str, library: str, package: str) -> InputError:
    """What to say where `what` needs a library that is not installed; package: for pip."""
    return InputError(f"{what} needs {library}: pip install '{package}'")
