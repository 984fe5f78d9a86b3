"""Compile plain functions, above all the replay loop with a policy's own hooks.

Nothing is rewritten by hand: the function, and every plain function that it names, is rebuilt
around its own bytecode with globals in which those functions are compiled ones. It is then defined
in a generated module, because numba caches only functions that live in a file and never looks
whether something they call has changed. So the file's name carries a fingerprint of everything that
enters the kernel: sources, bytecode, constants, versions, processor and switches.

The folder is $GAMMALAB_CACHE, else ~/.cache/gammalab; delete it at will. Without a writable folder,
or for a policy that lives in no file (a notebook, __main__), every process compiles anew.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import os
import pickle
import platform
import re
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numba
import numpy as np
from numba.core.registry import cpu_target
from numba.extending import _Intrinsic

from policies.base import Policy, codes_of, named_globals
from simulator.replay import rounds
from simulator.replay.rounds import Recorder
from traces.errors import InputError

# NumPy's division (no exception to raise) and no fastmath: decisions must not depend on either.
# nogil: several kernels may run at once, for none touches a Python object.
OPTIONS = {"error_model": "numpy", "nogil": True}
# Functions that only kernels call need no entry from Python or C: half the compile time.
INNER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
# Functions that hand on a tuple of many arrays: ten times faster in place than called.
INLINE = INNER | {"forceinline": True}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is to be compiled: a plain function, and values for some of the names that it, or a
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


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A compiled function.

    call: the numba dispatcher. fields: the NamedTuple class that stands for `self`. file: the
    generated module, None if compiled without a cache.
    """

    call: Any
    fields: type[Any]
    file: Path | None


_kernels: dict[Any, Kernel] = {}
_shared: dict[Any, Any] = {}  # dispatchers, by function and what it takes from its globals
_making = threading.Lock()
_CACHE_ERRORS = (OSError, ImportError, EOFError, pickle.UnpicklingError)


def cache_folder() -> Path:
    """Where generated modules and their compiled code lie."""
    chosen = os.environ.get("GAMMALAB_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "gammalab"


def run_policy(policy: Policy, recorder: Recorder, *arguments: Any) -> int:
    """simulator.replay.rounds.play with the policy's hooks and a recorder compiled; `arguments`
    follow `self`. Other threads run meanwhile.

    Raises InputError if a hook does something that cannot be compiled.
    """
    _, _, prices, believed, *_ = arguments
    key = (type(policy), recorder, believed is not prices)
    return run_recipe(policy, _recipe_of(*key), key, *arguments)


def run_recipe(policy: Policy, recipe: Recipe, key: Any, *arguments: Any) -> int:
    """A loop of our own with the policy's hooks among its names, compiled; see run_policy.

    key: of the kernel, among those of this process.
    """
    cls = type(policy)
    values = [getattr(policy, field.name) for field in dataclasses.fields(cls)]

    def call(kernel: Kernel) -> Any:
        return kernel.call(kernel.fields(*values), *arguments)

    try:
        return int(_guarded(recipe, key, call))
    except numba.core.errors.NumbaError as error:
        raise InputError(
            f"policy {cls.__qualname__} cannot be compiled; policies/base.py says what a hook may "
            f"do, replay_interpreted runs it as it is. numba: {_gist(error)}"
        ) from error


def run_function(function: Callable[..., Any], *arguments: Any) -> Any:
    """A plain function of plain arithmetic, compiled."""
    plain = cast(types.FunctionType, function)
    recipe = Recipe(plain, {}, (plain.__module__, plain.__qualname__))
    return _guarded(recipe, plain, lambda kernel: kernel.call(*arguments))


def compiled(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """A plain function of plain arithmetic, with all that it calls in place, compiled for arguments
    like these: to be called often.
    """
    plain = cast(types.FunctionType, function)
    recipe = Recipe(plain, {}, (plain.__module__, plain.__qualname__), inline=True)
    kinds = tuple(map(numba.typeof, arguments))
    key = (plain, "inline")
    _guarded(recipe, key, lambda kernel: kernel.call.compile(kinds))
    return cast(Callable[..., Any], _kernels[key].call)


def policy_kernel(cls: type[Policy], recorder: Recorder) -> Kernel:
    """The kernel of a policy class and a recorder, from the cache folder where possible; made once
    per process.

    Compilation itself happens (or is loaded) at its first call.
    """
    key = (cls, recorder, False)
    return _kernel(_recipe_of(*key), key)


def _recipe_of(cls: type[Policy], recorder: Recorder, apart: bool) -> Recipe:
    names = rounds.bindings(cls, recorder, apart)
    return recipe(cls, rounds.play, names, recorder.__name__ + "_apart" * apart)


def recipe(
    cls: type[Policy],
    loop: Callable[..., Any],
    names: dict[str, Any],
    variant: str,
    lower: str = "",
) -> Recipe:
    """What to compile for a policy class: a loop, and what it finds under these names. variant:
    tells the kernels of one class apart. lower: see Recipe.
    """
    fields = tuple(field.name for field in dataclasses.fields(cls))
    owner = (cls.__module__, cls.__qualname__, variant)
    return Recipe(cast(types.FunctionType, loop), names, owner, fields, lower=lower)


def _guarded(recipe: Recipe, key: Any, call: Callable[[Kernel], Any]) -> Any:
    """Call the kernel. It does no input or output, but its cache does: if that fails (full disk,
    lost permission, damaged file), which is before the kernel has run, do without a cache.
    """
    try:
        return call(_kernel(recipe, key))
    except _CACHE_ERRORS:
        _kernels[key] = _uncached(recipe)
        return call(_kernels[key])


def _kernel(recipe: Recipe, key: Any) -> Kernel:
    with _making:
        if key not in _kernels:
            try:
                names = Namespace(recipe)
                _kernels[key] = _cached(recipe, names) if names.in_files else _uncached(recipe)
            except (OSError, RuntimeError):  # no home, or no folder that numba or we may write to
                _kernels[key] = _uncached(recipe)
        return _kernels[key]


def _uncached(recipe: Recipe) -> Kernel:
    """The kernel for this process only."""
    names = Namespace(recipe).names | {"__name__": recipe.function.__module__}
    function = types.FunctionType(recipe.function.__code__, names, recipe.function.__name__)
    fields = collections.namedtuple(_class_name(recipe), recipe.fields)  # type: ignore[misc]
    return Kernel(numba.njit(**OPTIONS)(function), fields, None)


def _cached(recipe: Recipe, names: Namespace) -> Kernel:
    """The kernel from its generated module; OSError if the folder cannot be used."""
    folder = cache_folder()
    stem = f"gammalab_{_class_name(recipe)}_{names.fingerprint}"
    file = folder / f"{stem}.py"
    text = _module_text(recipe)
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{stem}.{os.getpid()}.tmp"
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(file)  # several processes may race: each writes the same bytes
        finally:
            temporary.unlink(missing_ok=True)
    spec = importlib.util.spec_from_file_location(stem, file)
    if spec is None or spec.loader is None:
        raise OSError(f"{file} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    vars(module).update(names.names)
    sys.modules[stem] = module  # numba's index stores the class of `self` by this name
    spec.loader.exec_module(module)
    fields = getattr(module, _class_name(recipe))
    return Kernel(getattr(module, recipe.function.__name__), fields, file)


def _class_name(recipe: Recipe) -> str:
    """Of the NamedTuple that stands for `self`: another one for every kernel. numba's fast look-up
    of argument types knows such classes by their names and fields alone; where two agree, the
    second kernel works, but looks its types up for 0.15 ms at every call.
    """
    return re.sub(r"\W+", "_", ".".join(recipe.owner))


def _module_text(recipe: Recipe) -> str:
    """The generated module; OSError if the function's source is not at hand."""
    name = _class_name(recipe)
    return (
        f'"""Generated by GammaLab for {".".join(recipe.owner)}; delete at will."""\n\n'
        "from __future__ import annotations\n\n"
        "from collections import namedtuple\n\n"
        "from numba import njit\n\n"
        f"{name} = namedtuple({name!r}, {recipe.fields!r})\n\n\n"
        f"@njit(cache=True, **{OPTIONS!r})\n"
        f"{inspect.getsource(recipe.function)}"
    )


def _gist(error: Exception) -> str:
    """The first line of a numba message that says something about the user's code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Failed in nopython", "\x1b", "-"))]
    return (telling or lines or [type(error).__name__])[0]


# Globals whose repr says all that a kernel can take from them.
_TELLING = (int, float, str, tuple, types.NoneType, types.ModuleType, types.BuiltinFunctionType)


class Namespace:
    """The globals of a function to be compiled, and their fingerprint.

    names: every plain function replaced by a dispatcher. in_files: False if something has no source
    file, so that nobody could see it change. parts: what the fingerprint is made of.
    """

    def __init__(self, recipe: Recipe) -> None:
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
            function = dispatcher.py_func
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
        named = (self._recipe.function.__module__, self._recipe.lower)
        own = self._recipe.names if function.__module__ in named else {}
        for name, value in named_globals(function):
            names[name] = self._convert(name, own.get(name, value))
        if function.__closure__ is None:  # what is the same for every policy is compiled once
            taken = tuple(_content(names[name]) for name in sorted(names))
            key = (function, self._recipe.inline, taken)
            self._built[function] = _shared.setdefault(key, made)
        return self._built[function]

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
    """What a compiled function takes from one of its globals, hashable."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    return value if callable(value) else repr(value)


def _is_plain(constant: Any) -> bool:
    """True for constants whose repr is the same in every process."""
    return not isinstance(constant, types.CodeType | frozenset)
