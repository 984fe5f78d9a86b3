"""Figures of a comparison, each with its finding as title, computed from compare.json."""

from __future__ import annotations

import numpy as np
import seaborn as sns
from matplotlib.patches import Rectangle

from experiments.common.plots import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    Json,
    Picture,
    canvas,
    cut_colour_bar,
    finish,
    mark,
    named_rows,
)
from experiments.common.statistics import FEW, SAME, TIE
from policies.registry import title

VERDICT_STYLE = {
    "faster": (BLUE, "o", "faster than the tuned fixed length"),
    "slower": (ORANGE, "v", "slower"),
    TIE: (GREY, "s", "tie: no difference that is more than chance"),
    SAME: (GREY, "d", "the same rounds"),
    FEW: (GREY, "x", "too few questions to judge"),
}


def by_role(comparison: Json, role: str) -> Json:
    """The first row of that role."""
    found: Json = next(row for row in comparison["rows"] if row["role"] == role)
    return found


FEATURED = 10  # controllers in a figure, and in the open table of the page


def is_twin(row: Json, comparison: Json) -> bool:
    """A controller that takes the rounds of another controller at the same cost."""
    names = {other["name"] for other in comparison["rows"] if other["role"] == "policy"}
    return row["role"] == "policy" and row["twin"] in names


def featured_rows(comparison: Json) -> list[Json]:
    """The fastest controllers, and the one to talk about; fastest first."""
    rows = [row for row in controllers(comparison) if not is_twin(row, comparison)]
    talked = featured(comparison)
    names = (talked["name"], talked["twin"])
    first = next(row for row in rows if row["name"] in names or row["role"] != "policy")
    return rows[:FEATURED] if first in rows[:FEATURED] else [*rows[: FEATURED - 1], first]


def fixed_rows(comparison: Json) -> list[Json]:
    """Baselines and ceilings."""
    return [row for row in comparison["rows"] if row["role"] != "policy"]


def of_how_many(comparison: Json) -> str:
    """ "The 10 fastest of 61 controllers", for a caption."""
    shown, every = featured_rows(comparison), controllers(comparison)
    if len(every) <= len(shown):
        return "All controllers"
    return f"The {len(shown)} fastest of {len(every)} controllers"


def controllers(comparison: Json) -> list[Json]:
    """Controllers, fastest first; the tuned fixed length alone if nothing else was compared."""
    rows = [row for row in comparison["rows"] if row["role"] == "policy"]
    rows = rows or [by_role(comparison, "tuned") | {"verdict": SAME}]
    return sorted(rows, key=lambda row: -float(row["speedup"]["value"]))


def featured(comparison: Json) -> Json:
    """The controller to talk about: the recommended one, or the fastest if none is recommended.

    The training half recommends; the fastest of many on the held-out half is partly luck.
    """
    rows = controllers(comparison)
    return next((row for row in rows if row["name"] == comparison["recommended"]), rows[0])


def change(ratio: float) -> str:
    """1.024 -> "2.4 % faster than"; within half a thousandth: "as fast as"."""
    if abs(ratio - 1) < 0.0005:
        return "as fast as"
    return f"{abs(ratio - 1) * 100:.1f} % {'faster' if ratio > 1 else 'slower'} than"


def bounds(estimate: Json) -> tuple[float, float]:
    """The interval of an estimate; its value twice where there is none."""
    value = float(estimate["value"] or 0.0)
    low, high = estimate["low"], estimate["high"]
    return (value if low is None else float(low)), (value if high is None else float(high))


def _width(rows: list[Json]) -> float:
    """Inches of a figure with these names on its left."""
    return 7.6 + 0.085 * max(len(title(row["name"])) for row in rows)


def speedup_figure(comparison: Json) -> Picture:
    """Speed-up of the fastest controllers with their intervals; lines at the tuned fixed length and
    the ceiling.
    """
    rows = featured_rows(comparison)[::-1]
    figure, axes = canvas(_width(rows), 2.9 + 0.38 * len(rows))
    for y, row in enumerate(rows):
        value, color = row["speedup"]["value"], VERDICT_STYLE[row["verdict"]][0]
        axes.plot(bounds(row["speedup"]), [y, y], color=color, linewidth=2.2)
        axes.plot(value, y, VERDICT_STYLE[row["verdict"]][1], color=color, markersize=8)
        label = axes.text(value, y + 0.24, f"{value:.2f}", ha="center", color=color, fontsize=9)
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})
    fixed, ceiling = by_role(comparison, "tuned"), by_role(comparison, "clairvoyant")
    lines = [(1.0, "plain decoding", 0, ":")]
    lines += [(float(fixed["speedup"]["value"]), fixed["name"], 1, "-")]
    lines += [(float(ceiling["speedup"]["value"]), "clairvoyant", 2, "--")]
    for x, name, tier, style in lines:
        mark(axes, x, f"{name}\n{x:.2f}", rows=len(rows), tier=tier, style=style)
    edges = [edge for row in rows for edge in bounds(row["speedup"])] + [x for x, *_ in lines]
    margin = 0.07 * (max(edges) - min(edges)) + 0.01
    axes.set_xlim(min(edges) - margin, max(edges) + margin)
    axes.set_ylim(-0.7, len(rows) + 2.3)
    axes.set_xlabel("speed-up over plain decoding (ratio of tokens/s); bar: 95 % interval")
    given = {row["verdict"] for row in rows}
    for color, marker, text in (VERDICT_STYLE[word] for word in VERDICT_STYLE if word in given):
        axes.plot([], [], marker, color=color, label=text, markersize=8)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    named_rows(axes, [title(row["name"]) for row in rows])
    best = featured(comparison)
    finding = (
        f"{title(best['name'])} decodes {best['speedup']['value']:.2f} times as fast as plain "
        f"decoding, {change(best['vs_fixed']['value'])} the best fixed length"
        + ("" if best["verdict"] in ("faster", "slower") else f" ({best['verdict']})")
    )
    caption = (
        f"{of_how_many(comparison)}, on the same held-out replies. The solid line is the best "
        "constant draft length, chosen on other replies; the dashed line a schedule that knows "
        "in advance how many tokens will be accepted, which no controller can beat. Verdicts "
        "are paired: a controller can be reliably faster although its bar overlaps the line."
    )
    return finish(figure, "speedup", finding, caption)


def task_figure(comparison: Json) -> Picture:
    """Speed-up by task as a heat map; the fastest of every task is framed."""
    rows = [by_role(comparison, "tuned")]
    rows += [row for row in featured_rows(comparison) if row["role"] == "policy"]
    tasks = comparison["tasks"]
    values = np.asarray([[row["tasks"][task]["value"] for task in tasks] for row in rows])
    longest = max(len(title(row["name"])) for row in rows)
    figure, axes = canvas(0.1 * longest + 1.35 * max(len(tasks), 4), 1.8 + 0.42 * len(rows))
    spread = max(float(np.abs(values - 1.0).max()), 0.05)
    sns.heatmap(
        values,
        ax=axes,
        cmap=sns.diverging_palette(30, 240, s=90, l=55, as_cmap=True),
        vmin=1.0 - spread,
        vmax=1.0 + spread,
        annot=True,
        fmt=".2f",
        linewidths=1.5,
        cbar_kws={"label": "speed-up over plain decoding", "aspect": 30},
        xticklabels=[_plain(task).replace(" ", "\n", 1) for task in tasks],
        yticklabels=[title(row["name"]) for row in rows],
    )
    cut_colour_bar(axes, float(values.min()), float(values.max()))
    winners = values.argmax(axis=0)
    for k, row in enumerate(winners):
        frame = Rectangle((k, row), 1, 1, fill=False, edgecolor=INK, linewidth=2.4)
        frame.set_clip_on(False)
        axes.add_patch(frame)
    axes.tick_params(length=0, labelrotation=0)
    counts = np.bincount(winners, minlength=len(rows))
    champion, best = int(counts.argmax()), values.max(axis=0)
    low, high = int(best.argmin()), int(best.argmax())
    reach = f"is {best[high]:.2f} on {_plain(tasks[high])}"
    if round(best[low], 2) < round(best[high], 2):
        reach = (
            f"goes from {best[low]:.2f} on {_plain(tasks[low])} to {best[high]:.2f} on "
            f"{_plain(tasks[high])}"
        )
    finding = (
        f"Of these, {title(rows[champion]['name'])} is the fastest on {counts[champion]} of "
        f"{len(tasks)} tasks; the best speed-up {reach}"
    )
    caption = (
        f"Tokens/s over plain decoding, by task, on held-out replies. {of_how_many(comparison)} "
        "and the best constant length. Blue is faster than plain decoding, orange slower; the "
        "frame marks the fastest of each task. Small differences within a column may be "
        "chance: a task has only a share of the replies."
    )
    return finish(figure, "tasks", finding, caption)


def _plain(name: str) -> str:
    return name.replace("_", " ")


def headroom_figure(comparison: Json) -> Picture:
    """Share of the gap between the tuned fixed length and the clairvoyant schedule."""
    rows = featured_rows(comparison)[::-1]
    fixed, ceiling = by_role(comparison, "tuned"), by_role(comparison, "clairvoyant")
    figure, axes = canvas(_width(rows), 1.9 + 0.36 * len(rows))
    shares = [100 * float(row["headroom"]["value"] or 0.0) for row in rows]
    floor = -100.0
    for y, (row, share) in enumerate(zip(rows, shares, strict=True)):
        low, high = (100 * edge for edge in bounds(row["headroom"]))
        axes.barh(y, max(share, floor), color=VERDICT_STYLE[row["verdict"]][0], height=0.62, lw=0)
        if share > floor:
            axes.plot([max(low, floor), high], [y, y], color=INK, linewidth=1.4)
        cut = " (bar cut off)" if share < floor else ""
        axes.text(max(high, 0.0) + 1.5, y, f"{round(share)} %{cut}", va="center", fontsize=10)
    mark(axes, 0, f"{fixed['name']}\n0 %", rows=len(rows))
    mark(axes, 100, "clairvoyant\n100 %", rows=len(rows), style="--")
    axes.set_xlim(max(min(*shares, 0.0) * 1.08 - 6, floor - 6), 108)
    axes.set_ylim(-0.6, len(rows) + 0.6)
    axes.set_xlabel("share of the possible further saving, % of seconds; line: 95 % interval")
    named_rows(axes, [title(row["name"]) for row in rows])
    best = int(np.argmax(shares))
    possible = 100 * (ceiling["vs_fixed"]["value"] - 1)
    got = (
        f"{title(rows[best]['name'])}, the best controller, gets {shares[best]:.0f} % of the way"
        if shares[best] >= 0.5
        else "no controller gets anywhere"
    )
    finding = f"Knowing the future would be {possible:.0f} % faster than {fixed['name']}; {got}"
    caption = (
        f"{of_how_many(comparison)}. 0 % is the best constant length, 100 % the schedule that "
        "drafts exactly what will be accepted. That ceiling needs knowledge nobody has, so 100 "
        "% is out of reach. Negative: slower than the constant length."
    )
    return finish(figure, "headroom", finding, caption)
