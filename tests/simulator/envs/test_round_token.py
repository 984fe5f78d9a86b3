"""Round-v0 and Token-v0: gymnasium's and SB3's checks, the replay as reference, rewards."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env

import simulator.envs  # noqa: F401  registers the environments
from policies.base import drops_tokens, uses_signals
from policies.fixed import Fixed
from policies.registry import REGISTRY, parse_policy
from simulator.envs.dataset import Pool
from simulator.envs.round_token import RoundEnv, TokenEnv, play
from simulator.replay.replay import replay
from tests.specimens import few_or_slow
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.shipped import GREEDY, TIMING
from traces.store import read_trace
from traces.timing import read_timing

IDS = ["gammalab/Round-v0", "gammalab/Token-v0"]


@pytest.mark.parametrize("name", few_or_slow(IDS, IDS[:1]))
def test_checked_by_gymnasium_and_sb3(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in (None, "ansi", "rgb_array"):
            env = gymnasium.make(name, render_mode=mode, disable_env_checker=True)
            check_env(env.unwrapped, skip_render_check=mode is None)
        sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
        sb3.check_env(gymnasium.make(name).unwrapped)


@pytest.fixture(scope="module")
def greedy() -> Any:
    return read_trace(GREEDY)


@pytest.mark.parametrize("spec", few_or_slow(REGISTRY))
def test_every_policy_plays_as_in_the_replay(spec: str, greedy: Any) -> None:
    policy, rows = parse_policy(spec), [3, 40, 77, 120]
    trace = greedy.select(rows)
    costs = tabulate(Table(read_timing(TIMING)), max_context=800, width=18)
    log = replay(policy, trace, costs, seed=5)
    env = (TokenEnv if uses_signals(policy) else RoundEnv)(trace, TIMING)
    if drops_tokens(type(policy)):
        with pytest.raises(InputError, match="has no action"):
            play(env, policy, range(len(rows)), seed=5)
        return
    rounds = play(env, policy, range(len(rows)), seed=5)
    assert [request for request, _ in rounds] == log.request.tolist()
    for name in ("gamma", "drafted", "accepted", "emitted", "elapsed_s"):
        assert [getattr(o, name) for _, o in rounds] == getattr(log, name).tolist(), name


@pytest.mark.parametrize("cls", [RoundEnv, TokenEnv])
def test_the_return_is_minus_the_seconds(cls: Any, greedy: Any) -> None:
    env = cls(greedy, TIMING)
    _, info = env.reset(seed=3)
    rng, seconds, total, ended, tokens = np.random.default_rng(0), 0.0, 0.0, False, 0
    while not ended:
        _, reward, ended, truncated, info = env.step(int(rng.integers(env.action_space.n)))
        total += reward
        seconds += info["outcome"].elapsed_s if "outcome" in info else 0.0
        tokens += info["outcome"].emitted if "outcome" in info else 0
        assert not truncated
    assert total * info["unit_s"] == pytest.approx(-seconds, rel=1e-12)
    assert tokens == int(greedy.reply_tokens[info["request"]])


def test_average_reward_by_hand() -> None:
    trace = synthetic.constant(1.0, np.random.default_rng(0), requests=1, reply_tokens=9)
    costs = Affine(draft_fixed=1e-3, target_fixed=10e-3)
    env = RoundEnv(trace, costs, reward="average", rho=100.0)
    env.reset(seed=0)
    _, reward, *_ = env.step(3)  # 4 tokens in 13 ms
    assert reward == pytest.approx(4 - 100.0 * 0.013)
    env = RoundEnv(trace, costs, reward="average")
    env.reset(seed=0)
    assert env.step(0)[1] == pytest.approx(0.0)  # plain decoding, at its own rate
    env = RoundEnv(trace, costs)
    env.reset(seed=0)
    assert env.step(3)[1] == pytest.approx(-1.3)


def test_token_steps_by_hand() -> None:
    size = {"requests": 1, "reply_tokens": 40, "depth": 4, "signals": True}
    trace = synthetic.constant(0.5, np.random.default_rng(0), **size)
    env = TokenEnv(trace, Affine(draft_fixed=1e-3, target_fixed=10e-3, signal=1e-3))
    env.reset(seed=0)
    _, reward, _, _, info = env.step(1)
    assert reward == pytest.approx(-0.2) and "outcome" not in info  # 1 ms and its signal
    assert info["draft"].drafted == 1
    _, reward, _, _, info = env.step(0)
    assert reward == pytest.approx(-1.0) and info["outcome"].drafted == 1
    for _ in range(4):
        assert "outcome" not in info or info["outcome"].drafted == 1
        _, reward, _, _, info = env.step(1)
    assert info["outcome"].drafted == info["outcome"].gamma == 4  # who fills the room verifies
    assert reward == pytest.approx(-1.2)


def test_options_are_kept_and_checked(greedy: Any) -> None:
    env = RoundEnv([greedy, greedy.select([0, 1])], TIMING)
    env.reset(seed=1, options={"traces": 1, "cost_ratios": [4.0, 9.0], "loads": [1, 8]})
    seen = set()
    for _ in range(60):
        _, info = env.reset()
        view = info["view"]
        assert info["unit_s"] == view.verify_s[1]
        ratio = round(info["unit_s"] / view.draft_step_s, 9)
        seen.add((info["request"], view.batch_size, ratio))
    assert {request for request, _, _ in seen} == {175, 176}
    assert {(load, c) for _, load, c in seen} == {(1, 4), (1, 9), (8, 4), (8, 9)}
    env.reset(options={})
    assert env.reset()[1]["view"].batch_size == 1
    for wrong in ({"requests": 177}, {"traces": [2]}, {"loads": 0}, {"rate": 1}, {"requests": []}):
        with pytest.raises(InputError):
            env.reset(options=wrong)


def test_refusals(greedy: Any) -> None:
    env = RoundEnv(greedy, TIMING)
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(InvalidAction):
        env.step(17)
    with pytest.raises(InputError, match="no top1_prob"):
        TokenEnv(synthetic.constant(0.5, np.random.default_rng(0), requests=1, reply_tokens=5))
    with pytest.raises(InputError, match="max_gamma"):
        RoundEnv(greedy, max_gamma=17)
    with pytest.raises(InputError, match="reward"):
        RoundEnv(greedy, reward="speed")
    with pytest.raises(InputError):
        Pool([], None, signals=False, max_gamma=None)


def test_same_seed_same_episodes(greedy: Any) -> None:
    def episode(seed: int) -> list[int]:
        env = RoundEnv(greedy, TIMING)
        found = [env.reset(seed=seed)[1]["request"]]
        return found + [env.reset()[1]["request"] for _ in range(8)]

    assert episode(4) == episode(4) != episode(5)


def test_what_is_shown_lies_on_the_grid_and_in_the_space(greedy: Any) -> None:
    for env in (RoundEnv(greedy, TIMING), TokenEnv(greedy, TIMING)):
        obs, _ = env.reset(seed=0, options={"cost_ratios": [0.5, 20.0], "loads": [1, 64]})
        rng = np.random.default_rng(0)
        for _ in range(300):
            obs, _, ended, _, _ = env.step(int(rng.integers(env.action_space.n)))
            assert env.observation_space.contains(obs)
            assert np.array_equal(obs * 1024, np.round(obs * 1024))
            if ended:
                env.reset()


def test_fixed_lengths_in_the_environment_cost_what_they_cost(greedy: Any) -> None:
    trace = greedy.select([5])
    costs = tabulate(Affine(), max_context=800, width=18)
    rounds = play(RoundEnv(trace, Affine()), Fixed(2), [0])
    seconds = sum(outcome.elapsed_s for _, outcome in rounds)
    assert seconds == pytest.approx(float(replay(Fixed(2), trace, costs).elapsed_s.sum()))
