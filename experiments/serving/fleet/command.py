"""`gammalab fleet QUESTION`: what an operator asks of a server, answered by serving."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from experiments.common.cost_sources import read_costs
from experiments.common.frames import csv_of
from experiments.common.plots import write_pictures
from experiments.common.results import (
    command_line,
    dumps,
    jsonable,
    versions,
    write_result,
    write_text,
)
from experiments.options import FleetOptions
from experiments.serving.fleet.break_even import break_even
from experiments.serving.fleet.bursts import bursts
from experiments.serving.fleet.capacity import slo_capacity
from experiments.serving.fleet.gamma_table import best_table
from experiments.serving.fleet.placement import placement
from experiments.serving.fleet.question import Answer, Setting
from experiments.serving.serve import say_what_is_stretched, settings
from policies.base import uses_signals
from policies.registry import parse_policies
from real_backend.progress import progress
from simulator.serving.metrics import Objective
from simulator.serving.options import Server
from traces.errors import InputError
from traces.store import read_trace, refuse_existing

ADAPTIVE = "vllm-dynamic,sglang-tiers,sglang-throughput,alpha-goodput,nightjar,goodput,tail-pruning"
ADAPTIVE += ",payback"

QUESTIONS: dict[str, Callable[[Setting], Answer]] = {
    "table": best_table,
    "break-even": break_even,
    "bursts": bursts,
    "capacity": slo_capacity,
    "placement": placement,
}


def run(options: FleetOptions) -> int:
    """The command."""
    if options.question not in QUESTIONS:
        raise InputError(f"unknown question {options.question!r}; known: {', '.join(QUESTIONS)}")
    out: Path | None = options.out
    if out is not None:
        refuse_existing(out / "fleet.json", options.force)
    ask = setting(options)
    if options.csv and options.question != "table":
        raise InputError(f"--csv: the answer to {options.question} is no one table; take --json")
    with progress(None, options.question) as step:
        answer = QUESTIONS[options.question](dataclasses.replace(ask, step=step))
    about = {
        "command": command_line(), "versions": versions(), "question": options.question,
        "costs": ask.priced.about, "server": jsonable(ask.server), "trace": options.trace.name,
    }  # fmt: skip
    result = about | {"answer": jsonable(answer.result)}
    text = f"{basis_of(ask, options)}\n\n{answer.text}"
    if out is not None:
        write_pictures(list(answer.pictures), out / "figures")
        write_result("fleet", result, out / "fleet.json", overwrite=True)
        write_text(text, out / "fleet.txt")
    if answer.frame is not None and options.csv:
        print(csv_of(answer.columns, answer.frame), end="")
    else:
        print(dumps(result) if options.json else text)
    return 0


def setting(options: FleetOptions) -> Setting:
    """The setting that the options describe."""
    trace, priced = read_trace(options.trace), read_costs(options.timing)
    server = settings(Server(slots=priced.slots or 64), options.server, "--server")
    say_what_is_stretched(trace, priced, server, options)
    policies = parse_policies(options.policies or ADAPTIVE)
    if options.policies and options.question == "table":
        raise InputError("--policies is not for `fleet table`, which is about fixed lengths alone")
    if not options.policies:
        policies = [p for p in policies if trace.has_signals or not uses_signals(p)]
    seeds = range(options.seed, options.seed + options.seeds)
    objective = settings(Objective(), options.slo, "--slo")
    return Setting(trace, priced, server, objective, options.requests, seeds, tuple(policies))


def basis_of(ask: Setting, options: FleetOptions) -> str:
    """The basis of the answer."""
    return (
        f"acceptance of {ask.trace.meta.pair} ({options.trace.name}), costs {options.timing}, "
        f"{ask.server.slots} slots, {options.requests} requests or more, {len(ask.seeds)} seeds"
    )
