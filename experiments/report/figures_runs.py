"""Figures of single runs: where the seconds go, and gamma along a reply."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from experiments.common.plots import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE_BLUE,
    PALE_ORANGE,
    Picture,
    canvas,
    finish,
    named_rows,
    use_style,
)
from policies.registry import title
from traces.roundlog import RoundLog

BAR: dict[str, Any] = {"align": "edge", "edgecolor": "white", "linewidth": 0.6}
EDGE: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.8}
LEDGER = {
    "no draft verified": (GREY, "white"),
    "a draft accepted to its end": (BLUE, "white"),
    "a draft accepted in part": (PALE_BLUE, INK),
    "a draft wholly rejected": (ORANGE, "white"),
}
"""Kinds of round, with the colours of bar and number."""


def lively_request(log: RoundLog) -> int:
    """The request of this log whose accepted counts vary most from round to round."""
    requests = np.unique(log.request)
    spread = [float(np.std(log.accepted[log.request == request])) for request in requests]
    return int(requests[int(np.argmax(spread))])


def _rounds(axes: Axes, name: str, log: RoundLog, request: int) -> tuple[float, int, int]:
    """Draw the rounds of one reply; its seconds, tokens and largest draft."""
    rows = np.flatnonzero(log.request == request)
    start = log.context_tokens[rows] - log.context_tokens[rows].min()
    drafted, accepted, emitted = log.drafted[rows], log.accepted[rows], log.emitted[rows]
    axes.bar(start, accepted, width=emitted, color=BLUE, **BAR)
    axes.bar(start, drafted - accepted, bottom=accepted, width=emitted, color=PALE_ORANGE, **BAR)
    plain = drafted == 0
    axes.bar(start[plain], -0.7, width=emitted[plain], color=GREY, **BAR)
    seconds, wasted = float(log.elapsed_s[rows].sum()), int((drafted - accepted).sum())
    axes.set_title(
        f"{title(name)}: {1000 * seconds:.0f} ms in {len(rows)} rounds, "
        f"{wasted} tokens drafted in vain",
        loc="left",
        fontsize=11,
    )
    return seconds, int(emitted.sum()), int(drafted.max())


def reply_figure(logs: dict[str, RoundLog], request: int, task: str) -> Picture:
    """Rounds of one reply under two or three schedules, stacked: drafted and accepted tokens."""
    use_style()
    height = 1.7 + 1.65 * len(logs)
    figure, panels = plt.subplots(
        len(logs), 1, figsize=(10, height), sharex=True, squeeze=False, layout="constrained"
    )
    facts = {
        name: _rounds(axes, name, log, request)
        for axes, (name, log) in zip(panels[:, 0], logs.items(), strict=True)
    }
    deepest = max(drafted for *_, drafted in facts.values())
    for axes in panels[:, 0]:
        axes.set_ylim(-0.9, deepest + 0.6)
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        sns.despine(ax=axes, bottom=True)
        axes.tick_params(axis="x", bottom=axes is panels[-1, 0])
    names = list(facts)
    length = facts[names[0]][1]
    panels[-1, 0].set_xlim(0, length)
    panels[-1, 0].set_xlabel("position in the reply, tokens")
    figure.supylabel("tokens drafted in a round", fontsize=11)
    handles = [
        Patch(color=BLUE, label="accepted by the target"),
        Patch(color=PALE_ORANGE, label="rejected: drafted in vain"),
        Patch(color=GREY, label="round without a draft"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    spoken = ", ".join(f"{title(name)} {1000 * facts[name][0]:.0f} ms" for name in names)
    finding = f"The same {length} tokens ({task.replace('_', ' ')}) take {spoken}"
    caption = (
        "One reply under several schedules. Each bar is one round: its height is how many tokens "
        "were drafted, the blue part how many of them the target accepted, its width how far the "
        "reply moved on. The last panel knows in advance what will be accepted, so it shows how "
        "acceptance comes and goes along the text."
    )
    return finish(figure, "reply", finding, caption)


def ledger_figure(logs: dict[str, RoundLog], featured: str) -> Picture:
    """Where the seconds go: rounds by what became of their draft, one bar per schedule.

    logs: the tuned fixed length first, the clairvoyant schedule last, all on the same replies.
    Widths are milliseconds per emitted token.
    """
    spent = {name: np.asarray(_ledger(log)) for name, log in logs.items()}
    names = list(spent)[::-1]
    figure, axes = canvas(10.0, 2.2 + 0.62 * len(names))
    left = np.zeros(len(names))
    for k, (label, (color, ink)) in enumerate(LEDGER.items()):
        widths = np.asarray([spent[name][k] for name in names])
        axes.barh(
            range(len(names)), widths, left=left, color=color, height=0.6, label=label, **EDGE
        )
        for y, (start, width) in enumerate(zip(left, widths, strict=True)):
            if width > 0.07 * sum(spent[names[-1]]):
                axes.text(start + width / 2, y, f"{width:.2f}", ha="center", va="center", color=ink)
        left += widths
    for y, total in enumerate(left):
        axes.text(total * 1.01, y, f"{total:.2f} ms per token", va="center", fontweight="bold")
    axes.set_xlim(0, 1.3 * max(left))
    axes.set_xlabel("milliseconds per token of the reply, by what became of the round's draft")
    named_rows(axes, [title(name) for name in names])
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    fixed, ours = spent[names[-1]], spent[featured]
    kind = int(np.argmax(fixed - ours))
    share = [100 * part[kind] / fixed.sum() for part in (fixed, ours)]
    finding = (
        f"{title(featured)} saves {100 * (1 - ours.sum() / fixed.sum()):.0f} % of the seconds of "
        f"{names[-1]}: of these, rounds with {list(LEDGER)[kind]} took {share[0]:.0f} %, now "
        f"{share[1]:.0f} %"
    )
    caption = (
        "All seconds of all held-out replies. A draft that is rejected from its first token on has "
        "bought nothing: the round costs more than plain decoding and brings the same one token. "
        "A draft accepted to its end may have been too short. The last bar knows in advance what "
        "will be accepted and drafts that or nothing, and a token more where a wider step was "
        "measured to be cheaper."
    )
    return finish(figure, "ledger", finding, caption)


def _ledger(log: RoundLog) -> list[float]:
    """Milliseconds per token in rounds of each kind, in the order of LEDGER."""
    some = log.verified > 0
    kinds = (
        ~some,
        some & (log.accepted == log.verified),
        some & (log.accepted > 0) & (log.accepted < log.verified),
        some & (log.accepted == 0),
    )
    tokens = float(log.emitted.sum())
    return [1000 * float(log.elapsed_s[kind].sum()) / tokens for kind in kinds]
