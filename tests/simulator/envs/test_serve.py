"""Serve-v0: what `serve` does, bit for bit; rewards that add up; observations by hand; checkers."""

from __future__ import annotations

import math
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env

import simulator.envs  # noqa: F401  (registers the environments)
from policies.base import Policy
from policies.confidence.thresholds import TailPruning
from policies.fixed import Fixed, Never
from policies.learned.observation import (
    GRID,
    MEMORY,
    ROUND,
    forget,
    on_grid,
    remember,
    show_costs,
    show_request,
)
from policies.registry import REGISTRY
from simulator.envs.external_gamma import BATCH
from simulator.envs.play_serve import play_serve
from simulator.envs.render import LEGEND, LINE, MARGIN, PAPER
from simulator.envs.serve import ServeEnv
from simulator.serving.options import Server
from simulator.serving.server import serve
from traces import synthetic
from traces.costs.affine import Affine
from traces.errors import InputError

MODEL = Affine(
    draft_fixed=1.3e-3, target_fixed=10.7e-3, draft_token=1.1e-4, target_token=3.3e-4,
    prefill_fixed=5e-3, prefill_token=1.7e-5, row=2.1e-4, context_token=1.3e-6, signal=1.9e-4,
    control=4.1e-4,
)  # fmt: skip
TRACE = synthetic.bursty(
    0.9, 0.4, np.random.default_rng(3), switch=0.2, requests=9, reply_tokens=40, depth=8,
    signals=True, prompt_tokens=25,
)  # fmt: skip
APART = {"apart": True, "hop_s": 1e-3, "jitter_s": 5e-4, "token_hop_s": 1e-5}
SERVERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "blocks": {"blocks": 24, "block_tokens": 5},
    "chunks": {"chunk_tokens": 9},
    "blocks and chunks": {"blocks": 24, "block_tokens": 5, "chunk_tokens": 9},
    "pipelined": APART | {"pipelined": True, "reentry_s": 2e-3},
    "budget": {"allotment": "budget", "budget_tokens": 7, "padded": True},
}
WORKLOADS = ("closed:users=5", "closed:users=2,think_s=0.3", "poisson:rate=40", "poisson:rate=2")
WIDE = [cls for cls in REGISTRY.values() if cls.batch_wide]


def make(**changes: Any) -> ServeEnv:
    given: dict[str, Any] = {"server": Server(slots=3), "requests": 12}
    return ServeEnv(TRACE, MODEL, **(given | changes))


def play_out(env: ServeEnv, gamma: int = 3, **reset: Any) -> tuple[float, list[dict[str, Any]]]:
    """Return and infos of an episode at one gamma."""
    _, info = env.reset(**reset)
    total, infos, ended = 0.0, [info], False
    while not ended:
        _, reward, ended, truncated, info = env.step(gamma)
        assert not truncated
        total += reward
        infos.append(info)
    return total, infos


def agree(policy: Policy, env: ServeEnv, seed: int) -> None:
    """The environment's episode is that of the server as plain Python."""
    mine = play_serve(env, policy, seed=seed)
    theirs = serve(
        policy, env.trace, env.demand, env.costs, env.server, seed=env.episode_seed, compiled=False
    )
    for name in ("arrival_s", "admitted_s", "first_s", "finish_s", "drafted", "accepted", "rounds",
                 "preempted", "gaps", "busy_s"):  # fmt: skip
        assert getattr(mine, name).tobytes() == getattr(theirs, name).tobytes(), name
    assert mine.bins.tobytes() == theirs.bins.tobytes()
    assert (mine.totals, mine.end_s) == (theirs.totals, theirs.end_s)
    assert mine.policy == theirs.policy
    if env.server.blocks:
        assert mine.totals["preemptions"] > 0


# --- what serve does


@pytest.mark.slow  # two of them are among test_servers_of_all_kinds
@pytest.mark.parametrize("cls", WIDE, ids=lambda cls: cls.name)
def test_batch_wide_policies_play_as_in_serve(cls: type[Policy]) -> None:
    for k, workload in enumerate(WORKLOADS):
        agree(cls(), make(workload=workload), seed=k)


@pytest.mark.parametrize("workload", WORKLOADS[::2])
@pytest.mark.parametrize("server", SERVERS)
def test_servers_of_all_kinds(server: str, workload: str) -> None:
    env = make(server=Server(slots=3, **SERVERS[server]), workload=workload)
    for k, policy in enumerate((Fixed(4), REGISTRY["smartspec"](), REGISTRY["vllm-dynamic"]())):
        agree(policy, env, seed=k)


@pytest.mark.long
def test_an_allotment_that_looks_at_confidences() -> None:
    agree(Fixed(4), make(server=Server(slots=3, allotment="tetris", budget_tokens=8)), seed=1)


def test_max_gamma_is_the_servers() -> None:
    env = make(max_gamma=2)
    assert env.action_space == gymnasium.spaces.Discrete(3)
    agree(Fixed(8), env, seed=3)
    assert make(server=Server(slots=3, max_gamma=5)).action_space.n == 6


def test_without_drafts_every_token_is_a_row_of_an_iteration() -> None:
    served = play_serve(make(), Never(), seed=0)
    assert (served.totals["drafted"], served.totals["emitted"]) == (0, served.rounds.sum())


def test_policies_that_look_at_signals_are_refused() -> None:
    with pytest.raises(InputError, match="does not show; take another"):
        play_serve(make(), TailPruning())


# --- rewards


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_return_is_the_time_that_requests_spend(workload: str, server: str) -> None:
    env = make(workload=workload, server=Server(slots=3, **SERVERS[server]))
    total, infos = play_out(env, seed=7)
    served = env.served()
    spent_s = float((served.finish_s - served.arrival_s).sum())
    assert math.isclose(total * env.scale_s, -spent_s, rel_tol=1e-12)
    assert env.scale_s == env.costs.verify_s[0, 0, 1]
    assert math.isclose(sum(info["elapsed_s"] for info in infos), served.end_s, rel_tol=1e-12)
    assert infos[-1]["now_s"] == served.end_s


def test_average_reward_is_tokens_less_rho_seconds() -> None:
    total, _ = play_out(env := make(reward="average", rho=50.0), seed=7)
    served = env.served()
    assert math.isclose(total, served.totals["emitted"] - 50.0 * served.end_s, rel_tol=1e-12)
    assert make().rho == 3.0 / env.costs.verify_s[2, 0, 1]


# --- what is shown


@pytest.mark.parametrize("server", ["blocks and chunks", "pipelined"])
def test_observations_by_hand(server: str) -> None:
    """From views and outcomes alone, with a memory of one's own."""
    env = make(server=Server(slots=3, **SERVERS[server]), workload="poisson:rate=30")
    memory, quiet, choose = np.zeros((3, MEMORY)), 0.0, np.random.default_rng(1)
    seen, info = env.reset(seed=5)
    ended, read, full = False, 0, 0
    while not ended:
        for slot in info["entered"]:
            forget(memory, slot)
        n = info["batch"]
        assert n == len(info["views"]) == len(set(info["slots"])) > 0
        rows = np.zeros((n, len(ROUND)))
        for k, (slot, view) in enumerate(zip(info["slots"], info["views"], strict=True)):
            assert (view.batch_size, view.waiting) == (n, info["waiting"])
            show_request(memory, slot, view.room, view.context_tokens, rows, k)
            show_costs(view.draft_step_s, view.verify_s, n, view.waiting, rows, k)
        wanted = [on_grid(float(column.sum() / n)) for column in rows.T]
        assert seen[: len(ROUND)].tolist() == wanted
        running = env._world.counters[0].running
        held = env._world.slots["held"].sum()  # a slot that is free holds none
        beside = [running / 3, 1.0 - n / running, held / (env.server.blocks or 1), quiet]
        assert seen[len(ROUND) : -1].tolist() == [on_grid(float(x)) for x in beside]
        assert (seen[-1] > 0.0) == (info["waiting"] > 0)
        assert (seen * GRID == np.round(seen * GRID)).all()
        read += running > n
        full += seen[-1] > 0.5
        action, views = (
            int(choose.integers(0, 3)),
            dict(zip(info["slots"], info["views"], strict=True)),
        )
        seen, _, ended, _, info = env.step(action)
        for slot, outcome in zip(info["learned"], info["outcomes"], strict=True):
            remember(memory, slot, outcome.drafted, outcome.accepted)
        quiet = float(all(min(action, views[slot].room) == 0 for slot in info["learned"]))
    assert full > 0
    assert (read > 0) == ("chunks" in server)
    assert not seen[: len(ROUND)].any()


def test_space_and_names() -> None:
    env = make()
    assert env.observation_space.shape == (len(ROUND) + len(BATCH),)
    assert env.observation_space.dtype == np.float32


# --- draws


def test_a_seed_decides_all_episodes() -> None:
    env, other = make(), make()
    _, first = play_out(env, seed=4)
    _, second = play_out(env)
    assert first[-1]["now_s"] != second[-1]["now_s"]
    assert [play_out(other, seed=4)[1][-1]["now_s"], play_out(other)[1][-1]["now_s"]] == [
        first[-1]["now_s"],
        second[-1]["now_s"],
    ]
    assert play_out(env, seed=5)[1][-1]["now_s"] != first[-1]["now_s"]


def test_loads_are_drawn_from_the_options_until_others_are_given() -> None:
    env, counts = make(), {1: 0, 3: 0, 5: 0}
    env.reset(seed=0, options={"users": [1, 3]})
    for _ in range(200):
        counts[env.demand.users] += 1
        env.reset()
    assert counts[1] + counts[3] == 200
    assert abs(counts[1] - 100) < 45  # six standard deviations
    env.reset(options={"users": np.asarray([5])})
    assert env.demand.users == 5
    env.reset(options={})
    assert env.demand.users == 8


def test_rates() -> None:
    env = make(workload="poisson:rate=4", requests=400)
    env.reset(seed=0, options={"rate": 100.0})
    assert 3.2 < env.demand.arrival_s[-1] < 4.8  # four standard deviations


# --- what goes wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": [1.0]}, "unknown option 'rate' of reset; a closed workload takes users"),
        ({"users": []}, "option 'users' of reset is empty"),
        ({"users": [0]}, "users must be a whole number between 1"),
        ({"users": [1.5]}, "users must be a whole number between 1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make().reset(options=options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workload": "closed:rate=3"}, "'rate=3' is not known"),
        ({"requests": 0}, "requests must be a whole number"),
        ({"reward": "tokens"}, "reward is 'tokens'; known: seconds, average"),
        ({"rho": -1.0}, "rho is -1.0; give tokens per second"),
        ({"render_mode": "human"}, "render_mode is 'human'; known: ansi, rgb_array"),
        ({"max_gamma": 9}, r"max_gamma is 9; this trace can play 0\.\.8"),
        ({"max_gamma": 0}, "leaves nothing to choose"),
        ({"server": Server(replicas=2)}, "replicas is 2; this environment plays one"),
        ({"server": Server(blocks=2)}, "can never hold request"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**changes)


def test_steps_out_of_turn() -> None:
    env = make(requests=1)
    with pytest.raises(ResetNeeded):
        env.step(0)
    play_out(env)
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset()
    with pytest.raises(InvalidAction):
        env.step(9)


# --- checkers and pictures


def registered(**changes: Any) -> Any:
    settings = {"requests": 6, "trace": TRACE, "timing": MODEL, "server": Server(slots=3)}
    return gymnasium.make("gammalab/Serve-v0", **(settings | changes))


@pytest.mark.parametrize("workload", ["closed:users=8", "poisson:rate=20"])
def test_gymnasium_finds_no_fault(workload: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(registered(workload=workload).unwrapped)
        check_env(gymnasium.make("gammalab/Serve-v0", requests=6).unwrapped)


def test_stable_baselines_finds_no_fault() -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checker.check_env(registered())


def test_strips() -> None:
    env = make(render_mode="ansi")
    env.reset(seed=1)
    assert env.render() == f"\n\n\n{LEGEND}"
    for _ in range(3):
        _, _, _, _, info = env.step(2)
    lines = env.render().split("\n")
    assert [line.count("|") for line in lines[:-1]] == [3, 3, 3]
    assert info["batch"] == 3
    picture = make(render_mode="rgb_array")
    picture.reset(seed=1)
    empty = picture.render()
    picture.step(2)
    assert picture.render().shape == empty.shape
    assert (picture.render() != empty).any()
    while len(picture._rounds[0]) < 8:  # six fit on a line
        picture.step(8)
    for line in range(2):
        assert (picture.render()[MARGIN + line * LINE + LINE // 2] != PAPER).any()
    assert make().render() is None
