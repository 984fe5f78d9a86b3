"""The two figures of shapes: what they say is what was found."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.common.statistics import Estimate
from experiments.shapes import picture, where
from experiments.shapes.study import ShapeResult
from experiments.shapes.ways import TREES, TUNED, Half, Way, Ways
from experiments.studies import TreesOptions
from policies.fixed import Fixed, Never
from tests.traces.shapes.test_shapes import ranked
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate
from traces.shapes.shape import chain, parse_shape
from traces.store import write_trace


def a_half() -> Half:
    """Ranks 0, 1, 2 in turn: after a first guess comes a second one."""
    trace = ranked([[0, 0, 0, 1, 0, 2] * 8 for _ in range(3)])
    costs = tabulate(Affine(target_fixed=1.0, draft_fixed=0.1), max_context=200, width=20)
    return Half(trace, costs, {})


def test_nodes_stand_between_their_children() -> None:
    """3x1x2 but for the last node: leaves side by side, from the likeliest on."""
    shape = parse_shape("p0.0.0.1.2.4.4.5")
    across, down = zip(*picture.places(shape), strict=True)
    assert down == (0, 1, 1, 1, 2, 2, 3, 3, 3)
    assert across[6:] == (0.0, 1.0, 2.0) and across[3] == 3.0
    assert across[4] == across[1] == 0.5 and across[5] == across[2] == 2.0
    assert across[0] == pytest.approx((0.5 + 2.0 + 3.0) / 3)


def test_rounds_are_shown_from_the_first_second_guess_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2x1 a round takes 0 0 and emits the third; then 1 0 and the 2; and so on."""
    drawn: list[list[int]] = []
    monkeypatch.setattr(picture, "_tree", lambda axes, shape, taken: drawn.append(taken))
    found = picture.draw_rounds(a_half(), parse_shape("2x1"))
    assert drawn == [[1, 0], [0, 0], [1, 0]]
    assert found.png[:4] == b"\x89PNG"
    # 3 tokens a round of 1.2 s, but a chain of two gets 3 in one round and 1 and 2 in the next two.
    assert "4 nodes in 2 levels; this reply at 2 tokens/s" in found.title
    plain = picture.draw_rounds(a_half(), chain(1), rounds=1)  # never another than the likeliest
    assert drawn[3:] == [[0]] and plain.png[:4] == b"\x89PNG"


def a_row(name: str, batch: int, value: float) -> ShapeResult:
    estimate = Estimate(value, value - 0.01, value + 0.01)
    return ShapeResult(batch, name, "2x1", 4, 2, 2.0, 1.0, 1.0, estimate, estimate, "")


def test_the_finding_is_the_figures() -> None:
    lines = [*where.LINES]
    rows = [a_row(name, batch, 1.3 - batch / 10) for name in lines for batch in (1, 2, 4)]
    lost = [a_row(name, batch, 0.9) for name in lines for batch in (1, 2, 4)]
    panels = [where.Panel("one", "a:b", tuple(rows)), where.Panel("two", "a:b", tuple(lost))]
    found = where.draw(panels)
    assert found.title == "A static tree beats the tuned chain in 1 of 2 worlds, up to 2 rows"
    assert "No static tree" in where.draw(panels[1:]).title
    assert not plt.get_fignums()


def test_the_best_tree_is_the_training_halfs() -> None:
    half, base = a_half(), Way(TUNED, Fixed(1), chain(1))
    plain = Way("plain decoding", Never(), None)
    good, bad = (
        Way(n, Fixed(2), parse_shape(s)) for n, s in zip(TREES, ("2x1", "1x1"), strict=True)
    )
    found = where.few_of(Ways([plain, base, bad, good], base, []), half)
    assert [way.name for way in found.all] == ["plain decoding", TUNED, where.BEST]
    assert str(found.all[2].shape) == "2x1"


def test_the_command(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    trace = ranked([generator.choice(3, 40, p=[0.5, 0.3, 0.2]).tolist() for _ in range(12)])
    write_trace(trace, tmp_path / "t.parquet")
    options = TreesOptions(trace=(tmp_path / "t.parquet",), batch=(1, 2), out=tmp_path / "figures")
    result = where.run(options)
    assert [row["name"] for row in result.content["rows"][:4]] == [TUNED, *where.LINES]
    assert {row["batch"] for row in result.content["rows"]} == {1, 2}
    assert (tmp_path / "figures" / "where-trees-pay.png").read_bytes()[:4] == b"\x89PNG"
    assert result.text.count("best tree") == 2
