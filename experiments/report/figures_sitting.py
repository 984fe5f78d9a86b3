"""Figures of a sitting: measured beside predicted ratios, and what the machine did meanwhile."""

from __future__ import annotations

import math

import numpy as np
import seaborn as sns

from experiments.common.plots import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE_BLUE,
    PALE_ORANGE,
    Json,
    Picture,
    canvas,
    finish,
    named_rows,
)
from experiments.common.statistics import ALONE_Z
from experiments.common.verdict import CONFIRMED, CONTRADICTED, NOISY
from policies.registry import title

COLOURS = {CONFIRMED: (BLUE, PALE_BLUE), CONTRADICTED: (ORANGE, PALE_ORANGE), NOISY: (GREY, GREY)}
OPERATIONS = {"draft": ("^", BLUE), "first": ("v", PALE_BLUE), "verify": ("o", ORANGE)}


def prediction_figure(validation: Json) -> Picture:
    """Every policy's ratio to the baseline: measured with both intervals, and predicted."""
    ratios = [check["ratio"] for check in validation["checks"] if check["ratio"] is not None]
    ratios.sort(key=lambda ratio: float(ratio["measured"]))
    rows = [validation["placebo"], *ratios]
    figure, axes = canvas(10.0, 1.6 + 0.42 * len(rows))
    axes.axvline(1.0, color=INK, linewidth=1.0, zorder=0)
    for y, ratio in enumerate(rows):
        placebo = y == 0
        color, pale = (INK, GREY) if placebo else COLOURS[ratio["word"]]
        for found, width, tint in ((ratio["others"], 2.0, pale), (ratio["time"], 5.0, color)):
            if found["low"] is not None:
                axes.plot([found["low"], found["high"]], [y, y], color=tint, linewidth=width)
        axes.plot(ratio["measured"], y, "o", color=color, markersize=7, zorder=3)
        if not placebo:
            reach = ALONE_Z * (ratio["timing_error"] or 0.0)
            ends = [ratio["predicted"] * math.exp(sign * reach) for sign in (-1, 1)]
            axes.plot(ends, [y + 0.27] * 2, color=INK, linewidth=1.0)
            axes.plot(ratio["predicted"], y + 0.27, "D", color="white", mec=INK, markersize=5.5)
        word = ("a tie" if validation["placebo_tie"] else "NOT a tie") if placebo else ratio["word"]
        axes.annotate(word, (1.01, y), xycoords=("axes fraction", "data"), va="center", color=color)
    axes.set_xlabel(
        f"tokens/s over {validation['baseline']}: dot measured\n(thick: 95 % of these replies, "
        "thin: of other questions), diamond predicted"
    )
    named_rows(axes, ["placebo", *(title(ratio["policy"]) for ratio in ratios)])
    agree = sum(ratio["agrees"] for ratio in ratios)
    finding = (
        f"{agree} of {len(ratios)} predicted ratios to {validation['baseline']} lie inside what "
        "was measured"
    )
    caption = (
        f"One sitting of {validation['requests']} held-out replies on the real models: for every "
        "reply all policies in a random order. The bar of a diamond is what the timing's own "
        "repeats leave open about the prediction. The placebo is a second copy of the baseline: "
        "it shows what chance does to a ratio of equals."
    )
    return finish(figure, "prediction", finding, caption)


def drift_figure(validation: Json) -> Picture:
    """The machine during the sitting: every request's seconds and every anchor, over the timing."""
    figure, axes = canvas(10.0, 4.2)
    at, factor = (np.asarray(column) for column in zip(*validation["course"], strict=True))
    axes.plot(at, factor, color=INK, linewidth=1.3, label="all policies on one reply", zorder=2)
    shown = set()
    for one in validation["drift"]:
        marker, color = OPERATIONS[one["operation"]]
        label = f"anchor: {one['operation']}" if one["operation"] not in shown else None
        shown.add(one["operation"])
        points = np.asarray(one["points"])
        axes.plot(
            points[:, 0], points[:, 1], marker, color=color, markersize=4.5, alpha=0.8, label=label
        )
    axes.axhline(1.0, color=GREY, linewidth=1.0, linestyle="--", zorder=0)
    axes.set_xlabel("seconds since the sitting began")
    axes.set_ylabel("seconds over the timing's")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    sns.despine(ax=axes)
    off = 100 * (validation["machine_factor"] - 1)
    finding = (
        f"The machine ran {abs(off):.1f} % {'slower' if off >= 0 else 'faster'} than its timing "
        "says (median over policies); single replies from "
        f"{100 * (factor.min() - 1):+.0f} % to {100 * (factor.max() - 1):+.0f} %"
    )
    caption = (
        "1 is the timing. The line: the measured seconds of all policies on one reply over what "
        "the timing charges for the same rounds. Points: single steps measured again between "
        "replies. What moves the line moves neighbours alike: ratios are between neighbours."
    )
    return finish(figure, "drift", finding, caption)
