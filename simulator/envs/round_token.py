"""gammalab/Round-v0 and Token-v0: the choice of gamma as Gymnasium environments, one request at a
time; and policies that play them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.error import InvalidAction, ResetNeeded

from policies.base import Outcome, Policy, View, clamp_gamma, drops_tokens, uses_signals
from policies.learned.observation import DRAFTING, ROUND
from policies.randomness import Rng, round_key
from policies.registry import label
from simulator.envs.batch import LaneBatch
from simulator.envs.dataset import CostsLike, Pool, TraceLike
from simulator.envs.kernel import DISABLED
from simulator.envs.render import ansi, rgb
from simulator.replay.replay import low_bits
from traces.errors import InputError

Observation = npt.NDArray[np.float32]
Info = dict[str, Any]


def observation_space(tokens: bool) -> Any:
    """Box float32 [K] in -1..1: the numbers of policies.learned.observation.ROUND and, before a
    token, of DRAFTING.
    """
    numbers = len(ROUND) + (len(DRAFTING) if tokens else 0)
    return gymnasium.spaces.Box(-1.0, 1.0, (numbers,), np.float32)


class LaneEnv(gymnasium.Env[Observation, np.int64]):
    """Common parts of Round-v0 and Token-v0.

    An episode is one reply; terminated at its end, truncated (by gymnasium's TimeLimit) after
    max_episode_steps. Seeds decide what is drawn; without one, a reset goes on drawing.

    Arguments
        trace: a Trace, a file, or several (default: the shipped greedy one). timing: a Timing, its
            file or a cost model (default: the shipped one).
        max_gamma: most tokens a round may draft (default: the traces' depth).
        reward: "seconds", minus the seconds of the step, in plain rounds of the episode's own costs
            (`unit_s` in info), so that the undiscounted return is minus the seconds of the reply;
            "average", tokens emitted less rho times the seconds (average-reward form; rho in tokens
            per second, None for plain decoding's). Never tokens/s of a round: their sum prefers
            many short rounds to few long ones.
        render_mode: "ansi" or "rgb_array": the reply as a strip of accepted and rejected drafts.

    Options of reset (kept until others are given; {} for all): traces, requests (numbers),
    cost_ratios (c of a target to a draft forward, each a table of its own), loads (rows of the
    batch): one value or a list to draw from, uniformly.

    Nobody's own arithmetic is charged before `charge` has said whose.

    info: view (policies.base.View of the next decision), outcome (Outcome, of a step that ended a
    round), draft (Draft, of a step that drafted a token), request, round (its number in the reply),
    unit_s (seconds that count as 1 in the reward).
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}
    tokens: ClassVar[bool] = False

    def __init__(
        self,
        trace: TraceLike | Sequence[TraceLike] | None = None,
        timing: CostsLike | None = None,
        *,
        max_gamma: int | None = None,
        reward: str = "seconds",
        rho: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        pool = Pool(trace, timing, signals=self.tokens, max_gamma=max_gamma)
        self.action_space = gymnasium.spaces.Discrete(2 if self.tokens else pool.max_gamma + 1)
        self._open(pool, reward, rho, render_mode)

    def _open(self, pool: Pool, reward: str, rho: float | None, render_mode: str | None) -> None:
        """A lane on this pool."""
        self.stage = LaneBatch(pool, 1, tokens=self.tokens, mode=DISABLED, reward=reward, rho=rho)
        self.observation_space = observation_space(self.tokens)
        self.render_mode = render_mode
        self._rounds: list[Outcome] = []
        self._begun = False

    def charge(self, player: Policy | None) -> None:
        """From the next reset on this policy plays, and pays for its own arithmetic, as
        policies.overhead charges it; None: whoever plays pays nothing.
        """
        self.stage.charge(player)
        self.stage.arrays.lanes["done"][:] = 1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """Begin another reply; raises InputError for options that name what is not there."""
        super().reset(seed=seed)
        if options is not None:
            self.stage.allow(options, slice(None))
        if seed is not None or not self._begun:
            self.stage.seed([int(self.np_random.integers(1 << 32))], slice(None))
        self.stage.reset(slice(None))
        self._begun, self._rounds = True, []
        return self.stage.arrays.obs[0].copy(), self._info()

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, Info]:
        """One decision; raises gymnasium's InvalidAction and ResetNeeded."""
        arrays = self.stage.arrays
        if not self.action_space.contains(action):
            raise InvalidAction(f"{action!r} is not in {self.action_space}")
        if not self._begun or arrays.lanes[0]["done"]:
            raise ResetNeeded("the reply has ended, or none has begun: call reset")
        at, drafted = int(arrays.lanes[0]["at"]), int(arrays.lanes[0]["tokens"])
        room = int(arrays.lanes[0]["room"])
        arrays.actions[0] = self.drafts(action)
        self.stage.pinned.step()
        info = self._info()
        if self.tokens and action == 1 and drafted < room:
            info["draft"] = self.stage.draft(drafted + 1, at)
        if arrays.played[0]:
            info["outcome"] = self.stage.outcome(0)
            self._rounds.append(info["outcome"])
        ended = bool(arrays.terminated[0])
        return arrays.obs[0].copy(), float(arrays.rewards[0]), ended, False, info

    def drafts(self, action: Any) -> int:
        """The step of the lane that an action asks for."""
        return int(action)

    def ask(self, policy: Policy, state: Any, rng: Rng) -> tuple[Any, View, int]:
        """A policy's action for the round that is due, its view, and how much it drafts at most."""
        view = self.stage.view(0)
        cap = clamp_gamma(policy.gamma(state, 0, view, rng), view.room)
        return cap, view, cap

    def render(self) -> Any:
        """The rounds of this reply so far, as text or as a picture [H, W, 3] uint8."""
        if self.render_mode == "ansi":
            return ansi(self._rounds)
        return rgb(self._rounds) if self.render_mode == "rgb_array" else None

    def _info(self) -> Info:
        lane = self.stage.arrays.lanes[0]
        return {
            "view": self.stage.view(0),
            "request": int(lane["request"]),
            "round": int(lane["round_number"]),
            "unit_s": self.stage.unit_s(0),
        }


class RoundEnv(LaneEnv):
    """gammalab/Round-v0: one step is one round; Discrete(G + 1), how many tokens to draft, clamped
    to the room. The draft's signals are neither shown nor charged. See LaneEnv.
    """


class TokenEnv(LaneEnv):
    """gammalab/Token-v0: one step is one drafted token; Discrete(2): 0 verifies what was drafted
    (none: a plain round), 1 drafts one more. Who fills the room verifies in the same step. Reading
    the signals of every drafted token is charged. See LaneEnv.
    """

    tokens: ClassVar[bool] = True


def play(
    env: gymnasium.Env[Any, Any], policy: Policy, requests: Sequence[int], *, seed: int = 0
) -> list[tuple[int, Outcome]]:
    """Let a policy of the registry play these requests, one after another: its rounds.

    They are those of simulator.replay.replay with this seed, its own arithmetic charged. Per-round
    policies play gammalab/Round-v0, those that look at the draft's signals gammalab/Token-v0, those
    that choose among trees gammalab/Shape-v0 (there the rounds of simulator.replay.menus).

    Raises InputError for a policy that drops drafted tokens, for which there is no action.
    """
    if drops_tokens(type(policy)):
        raise InputError(
            f"policy {label(policy)!r} drops drafted tokens, for which gammalab/Token-v0 has no "
            "action; replay it"
        )
    base: Any = env.unwrapped
    base.charge(policy)
    rounds, state = [], policy.new_state(1)
    for request in requests:
        _, info = env.reset(options={"requests": [request]})
        policy.admit(state, 0)
        ended = False
        while not ended:
            rng = Rng(round_key(low_bits(seed), info["request"], info["round"]))
            action, view, cap = base.ask(policy, state, rng)
            if uses_signals(policy):
                ended, info = _draft(env, policy, state, cap)
            else:
                _, _, ended, _, info = env.step(action)
            outcome = info["outcome"]._replace(gamma=cap)
            policy.learn(state, 0, view, outcome)
            rounds.append((request, outcome))
    return rounds


def _draft(env: gymnasium.Env[Any, Any], policy: Policy, state: Any, cap: int) -> tuple[bool, Info]:
    """One round token by token."""
    drafted, going, ended, info = 0, True, False, Info()
    while going and drafted < cap:
        _, _, ended, _, info = env.step(1)
        drafted += 1
        going = policy.proceed(state, 0, info["draft"])
    if "outcome" not in info:
        _, _, ended, _, info = env.step(0)
    return ended, info
