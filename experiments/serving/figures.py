"""Figures of serving: load over time, and the answers to fleet questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.patches import Rectangle

from experiments.common.plots import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    Picture,
    canvas,
    cut_colour_bar,
    finish,
    named_rows,
    use_style,
)
from experiments.common.statistics import Interval
from policies.registry import title

SHOWN = 4
HARDLY = 0.05  # requests that wait on average: fewer are no queue


def table_figure(
    sizes: Sequence[int], gammas: Sequence[int], speeds: Sequence[Sequence[float]],
    best: Sequence[int],
) -> Picture:  # fmt: skip
    """Tokens/s over plain decoding by users and fixed gamma; the chosen gamma is framed."""
    values = np.asarray(speeds)
    ratio = values / values[:, :1]
    figure, axes = canvas(1.8 + 0.8 * len(gammas), max(3.4, 1.6 + 0.45 * len(sizes)))
    spread = max(float(np.abs(ratio - 1).max()), 0.05)
    sns.heatmap(
        ratio, ax=axes, annot=True, fmt=".2f", linewidths=1.2,
        cmap=sns.diverging_palette(30, 240, s=90, l=55, as_cmap=True),
        vmin=1 - spread, vmax=1 + spread,
        xticklabels=[str(g) for g in gammas], yticklabels=[str(n) for n in sizes],
        cbar_kws={"label": "tokens/s over plain decoding"},
    )  # fmt: skip
    cut_colour_bar(axes, float(ratio.min()), float(ratio.max()))
    for row, gamma in enumerate(best):
        frame = Rectangle((gamma, row), 1, 1, fill=False, edgecolor=INK, linewidth=2.4)
        frame.set_clip_on(False)  # whole at the edges, too
        axes.add_patch(frame)
    axes.set(xlabel="gamma, tokens drafted per round", ylabel="users (= slots)")
    axes.tick_params(length=0, labelrotation=0)
    finding = (
        f"The best fixed gamma goes from {best[0]} with {sizes[0]} user{'s' * (sizes[0] > 1)} to "
        f"{best[-1]} with {sizes[-1]}"
    )
    if len(set(best)) == 1:
        more = f" to {sizes[-1]}" if len(sizes) > 1 else ""
        finding = f"The best fixed gamma is {best[0]} with {sizes[0]}{more} user"
        finding += "s" * (sizes[-1] > 1)
    caption = (
        "Closed loop: every user asks again as soon as a reply has ended. The frame marks the "
        "smallest gamma within half a percent of the fastest. Orange: slower than not drafting."
    )
    return finish(figure, "table", finding, caption)


def loads_figure(loads: Sequence[float], faster: Mapping[str, Sequence[float]]) -> Picture:
    """How much faster replies are than under plain decoding, by load."""
    figure, axes = canvas(9.5, 5.2)
    styles = ("-", "--", ":", "-.")
    names = [name for name in faster if name.startswith("fixed")]
    adaptive = [name for name in faster if name not in (*names, "never")]
    names += sorted(adaptive, key=lambda name: -sum(faster[name]))[:SHOWN]
    for k, name in enumerate(names):
        color = ORANGE if name.startswith("fixed") else BLUE
        axes.plot(loads, faster[name], styles[k % 4], color=color, marker="osDv^P*X"[k % 8],
                  markersize=5, label=title(name))  # fmt: skip
    axes.axhline(1.0, color=GREY, linewidth=1)
    axes.set_ylim(bottom=min(0.9, *(min(faster[name]) - 0.05 for name in names)))
    axes.set_xlabel("load: requests/s over what plain decoding finishes with all slots busy")
    axes.set_ylabel("mean seconds of a reply, plain over policy")
    axes.legend(frameon=False, fontsize=9, ncols=2)
    sns.despine(ax=axes)
    top = max(names, key=lambda name: faster[name][-1])
    finding = (
        f"At {loads[-1]:g} times plain decoding's capacity replies come {faster[top][-1]:.2f} "
        f"times as fast under {title(top)}"
    )
    caption = (
        "Poisson arrivals, the same for all. Orange: fixed lengths; blue: the best adaptive "
        f"rules, at most {SHOWN}. Below the line drafting costs more than it brings. Around load 1 "
        "a queue forms under plain decoding, which a faster policy has not yet."
    )
    return finish(figure, "break-even", finding, caption)


def bars_figure(name: str, values: Mapping[str, Interval], meaning: str, unit: str) -> Picture:
    """A bar per policy, longest first, with its interval over seeds. unit: of a value, for the
    title.
    """
    means = {key: value.mean for key, value in values.items()}
    order = sorted(means, key=lambda key: means[key])
    figure, axes = canvas(9.0, 1.6 + 0.36 * len(order))
    colors = [ORANGE if key.startswith(("fixed", "never")) else BLUE for key in order]
    axes.barh(range(len(order)), [means[key] for key in order], color=colors, height=0.62)
    ends = [means[key] if np.isnan(values[key].high) else values[key].high for key in order]
    for y, (key, end) in enumerate(zip(order, ends, strict=True)):
        axes.plot([values[key].low, values[key].high], [y, y], color=INK, linewidth=1.4)
        axes.text(end, y, f" {means[key]:.2f}", va="center", fontsize=10)
    axes.set_xlim(0, 1.12 * max(ends) or 1)
    axes.set_xlabel(meaning)
    named_rows(axes, [title(key) for key in order])
    best, worst = order[-1], order[0]
    finding = f"{title(best)} is first with {means[best]:.2f} {unit}{_between(values[best])}, "
    finding += f"{title(worst)} last with {means[worst]:.2f}{_between(values[worst])}"
    caption = (
        "Orange: plain decoding and fixed lengths; blue: rules that adapt. Means over seeds; line: "
        "95 % interval, none with one seed."
    )
    return finish(figure, name, finding, caption)


def _between(value: Interval) -> str:
    """The interval behind a mean; nothing where there is none."""
    if np.isnan(value.high) or value.low == value.high:
        return ""
    return f" ({value.low:.2f}-{value.high:.2f})"


def series_figure(series: Mapping[str, Any], bin_s: float) -> Picture:
    """Requests that decode and wait, over time, a line per policy.

    series: bins [replicas, B] (simulator.serving.state.BIN) by policy; at most six policies are
    drawn, the first and those whose queue is shortest.
    """
    waits = {
        name: float(bins["waiting_s"].sum() / bins["busy_s"].sum()) for name, bins in series.items()
    }
    first, *others = series
    names = [first, *sorted(others, key=lambda name: waits[name])[:5]]
    use_style()
    figure, panels = plt.subplots(2, 1, figsize=(10, 5.2), sharex=True, layout="constrained")
    last = max(int(np.flatnonzero(series[name]["busy_s"].sum(axis=0)).max()) for name in names)
    width = max(1, (last + 1) // 200)  # bins to a point
    for k, name in enumerate(names):
        sums = {
            field: _by(series[name][field].sum(axis=0)[: last + 1], width)
            for field in ("busy_s", "running_s", "waiting_s")
        }
        busy = np.where(sums["busy_s"] > 0, sums["busy_s"], np.nan)
        at = np.arange(len(busy)) * width * bin_s
        color = INK if name == first else sns.color_palette("colorblind")[k - 1]
        panels[0].plot(at, sums["running_s"] / busy, color=color, label=title(name), linewidth=1.4)
        panels[1].plot(at, sums["waiting_s"] / busy, color=color, linewidth=1.4)
    panels[0].set_ylabel("decode")
    panels[1].set_ylabel("wait")
    panels[1].set_xlabel("seconds since the first request could come")
    figure.supylabel("mean requests while busy", fontsize=11)
    for axes in panels:
        axes.set_ylim(bottom=0)
        sns.despine(ax=axes)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    calm, crowded = min(waits, key=waits.__getitem__), max(waits, key=waits.__getitem__)
    finding = (
        f"The queue is shortest under {title(calm)} ({waits[calm]:.2f} requests), longest under "
        f"{title(crowded)} ({waits[crowded]:.2f})"
    )
    if waits[crowded] < HARDLY:
        finding = f"Hardly anybody waits for a slot: at most {waits[crowded]:.3f} requests"
    if waits[crowded] == 0.0:
        finding = "Nobody waits for a slot under any policy"
    caption = (
        f"The first seed's run, {width * bin_s:g} s to a point. Waiting: requests without a slot "
        "when an iteration begins. At most six policies are drawn: the first, and the five with "
        "the shortest queue; queues are means over the time that the machine works."
    )
    return finish(figure, "series", finding, caption)


def _by(values: Any, width: int) -> Any:
    """Sums of `width` neighbours; the last ones may be fewer."""
    return np.add.reduceat(values, np.arange(0, len(values), width))
