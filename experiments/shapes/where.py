"""`gammalab studies trees`: where trees pay, by recording, prices and rows.

For every recording, costs and number of rows that draft alike: the best static tree, `payback` on a
chain and `payback` on a tree, over the chain whose length was tuned there. All are chosen on the
training half and judged on the held-out one, as in experiments.shapes.study.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common.cost_sources import read_costs
from experiments.common.frames import csv_of, described, frame_of, meanings, text_of
from experiments.common.plots import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    Picture,
    finish,
    use_style,
    write_pictures,
)
from experiments.common.text_table import fill
from experiments.shapes.study import COLUMNS, ShapeResult, judged
from experiments.shapes.ways import (
    TREES,
    TUNED,
    Half,
    Ways,
    check_drafter,
    halves_of,
    ways_of,
    widest_of,
)
from experiments.studies import TreesOptions
from policies.registry import parse_policy
from real_backend.command_line import Result
from traces.errors import InputError
from traces.shapes.unfold import check_ranks
from traces.shipped import GREEDY, TIMING
from traces.store import read_trace

RULE = "payback"
BEST = "best tree"
LINES = {BEST: BLUE, f"{RULE}, chain": GREY, f"{RULE}, tree": ORANGE}


@dataclasses.dataclass(frozen=True)
class Panel:
    """One recording at one machine's prices; rows by number of rows and way to draft."""

    recording: str
    costs: str
    found: tuple[ShapeResult, ...]


def run(options: TreesOptions) -> Result:
    """The tables, and the figure. Raises InputError as experiments.shapes.study.run."""
    panels = []
    for path in options.trace or (GREEDY,):
        trace = read_trace(path)
        check_ranks(trace)
        for name in options.cost or (str(TIMING),):
            priced = read_costs(name)
            check_drafter(priced, name, trace.meta.drafter)
            if priced.slots and max(options.batch) > priced.slots:
                raise InputError(
                    f"--batch {max(options.batch)}: {name} was measured up to {priced.slots}"
                )
            widest, found = widest_of(priced), list[ShapeResult]()
            for batch in dict.fromkeys(options.batch):
                train, test = halves_of(trace, priced, [], [], widest, options.seed, batch)
                ways = few_of(ways_of(train, [], [parse_policy(RULE)], widest, options.seed), train)
                found += judged(ways, test, batch=batch, seed=options.seed)[1:]  # but plain
            panels.append(Panel(path.stem, name.rpartition("/")[2], tuple(found)))
    picture = draw(panels)
    write_pictures([picture], options.out)
    frame = frame_of([row for panel in panels for row in panel.found])
    frame.insert(0, "recording", [p.recording for p in panels for _ in p.found])
    frame.insert(1, "costs", [p.costs for p in panels for _ in p.found])
    groups = [
        (f"{p.recording}, {p.costs}", frame_of([row for row in p.found if row.name != TUNED]))
        for p in panels
    ]
    text = [text_of(COLUMNS, groups), meanings(COLUMNS), fill(picture.caption)]
    content = {"columns": described(COLUMNS), "rows": frame.to_dict("records")}
    return Result("\n\n".join(text), content, csv_of(COLUMNS, frame))


def few_of(ways: Ways, train: Half) -> Ways:
    """Plain decoding, the tuned chain, and the ways of the figure."""
    trees = [way for way in ways.all if way.name in TREES and way.shape is not None]
    best = min(trees, key=lambda way: train.play(way).seconds.sum())._replace(name=BEST)
    others = [way for way in ways.all if way.name in LINES]
    return Ways([ways.all[0], ways.baseline, best, *others], ways.baseline, [])


def draw(panels: Sequence[Panel]) -> Picture:
    """Gains over the tuned chain by rows: a line a way to draft, a panel a recording and costs."""
    recordings = list(dict.fromkeys(panel.recording for panel in panels))
    costs = list(dict.fromkeys(panel.costs for panel in panels))
    use_style()
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(
        len(recordings), len(costs), squeeze=False, sharex=True, sharey=True,
        figsize=(3.3 * len(costs) + 0.8, 2.7 * len(recordings) + 1.2), layout="constrained",
    )  # fmt: skip
    for panel in panels:
        row, column = recordings.index(panel.recording), costs.index(panel.costs)
        _draw(grid[row][column], panel)
        if row == 0:
            grid[row][column].set_title(panel.costs.replace(":", "\n", 1), fontsize=9, color=INK)
        if column == 0:
            grid[row][column].set_ylabel(f"{panel.recording}\nover the tuned chain", fontsize=9)
        if row == len(recordings) - 1:
            grid[row][column].set_xlabel("rows that draft alike", fontsize=9)
    grid[0][0].legend(frameon=False, fontsize=8, loc="upper right")
    return finish(figure, "where-trees-pay", _finding(panels), CAPTION)


CAPTION = (
    "Tokens/s over the chain whose length was tuned for that many rows, on held-out replies; bands "
    "are 95 % intervals over questions. Prices are a timing's or a formula's: masks and the gather "
    "of accepted places are not in them."
)


def _draw(axes: Any, panel: Panel) -> None:
    axes.axhline(1.0, color=INK, linewidth=0.8)
    for (name, colour), style in zip(LINES.items(), ("o-", "s--", "^-"), strict=True):
        mine = [row for row in panel.found if row.name == name]
        rows = [row.batch for row in mine]
        axes.plot(rows, [row.vs_chain.value for row in mine], style, color=colour, label=name,
                  markersize=4, linewidth=1.4)  # fmt: skip
        low, high = [row.vs_chain.low for row in mine], [row.vs_chain.high for row in mine]
        axes.fill_between(rows, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    ticks = sorted({row.batch for row in panel.found})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.spines[["top", "right"]].set_visible(False)


def _finding(panels: Sequence[Panel]) -> str:
    """The most rows at which the best tree is faster than the tuned chain, beyond doubt."""
    pays = [
        row.batch
        for panel in panels
        for row in panel.found
        if row.name == BEST and row.vs_chain.low > 1.0
    ]
    if not pays:
        return "No static tree is faster than the tuned chain here"
    of_all = len({(panel.recording, panel.costs) for panel in panels})
    paying = sum(
        any(row.name == BEST and row.vs_chain.low > 1.0 for row in panel.found) for panel in panels
    )
    return (
        f"A static tree beats the tuned chain in {paying} of {of_all} worlds, up to "
        f"{int(np.max(pays))} rows"
    )
