"""gammalab/Serve-v0: the choice of one gamma for a whole running batch, as a Gymnasium environment.

One step is one iteration of simulator.serving.scheduler, on the very code that
simulator.serving.server runs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.error import InvalidAction, ResetNeeded

from policies.base import Outcome, Policy, View
from policies.learned.observation import ROUND
from policies.overhead import charged
from policies.round import view_at
from simulator.envs.dataset import CostsLike, TraceLike, as_costs, as_trace
from simulator.envs.external_gamma import (
    BATCH,
    BUCKET,
    CONTEXT,
    EMITTED,
    ENTERED,
    LEARNED,
    NOW_S,
    REQUEST,
    REQUEST_S,
    ROOM,
    ROUND_NUMBER,
    SLOT,
    WAITING,
    Commanded,
    CommandState,
    observe,
)
from simulator.envs.render import LEGEND, render_line, rgb
from simulator.envs.workloads import as_workload, every_row, workloads_of
from simulator.replay.kernels import compiled, recipe, run_recipe
from simulator.replay.replay import low_bits
from simulator.serving import scheduler
from simulator.serving.costs import without_idle_starts
from simulator.serving.draft_budget import ALLOTMENTS, TETRIS
from simulator.serving.options import Server, check
from simulator.serving.result import ServingResult, collect
from simulator.serving.server import SharedState
from simulator.serving.state import World
from traces.costs.of_trace import tabulate_for
from traces.costs.pricing import prices_of
from traces.errors import InputError
from traces.shipped import GREEDY, TIMING
from traces.workload.arrivals import Demand, demand
from traces.workload.workload import Workload

Observation = npt.NDArray[np.float32]
Info = dict[str, Any]

REWARDS = ("seconds", "average")
BUCKET_TOKENS = 64


class ServeEnv(gymnasium.Env[Observation, np.int64]):
    """A server that asks before every iteration how many tokens all its rows may draft.

    Action: Discrete(G + 1), the gamma that holds for every row, clamped to its room, as the tables
    by batch size of vLLM and TensorRT-LLM do. Observation: Box float32 [20] in -1..1 on a grid of
    1/1024: the mean over the decoding rows of policies.learned.observation.ROUND, then
    simulator.envs.external_gamma.BATCH. It is taken after arrivals and admissions, when the next
    decision is due; iterations in which no row decodes (prompts read in chunks) pass inside, their
    seconds charged. After the end no row decodes: the first 15 are 0.

    An episode is the workload: terminated when the last reply has ended, never truncated here.

    Arguments
        trace: a Trace or its file (default: the shipped greedy one). timing: a Timing, its file or
            a cost model (default: the shipped one).
        server: see Server; one replica. workload: a Workload, or its short notation
            (`closed:users=8`, `poisson:rate=4`). requests: of an episode, in the short notation.
        max_gamma: G (default: the server's, else the trace's depth).
        reward: "seconds", minus the request-seconds of the step, the integral of how many requests
            are in the system (come, not finished), in plain rounds of one row (`scale_s` seconds):
            the undiscounted return times scale_s is minus the sum of all times from arrival to the
            reply's end. "average": tokens emitted less rho times the seconds (average-reward form;
            rho in tokens per second, None for those of plain rounds with all slots busy).
        render_mode: "ansi" or "rgb_array": the reply of every slot so far, as a strip.

    Nobody's own arithmetic is charged before `charge` has said whose.

    Options of reset (kept until others are given; {} for the workload's own): users (closed loop)
    or rate (per second, Poisson or gamma): one value or a list to draw from, uniformly.

    info: of the decision that is due, a tuple each with an entry per decoding row: views
    (policies.base.View), requests, slots, rounds (its number in the reply). Of the step: outcomes
    (policies.base.Outcome) of the rows in slots `learned`; entered: slots that got another request.
    batch: decoding rows; waiting: requests; elapsed_s: seconds of the step, the first of an episode
    counted from time 0; now_s.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}

    def __init__(
        self,
        trace: TraceLike = GREEDY,
        timing: CostsLike = TIMING,
        *,
        server: Server | None = None,
        workload: Workload | str = "closed:users=8",
        requests: int = 64,
        max_gamma: int | None = None,
        reward: str = "seconds",
        rho: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.trace = as_trace(trace)
        self.server = _one_replica(server or Server(), max_gamma)
        self.workload = as_workload(workload, requests)
        slots = range(1, self.server.slots + 1)
        self._uncharged = tabulate_for(
            self.trace, as_costs(timing), slots, bucket_tokens=BUCKET_TOKENS
        )
        self.costs = prices_of(self._uncharged, signals=True, starts=True)
        self.limits = check(
            Commanded(), self.trace, every_row(self.trace.requests), self._uncharged, self.server
        )
        if self.limits.max_gamma < 1:
            raise InputError("max_gamma is 0, which leaves nothing to choose; take at least 1")
        plain_s = self.costs.verify_s[:, 0, 1]
        if not float(plain_s.min()) > 0.0:
            raise InputError("the costs say that a plain round takes no time; measure them")
        self.scale_s = float(plain_s[0])
        self.reward, self.rho = reward, self.server.slots / float(plain_s[-1])
        if reward not in REWARDS:
            raise InputError(f"reward is {reward!r}; known: {', '.join(REWARDS)}")
        if rho is not None:
            if not 0.0 <= rho < math.inf:
                raise InputError(f"rho is {rho}; give tokens per second, at least 0")
            self.rho = float(rho)
        numbers = len(ROUND) + len(BATCH)
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (numbers,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(self.limits.max_gamma + 1)
        modes = self.metadata["render_modes"]
        if render_mode is not None and render_mode not in modes:
            raise InputError(f"render_mode is {render_mode!r}; known: {', '.join(modes)}")
        self.render_mode = render_mode
        kinds = {
            "confidences": ALLOTMENTS[self.server.allotment] >= TETRIS,
            "starts": without_idle_starts(self.costs).start_s is not None,
            "pipelined": bool(self.server.pipelined),
        }
        names = scheduler.bindings(Commanded, logs=False, pauses=True, **kinds)
        variant = "steps" + "".join(str(int(kind)) for kind in kinds.values())
        self._recipe = recipe(Commanded, scheduler.advance, names, variant)
        self._key = (Commanded, variant)
        self._observe: Callable[..., int] | None = None
        self._rows = np.zeros((self.server.slots, 6), dtype=np.int64)
        self._scratch = np.zeros((self.server.slots, len(ROUND)))
        self._counted = np.zeros(4)
        self._loads = workloads_of(self.workload, {})
        self._rounds: list[list[Outcome]] = [[] for _ in range(self.server.slots)]
        self._episode, self._ended = -1, True

    def charge(self, player: Policy | None) -> None:
        """From the next reset on this policy decides for all rows, and each pays for its own
        arithmetic, as policies.overhead charges it; None: whoever plays pays nothing.
        """
        bare, paid = self._uncharged, prices_of(self._uncharged, signals=True, starts=True)
        self.costs = paid if player is None else charged(player, bare, signals=True, starts=True)
        self._ended = True

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """Begin another episode; raises InputError for options that do not fit the workload."""
        if options is not None:
            self._loads = workloads_of(self.workload, options)
        super().reset(seed=seed)
        if seed is not None or self._episode < 0:
            self._draws, self._episode = int(self.np_random.integers(1 << 63)), -1
        self._episode += 1
        words = np.random.SeedSequence((self._draws, self._episode)).generate_state(2, np.uint64)
        self.episode_seed = int(words[0])
        chosen = self._loads[int(words[1]) % len(self._loads)]
        self.demand: Demand = demand(chosen, self.trace.category, self.episode_seed)
        policy = Commanded()
        self._run = SharedState(
            policy, self.trace, self.demand, self.costs, self.server, self.limits,
            self.episode_seed, math.inf, log=False, compiled=True,
        )  # fmt: skip
        self._world: World = self._run.new_world()
        self._state: CommandState = policy.new_state(self.server.slots)
        for rounds in self._rounds:
            rounds.clear()
        self._since_s, self._emitted = 0.0, 0.0
        shown = self._go_on()
        return shown, self._info(0.0, ())

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, Info]:
        """One iteration; raises gymnasium's InvalidAction and ResetNeeded."""
        if not self.action_space.contains(action):
            raise InvalidAction(f"{action!r} is not in {self.action_space}")
        if self._ended:
            raise ResetNeeded("all requests are served, or none has come: call reset")
        self._state.command[0] = action
        shown = self._go_on()
        elapsed_s = float(self._counted[NOW_S]) - self._since_s
        emitted = float(self._counted[EMITTED]) - self._emitted
        self._since_s, self._emitted = float(self._counted[NOW_S]), float(self._counted[EMITTED])
        reward = -float(self._counted[REQUEST_S]) / self.scale_s
        if self.reward == "average":
            reward = emitted - self.rho * elapsed_s
        n = int(self._state.counts[LEARNED])
        outcomes = tuple(
            Outcome(gamma, drafted, accepted, emitted, bool(ended), seconds, seconds)
            for (_, gamma, drafted, accepted, emitted, ended), seconds in zip(
                self._state.outcomes[:n].tolist(), self._state.elapsed_s[:n].tolist(), strict=True
            )
        )
        info = self._info(elapsed_s, outcomes)
        if self.render_mode is not None:
            self._keep(info)
        return shown, reward, self._ended, False, info

    def served(self, name: str = Commanded.name) -> ServingResult:
        """The episode's result so far; `name` stands for the policy."""
        meta = self._run.meta | {"policy": name}
        return collect([self._world], [[]], self._run.replica_of, self.trace, self.server, meta)

    def render(self) -> Any:
        """The reply of every slot so far: a line of text each, or a picture [40 S, 640, 3] uint8 of
        its newest two lines.
        """
        if self.render_mode == "ansi":
            return "\n".join([*(render_line(rounds) for rounds in self._rounds), LEGEND])
        if self.render_mode == "rgb_array":
            return np.concatenate([rgb(rounds, lines=2) for rounds in self._rounds])
        return None

    def _go_on(self) -> Observation:
        """Go on to where the next decision is due, and look."""
        world, state, seed = self._world, self._state, low_bits(self.episode_seed)
        why = run_recipe(Commanded(), self._recipe, self._key, state, world, seed, math.inf)
        self._ended = why != scheduler.DUE
        shown = np.zeros(len(ROUND) + len(BATCH), dtype=np.float32)
        arguments = (
            world, state.memory, self._since_s, self.scale_s, self._rows, self._scratch,
            self._counted, shown,
        )  # fmt: skip
        if self._observe is None:
            self._observe = compiled(observe, *arguments)
        self._n = self._observe(*arguments)
        return shown

    def _info(self, elapsed_s: float, outcomes: tuple[Outcome, ...]) -> Info:
        rows, waiting, state = self._rows[: self._n], int(self._counted[WAITING]), self._state
        return {
            "views": tuple(self._view(row, waiting) for row in rows.tolist()),
            "requests": tuple(rows[:, REQUEST].tolist()),
            "slots": tuple(rows[:, SLOT].tolist()),
            "rounds": tuple(rows[:, ROUND_NUMBER].tolist()),
            "outcomes": outcomes,
            "learned": tuple(state.outcomes[: len(outcomes), 0].tolist()),
            "entered": tuple(state.entered[: int(state.counts[ENTERED])].tolist()),
            "batch": self._n,
            "waiting": waiting,
            "elapsed_s": elapsed_s,
            "now_s": float(self._counted[NOW_S]),
        }

    def _view(self, row: list[int], waiting: int) -> View:
        """The view of a row, as simulator.serving.scheduler.view_of has it."""
        costs, n, context = self._world.costs, self._n, row[CONTEXT]
        view = view_at(costs, n - 1, row[BUCKET], context, n, waiting, row[ROOM])
        return view._replace(verify_s=view.verify_s.copy())

    def _keep(self, info: Info) -> None:
        """Rounds to render: a slot's strip begins anew with its next request."""
        for slot, outcome in zip(info["learned"], info["outcomes"], strict=True):
            self._rounds[slot].append(outcome)
        for slot in info["entered"]:
            self._rounds[slot].clear()


def _one_replica(server: Server, max_gamma: int | None) -> Server:
    if server.replicas != 1:
        raise InputError(f"server: replicas is {server.replicas}; this environment plays one")
    return server if max_gamma is None else dataclasses.replace(server, max_gamma=max_gamma)
