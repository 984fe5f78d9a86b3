"""Chains and trees on a tiny pair, interleaved: the replay's rounds, and a broken backend found."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.common.statistics import Estimate
from experiments.shapes.sitting import sit
from experiments.shapes.ways import TUNED, Half, Way, Ways
from policies.fixed import Fixed, Never
from policies.registry import parse_policy
from real_backend.decoding.measured import PLACEBO
from real_backend.models.cache_rows import LeanRows
from real_backend.prompts import read_questions, requests_of_trace
from real_backend.recording.capture import capture
from real_backend.recording.coupling import CaptureSettings
from real_backend.trees.grow import grow
from tests.simulator.replay.test_menus import TakesTurns
from tests.specimens import write_prompts
from traces.costs.pricing import tabulate
from traces.costs.table import Table
from traces.shapes.menu import Several
from traces.shapes.shape import Grown, chain, parse_shape
from traces.shipped import TIMING
from traces.timing import read_timing

TREE = parse_shape("3x2x1")
OTHERS = ["gammatune on it", "a grown tree", "payback on one", "a menu"]
BASE = Way(TUNED, Fixed(2), chain(2))
WAYS = Ways(
    [
        Way("plain decoding", Never(), None),
        BASE,
        Way("Sequoia's tree", Fixed(2), chain(2)),  # the tuned chain by another name
        Way("a tree", Fixed(3), TREE),
        Way("gammatune on it", parse_policy("gammatune"), TREE),
        Way("a grown tree", Fixed(3), Grown(3, 3, 7)),
        Way("payback on one", parse_policy("payback"), Grown(3, 4)),
        Way("a menu", TakesTurns(), Several((chain(3), TREE))),
    ],
    BASE,
    [],
)


@pytest.fixture(scope="module")
def recorded(pair: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Half, list[Any]]:
    folder = tmp_path_factory.mktemp("greedy")
    questions = read_questions(write_prompts(folder / "p.jsonl", questions=6, turns=1))
    trace = capture(
        pair, questions, folder / "t.parquet", CaptureSettings(max_new_tokens=24, depth=8)
    )
    costs = tabulate(Table(read_timing(TIMING)), max_context=400, width=34)
    requests = requests_of_trace(questions, trace, pair)
    return Half(trace, costs, {3: grow(pair, requests, trace, 3, 4)}), requests


def test_every_seat_takes_the_replays_rounds(pair: Any, recorded: tuple[Half, list[Any]]) -> None:
    half, requests = recorded
    found = {one.name: one for one in sit(pair, requests, WAYS, half, seed=0)}
    assert list(found) == [PLACEBO, "plain decoding", "a tree", *OTHERS]
    assert [one.differing for one in found.values()] == [0] * 7
    assert {one.replies_equal for one in found.values()} == {half.trace.requests} == {6}
    assert found[PLACEBO].predicted == 1.0
    assert found["plain decoding"].rounds == half.trace.positions
    assert all(isinstance(one.measured, Estimate) for one in found.values())


def test_a_tree_that_leaves_its_caches_as_they_are_is_found_out(
    pair: Any, recorded: tuple[Half, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    half, requests = recorded
    monkeypatch.setattr(LeanRows, "move", lambda self, row, places, start: None)
    found = {one.name: one for one in sit(pair, requests, WAYS, half, seed=0)}
    for name in ("a tree", "a grown tree"):
        assert found[name].replies_equal < 6 and found[name].differing > 0
    assert found["plain decoding"].differing == 0


def test_other_names_of_the_baselines_rounds_have_no_seat(
    pair: Any, recorded: tuple[Half, list[Any]]
) -> None:
    """Where the tuned length is 0, plain decoding is the baseline: no word is said of it."""
    half, requests = recorded
    none = Way(TUNED, Fixed(0), None)
    deep = Way("gammatune, deeper", parse_policy("gammatune"), chain(7))
    deepest = Way("gammatune, deepest", parse_policy("gammatune"), chain(8))
    same = Way("no drafting on a tree", Never(), chain(3))
    ways = Ways([Way("plain decoding", Never(), None), none, same, deep, deepest], none, [])
    names = [one.name for one in sit(pair, requests, ways, half, seed=0)]
    assert names[:2] == [PLACEBO, "gammatune, deeper"] and "plain decoding" not in names
