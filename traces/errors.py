"""The one exception that means "your input, not our bug"."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input. The message is one line naming file, field and remedy; the CLI exits with 2."""
