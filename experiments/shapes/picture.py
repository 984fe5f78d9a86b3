"""The first rounds of one reply under a tree: its nodes, the way accepted, and the bill."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.common.plots import BLUE, GREY, INK, ORANGE, PALE, Picture, finish, use_style
from experiments.shapes.ways import Half, Way
from policies.fixed import Fixed
from simulator.replay.replay import replay
from traces.costs.pricing import bucket_of, drafting_seconds
from traces.shapes.shape import Shape, chain
from traces.shapes.unfold import check_ranks

ROUNDS = 3


def draw_rounds(half: Half, shape: Shape, rounds: int = ROUNDS) -> Picture:
    """Consecutive rounds of the first reply that is long enough, drafted whole, from the first one
    on in which another than the likeliest guess is accepted; a chain of as many levels is played
    beside it.
    """
    way = Way("", Fixed(shape.depth), shape)
    rows = [r for r in range(half.trace.requests) if half.trace.reply_tokens[r] > 8 * rounds]
    one = half.of(rows[:1] or [0])
    trace, costs = one.seen(way)
    log = replay(way.policy, trace, costs)
    beside = replay(Fixed(shape.depth), *one.seen(Way("", way.policy, chain(shape.depth))))
    ranks, starts = check_ranks(one.trace), np.cumsum(log.emitted) - log.emitted
    taken = [
        [int(ranks.at(starts[k], level)) for level in range(int(log.accepted[k]))]
        for k in range(len(log))
    ]
    first = next((k for k, ways in enumerate(taken) if any(ways)), 0)
    shown = range(len(log))[first : first + rounds]
    use_style()
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(
        2, len(shown), squeeze=False, figsize=(3.4 * len(shown), 4.6), height_ratios=[3, 1],
        sharey="row", layout="constrained",
    )  # fmt: skip
    for column, k in enumerate(shown):
        _tree(grid[0][column], shape, taken[k])
        emitted = int(log.emitted[k])
        grid[0][column].set_title(
            f"round {k + 1}: {len(taken[k])} of {shape.depth} levels accepted,\n"
            f"{emitted} {'token' if emitted == 1 else 'tokens'} emitted", fontsize=9,
        )  # fmt: skip
        bucket = bucket_of(costs, int(log.context_tokens[k]))
        lag = 2 if k > 0 and len(taken[k - 1]) == shape.depth else 1
        first_s = drafting_seconds(costs, 0, bucket, 1, lag)
        _bill(grid[1][column], one, shape, bucket, first_s, float(log.elapsed_s[k]))
    ours, theirs = (_tokens_per_s(played) for played in (log, beside))
    title = (
        f"{shape}: {shape.nodes} nodes in {shape.depth} levels; this reply at {ours:.0f} tokens/s, "
        f"with a chain of {shape.depth} at {theirs:.0f}"
    )
    return finish(figure, "rounds-of-a-tree", title, CAPTION)


CAPTION = (
    "Rounds of one reply, from the first on in which a second guess was accepted. The square is "
    "the newest token; the number in a node is its rank among the draft's guesses behind its "
    "parent, 0 the likeliest. Filled: what the target accepted; to these it adds one token of its "
    "own. Below: milliseconds of the round, level by level, then the target's."
)


def _tokens_per_s(log: Any) -> float:
    return float(log.emitted.sum() / log.elapsed_s.sum())


def places(shape: Shape) -> list[tuple[float, int]]:
    """[M + 1] across and down: leaves side by side, a parent over the middle of its children."""
    across = [0.0] * (shape.nodes + 1)
    leaf = 0.0
    paths = shape.paths()
    for node in sorted(range(1, shape.nodes + 1), key=lambda k: paths[k - 1]):
        if not shape.children[node].any():
            across[node], leaf = leaf, leaf + 1.0
    for node in range(shape.nodes, -1, -1):
        children = [int(child) for child in shape.children[node] if child]
        if children:
            across[node] = float(np.mean([across[child] for child in children]))
    return list(zip(across, [0, *shape.depths], strict=True))


def _tree(axes: Any, shape: Shape, taken: list[int]) -> None:
    at, node = places(shape), 0
    way = [0]
    for rank in taken:
        node = int(shape.children[node, rank])
        way.append(node)
    for child, parent in enumerate(shape.parents, 1):
        on = child in way
        (x0, y0), (x1, y1) = at[parent], at[child]
        axes.plot([x0, x1], [-y0, -y1], color=ORANGE if on else GREY, linewidth=2.2 if on else 0.8)
    for number, (x, y) in enumerate(at):
        on, root = number in way, number == 0
        edge = INK if root else ORANGE if on else GREY
        fill = ORANGE if on and not root else "white"
        axes.plot(x, -y, "s" if root else "o", markersize=11, color=fill, markeredgecolor=edge)
        if not root:
            axes.text(x, -y, str(shape.ranks[number - 1]), ha="center", va="center", fontsize=7,
                      color="white" if on else INK)  # fmt: skip
    axes.set_axis_off()
    axes.margins(0.12)


def _bill(axes: Any, one: Half, shape: Shape, bucket: int, first_s: float, all_s: float) -> None:
    """Milliseconds of the round: the levels, and what is left is the target's."""
    parts = [first_s] + [float(one.costs.draft_s[0, bucket, width]) for width in shape.widths[:-1]]
    begin = 0.0
    for part in parts:
        axes.barh(0, 1e3 * part, left=1e3 * begin, color=BLUE, edgecolor="white", height=0.5)
        begin += part
    axes.barh(0, 1e3 * (all_s - begin), left=1e3 * begin, color=PALE, edgecolor=GREY, height=0.5)
    axes.text(1e3 * begin / 2, 0.42, f"draft {1e3 * begin:.1f}", ha="center", fontsize=8)
    axes.text(1e3 * (begin + all_s) / 2, 0.42, f"target {1e3 * (all_s - begin):.1f} ms",
              ha="center", fontsize=8)  # fmt: skip
    axes.set_ylim(-0.35, 0.8)
    axes.set_axis_off()
