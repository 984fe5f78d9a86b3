"""All that enters a kernel, compiled and fingerprinted.

Nothing is rewritten by hand: the function, and every plain function that it names, is rebuilt
around its own bytecode with globals in which those functions are compiled ones. The fingerprint is
of everything that decides the machine code: sources, bytecode, constants, versions, processor and
switches.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import platform
import sys
import types
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core.registry import cpu_target
from numba.extending import _Intrinsic

from policies.base import codes_of, named_globals
from simulator.replay.stored_code import StoredCode

# NumPy's division (no exception to raise) and no fastmath: decisions must not depend on either.
# nogil: several kernels may run at once, for none touches a Python object.
OPTIONS = {"error_model": "numpy", "nogil": True}
# Functions that only kernels call need no entry from Python or C: half the compile time.
INNER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
# Functions that hand on a tuple of many arrays: ten times faster in place than called.
INLINE = INNER | {"forceinline": True}

# Globals whose repr says all that a kernel can take from them.
_TELLING = (int, float, str, tuple, types.NoneType, types.ModuleType, types.BuiltinFunctionType)

# Where steps of a loop come from; what belongs to a single policy is stored with its kernel.
PACKAGES = ("simulator.", "traces.", "policies.round", "policies.randomness")
_shared: dict[Any, Any] = {}  # dispatchers, by function and what it takes from its globals
_steps: dict[Any, tuple[Any, str] | None] = {}  # stored ones and their prints, likewise


@dataclasses.dataclass(frozen=True)
class KernelRecipe:
    """A recipe of a kernel: a plain function, and values for some of the names that it, or a
    function of its module that it calls, uses.

    owner: names of what the kernel is made for, its module first. fields: those of the NamedTuple
    that stands for `self`, if any. inline: everything it calls is compiled into it. lower: a module
    further down whose functions take these names, too.
    """

    function: types.FunctionType
    names: dict[str, Any]
    owner: tuple[str, ...]
    fields: tuple[str, ...] = ()
    inline: bool = False
    lower: str = ""


class Namespace:
    """The globals of a function to be compiled, and their fingerprint.

    names: every plain function replaced by a dispatcher. in_files: False if something has no source
    file, so that nobody could see it change. parts: what the fingerprint is made of.
    """

    def __init__(self, recipe: KernelRecipe) -> None:
        self._recipe = recipe
        self._inner = INLINE if recipe.inline else INNER
        self.in_files = True
        self.parts: list[str] = [repr(recipe.owner), repr(recipe.fields)]
        self._built: dict[types.FunctionType, Any] = {}
        self._own: list[Any] = []  # dispatchers that were made here
        self._sources: set[Path] = set()
        self._note(recipe.function)
        self.names = {
            name: self._convert(name, recipe.names.get(name, value))
            for name, value in named_globals(recipe.function)
        }
        self._sign()

    def _sign(self) -> None:
        """Write the fingerprint into the name of every function that is to be compiled.

        numba tells functions apart by name, argument types and a number that starts anew in every
        process. So code from the cache may carry the symbols of other code with other constants,
        and the linker keeps whichever came first.
        """
        for dispatcher in self._own:
            function = getattr(dispatcher, "py_func", dispatcher)  # plain where numba is off
            function.__qualname__ = f"{function.__qualname__}_{self.fingerprint}"

    def _convert(self, name: str, value: Any) -> Any:
        value = getattr(value, "py_func", value)  # somebody's own njit: compiled as ours are
        if isinstance(value, types.FunctionType) and not value.__module__.startswith("numba."):
            return self._compiled(value)
        if isinstance(value, _Intrinsic):  # writes machine code itself
            self._note(value._defn)
        elif isinstance(value, types.FunctionType):  # numba's own: its version is in the print
            self.parts.append(f"{name}: {value.__qualname__}")
        elif isinstance(value, np.dtype):
            self.parts.append(f"{name}: {value.descr!r} {value.itemsize}")
        elif isinstance(value, type):
            self._note_source(value, value.__module__)
            self.parts.append(f"{name}: {value.__qualname__} {getattr(value, '_fields', '')}")
        elif isinstance(value, np.ndarray):
            self.parts.append(f"{name}: {value.dtype} {value.shape} {value.tobytes().hex()}")
        elif isinstance(value, _TELLING):
            self.parts.append(f"{name}: {value!r}")
        else:
            self.in_files = False
        return value

    def _compiled(self, function: types.FunctionType) -> Any:
        """The dispatcher of a plain function; its globals are filled in after it is known, so that
        functions may call each other in a circle.
        """
        if function in self._built:
            return self._built[function]
        step = self._step(function)
        if step is not None:
            self._built[function], print_of_it = step
            self.parts.append(print_of_it)
            return self._built[function]
        self._note(function)
        names: dict[str, Any] = {"__name__": function.__module__}
        rebuilt = types.FunctionType(
            function.__code__,
            names,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        made = self._built[function] = numba.njit(**OPTIONS, **self._inner)(rebuilt)
        self._own.append(made)
        own = self._given(function)
        for name, value in named_globals(function):
            names[name] = self._convert(name, own.get(name, value))
        if function.__closure__ is None:  # what is the same for every policy is compiled once
            taken = tuple(_content(names[name]) for name in sorted(names))
            key = (function, self._recipe.inline, taken)
            self._built[function] = _shared.setdefault(key, made)
        return self._built[function]

    def _given(self, function: types.FunctionType) -> dict[str, Any]:
        """The recipe's values for names that this function may use."""
        named = (self._recipe.function.__module__, self._recipe.lower)
        return self._recipe.names if function.__module__ in named else {}

    def _step(self, function: types.FunctionType) -> tuple[Any, str] | None:
        """The dispatcher and fingerprint of a function of ours that calls no hook: its code is
        stored by itself, and the kernels of all policies link it. None for any other.
        """
        recipe = self._recipe
        if recipe.inline or not function.__module__.startswith(PACKAGES) or self._hooked(function):
            return None
        given = self._given(function)
        switches = {name: value for name, value in given.items() if not callable(value)}
        taken = tuple((name, _content(switches[name])) for name in sorted(switches))
        key = (function, taken, recipe.lower)
        if key not in _steps:
            _steps[key] = None  # while it is made: functions may call each other in a circle
            owner = (function.__module__, function.__qualname__)
            alone = Namespace(KernelRecipe(function, switches, owner, lower=recipe.lower))
            if alone.in_files and not numba.config.DISABLE_JIT:
                rebuilt = types.FunctionType(
                    function.__code__,
                    alone.names | {"__name__": function.__module__},
                    function.__name__,
                    function.__defaults__,
                )
                rebuilt.__qualname__ = f"{function.__qualname__}_{alone.fingerprint}"
                made = numba.njit(**OPTIONS, **INNER)(rebuilt)
                made._cache = StoredCode(alone.fingerprint)  # numba's own never hits for these
                _steps[key] = made, alone.fingerprint
        return _steps[key]

    def _hooked(self, function: types.FunctionType) -> bool:
        """True if a function, or one that it calls, calls a hook or is a closure."""
        seen, waiting = {function}, [function]
        while waiting:
            asked = waiting.pop()
            if asked.__closure__ is not None:
                return True
            given = self._given(asked)
            for name, value in named_globals(asked):
                if name in given:
                    if callable(given[name]):
                        return True
                elif isinstance(value, types.FunctionType) and value not in seen:
                    seen.add(value)
                    waiting.append(value)
        return False

    def _note(self, function: types.FunctionType) -> None:
        self._note_source(function, function.__module__)
        self.parts += [function.__qualname__, repr(function.__defaults__)]
        # The text alone would not do: it may have been edited after this process had read it.
        for code in codes_of(function.__code__):
            self.parts += [code.co_code.hex(), repr(code.co_names), repr(code.co_varnames)]
            self.parts += sorted(repr(c) for c in code.co_consts if _is_plain(c))
        cells = function.__closure__ or ()
        for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
            self._convert(name, cell.cell_contents)

    def _note_source(self, thing: Any, module: str) -> None:
        """Add the text of the file in which something is defined."""
        # numba stores modules by name; the next process must find the same one under it.
        if module == "__main__" or module not in sys.modules:
            self.in_files = False
            return
        try:
            path = Path(inspect.getsourcefile(thing) or "")
            text = path.read_text(encoding="utf-8")
        except (OSError, TypeError, UnicodeDecodeError):
            self.in_files = False
            return
        if path not in self._sources:
            self._sources.add(path)
            self.parts.append(text)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest of everything that decides the machine code."""
        switches = {
            name: getattr(numba.config, name, None)
            for name in ("BOUNDSCHECK", "OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "DISABLE_JIT")
        }
        versions = (numba.__version__, np.__version__, platform.python_version())
        machine = cpu_target.target_context.codegen().magic_tuple()
        everything = [
            *self.parts,
            repr((OPTIONS, self._inner)),
            repr(versions),
            repr(machine),
            repr(switches),
        ]
        return hashlib.sha256("\0".join(everything).encode()).hexdigest()[:20]


def _content(value: Any) -> Any:
    """The part of a global that a compiled function takes, hashable."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    return value if callable(value) else repr(value)


def _is_plain(constant: Any) -> bool:
    """True for constants whose repr is the same in every process."""
    return not isinstance(constant, types.CodeType | frozenset)
