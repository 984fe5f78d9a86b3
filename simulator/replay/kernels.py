"""Compile plain functions, above all the replay loop with a policy's own hooks.

A function is defined in a generated module, because numba caches only functions that live in a file
and never looks whether something they call has changed. So the file's name carries a fingerprint of
everything that enters the kernel (simulator.replay.fingerprint).

The folder is $GAMMALAB_CACHE, else ~/.cache/gammalab; delete it at will. Without a writable folder,
or for a policy that lives in no file (a notebook, __main__), every process compiles anew.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import inspect
import os
import re
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numba

from policies.base import Policy
from simulator.replay import rounds
from simulator.replay.fingerprint import OPTIONS, KernelRecipe, Namespace
from simulator.replay.rounds import Recorder
from simulator.replay.stored_code import CACHE_ERRORS, cache_folder
from traces.errors import InputError


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
_making = threading.Lock()


def run_policy(policy: Policy, recorder: Recorder, *arguments: Any) -> int:
    """simulator.replay.rounds.play with the policy's hooks and a recorder compiled; `arguments`
    follow `self`. Other threads run meanwhile.

    Raises InputError if a hook does something that cannot be compiled.
    """
    _, _, prices, believed, *_ = arguments
    key = _key(type(policy), recorder, believed is not prices)
    return run_recipe(policy, _recipe_of(*key), key, *arguments)


def run_recipe(policy: Policy, recipe: KernelRecipe, key: Any, *arguments: Any) -> int:
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
    """A plain function of plain arithmetic, compiled; where numba is off, as it is."""
    if numba.config.DISABLE_JIT:
        return function(*arguments)
    plain = cast(types.FunctionType, function)
    recipe = KernelRecipe(plain, {}, (plain.__module__, plain.__qualname__))
    return _guarded(recipe, plain, lambda kernel: kernel.call(*arguments))


def compiled(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """A plain function of plain arithmetic, with all that it calls in place, compiled for arguments
    like these: to be called often. Where numba is off, the function itself.
    """
    if numba.config.DISABLE_JIT:
        return function
    plain = cast(types.FunctionType, function)
    recipe = KernelRecipe(plain, {}, (plain.__module__, plain.__qualname__), inline=True)
    kinds = tuple(map(numba.typeof, arguments))
    key = (plain, "inline")
    _guarded(recipe, key, lambda kernel: kernel.call.compile(kinds))
    return cast(Callable[..., Any], _kernels[key].call)


def policy_kernel(cls: type[Policy], recorder: Recorder) -> Kernel:
    """The kernel of a policy class and a recorder, from the cache folder where possible; made once
    per process.

    Compilation itself happens (or is loaded) at its first call.
    """
    key = _key(cls, recorder, False)
    return _kernel(_recipe_of(*key), key)


def _key(cls: type[Policy], recorder: Recorder, apart: bool) -> tuple[Any, Recorder, bool]:
    """Of a replay's kernel. apart: see simulator.replay.rounds.APART. A log has one kernel for
    both: writing a row costs more than pricing a round twice.
    """
    return cls, recorder, apart or recorder is rounds.write_row


def _recipe_of(cls: type[Policy], recorder: Recorder, apart: bool) -> KernelRecipe:
    names = rounds.bindings(cls, recorder, apart)
    return recipe(cls, rounds.play, names, recorder.__name__ + "_apart" * apart)


def recipe(
    cls: type[Policy],
    loop: Callable[..., Any],
    names: dict[str, Any],
    variant: str,
    lower: str = "",
) -> KernelRecipe:
    """The recipe of a policy class: a loop, and what it finds under these names. variant:
    tells the kernels of one class apart. lower: see Recipe.
    """
    fields = tuple(field.name for field in dataclasses.fields(cls))
    owner = (cls.__module__, cls.__qualname__, variant)
    return KernelRecipe(cast(types.FunctionType, loop), names, owner, fields, lower=lower)


def _guarded(recipe: KernelRecipe, key: Any, call: Callable[[Kernel], Any]) -> Any:
    """Call the kernel. It does no input or output, but its cache does: if that fails (full disk,
    lost permission, damaged file), which is before the kernel has run, do without a cache.
    """
    try:
        return call(_kernel(recipe, key))
    except CACHE_ERRORS:
        _kernels[key] = _uncached(recipe)
        return call(_kernels[key])


def _kernel(recipe: KernelRecipe, key: Any) -> Kernel:
    with _making:
        if key not in _kernels:
            try:
                names = Namespace(recipe)
                _kernels[key] = _cached(recipe, names) if names.in_files else _uncached(recipe)
            except (OSError, RuntimeError):  # no home, or no folder that numba or we may write to
                _kernels[key] = _uncached(recipe)
        return _kernels[key]


def _uncached(recipe: KernelRecipe) -> Kernel:
    """The kernel for this process only."""
    names = Namespace(recipe).names | {"__name__": recipe.function.__module__}
    function = types.FunctionType(recipe.function.__code__, names, recipe.function.__name__)
    fields = collections.namedtuple(_class_name(recipe), recipe.fields)  # type: ignore[misc]
    return Kernel(numba.njit(**OPTIONS)(function), fields, None)


def _cached(recipe: KernelRecipe, names: Namespace) -> Kernel:
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


def _class_name(recipe: KernelRecipe) -> str:
    """Of the NamedTuple that stands for `self`: another one for every kernel. numba's fast look-up
    of argument types knows such classes by their names and fields alone; where two agree, the
    second kernel works, but looks its types up for 0.15 ms at every call.
    """
    return re.sub(r"\W+", "_", ".".join(recipe.owner))


def _module_text(recipe: KernelRecipe) -> str:
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
