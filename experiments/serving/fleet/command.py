"""`gammalab fleet QUESTION`: what an operator asks of a server, answered by serving."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

from experiments.common.cost_sources import read_costs
from experiments.common.plots import write_pictures
from experiments.common.results import (
    command_line,
    dumps,
    jsonable,
    versions,
    write_result,
    write_text,
)
from experiments.serving.fleet.break_even import break_even
from experiments.serving.fleet.bursts import bursts
from experiments.serving.fleet.capacity import slo_capacity
from experiments.serving.fleet.gamma_table import best_table
from experiments.serving.fleet.placement import placement
from experiments.serving.fleet.question import Answer, Setting
from experiments.serving.serve import check_inputs, settings
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


def run(args: argparse.Namespace) -> int:
    """The command."""
    if args.question not in QUESTIONS:
        raise InputError(f"unknown question {args.question!r}; known: {', '.join(QUESTIONS)}")
    out: Path | None = args.out
    if out is not None:
        refuse_existing(out / "fleet.json", args.force)
    ask = setting(args)
    with progress(None, args.question) as step:
        answer = QUESTIONS[args.question](dataclasses.replace(ask, step=step))
    about = {
        "command": command_line(), "versions": versions(), "question": args.question,
        "costs": ask.priced.about, "server": jsonable(ask.server), "trace": args.trace.name,
    }  # fmt: skip
    result = about | {"answer": jsonable(answer.result)}
    text = f"{basis_of(ask, args)}\n\n{answer.text}"
    if out is not None:
        write_pictures(list(answer.pictures), out / "figures")
        write_result("fleet", result, out / "fleet.json", overwrite=True)
        write_text(text, out / "fleet.txt")
    print(dumps(result) if args.json else text)
    return 0


def setting(args: argparse.Namespace) -> Setting:
    """The setting that the options describe."""
    trace, priced = read_trace(args.trace), read_costs(args.timing)
    server = settings(Server(slots=priced.slots or 64), args.server, "--server")
    args.warmup, args.timeline = 0.1, False
    check_inputs(trace, priced, server, args)
    policies = parse_policies(args.policies or ADAPTIVE)
    if args.policies and args.question == "table":
        raise InputError("--policies is not for `fleet table`, which is about fixed lengths alone")
    if not args.policies:
        policies = [p for p in policies if trace.has_signals or not uses_signals(p)]
    seeds = range(args.seed, args.seed + args.seeds)
    objective = settings(Objective(), args.slo, "--slo")
    return Setting(trace, priced, server, objective, args.requests, seeds, tuple(policies))


def basis_of(ask: Setting, args: argparse.Namespace) -> str:
    """What the answer rests on."""
    return (
        f"acceptance of {ask.trace.meta.pair} ({args.trace.name}), costs {args.timing}, "
        f"{ask.server.slots} slots, {args.requests} requests or more, {len(ask.seeds)} seeds"
    )
