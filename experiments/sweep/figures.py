"""Figures of sweeps: speed over the initial length, and over what a draft step costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
import seaborn as sns

from experiments.common.plots import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE,
    PALE_BLUE,
    Picture,
    canvas,
    finish,
    use_style,
)

FloatArray = npt.NDArray[np.float64]
STYLES = ((INK, "o", "-"), (ORANGE, "s", "-"), (BLUE, "D", "-"), (GREY, "v", "--"))


def initial_length_figure(
    conditions: Mapping[str, Mapping[str, FloatArray]], gammas: Sequence[int]
) -> Picture:
    """Speed-up over plain decoding by initial length: a panel per world, a line per rule.

    worlds: by title, speed-ups [len(gammas)] by rule; `fixed` is the first rule.
    """
    use_style()
    figure, panels = plt.subplots(
        1, len(conditions), figsize=(2.9 * len(conditions), 4.6), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    at = np.arange(len(gammas))
    for axes, (name, lines) in zip(panels[0], conditions.items(), strict=True):
        for (rule, speeds), (color, marker, dash) in zip(lines.items(), STYLES, strict=False):
            axes.plot(at, speeds, dash, color=color, marker=marker, markersize=4.5, label=rule)
        axes.axhline(1.0, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_xticks(at[::2], [str(gamma) for gamma in gammas][::2])
        axes.set_title(name, loc="left", fontsize=11)
        sns.despine(ax=axes)
    panels[0, len(conditions) // 2].set_xlabel(
        "initial length gamma0 (of fixed: the length), tokens"
    )
    panels[0, 0].set_ylabel("speed-up over plain decoding")
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
        frameon=False,
    )  # fmt: skip
    spans = {rule: max(np.ptp(w[rule]) for w in conditions.values()) for rule in lines}
    adaptive = [rule for rule in spans if rule != "fixed"]
    calm = min(adaptive, key=lambda rule: float(spans[rule]))
    title = (
        f"The length that {calm} begins with moves its speed-up by at most {spans[calm]:.2f}; "
        f"among fixed lengths it moves by up to {spans['fixed']:.2f}"
    )
    caption = (
        "Each line is one rule begun with twelve initial lengths, averaged over the tasks, on "
        "held-out replies; c4: a target step costs 4 draft steps. The gain published for adaptive "
        "rules is their mean distance to the fixed line: fixed lengths far from the best one count "
        "as much as the best. The dotted line is plain decoding."
    )
    return finish(figure, "initial-length", title, caption)


def cost_ratio_figure(
    ratios: Sequence[float], gains: Mapping[str, FloatArray], ceiling: FloatArray
) -> Picture:
    """Held-out speed over the tuned fixed length, by c = target step / draft step, a line per
    controller; ceiling: the clairvoyant schedule's.

    gains: by controller [len(ratios)], the fastest on average first.
    """
    figure, axes = canvas(9.0, 5.0)
    for (name, line), (color, marker, dash) in zip(gains.items(), STYLES, strict=False):
        axes.plot(ratios, line, dash, color=color, marker=marker, markersize=5, label=name)
    axes.plot(ratios, ceiling, ":", color=INK, label="clairvoyant")
    axes.axhline(1.0, color=GREY, linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    axes.minorticks_off()
    axes.set_xlabel("c: what a target step costs, in draft steps")
    axes.set_ylabel("tokens/s over the tuned fixed length")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False
    )
    sns.despine(ax=axes)
    first = next(iter(gains))
    line = gains[first]
    top, bottom = int(line.argmax()), int(line.argmin())
    title = (
        f"{first} gains most at c = {ratios[top]:g} ({line[top]:.2f} times the tuned fixed length) "
        f"and least at c = {ratios[bottom]:g} ({line[bottom]:.2f})"
    )
    caption = (
        "Every controller and the fixed length were tuned anew for every c on other replies. The "
        "four fastest on average are shown. The dotted line knows in advance what will be accepted."
    )
    return finish(figure, "cost-ratio", title, caption)


def information_figure(frame: pd.DataFrame, rule: str, margin: float) -> Picture:
    """A line per world: the ceilings of information, the rule and the best published one, over the
    tuned fixed length.

    frame: of experiments.sweep.worlds.world_row. margin: share by which the rule must be ahead of
    the published one to be counted in the title.
    """
    figure, axes = canvas(9.2, 1.6 + 0.52 * len(frame))
    at = np.arange(len(frame))[::-1]
    marks = (("counts", "1", GREY), ("before", "2", BLUE), ("after", "4", INK))
    axes.hlines(at, 1.0, frame["clairvoyant"], color=PALE, linewidth=7)
    axes.hlines(at, 1.0, frame["after"].clip(lower=1.0), color=PALE_BLUE, linewidth=7)
    for level, marker, color in marks:
        axes.plot(frame[level], at, marker, color=color, markersize=13, label=f"ceiling: {level}")
    span = np.stack([frame["vs_fixed"] - frame["low"], frame["high"] - frame["vs_fixed"]])
    axes.errorbar(
        frame["vs_fixed"], at, xerr=np.abs(span), fmt="o", color=ORANGE, capsize=3, label=rule
    )
    label = "published, as tuning chose it"
    axes.plot(frame["published_vs_fixed"], at, "s", color=BLUE, fillstyle="none", label=label)
    axes.axvline(1.0, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_yticks(at, [str(name).removesuffix("-measured") for name in frame["world"]])
    axes.set_xlabel("tokens/s over the tuned fixed length")
    sns.despine(ax=axes)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    ahead = int((frame["vs_published"] >= 1.0 + margin).sum())
    title = (
        f"{rule} is {margin:.0%} or more ahead of the best published rule in {ahead} of "
        f"{len(frame)} worlds"
    )
    caption = (
        "Grey bar: up to the schedule that knows the future; blue bar: up to what the draft's "
        "signals allow if a token may be dropped after them (after); before: if it may not; "
        "counts: without signals. Bars of the rule: 95 % over questions and timings."
    )
    return finish(figure, "worlds", title, caption)
