"""A reply as a strip, in letters or as a picture: what every round drafted and what came of it.

Shape and lightness tell as much as colour: accepted drafts are green blocks, rejected ones red
frames, the target's own token a light blue block, or half a black one where the round had no draft.
The colours are of the set of Okabe and Ito (https://jfly.uni-koeln.de/color/), which colour-blind
people tell apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from policies.base import Outcome
from traces.errors import InputError

ACCEPTED, REJECTED, TARGET, ALONE = "+", "-", "*", "."
BAR = "|"
LEGEND = (
    f"{ACCEPTED} accepted draft  {REJECTED} rejected draft  {TARGET} the target's own token  "
    f"{ALONE} the same without a draft  {BAR} end of a round"
)

PAPER = (255, 255, 255)
INK = {ACCEPTED: (0, 158, 115), REJECTED: (213, 94, 0), TARGET: (86, 180, 233), ALONE: (0, 0, 0)}
CELL, GAP, BETWEEN = 9, 1, 5  # pixels: side of a token, space behind it, more behind a round
MARGIN, LINE = 4, 16  # pixels: around the picture, from line to line

Picture = npt.NDArray[np.uint8]


def tokens_of(outcome: Outcome) -> str:
    """A round as one letter per token that was drafted or emitted.

    The target's own token is missing where the reply ended before it, or where drafting went on
    while the target verified.
    """
    accepted, own = outcome.accepted, outcome.emitted - outcome.accepted
    drafts = ACCEPTED * accepted + REJECTED * (outcome.drafted - accepted)
    return drafts + (TARGET if outcome.drafted > 0 else ALONE) * max(0, own)


def render_line(outcomes: Sequence[Outcome]) -> str:
    """Rounds in their order, each closed by a bar; "" for none."""
    return "".join(tokens_of(outcome) + BAR for outcome in outcomes)


def ansi(outcomes: Sequence[Outcome]) -> str:
    """A strip, and below it a line that says what the letters mean."""
    return f"{render_line(outcomes)}\n{LEGEND}"


def rgb(outcomes: Sequence[Outcome], width: int = 640, lines: int = 8) -> Picture:
    """[H, W, 3] uint8, W = width and H = 16 lines + 8 pixels: the strip, line by line.

    No round is broken that fits on a line. Where there are more rounds than room, the newest are
    shown. Raises InputError if not even one token fits.
    """
    if width < 2 * MARGIN + CELL or lines < 1:
        raise InputError(
            f"a strip of {lines} lines, {width} pixels wide, has no room for a token; take at "
            f"least 1 and {2 * MARGIN + CELL}"
        )
    picture = np.full((LINE * lines + 2 * MARGIN, width, 3), PAPER, dtype=np.uint8)
    cells = list(placed(outcomes, width))
    hidden = max(0, cells[-1][1] - lines + 1) if cells else 0
    for token, line, left in cells:
        if line >= hidden:
            top = MARGIN + LINE * (line - hidden) + (LINE - CELL) // 2
            paint(picture[top : top + CELL, left : left + CELL], token)
    return picture


def placed(outcomes: Sequence[Outcome], width: int) -> Iterator[tuple[str, int, int]]:
    """Every token of the strip with its line and the pixel at which it begins."""
    right = width - MARGIN
    line, left = 0, MARGIN
    for outcome in outcomes:
        tokens = tokens_of(outcome)
        if left > MARGIN and left + len(tokens) * (CELL + GAP) - GAP > right:
            line, left = line + 1, MARGIN
        for token in tokens:
            if left + CELL > right:
                line, left = line + 1, MARGIN
            yield token, line, left
            left += CELL + GAP
        left += BETWEEN


def paint(cell: Picture, token: str) -> None:
    """Fill the pixels [CELL, CELL, 3] of a token."""
    if token == ALONE:
        cell[CELL // 2 :] = INK[token]
        return
    cell[:] = INK[token]
    if token == REJECTED:
        cell[2:-2, 2:-2] = PAPER
