"""Trained on one task or at one cost ratio, judged on all: where a network is at home, and where a
ten-line rule beats it.

    gammalab studies transfer --trace T.parquet --timing C.json --out DIR

Every cell is tokens/s on the held-out half of a world over those of its best fixed length, chosen
on its training half. A network has seen the training half of its own world alone. Runs lie in
DIR/runs and are not made twice; what they were made of is noted in DIR/run.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.common.results import write_text
from experiments.common.text_table import table
from experiments.learning import ppo
from experiments.learning.task import Task, make_task
from experiments.learning.train import begin, fit_ppo
from experiments.studies import TransferOptions
from policies.base import Policy
from policies.fixed import Fixed
from policies.learned.neural import neural_policy, quantise
from policies.registry import parse_policy
from real_backend.command_line import Result
from real_backend.progress import progress
from simulator.replay.totals import tally
from traces.costs.pricing import StepCosts
from traces.json_text import dumps
from traces.schema import Trace
from traces.split import split_rows
from traces.store import content_hash, read_trace, write_atomically
from traces.timing import Timing, read_timing

RATIOS = (2.0, 4.0, 8.0, 16.0)
RULES = ("payback", "hf-confidence", "tail-pruning:theta=0.4")
TEN_LINES = "hf-confidence"


@dataclasses.dataclass(frozen=True)
class Condition:
    """A name, the requests of both halves, and what they cost."""

    name: str
    train: Trace
    test: Trace
    task: Task

    @property
    def costs(self) -> StepCosts:
        """The one cost table."""
        return self.task.fit.costs[0]

    def score(self, policy: Policy) -> float:
        """Held-out speed over that of the best fixed length of the training half."""
        gammas = range(self.train.meta.depth + 1)
        seconds = [tally(Fixed(g), self.train, self.costs).decode_s.sum() for g in gammas]
        fixed = Fixed(int(np.argmin(seconds)))
        runs = (tally(p, self.test, self.costs).decode_s.sum() for p in (fixed, policy))
        return float(next(runs) / next(runs))


def conditions_of(trace: Trace, timing: Timing, unit: str) -> list[Condition]:
    """Every task at the measured costs; all tasks at the measured costs and at every ratio."""

    def condition(name: str, part: Trace, ratio: float) -> Condition:
        train, test = (part.select(rows) for rows in split_rows(part))
        task = make_task([part], timing, unit=unit, ratios=(ratio,))
        return Condition(name, train, test, task)

    found = []
    for name in dict.fromkeys(trace.category):
        rows = [row for row, category in enumerate(trace.category) if category == name]
        found.append(condition(name, trace.select(rows), 0.0))
    found.append(condition("all, measured", trace, 0.0))
    return found + [condition(f"c = {ratio:g}", trace, ratio) for ratio in RATIOS]


def study(
    conditions: Sequence[Condition], settings: ppo.PPOSettings, lanes: int, folder: Path
) -> dict[str, list[float]]:
    """Scores in every world: of the network of every world, then of the rules."""
    found = {}
    with progress(len(conditions), "worlds") as step:
        for condition in conditions:
            run = folder / condition.name.replace(" ", "").replace(",", "-")
            best = fit_ppo(condition.task, settings, lanes=lanes, folder=run).best
            policy = neural_policy(quantise(*best))
            found[f"net: {condition.name}"] = [other.score(policy) for other in conditions]
            step()
    for spec in RULES:
        found[spec] = [condition.score(parse_policy(spec)) for condition in conditions]
    return found


def text_of(conditions: Sequence[Condition], scores: dict[str, list[float]]) -> str:
    """The table; a network's cell below the ten-line rule's ends in "-"."""
    rule = scores[TEN_LINES]
    rows = []
    for name, values in scores.items():
        loses = [name.startswith("net") and v < r for v, r in zip(values, rule, strict=True)]
        rows.append([name, *(f"{v:.3f}{'-' * no}" for v, no in zip(values, loses, strict=True))])
    nets = [values for name, values in scores.items() if name.startswith("net")]
    home = sum(values[k] < rule[k] for k, values in enumerate(nets))
    away = sum(v < r for values in nets for v, r in zip(values, rule, strict=True)) - home
    lines = [
        "tokens/s on held-out replies over the best fixed length of the world's training half",
        table(
            ["trained on / judged on", *(condition.name for condition in conditions)], [("", rows)]
        ),
        f'"-": below {TEN_LINES} with its default threshold: {home} of {len(nets)} networks in '
        f"their own world, {away} of {len(nets) * (len(nets) - 1)} cells elsewhere",
    ]
    return "\n".join(lines)


def run(options: TransferOptions) -> Result:
    """`gammalab studies transfer`: train where there is no run yet, judge and write."""
    trace, timing = read_trace(options.trace), read_timing(options.timing)
    conditions = conditions_of(trace, timing, options.unit)
    settings = ppo.PPOSettings(iterations=options.iterations)
    about = {
        "trace": content_hash(trace), "timing": timing.meta, "unit": options.unit,
        "lanes": options.lanes,
        "settings": dataclasses.asdict(settings),
    }  # fmt: skip
    begin(options.out, about, force=False)
    scores = study(conditions, settings, options.lanes, options.out / "runs")
    text = text_of(conditions, scores)
    result = {"worlds": [condition.name for condition in conditions], "scores": scores}
    write_atomically(
        options.out / "transfer.json",
        lambda to: to.write_text(dumps(result), "utf-8"),
        overwrite=True,
    )
    write_text(text, options.out / "transfer.txt")
    return Result(text, result)
