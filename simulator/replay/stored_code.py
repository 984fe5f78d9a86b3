"""Machine code of single functions, stored apart from the kernels that link it.

numba stores a kernel with all that it calls, so that the next kernel of the same loop would compile
the same functions again. Here each has a file of its own, named by the fingerprint of everything
that decides its code (simulator.replay.fingerprint) and by the types of its arguments.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

from numba.core.caching import IndexDataCacheFile
from numba.core.compiler import CompileResult

CACHE_ERRORS = (OSError, ImportError, EOFError, pickle.UnpicklingError)
_ERRORS = (*CACHE_ERRORS, RuntimeError)  # there may be no home


def cache_folder() -> Path:
    """Where generated modules and compiled code lie."""
    chosen = os.environ.get("GAMMALAB_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "gammalab"


class StoredCode:
    """The cache of a numba dispatcher whose function has this fingerprint.

    Whatever goes wrong with a file (a full disk, lost permission, damage) means to compile anew.
    """

    cache_path = None

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint

    def _file(self, signature: Any) -> IndexDataCacheFile:
        # One per signature: processes that race for it write the same.
        types = hashlib.sha256(str(signature).encode()).hexdigest()[:16]
        base = f"step_{self._fingerprint}_{types}"
        return IndexDataCacheFile(str(cache_folder()), base, self._fingerprint)

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The CompileResult, None if there is none."""
        target_context.refresh()
        try:
            payload = self._file(signature).load(signature)
            return None if payload is None else CompileResult._rebuild(target_context, *payload)
        except Exception:  # damaged files raise anything
            with contextlib.suppress(*_ERRORS):
                self._file(signature).flush()
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep it, unless its code has addresses of this process in it."""
        if result.lifted or result.library.has_dynamic_globals:
            return
        with contextlib.suppress(*_ERRORS):
            cache_folder().mkdir(parents=True, exist_ok=True)
            self._file(signature).save(signature, result._reduce())
