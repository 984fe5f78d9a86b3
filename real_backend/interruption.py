"""One line after Ctrl-C: the command's remains, and how it goes on."""

from __future__ import annotations

from typing import Any

KEPT_UNDER_FORCE = ("capture", "sweep")
RESUMES = (  # the others take a minute or two
    *("observe", "study", "capture", "measure", "validate", "sweep", "train"),
    *("sitting", "gpu_session", "grow", "studies batches", "studies transfer"),
)


def interrupted(command: str, options: Any) -> str:
    """One line for stderr: what is kept of `command`, ended by Ctrl-C, and how it goes on."""
    forced, out = getattr(options, "force", False), getattr(options, "out", None)
    if command not in RESUMES or (command == "train" and options.algo != "ppo"):
        return "interrupted; nothing is kept, it begins anew"
    if out is None or getattr(options, "measured", None) is not None:
        return "interrupted; nothing is kept, with --out it would go on where it stopped"
    if command == "train" and forced and out.exists():
        return f"interrupted; with {out} moved away, the same command without --force goes on"
    how = " without --force" if forced and command not in KEPT_UNDER_FORCE else ""
    how = " with --resume" if command == "capture" and not options.resume else how
    return f"interrupted; the same command{how} goes on where it stopped"
