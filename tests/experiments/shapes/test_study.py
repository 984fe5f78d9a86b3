"""Which shape pays: worlds with a known answer, the shipped recording, unfit inputs."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.common.cost_sources import Priced
from experiments.common.statistics import SAME, TIE
from experiments.shapes.study import COLUMNS, ShapeResult, judged, run
from experiments.shapes.ways import halves_of, ways_of
from experiments.studies import ShapesOptions
from policies.base import Policy
from policies.registry import parse_policy
from simulator.replay.menus import replay_menu
from tests.traces.shapes.test_shapes import ranked
from traces.costs.affine import Affine
from traces.costs.of_trace import prices_of_menu
from traces.errors import InputError
from traces.schema import Trace
from traces.shapes.menu import Several, menu_of
from traces.shapes.shape import chain, parse_shape
from traces.shipped import shipped_or_file


def found(model: Affine, rules: tuple[str, ...] = ()) -> dict[str, ShapeResult]:
    """Twelve questions whose token has rank 0 two times in five, and rank 1 as often."""
    generator = np.random.default_rng(5)
    trace = ranked([generator.choice(3, 60, p=[0.4, 0.4, 0.2]).tolist() for _ in range(12)])
    policies = [parse_policy(rule) for rule in rules]
    return {row.name: row for row in rows_of(trace, model, "2x1", policies, 12)}


def rows_of(
    trace: Trace, model: Affine, shape: str, rules: list[Policy], widest: int
) -> list[ShapeResult]:
    given = [parse_shape(shape)]
    train, test = halves_of(trace, Priced(model, {}, 0), given, [], widest, 0)
    return judged(ways_of(train, given, rules, widest, 0), test)


def test_where_verification_is_free_the_widest_tree_wins() -> None:
    """A round costs a target step of 1 and 0.1 a level, however many nodes there are."""
    rows = found(Affine(target_fixed=1.0, draft_fixed=0.1), ("payback", "gammatune"))
    best = rows["most frequent ways"]
    assert best.nodes > 6 and parse_shape(best.shape).widths[0] >= 2
    assert best.verdict == "faster" and best.vs_chain.low > 1.1
    assert rows["payback, tree"].tokens_per_s > rows["payback, chain"].tokens_per_s
    assert rows["clairvoyant depth, tree"].tokens_per_s >= best.tokens_per_s
    assert rows["given 2x1"].nodes == 4 and rows["given 2x1"].vs_chain.low > 1.0


def test_where_every_node_is_dear_nothing_is_drafted() -> None:
    """Verifying a token costs what a target step does: a tree of two nodes accepts 0.8, for 2."""
    rows = found(Affine(target_fixed=0.01, target_token=1.0, draft_fixed=0.05), ("gammatune",))
    assert rows["tuned chain"].shape == "" and rows["tuned chain"].speedup == (1.0, 1.0, 1.0)
    assert rows["Sequoia's tree"].verdict == rows["given 2x1"].verdict == "slower"
    assert rows["plain decoding"].verdict in (TIE, SAME)


def test_a_rule_that_chooses_shapes_gets_every_tree() -> None:
    """And the longest chain; on the held-out half it is the replay of that menu."""
    generator = np.random.default_rng(5)
    trace = ranked([generator.choice(3, 60, p=[0.4, 0.4, 0.2]).tolist() for _ in range(12)])
    priced, given = Priced(Affine(target_fixed=1.0, draft_fixed=0.1), {}, 0), [parse_shape("2x1")]
    train, test = halves_of(trace, priced, given, [], 12, 0)
    rule = parse_policy("shape-worth")
    ways = {way.name: way for way in ways_of(train, given, [rule], 12, 0).all}
    shape = ways["shape-worth, menu"].shape
    assert isinstance(shape, Several) and shape.entries[0].is_chain
    others = [ways[name].shape for name in ("given 2x1", "Sequoia's tree", "most frequent ways")]
    assert set(others) <= set(shape.entries)
    menu = menu_of(test.trace, shape.entries)
    log = replay_menu(rule, menu, prices_of_menu(test.costs, shape.entries))
    played = test.play(ways["shape-worth, menu"])
    assert played.rounds == len(log) and played.seconds.sum() == pytest.approx(log.elapsed_s.sum())
    assert len(set(log.shape.tolist() if log.shape is not None else [])) > 1


def test_seconds_by_hand() -> None:
    """Ranks 1, 0 for ever: the tree 2 accepts one token of every round, which takes a target step
    of 1 second and 0.1 for each of two nodes; 20 tokens are 10 rounds.
    """
    trace = ranked([[1, 0] * 10 for _ in range(10)])
    model = Affine(target_fixed=1.0, target_token=0.1, draft_fixed=0.0)
    rows = rows_of(trace, model, "2", [], 2)
    (row,) = [row for row in rows if row.name == "given 2"]
    assert row.tokens_per_round == 2.0 and row.round_ms == pytest.approx(1200.0)
    assert row.tokens_per_s == pytest.approx(20 / 12.0)
    # A chain accepts nothing at rank 1 and everything at rank 0: not drafting is as fast as that.
    assert row.speedup.value == pytest.approx(20 * 1.0 / 12.0)


@pytest.mark.long
def test_the_shipped_recording(tmp_path: Path) -> None:
    """On a processor whose verification grows with every token no tree pays; JSON, CSV and the
    table say the same.
    """
    result = run(ShapesOptions(policies="gammatune"))
    rows = {row["name"]: row for row in result.content["rows"]}
    assert rows["Sequoia's tree"]["shape"] == rows["tuned chain"]["shape"] == str(chain(3))
    assert rows["gammatune, chain"]["vs_chain.value"] == pytest.approx(1.026, abs=2e-3)
    assert result.csv is not None
    read = list(csv.DictReader(io.StringIO(result.csv)))
    assert [row["name"] for row in read] == list(rows)
    assert all(column.meaning for column in COLUMNS)
    assert "clairvoyant depth, tree" in result.text


@pytest.mark.slow
def test_trees_lose_where_many_rows_fill_the_step() -> None:
    """On a roofline verification is free up to its knee, and many rows are there at once."""
    cost = "roofline:h100:llama-3.1-8b+llama-3.2-1b"
    result = run(ShapesOptions(cost=cost, policies="", batch=(1, 64)))
    rows = {(row["batch"], row["name"]): row for row in result.content["rows"]}
    alone, many = (rows[batch, "most frequent ways"] for batch in (1, 64))
    assert alone["nodes"] > 16 and alone["vs_chain.low"] > 1.1
    assert set(many["shape"]) == {"1", "x"} and many["vs_chain.value"] == 1.0
    assert rows[64, "plain decoding"]["round_ms"] > rows[1, "plain decoding"]["round_ms"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trace": "embedded-sampled", "shape": ("x".join("1" * 20),)}, ["20 tokens", "16 deep"]),
        ({"trace": "smollm2-eagle3-sampled"}, ["no level_rank", "record it again"]),
        ({"trace": "smollm2-eagle3-greedy"}, ["--cost", "'model'", "one of kind 'eagle3'"]),
        ({"trace": "smollm2-lookup-greedy"}, ["draft model", "lookup"]),
        ({"policies": "llama-p-min"}, ["--policies llama-p-min", "drops"]),
        ({"policies": "gammatun"}, ["gammatune"]),
        ({"shape": ("8x8",)}, ["--shape 8x8", "73", "33"]),
        ({"shape": ("2y",)}, ["2y", "3x2x1"]),
        ({"cost": "no.json"}, ["no.json"]),
        ({"cost": "timing-smollm2-eagle3"}, ["--cost", "eagle3", "one of kind 'model'"]),
        ({"cost": "timing-smollm2-lookup"}, ["--cost", "lookup"]),
        ({"batch": (1, 4096)}, ["--batch 4096", "up to"]),
        ({"batch": (2,), "sit": 4}, ["--sit", "one row"]),
        ({"cost": "roofline:h100:llama-3.1-8b+llama-3.2-1b", "sit": 4}, ["--sit", "formula"]),
    ],
)
def test_what_does_not_fit_is_one_line(options: dict[str, Any], words: list[str]) -> None:
    if "trace" in options:
        options = options | {"trace": shipped_or_file(options["trace"])}
    with pytest.raises(InputError) as caught:
        run(ShapesOptions(**options))
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value
