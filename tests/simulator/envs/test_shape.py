"""Shape-v0: gymnasium's and SB3's checks, the replay of a menu as reference, rewards, refusals."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import InvalidAction
from gymnasium.utils.env_checker import check_env

import simulator.envs  # noqa: F401  registers the environments
from policies.base import Policy
from policies.ours.shapes import ShapeWorth
from policies.registry import parse_policy
from simulator.envs.round_token import play
from simulator.envs.shape import MENU, ShapeEnv, ShapeVectorEnv
from simulator.replay.menus import replay_menu
from tests.simulator.replay.test_menus import TakesTurns
from traces.costs.of_trace import prices_of_menu
from traces.costs.pricing import tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.shapes.menu import menu_of
from traces.shapes.shape import MOST_NODES, parse_shape
from traces.shipped import GREEDY, SAMPLED, TIMING
from traces.store import read_trace
from traces.timing import read_timing

ROWS = [3, 40, 77, 120]


@pytest.fixture(scope="module")
def greedy() -> Any:
    return read_trace(GREEDY).select(ROWS)


def test_checked_by_gymnasium_and_sb3(greedy: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in (None, "ansi"):
            how = {"trace": greedy, "render_mode": mode, "disable_env_checker": True}
            env = gymnasium.make("gammalab/Shape-v0", **how)
            check_env(env.unwrapped, skip_render_check=mode is None)
        sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
        sb3.check_env(gymnasium.make("gammalab/Shape-v0", trace=greedy).unwrapped)


@pytest.mark.parametrize(
    "policy", [ShapeWorth(), TakesTurns(stride=3), parse_policy("gammatune")], ids=lambda p: p.name
)
@pytest.mark.parametrize("where", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_policy_plays_as_in_the_replay(policy: Policy, where: Any) -> None:
    """Two recordings in one pool; who has no hook for shapes drafts the first one."""
    whole, shapes = read_trace(where), [parse_shape(text) for text in MENU]
    parts = [whole.select(ROWS[:2]), whole.select(ROWS[2:])]
    costs = tabulate(Table(read_timing(TIMING)), max_context=800, width=MOST_NODES + 2)
    menu, prices = menu_of(whole.select(ROWS), shapes), prices_of_menu(costs, shapes)
    log = replay_menu(policy, menu, prices, seed=5)
    env = ShapeEnv(parts, TIMING)
    rounds = play(env, policy, range(len(ROWS)), seed=5)
    assert [request for request, _ in rounds] == log.request.tolist()
    for name in ("gamma", "drafted", "accepted", "emitted", "elapsed_s"):
        assert [getattr(o, name) for _, o in rounds] == getattr(log, name).tolist(), name
    assert log.shape is not None
    assert (len(set(log.shape.tolist())) > 1) == (policy.name != "gammatune")


def test_the_return_is_minus_the_seconds(greedy: Any) -> None:
    env = ShapeEnv(greedy, TIMING)
    _, info = env.reset(seed=3)
    rng, seconds, total, ended, tokens = np.random.default_rng(0), 0.0, 0.0, False, 0
    while not ended:
        assert info["view"].levels.tolist() == [3, 3, 4, 2]
        _, reward, ended, truncated, info = env.step(rng.integers(0, env.action_space.nvec))
        total += reward
        seconds += info["outcome"].elapsed_s
        tokens += info["outcome"].emitted
        assert not truncated
    assert total * info["unit_s"] == pytest.approx(-seconds, rel=1e-12)
    assert tokens == int(greedy.reply_tokens[info["request"]])


def test_an_entry_drafts_no_deeper_than_it_is(greedy: Any) -> None:
    env = ShapeEnv(greedy, TIMING)
    env.reset(seed=3)
    *_, info = env.step(np.array([3, 4]))  # 8x2 has two levels
    assert info["outcome"].drafted == 2
    for wrong in ([4, 0], [0, 5], [-1, 0], [0, 0, 0], 3):
        with pytest.raises(InvalidAction):
            env.step(np.array(wrong))


def test_nobody_is_asked_where_there_is_one_tree(greedy: Any) -> None:
    env, policy = ShapeEnv(greedy, TIMING, shapes=("3x2x1",)), TakesTurns()
    assert {outcome.drafted for _, outcome in play(env, policy, range(2))} >= {3}
    with pytest.raises(InputError, match="reads the draft's signals"):
        play(env, parse_policy("payback"), range(1))


def test_lanes_show_what_a_policy_is_shown(greedy: Any) -> None:
    lanes = ShapeVectorEnv(2, greedy, TIMING)
    lanes.reset(seed=1)
    lanes.step(np.array([[2, 4], [0, 1]]))
    for lane in range(2):
        view = lanes.view(lane)
        assert view.levels.tolist() == [3, 3, 4, 2] and view.verify_s.shape[0] == 4


@pytest.mark.parametrize(
    ("how", "options", "word"),
    [
        ({"shapes": ("2y",)}, {}, "2y"),
        ({"shapes": ()}, {}, "1 to 64 shapes"),
        ({"shapes": ("8x8", "1x1")}, {}, "verifies 73 tokens, the timing measured up to 33"),
        ({}, {"loads": 4}, "one request at a time"),
        ({"reward": "speed"}, {}, "seconds, average"),
    ],
)
def test_what_cannot_be_is_one_line(
    greedy: Any, how: dict[str, Any], options: dict[str, Any], word: str
) -> None:
    with pytest.raises(InputError, match=word):
        ShapeEnv(greedy, TIMING, **how).reset(options=options)
