"""A capture that survives a kill: requests appended one by one, then made one trace.

Every finished request is one small Parquet file in `NAME.partial/`, renamed into place when
complete, so a kill at any moment loses at most the request in flight. `finish` assembles the parts
in order into NAME; the bytes depend only on the content, not on how often the capture was
interrupted.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from traces.errors import InputError
from traces.schema import Trace, TraceMeta
from traces.store import concatenate, read_trace, write_atomically, write_trace


def _partial_folder(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


class TraceWriter:
    """A capture in progress: parts in NAME.partial/, one finished request each.

    `resume=False` refuses to start where a partial capture lies; `resume=True` continues it if its
    meta and conditions (what else decides the bytes: batch, threads ...) are the same and raises
    InputError if not.
    """

    def __init__(
        self,
        path: Path,
        meta: TraceMeta,
        *,
        resume: bool = False,
        conditions: dict[str, Any] | None = None,
    ) -> None:
        self.path, self.meta = path, meta
        self.folder = _partial_folder(path)
        described = json.dumps([meta.to_dict(), conditions or {}], sort_keys=True)
        meta_file = self.folder / "meta.json"
        if meta_file.exists():
            if not resume:
                raise InputError(
                    f"{self.folder} holds an unfinished capture; pass --resume to continue it, "
                    "or --force to start over"
                )
            if meta_file.read_text("utf-8") != described:
                raise InputError(
                    f"{self.folder} was captured with other settings; repeat them, or start over "
                    "with --force"
                )
        else:
            self.discard_partial(path)  # parts without a meta belong to nobody
            write_atomically(meta_file, lambda temporary: temporary.write_text(described, "utf-8"))

    def _part(self, index: int) -> Path:
        return self.folder / f"{index:06d}.parquet"

    def has(self, index: int) -> bool:
        """True if request number `index` is already safely on disk."""
        return self._part(index).exists()

    def read(self, index: int) -> Trace:
        """Request number `index` as a trace of one request; InputError if its file is damaged."""
        try:
            return read_trace(self._part(index))
        except InputError as error:
            raise InputError(f"{error}; delete it and capture again with --resume") from None

    def append(self, index: int, one: Trace) -> None:
        """Save request number `index`; on return it survives a kill."""
        write_trace(one, self._part(index), overwrite=True)

    def finish(self, count: int, *, overwrite: bool = False) -> Trace:
        """Assemble what there is of requests 0..count-1 into `path` and remove the parts."""
        trace = concatenate([self.read(index) for index in range(count) if self.has(index)])
        write_trace(trace, self.path, overwrite=overwrite)
        self.discard()
        return trace

    def discard(self) -> None:
        """Remove the unfinished capture."""
        self.discard_partial(self.path)

    @staticmethod
    def conditions_of(path: Path) -> dict[str, Any]:
        """The conditions of what an unfinished capture of `path` left; empty if there is none."""
        meta_file = _partial_folder(path) / "meta.json"
        try:
            found = json.loads(meta_file.read_text("utf-8"))[1]
        except (OSError, ValueError, IndexError, KeyError):
            return {}
        return found if isinstance(found, dict) else {}

    @staticmethod
    def discard_partial(path: Path) -> None:
        """Remove what an unfinished capture of `path` left, if anything."""
        folder = _partial_folder(path)
        (folder / "meta.json").unlink(missing_ok=True)  # first, so that a kill leaves no half
        shutil.rmtree(folder, ignore_errors=True)
