"""`gammalab study-published NAME`: our numbers beside published ones, from a user's copy of them.

Nothing published is shipped: every suite reads the files that it is given.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

from experiments.common.results import command_line, versions, write_result
from experiments.options import PublishedOptions
from real_backend.command_line import Result
from traces.errors import InputError
from traces.store import refuse_existing

Study = Callable[[PublishedOptions], tuple[str, dict[str, Any]]]


@dataclasses.dataclass(frozen=True)
class PublishedSuite:
    """One published table. module: holds `study`, which turns the arguments into the text and the
    JSON-ready result. needs: the options beside --data that it must have.
    """

    module: str
    data: str
    needs: tuple[str, ...] = ()


SUITES = {
    "spec-bench": PublishedSuite(
        "spec_bench",
        "answer file of a run with the heuristic schedule (hemingkx/Spec-Bench's format)",
        needs=("vanilla",),
    ),
    "specforge": PublishedSuite("specforge", "sgl-project/SpecForge's benchmark table, CSV"),
    "microbenchmarks": PublishedSuite(
        "layers", "milliseconds per layer by token count, CSV (from microsoft/vidur)"
    ),
    "iid": PublishedSuite(
        "control", "a trace; the control that is expected to fail", needs=("timing",)
    ),
}


def find_suite(name: str) -> PublishedSuite:
    """The suite of that name; raises InputError naming those there are."""
    if name not in SUITES:
        known = "; ".join(f"{key}: {suite.data}" for key, suite in SUITES.items())
        raise InputError(f"no suite {name!r}; known are {known}")
    return SUITES[name]


def run(options: PublishedOptions) -> Result:
    """The whole command."""
    suite = find_suite(options.name)
    for option in ("vanilla", "timing"):
        given = getattr(options, option) is not None
        if option in suite.needs and not given:
            raise InputError(f"{options.name} needs --{option} FILE beside --data")
        if given and option not in suite.needs:
            raise InputError(f"{options.name} takes no --{option}")
    if options.out is not None:
        refuse_existing(options.out, options.force)
    study: Study = importlib.import_module(f"experiments.published.{suite.module}").study
    text, found = study(options)
    result = {
        "suite": options.name,
        "command": command_line(),
        "versions": versions(),
        "data": [path.name for path in options.data],
        **found,
    }
    if options.out is not None:
        write_result("study-published", result, options.out, overwrite=options.force)
    return Result(text, result)
