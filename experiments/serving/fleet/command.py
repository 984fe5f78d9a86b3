"""`gammalab fleet QUESTION`: what an operator asks of a server, answered by serving."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from experiments.common.cost_sources import read_costs
from experiments.common.frames import csv_of, described, meanings, rows_of, text_of
from experiments.common.plots import captions, write_pictures
from experiments.common.results import command_line, fits, versions, write_result, write_text
from experiments.options import FleetOptions
from experiments.serving.fleet import (
    break_even,
    bursts,
    capacity,
    gamma_table,
    placement,
    routing,
)
from experiments.serving.fleet.question import FleetQuestion, FleetSetting
from experiments.serving.serve import say_what_is_stretched, settings
from policies.registry import parse_policies
from real_backend.command_line import Result
from real_backend.progress import progress
from simulator.serving.metrics import Objective
from simulator.serving.options import Server
from traces.errors import InputError
from traces.json_text import jsonable
from traces.store import read_trace, refuse_existing

ADAPTIVE = "vllm-dynamic,sglang-tiers,sglang-throughput,alpha-goodput,nightjar,goodput,tail-pruning"
ADAPTIVE += ",payback"

QUESTIONS = {
    "table": FleetQuestion(gamma_table.best_table, gamma_table.columns),
    "break-even": FleetQuestion(break_even.break_even, break_even.columns),
    "bursts": FleetQuestion(bursts.bursts, bursts.columns),
    "capacity": FleetQuestion(capacity.slo_capacity, capacity.columns),
    "placement": FleetQuestion(placement.placement, placement.columns),
    "routing": FleetQuestion(routing.routing, routing.columns),
}


def run(options: FleetOptions) -> Result:
    """`gammalab fleet`."""
    if options.question not in QUESTIONS:
        raise InputError(f"unknown question {options.question!r}; known: {', '.join(QUESTIONS)}")
    out: Path | None = options.out
    if out is not None:
        refuse_existing(out / "fleet.json", options.force)
    ask = setting(options)
    question = QUESTIONS[options.question]
    with progress(None, options.question) as step:
        answer = question.answer(dataclasses.replace(ask, step=step))
    columns = question.columns(answer.frame)
    about = {
        "command": command_line(), "versions": versions(), "question": options.question,
        "costs": ask.priced.about, "server": jsonable(ask.server), "trace": options.trace.name,
    }  # fmt: skip
    basis = basis_of(ask, options)
    said = {"basis": basis, "about": answer.about, "notes": answer.notes}
    table = {"columns": described(columns), "rows": rows_of(answer.frame)}
    drawn = {"pictures": captions(answer.pictures)}
    result = about | {"answer": said | table | answer.more | drawn}
    shown = [text_of(columns, [("", answer.frame)]), meanings(columns)]
    text = "\n\n".join(filter(None, [basis, answer.about, *shown, *answer.notes]))
    if out is not None:
        write_pictures(list(answer.pictures), out / "figures")
        write_result("fleet", result, out / "fleet.json", overwrite=True)
        write_text(text, out / "fleet.txt")
    return Result(text, result, csv_of(columns, answer.frame))


def setting(options: FleetOptions) -> FleetSetting:
    """The setting that the options describe."""
    trace, priced = read_trace(options.trace), read_costs(options.timing)
    server = settings(Server(slots=priced.slots or 64), options.server, "--server")
    say_what_is_stretched(trace, priced, server, options)
    policies = parse_policies(options.policies or ADAPTIVE)
    if options.policies and options.question == "table":
        raise InputError("--policies is not for `fleet table`, which is about fixed lengths alone")
    if not options.policies:
        policies = [p for p in policies if fits(p, trace)]
    seeds = range(options.seed, options.seed + options.seeds)
    objective = settings(Objective(), options.slo, "--slo")
    return FleetSetting(trace, priced, server, objective, options.requests, seeds, tuple(policies))


def basis_of(ask: FleetSetting, options: FleetOptions) -> str:
    """The basis of the answer."""
    return (
        f"acceptance of {ask.trace.meta.pair} ({options.trace.name}), costs {options.timing}, "
        f"{ask.server.slots} slots, {options.requests} requests or more, {len(ask.seeds)} seeds"
    )
