"""Finished parts of a long run on disk, so that one that was stopped goes on.

JSON lines: what was asked for, then a line a part with the moment at which it was finished, and a
line for every time that the run went on. A last line that was cut off is left out.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from traces.errors import InputError
from traces.store import write_atomically


class PartialFile:
    """The parts of one run. path None: nothing is kept. asked: what must be the same for parts to
    belong together, JSON-ready.

    found: the parts, JSON-ready.

    Raises InputError if the file is damaged or holds another run.
    """

    def __init__(self, path: Path | None, asked: dict[str, Any]) -> None:
        self.path, self.found = path, list[Any]()
        self._gaps: list[tuple[int, float]] = []
        if path is None:
            return
        if path.exists():
            self._read(path, json.loads(json.dumps(asked)))
        else:
            _put(path, json.dumps(asked) + "\n")

    def _read(self, path: Path, asked: dict[str, Any]) -> None:
        lines = _whole_lines(path)
        try:
            head, *rest = [json.loads(line) for line in lines]
            last_s = 0.0
            for entry in [*rest, {"resumed_unix_s": time.time()}]:
                if "part" in entry:
                    self.found.append(entry["part"])
                    last_s = float(entry["unix_s"])
                    continue
                away_s = float(entry["resumed_unix_s"]) - last_s
                if self.found:
                    self._gaps = [gap for gap in self._gaps if gap[0] < len(self.found)]
                    self._gaps.append((len(self.found), round(away_s, 3)))
        except (ValueError, TypeError, KeyError, RecursionError):
            raise damaged(path) from None
        if not isinstance(head, dict):
            raise damaged(path)
        if other := [key for key in {**asked, **head} if head.get(key) != asked.get(key)]:
            raise InputError(
                f"{path} was begun with other settings, models or versions ({', '.join(other)}); "
                "repeat them, choose another --out, or begin anew with --force"
            )
        lines.append(json.dumps({"resumed_unix_s": round(time.time(), 3)}))
        _put(path, "".join(line + "\n" for line in lines))

    @property
    def gaps(self) -> list[tuple[int, float]]:
        """Interruptions: parts before it, seconds from the last of them until the run went on."""
        return [gap for gap in self._gaps if gap[0] < len(self.found)]

    def keep(self, part: Any) -> None:
        """One more; a line cut off by a kill is left out by whoever reads it."""
        self.found.append(part)
        if self.path is not None:
            line = json.dumps({"unix_s": round(time.time(), 3), "part": part})
            with self.path.open("a") as file:
                file.write(line + "\n")


def parts_of(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """The settings and the parts of a run on disk, which stays as it is.

    Raises InputError if the file is damaged.
    """
    try:
        head, *rest = [json.loads(line) for line in _whole_lines(path)]
        parts = [entry["part"] for entry in rest if "part" in entry]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise damaged(path) from None
    if not isinstance(head, dict):
        raise damaged(path)
    return head, parts


def damaged(path: Path | None) -> InputError:
    """The error of a file that this program cannot have left behind."""
    return InputError(f"{path} is damaged; delete it or pass --force, and run the command again")


def partial_path(out: Path) -> Path:
    """Where the finished parts of a run lie until `out` is written."""
    return out.with_name(out.name + ".partial")


def finished(path: Path | None) -> None:
    """The output is written: what was kept for it may go."""
    if path is not None:
        path.unlink(missing_ok=True)


def kept_threads(path: Path | None) -> int:
    """The CPU threads that an unfinished run had, 0 if nobody knows: another trial might choose
    otherwise, and would be another run.
    """
    if path is None or not path.is_file():
        return 0
    try:
        return int(json.loads(_whole_lines(path)[0]).get("threads", 0))
    except (ValueError, TypeError, IndexError, AttributeError):
        return 0


def _whole_lines(path: Path) -> list[str]:
    """All lines but what follows the last line end, which was cut off."""
    try:
        return path.read_text("utf-8").split("\n")[:-1]
    except UnicodeDecodeError:
        raise damaged(path) from None


def _put(path: Path, text: str) -> None:
    """The whole text or, after a kill, what was there before."""
    write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8"), overwrite=True)
