"""Learning curves and regret: what training gains with time, and what online learners lose by
learning.

    gammalab studies regret --trace T.parquet --timing C.json --networks NET.json
    --out DIR

Regret of a policy after n tokens: its decode seconds so far less those of the best fixed length
(known in hindsight), requests in shuffled order, one after another as the environments play them.
The clairvoyant schedule is the line no one can cross.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.common.cost_sources import step_costs
from experiments.common.frames import Column, figure, frame_of, text_of, words
from experiments.common.plots import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    Picture,
    canvas,
    finish,
    write_pictures,
)
from experiments.common.text_table import number
from experiments.studies import RegretOptions
from policies.base import Policy
from policies.registry import label, parse_policies, read_policies, title
from real_backend.command_line import Result
from simulator.replay.hindsight import best_fixed, clairvoyant
from simulator.replay.metrics import per_request
from simulator.replay.replay import replay
from traces.costs.pricing import StepCosts
from traces.schema import Trace
from traces.split import split_rows
from traces.store import read_trace
from traces.timing import read_timing

FloatArray = npt.NDArray[np.float64]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


def orders(trace: Trace, passes: int, seed: int) -> Trace:
    """All requests in shuffled order, several times over, each time under another name."""
    random = np.random.default_rng(seed)
    parts = [trace.select(random.permutation(trace.requests)) for _ in range(passes)]

    def joined(name: str) -> Any:
        columns = [getattr(part, name) for part in parts]
        return None if columns[0] is None else np.concatenate(columns)

    ends = [part.offsets[1:] + k * trace.positions for k, part in enumerate(parts)]
    names = [f"{name}#{k}" for k, part in enumerate(parts) for name in part.request_id]
    return Trace(
        meta=trace.meta,
        offsets=np.concatenate([np.zeros(1, dtype=np.int64), *ends]),
        prompt_tokens=joined("prompt_tokens"),
        request_id=tuple(names),
        category=tuple(task for part in parts for task in part.category),
        accept_len=joined("accept_len"),
        top1_prob=joined("top1_prob"),
        entropy=joined("entropy"),
    )


def regrets(
    trace: Trace, costs: StepCosts, policies: Mapping[str, Policy], *, seed: int
) -> tuple[FloatArray, dict[str, FloatArray]]:
    """Tokens emitted after every request, and by policy the seconds lost to the best fixed length
    until then.
    """
    _, fixed = best_fixed(trace, costs)
    base = np.cumsum(per_request(fixed).decode_s)
    found = {name: replay(p, trace, costs, seed=seed) for name, p in policies.items()}
    found["clairvoyant"] = clairvoyant(trace, costs)
    lost = {name: np.cumsum(per_request(log).decode_s) - base for name, log in found.items()}
    return np.cumsum(trace.reply_tokens).astype(np.float64), lost


def regret_figure(tokens: FloatArray, lost: dict[str, FloatArray], best: str) -> Picture:
    """Seconds lost against tokens emitted."""
    figure, axes = canvas(9.0, 5.2)
    shown = {name: line for name, line in lost.items() if name != "clairvoyant"}
    for k, (name, line) in enumerate(sorted(shown.items(), key=lambda item: -item[1][-1])):
        style = ("-", "--", "-.", ":")[k % 4]
        axes.plot(tokens / 1e3, line, style, color=COLOURS[k % len(COLOURS)], linewidth=1.8)
        axes.annotate(
            f" {name} {line[-1]:+.1f} s",
            (tokens[-1] / 1e3, line[-1]),
            fontsize=9,
            va="center",
            color=COLOURS[k % len(COLOURS)],
        )
    axes.axhline(0.0, color=INK, linewidth=1.0)
    axes.annotate(
        f" best length: {best}", (tokens[-1] / 1e3, 0.0), fontsize=9, va="bottom", color=INK
    )
    axes.set_xlim(0, tokens[-1] / 1e3 * 1.28)
    axes.set_xlabel("tokens emitted, thousands")
    axes.set_ylabel("decode seconds lost to the best fixed length")
    worst = max(shown, key=lambda name: shown[name][-1])
    least = min(shown, key=lambda name: shown[name][-1])
    ahead = -lost["clairvoyant"][-1]
    return finish(
        figure,
        "regret",
        f"{least} gains most on the best fixed length ({-shown[least][-1]:.1f} s), {worst} loses "
        f"most ({shown[worst][-1]:.1f} s)",
        f"Below zero is better; the clairvoyant schedule ends {ahead:.1f} s below.",
    )


def read_curve(path: Path) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Seconds, score on the requests trained on, score on those kept for validation."""
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = (np.array([float(r[c]) for r in rows]) for c in ("seconds", "fit", "validation"))
    seconds, fit, kept = columns
    return seconds, fit, kept


def curves_figure(curves: dict[str, Path]) -> Picture:
    """Score against wall time, of every run that left a curve."""
    figure, axes = canvas(9.0, 4.6)
    tops = {}
    for k, (name, path) in enumerate(curves.items()):
        seconds, fit, kept = read_curve(path)
        colour = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00")[k % 5]
        axes.plot(seconds, fit, color=colour, linewidth=0.9, linestyle=":")
        axes.plot(seconds, kept, color=colour, linewidth=1.8, label=name)
        tops[name] = float(kept.max())
    axes.axhline(1.0, color=GREY, linewidth=1.0)
    low = min(float(np.quantile(read_curve(path)[2], 0.1)) for path in curves.values())
    high = max(float(read_curve(path)[1].max()) for path in curves.values())
    axes.set_ylim(min(low, 1.0) - 0.01, max(1.0, high, *tops.values()) + 0.01)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("tokens/s over the best fixed length")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    best = max(tops, key=lambda name: tops[name])
    return finish(
        figure,
        "training",
        f"{best} gets furthest: {tops[best]:.2f} times the tokens/s of the best fixed length, on "
        "requests kept for validation",
        "Solid: validation requests; dotted: requests trained on. The lowest tenth is cut off.",
    )


def run(options: RegretOptions) -> Result:
    """`gammalab studies regret`: online learners and networks on the held-out half; figures."""
    whole = read_trace(options.trace)
    trace = orders(whole.select(split_rows(whole)[1]), options.passes, options.seed)
    costs = step_costs(read_timing(options.timing), trace)
    policies = {title(label(policy)): policy for policy in parse_policies(options.policies)}
    for path in options.networks:
        for k, policy in enumerate(read_policies(path)):
            policies[f"{path.stem}{f'-{k + 1}' * (k > 0)} ({policy.name})"] = policy
    gamma, _ = best_fixed(trace, costs)
    tokens, lost = regrets(trace, costs, policies, seed=options.seed)
    pictures = [regret_figure(tokens, lost, f"gamma = {gamma}")]
    curves = {path.stem: path.with_suffix(".run") / "curve.csv" for path in options.networks}
    if curves := {name: path for name, path in curves.items() if path.is_file()}:
        pictures.append(curves_figure(curves))
    write_pictures(pictures, options.out)
    quarter = len(tokens) // options.passes
    frame = frame_of(
        {"policy": name, "one_pass_s": line[quarter - 1], "all_s": line[-1],
         "per_token_s": line[-1] / tokens[-1]}
        for name, line in sorted(lost.items(), key=lambda item: item[1][-1])
    )  # fmt: skip
    columns = (
        words("policy", "policy", None, ""),
        figure("one_pass_s", "after one pass, s", None, "", unit="s"),
        figure("all_s", f"after {options.passes}, s", None, "", unit="s"),
        Column("per_token_s", "us per token", None, "s", "", ("per_token_s",),
               lambda row: number(1e6 * row["per_token_s"], 1)),
    )  # fmt: skip
    return Result(
        f"regret to gamma = {gamma}, the best fixed length in hindsight; {tokens[-1]:,.0f} tokens\n"
        + text_of(columns, [("", frame)])
    )
