"""Common parts of all figures: colours, canvas, title and rendering.

Colours are Okabe and Ito's, told apart by colour-blind readers; no figure relies on colour alone.
"""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from traces.store import write_atomically

BLUE, ORANGE = "#0072B2", "#D55E00"
PALE_BLUE, PALE_ORANGE = "#9CCBE8", "#F0B895"
GREY, INK, PALE = "#767676", "#222222", "#E8E8E8"

Json = dict[str, Any]


class Picture(NamedTuple):
    """name: file name without suffix; title: the finding; caption: how to read it."""

    name: str
    title: str
    caption: str
    png: bytes


def use_style() -> None:
    """Fonts and colours of every figure."""
    sns.set_theme(style="ticks", rc={"font.size": 11, "axes.edgecolor": GREY, "text.color": INK})


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """One empty plot, inches."""
    use_style()
    return plt.subplots(figsize=(width, height), layout="constrained")


def finish(figure: Figure, name: str, title: str, caption: str) -> Picture:
    """Put the finding on top and render; the figure is closed."""
    columns = int(figure.get_figwidth() * 8.6)
    figure.suptitle(
        textwrap.fill(title, columns, break_on_hyphens=False),
        x=0.01,
        ha="left",
        fontsize=13,
        fontweight="bold",
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=140, format="png", metadata={"Software": None})
    plt.close(figure)
    return Picture(name, title, caption, buffer.getvalue())


def cut_colour_bar(axes: Axes, low: float, high: float) -> None:
    """Show the colours that a heat map uses; they stay even on both sides of their middle."""
    bar = axes.collections[0].colorbar
    assert bar is not None
    bar.ax.set_ylim(low, high)


def named_rows(axes: Axes, names: list[str]) -> None:
    """Names of horizontal rows 0, 1, ... on the left, without ticks."""
    axes.set_yticks(range(len(names)), names)
    sns.despine(ax=axes, left=True)
    axes.tick_params(axis="y", length=0)


def mark(axes: Axes, x: float, text: str, *, rows: int, tier: int = 0, style: str = "-") -> None:
    """A vertical line through all rows, its name above it; higher tiers keep names apart."""
    top = rows - 0.35 + 0.85 * tier
    axes.plot([x, x], [-0.6, top], color=INK, linewidth=1.1, linestyle=style, zorder=0)
    name = axes.text(x, top + 0.05, text, ha="center", va="bottom", fontsize=9, color=INK, zorder=3)
    name.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})  # a line may pass behind


def captions(pictures: Sequence[Picture]) -> list[Json]:
    """Everything but the pictures themselves, for a result file."""
    return [{"name": p.name, "title": p.title, "caption": p.caption} for p in pictures]


def write_pictures(pictures: list[Picture], folder: Path, prefix: str = "") -> None:
    """PNG files folder/PREFIXname.png."""
    for picture in pictures:
        write = functools.partial(Path.write_bytes, data=picture.png)
        write_atomically(folder / f"{prefix}{picture.name}.png", write, overwrite=True)
