"""Learning in worlds whose best answer is known, with the right reward and with a wrong one; runs
that are stopped and go on; demonstrations; SB3 on the native lanes.
"""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.learning import ppo
from experiments.learning.cloning import clone, demonstrations, schedules
from experiments.learning.task import Task, make_task
from experiments.learning.train import fit_ppo
from policies.base import Policy
from policies.fixed import Fixed
from policies.learned.neural import neural_policy, quantise
from simulator.envs.dataset import Pool
from simulator.envs.vector import RoundVectorEnv, TokenVectorEnv
from simulator.replay.hindsight import clairvoyant
from simulator.replay.replay import replay
from simulator.replay.totals import tally
from tests.specimens import few_or_slow
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.model import CostModel
from traces.costs.pricing import StepCosts, tabulate
from traces.errors import InputError
from traces.schema import Trace
from traces.shipped import GREEDY, TIMING
from traces.store import read_trace
from traces.timing import read_timing

LONGEST = 6  # gamma, in these worlds
LANES: dict[str, Any] = {"autoreset_mode": "SameStep", "copy": False}
SHORT = ppo.PPOSettings(iterations=60, horizon=32, hidden=16, learning_rate=5e-3)


@dataclasses.dataclass(frozen=True)
class World:
    """Requests to learn on and others to be judged on, by the regime they are in."""

    rates: tuple[float, ...]
    costs: CostModel
    tokens: int = 400

    def trace(self, seed: int, requests: int = 40) -> Trace:
        """Replies, the regimes in turn."""
        regimes = [self.rates[k % len(self.rates)] for k in range(requests)]
        rates = np.repeat(np.asarray(regimes)[:, None], self.tokens, axis=1)
        return synthetic.from_rates(rates, np.random.default_rng(seed), "regimes", depth=LONGEST)

    def table(self) -> StepCosts:
        """The costs as replays take them."""
        return tabulate(self.costs, max_context=1024, width=LONGEST + 2)

    def optimum_s(self, trace: Trace) -> float:
        """Seconds of the best length of every regime: nobody who does not know the flags does
        better than one who knows the regime, for within it they are independent.
        """
        total = 0.0
        for k in range(len(self.rates)):
            part = trace.select(list(range(k, trace.requests, len(self.rates))))
            runs = [tally(Fixed(g), part, self.table()).decode_s.sum() for g in range(LONGEST + 1)]
            total += float(min(runs))
        return total

    def rho(self) -> float:
        """Tokens per second of the best length of all: with it the average reward of a round says
        what the round gained.
        """
        trace, costs = self.trace(seed=1), self.table()
        runs = [tally(Fixed(g), trace, costs).decode_s.sum() for g in range(LONGEST + 1)]
        return float(trace.positions / min(runs))

    def share(self, weights: list[Any], seed: int = 99) -> float:
        """Speed of a network on requests it has not seen, over the optimum's."""
        trace, policy = self.trace(seed=seed), neural_policy(quantise(*weights))
        return self.optimum_s(trace) / float(tally(policy, trace, self.table()).decode_s.sum())


CONDITIONS = {
    "one rate": World((0.8,), Affine(draft_fixed=1e-3, target_fixed=10e-3)),
    "two regimes": World((0.95, 0.2), Affine(draft_fixed=2e-3, target_fixed=10e-3)),
    "drafting is dear": World((0.6,), Affine(draft_fixed=10e-3, target_fixed=10e-3)),
}


class TokensPerSecond(RoundVectorEnv):
    """The reward not to use: tokens per second of every round, summed."""

    def step(self, actions: Any) -> Any:
        obs, _, terminated, truncated, infos = super().step(actions)
        rounds = infos["outcome"]
        return obs, rounds["emitted"] / rounds["elapsed_s"] / 100.0, terminated, truncated, infos


def trained(
    condition: World, cls: Any, settings: ppo.PPOSettings = SHORT, **changes: Any
) -> list[Any]:
    """Weights after a short run of our PPO."""
    torch.set_num_threads(1)
    env = cls(
        128,
        condition.trace(seed=1),
        condition.costs,
        autoreset_mode="SameStep",
        copy=False,
        **changes,
    )
    state = ppo.State(env, settings)
    for _ in range(settings.iterations):
        ppo.advance(state)
    return ppo.weights_of(state.policy)


@pytest.mark.parametrize("name", few_or_slow(CONDITIONS, ["one rate"]))
@pytest.mark.slow
def test_ppo_finds_the_known_answer(name: str) -> None:
    """Some short runs end in a habit of their own, and which ones hangs on the processor's
    rounding. So the first of six that has found the answer on other requests of the training kind
    is judged, as `gammalab train` chooses by its quarter.
    """
    condition = CONDITIONS[name]
    for seed in range(6):
        settings = dataclasses.replace(
            SHORT, iterations=70 if name == "one rate" else 120, seed=seed
        )
        weights = trained(
            condition, RoundVectorEnv, settings, reward="average", rho=condition.rho()
        )
        if condition.share(weights, seed=2) >= 0.98:
            break
    assert condition.share(weights) >= 0.98


SHORT_REPLIES = dataclasses.replace(CONDITIONS["one rate"], tokens=50)


@pytest.mark.slow
def test_the_return_in_seconds_finds_it_too() -> None:
    weights = trained(SHORT_REPLIES, RoundVectorEnv, reward="seconds")
    assert SHORT_REPLIES.share(weights) >= 0.98


@pytest.mark.slow
def test_tokens_per_second_of_a_round_is_the_wrong_reward() -> None:
    """It prefers plain rounds, for there are more of them: 6 drafts of rate 0.8 at c = 10 emit 3.95
    tokens in 16 steps, a reward of 0.25 for every 3.95 tokens; plain decoding gets 0.1 for each.
    """
    condition = SHORT_REPLIES
    learned = neural_policy(quantise(*trained(condition, TokensPerSecond)))
    trace, costs = condition.trace(seed=99), condition.table()

    def summed(policy: Policy) -> float:
        log = replay(policy, trace, costs)
        return float((log.emitted / log.elapsed_s).sum())

    assert summed(learned) > 1.3 * summed(Fixed(LONGEST))  # by its own measure it has learned
    seconds = float(tally(learned, trace, costs).decode_s.sum())
    assert condition.optimum_s(trace) / seconds < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("name", CONDITIONS)
def test_dqn_finds_the_known_answer(name: str) -> None:
    pytest.importorskip("stable_baselines3")
    from experiments.learning.sb3 import LaneVecEnv, actor_weights, make_model

    torch.set_num_threads(1)
    condition = CONDITIONS[name]
    options = LANES | {"reward": "average", "rho": condition.rho()}
    env = RoundVectorEnv(64, condition.trace(seed=1), condition.costs, **options)
    model = make_model("dqn", LaneVecEnv(env), SHORT)
    model.learn(120_000)
    assert condition.share(actor_weights(model)) >= 0.98


@pytest.mark.slow
def test_sb3_ppo_on_the_lanes_and_its_terminal_observations() -> None:
    pytest.importorskip("stable_baselines3")
    from experiments.learning.sb3 import LaneVecEnv, actor_weights, make_model

    torch.set_num_threads(1)
    condition = CONDITIONS["one rate"]
    native = RoundVectorEnv(
        64, condition.trace(seed=1), condition.costs, autoreset_mode="SameStep", reward="average"
    )
    env = LaneVecEnv(native)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.seed(3)
        first = env.reset()
    assert np.array_equal(first, native.stage.arrays.obs)
    ends = 0
    for _ in range(150):
        _, rewards, dones, infos = env.step(np.full(64, 4))
        assert rewards.dtype == np.float32
        for lane in np.flatnonzero(dones):
            ends += 1
            seen = infos[lane]["terminal_observation"]
            assert np.array_equal(seen, native.stage.arrays.final[lane])
            assert not infos[lane]["TimeLimit.truncated"]
    assert ends >= 64
    model = make_model("ppo", env, SHORT)
    model.learn(64 * 32 * 40)
    assert condition.share(actor_weights(model)) >= 0.98


@pytest.fixture(scope="module")
def task() -> Task:
    return make_task([read_trace(GREEDY)], read_timing(TIMING), unit="token", ratios=(0.0, 6.0))


def test_halves_do_not_overlap_and_the_held_out_one_is_not_there(task: Task) -> None:
    from traces.split import question_of, split_rows

    trace = read_trace(GREEDY)
    held = {question_of(trace.request_id[row]) for row in split_rows(trace)[1]}
    fit = {question_of(name) for name in task.fit.traces[0].request_id}
    kept = {question_of(name) for name in task.validation.traces[0].request_id}
    assert fit and kept and not fit & kept and not (fit | kept) & held
    env = task.env(8)
    for _ in range(40):
        env.step(np.zeros(8, dtype=np.int64))
        assert env.stage.arrays.lanes["request"].max() < len(task.fit.traces[0].request_id)
    assert set(env.stage.arrays.lanes["cost"].tolist()) == {0, 1}


@pytest.mark.long
def test_a_stopped_run_ends_in_the_same_weights(task: Task, tmp_path: Path) -> None:
    settings = ppo.PPOSettings(iterations=8, horizon=8, hidden=8)
    whole = fit_ppo(task, settings, lanes=32, folder=tmp_path / "whole", check=2)

    class Killed(Exception):
        pass

    real, calls = ppo.advance, []

    def dies(state: ppo.State) -> float:
        if len(calls) == 5:  # between two checkpoints: what came after the last one is done again
            raise Killed
        calls.append(0)
        return real(state)

    ppo.advance = dies
    try:
        with pytest.raises(Killed):
            fit_ppo(task, settings, lanes=32, folder=tmp_path / "cut", check=2)
    finally:
        ppo.advance = real
    rest = fit_ppo(task, settings, lanes=32, folder=tmp_path / "cut", check=2)
    assert all(np.array_equal(a, b) for a, b in zip(whole.best, rest.best, strict=True))
    columns = ("steps", "reward", "fit", "validation")
    assert [[r[c] for c in columns] for r in whole.curve] == [
        [r[c] for c in columns] for r in rest.curve
    ]
    (tmp_path / "cut" / "checkpoint.safetensors").write_bytes(b"\x10" + b"\0" * 40)
    with pytest.raises(InputError, match="checkpoint"):
        fit_ppo(task, settings, lanes=32, folder=tmp_path / "cut", check=2)
    wider = dataclasses.replace(settings, hidden=9)
    with pytest.raises(InputError, match="no checkpoint of this run"):
        fit_ppo(task, wider, lanes=32, folder=tmp_path / "whole", check=2)


@pytest.mark.parametrize("cls", [RoundVectorEnv, TokenVectorEnv])
def test_demonstrations_are_the_clairvoyant(cls: Any) -> None:
    trace = read_trace(GREEDY).select([4, 60])
    timing = read_timing(TIMING)
    pool = Pool(trace, timing, signals=False, max_gamma=None)
    table = next(iter(pool.tables.values()))
    best_s = float(clairvoyant(trace, table).elapsed_s.sum())
    env = RoundVectorEnv(1, trace, timing, copy=False, autoreset_mode="SameStep")
    choice, condition, seconds = schedules(pool)[0], env.stage.arrays, 0.0
    for row in (0, 1):
        env.reset(seed=0, options={"requests": row})
        ended = False
        while not ended:
            lane = condition.lanes[0]
            gamma = choice[lane["at"], min(lane["lag"], choice.shape[1] - 1)]
            terminated = env.step(np.array([gamma]))[2]
            ended = bool(terminated[0])
            seconds += float(condition.outcomes["elapsed_s"][0])
    assert seconds == pytest.approx(best_s, rel=1e-12)
    several = cls(32, trace, timing, autoreset_mode="SameStep", copy=False)
    seen, done = demonstrations(several, 64, seed=0)
    assert len(seen) == len(done) == 64 * 32
    network = ppo.layers(several.stage.numbers, 16, several.choices)
    first = clone(network, seen, done, epochs=1, seed=0)
    assert clone(network, seen, done, epochs=8, seed=0) < first


def test_too_few_questions_to_learn_from() -> None:
    trace = synthetic.constant(0.5, np.random.default_rng(0), requests=2, reply_tokens=20)
    with pytest.raises(InputError):
        make_task([trace], read_timing(TIMING), unit="round")
    with pytest.raises(InputError, match="--unit"):
        make_task([trace], read_timing(TIMING), unit="reply")
