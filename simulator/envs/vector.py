"""Thousands of environments in one compiled call, as gymnasium.vector.VectorEnv.

Step by step and bit for bit the same as so many single environments in gymnasium's SyncVectorEnv,
in all three autoreset modes (https://farama.org/Vector-Autoreset-Mode).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from policies.base import Outcome, Policy, View
from simulator.envs.batch import LaneBatch
from simulator.envs.dataset import CostsLike, Pool, TraceLike
from simulator.envs.kernel import DISABLED, NEXT_STEP, SAME_STEP
from simulator.envs.render import ansi, rgb
from simulator.envs.round_token import LaneEnv, observation_space

MODES = {
    AutoresetMode.NEXT_STEP: NEXT_STEP,
    AutoresetMode.SAME_STEP: SAME_STEP,
    AutoresetMode.DISABLED: DISABLED,
}
Observations = npt.NDArray[np.float32]
Info = dict[str, Any]


def _not_begun(pins: Any) -> int:
    raise ResetNeeded("no episode has begun: call reset")


class LaneVectorEnv(gymnasium.vector.VectorEnv[Observations, npt.NDArray[np.int64], Any]):
    """Common parts of the vector forms of Round-v0 and Token-v0; arguments as
    simulator.envs.round_token.LaneEnv, and

        num_envs: lanes. max_episode_steps: truncates an episode, 0: never (make_vec passes the
            registered number). autoreset_mode: gymnasium's, NEXT_STEP by default.
        copy: False hands out the same arrays at every step, which the next one overwrites.

    Rewards [L] float64, terminations and truncations [L] bool. infos: "outcome" [L], records with
    the fields of policies.base.Outcome, and "_outcome" [L] bool, where the step ended a round; in
    SAME_STEP mode "final_obs" and "final_info" of the lanes that ended, as gymnasium has them.
    `view(lane)` and `outcome(lane)` are what a policy is shown.
    """

    metadata: dict[str, Any] = LaneEnv.metadata | {"autoreset_mode": AutoresetMode.NEXT_STEP}
    tokens: ClassVar[bool] = False

    def __init__(
        self,
        num_envs: int = 1,
        trace: TraceLike | Sequence[TraceLike] | None = None,
        timing: CostsLike | None = None,
        *,
        max_episode_steps: int = 0,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        copy: bool = True,
        max_gamma: int | None = None,
        reward: str = "seconds",
        rho: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        self._begin_as(num_envs, autoreset_mode, copy)
        pool = Pool(trace, timing, signals=self.tokens, max_gamma=max_gamma)
        self.choices = 2 if self.tokens else pool.max_gamma + 1
        self.single_action_space = gymnasium.spaces.Discrete(self.choices)
        how = {"reward": reward, "rho": rho, "limit": max_episode_steps}
        self._open(pool, render_mode, how)

    def _begin_as(self, num_envs: int, mode: AutoresetMode | str, copy: bool) -> None:
        """So many lanes, what follows the end of an episode, and whose the arrays are."""
        self.mode, self.copy, self.num_envs = AutoresetMode(mode), copy, num_envs
        self.metadata = self.metadata | {"autoreset_mode": self.mode}

    def _open(self, pool: Pool, render_mode: str | None, how: dict[str, Any]) -> None:
        """Lanes on this pool. how: of LaneBatch."""
        num_envs, mode = self.num_envs, MODES[self.mode]
        self.stage = LaneBatch(pool, num_envs, tokens=self.tokens, mode=mode, **how)
        self.single_observation_space = observation_space(self.tokens)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.render_mode = render_mode
        self._rounds: list[list[Outcome]] = [[] for _ in range(num_envs)]
        self._seeded = np.zeros(num_envs, dtype=np.bool_)
        self._bind()

    def _bind(self) -> None:
        """Take hold of the arrays that steps write to; the stage keeps them for good."""
        arrays = self.stage.arrays
        self._actions, self._obs, self._rewards = arrays.actions, arrays.obs, arrays.rewards
        self._terminated = arrays.terminated.view(np.bool_)
        self._truncated = arrays.truncated.view(np.bool_)
        self._played, self._outcomes = arrays.played.view(np.bool_), arrays.outcomes
        self._same: Info = {"outcome": self._outcomes, "_outcome": self._played}
        self._shape = (self.num_envs,)
        self._result = (self._obs, self._rewards, self._terminated, self._truncated, self._same)
        same_step = self.mode is AutoresetMode.SAME_STEP
        self._bare = not (self.copy or same_step or self.render_mode)  # the same at every step
        self._pins = self.stage.pinned.pins
        self._step: Callable[[Any], int] = _not_begun

    def charge(self, player: Policy | None) -> None:
        """Charge this policy's arithmetic, as simulator.envs.round_token.LaneEnv.charge does."""
        self.stage.charge(player)
        self._bind()

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observations, Info]:
        """Begin an episode in every lane, or in those of options["reset_mask"] ([L] bool).

        Lane i is seeded with seed + i. Options as in LaneEnv; raises InputError for what is not
        there, ValueError for a mask or seeds of another length.
        """
        options = None if options is None else dict(options)
        mask = np.ones(self.num_envs, dtype=np.bool_)
        if options is not None and "reset_mask" in options:
            mask = np.asarray(options.pop("reset_mask"))
            if mask.shape != self._shape or mask.dtype != np.bool_ or not mask.any():
                raise ValueError(
                    f"options['reset_mask'] must be [{self.num_envs}] bool with a True among them"
                )
        seeds = self._seeds(seed)
        if options is not None:
            self.stage.allow(options, mask)
        new = [i for i in np.flatnonzero(mask) if seeds[i] is not None or not self._seeded[i]]
        keys = [int(seeding.np_random(seeds[i])[0].integers(1 << 32)) for i in new]
        self.stage.seed(keys, new)
        self._seeded[mask] = True
        self._played[mask] = self._terminated[mask] = self._truncated[mask] = False
        for lane in np.flatnonzero(mask) if self.render_mode else ():
            self._rounds[lane] = []
        self.stage.reset(mask)
        self._step, self._pins = self.stage.pinned.call, self.stage.pinned.pins
        return self._obs.copy() if self.copy else self._obs, {}

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if isinstance(seed, int | np.integer):
            return [int(seed) + i for i in range(self.num_envs)]
        seeds: list[int | None] = [None] * self.num_envs if seed is None else list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for {self.num_envs} environments")
        return seeds

    def step(self, actions: Any) -> tuple[Observations, npt.NDArray[np.float64], Any, Any, Info]:
        """One decision in every lane; raises gymnasium's InvalidAction (nothing was done then) and
        ResetNeeded.
        """
        if getattr(actions, "shape", None) != self._shape:
            actions = np.asarray(actions)
            if actions.shape != self._shape:
                raise InvalidAction(f"{self.num_envs} actions are due, not {actions.shape}")
        np.copyto(self._actions, actions)
        bad = self._step(self._pins)
        if bad >= 0:
            self._refuse(bad)
        if self._bare:
            return self._result
        infos = self._same
        if self.copy:
            infos = {"outcome": self._outcomes.copy(), "_outcome": self._played.copy()}
        if self.mode is AutoresetMode.SAME_STEP:
            infos = self._final(infos)
        if self.render_mode:
            self._note()
        if not self.copy:
            return self._obs, self._rewards, self._terminated, self._truncated, infos
        return (
            self._obs.copy(),
            self._rewards.copy(),
            self._terminated.copy(),
            self._truncated.copy(),
            infos,
        )

    def _refuse(self, lane: int) -> None:
        action, highest = int(self._actions[lane]), self.choices - 1
        if not 0 <= action <= highest:
            raise InvalidAction(f"action {action} of lane {lane} is not in 0..{highest}")
        raise ResetNeeded(f"the episode of lane {lane} has ended: reset it")

    def _final(self, infos: Info) -> Info:
        """SAME_STEP: what the lanes that ended last saw, in place of what their next episodes have
        not seen yet.
        """
        ended = self._terminated | self._truncated
        if not ended.any():
            return infos
        final_obs = np.full(self.num_envs, None, dtype=object)
        for lane in np.flatnonzero(ended):
            final_obs[lane] = self.stage.arrays.final[lane].copy()
        played = infos["_outcome"]
        return {
            "outcome": infos["outcome"],
            "_outcome": played & ~ended,
            "final_obs": final_obs,
            "_final_obs": ended,
            "final_info": {"outcome": infos["outcome"], "_outcome": played & ended},
            "_final_info": ended,
        }

    def view(self, lane: int) -> View:
        """The view of a lane before its round."""
        return self.stage.view(lane)

    def outcome(self, lane: int) -> Outcome:
        """The last round of a lane."""
        return self.stage.outcome(lane)

    def _note(self) -> None:
        """Keep the rounds of the replies in progress, for pictures."""
        for lane in np.flatnonzero(self._played):
            self._rounds[lane].append(self.outcome(int(lane)))
        for lane in np.flatnonzero(self.stage.arrays.lanes["round_number"] == 0):
            self._rounds[lane] = []

    def render(self) -> tuple[Any, ...] | None:
        """The reply of every lane so far, as text or as pictures."""
        if self.render_mode is None:
            return None
        draw = ansi if self.render_mode == "ansi" else rgb
        return tuple(draw(rounds) for rounds in self._rounds)


class RoundVectorEnv(LaneVectorEnv):
    """gammalab/Round-v0, many lanes; see LaneVectorEnv."""


class TokenVectorEnv(LaneVectorEnv):
    """gammalab/Token-v0, many lanes; see LaneVectorEnv."""

    tokens: ClassVar[bool] = True
