"""gammalab/Shape-v0: the choice of a draft tree and of its depth as a Gymnasium environment, one
request at a time or many lanes of them; and policies that play it.

The lanes are those of simulator.envs.kernel, whose traces and cost tables lie there once for every
entry of the menu. A step moves each lane to where the entry that it chose has its own, and then
plays a round; nothing else differs from gammalab/Round-v0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.vector import AutoresetMode

from policies.base import IntArray, MenuView, Policy, View, clamp_gamma, uses_signals
from policies.overhead import charged
from policies.randomness import Rng
from policies.registry import label
from policies.round import clamp_entry, menu_view_at, view_at
from simulator.envs.batch import LaneBatch
from simulator.envs.dataset import Cost, CostsLike, Pool, TraceLike
from simulator.envs.kernel import Lanes, costs_at
from simulator.envs.round_token import Info, LaneEnv, Observation
from simulator.envs.vector import LaneVectorEnv
from traces.costs.of_trace import prices_of_menu
from traces.costs.pricing import StepCosts, prices_of, read_only
from traces.costs.table import Table
from traces.errors import InputError
from traces.shapes.menu import check_menu, menu_of
from traces.shapes.shape import Shape, parse_shape

MENU = ("1x1x1", "3x2x1", "4x2x1x1", "8x2")


class MenuPool(Pool):
    """Requests and cost tables of every entry, those of the first one first: entry e of a trace
    lies e times all positions behind it, and of cost table m at m A + e.

    Raises InputError as Pool and traces.shapes.menu.menu_of, and for the load of a batch.
    """

    def __init__(
        self,
        sources: TraceLike | Sequence[TraceLike] | None,
        costs: CostsLike | None,
        shapes: Sequence[Shape],
    ) -> None:
        check_menu(shapes)
        self.shapes = tuple(shapes)
        self.levels = np.array([shape.depth for shape in shapes], dtype=np.int64)
        self.recorded = 0  # positions of all traces
        super().__init__(sources, costs, signals=False, max_gamma=None)
        if isinstance(self.model, Table) and self.widest > self.model.widest:
            raise InputError(
                f"the menu verifies {self.widest} tokens, the timing measured up to "
                f"{self.model.widest}"
            )

    def deepest(self) -> int:
        """Levels of the deepest entry, however deep the recordings' own drafts are."""
        return int(self.levels.max())

    @property
    def widest(self) -> int:
        """The largest tree and the newest token."""
        return max(shape.nodes for shape in self.shapes) + 1

    def _add_requests(self) -> None:
        super()._add_requests()
        menus = [menu_of(trace, self.shapes).traces for trace in self.traces]
        self.recorded, entries = len(self.accept_len), zip(*menus, strict=True)
        if self.recorded * len(self.shapes) > np.iinfo(np.int32).max:
            raise InputError(
                f"{len(self.shapes)} entries of {self.recorded} positions are too many"
            )
        accepted = [trace.accept_len for entry in entries for trace in entry]
        self.accept_len = read_only(np.concatenate(accepted), np.int16)
        self.draft_len = read_only(np.tile(self.draft_len, len(self.shapes)), np.int16)

    def costs_of(self, wanted: Sequence[Cost]) -> list[int]:
        """The first of each one's tables."""
        if any(cost.load > 1 for cost in wanted):
            raise InputError("option 'loads' of reset: a menu is priced for one request at a time")
        return [number * len(self.shapes) for number in super().costs_of(wanted)]

    def paid(self) -> list[StepCosts]:
        """All tables as the player pays them."""
        menus = [prices_of_menu(table, self.shapes) for table in self.tables.values()]
        if self.player is None:
            return [prices_of(menu, signals=False) for menu in menus]
        return [charged(self.player, menu) for menu in menus]

    def load(self, table: int) -> int:
        """One request has the machine."""
        return 1

    def facts(self) -> npt.NDArray[np.float32]:
        """Those of single tokens, whatever was chosen last."""
        tables = [prices_of(table, signals=False) for table in self.tables.values()]
        return np.repeat(self.facts_of(tables), len(self.shapes), axis=0)

    def take(self, arrays: Lanes, entries: IntArray, levels: IntArray) -> IntArray:
        """Move all lanes to the entries [L] that they chose, but those that begin anew; how many
        levels [L] each then drafts at most.
        """
        lanes = arrays.lanes
        moved = np.where(lanes["done"] == 0, entries - lanes["cost"] % len(self.shapes), 0)
        lanes["cost"] += moved.astype(np.int32)
        for name in ("begin", "at", "end"):
            lanes[name] += (moved * self.recorded).astype(np.int32)
        return np.minimum(levels, self.levels[entries])


class ShapeEnv(LaneEnv):
    """gammalab/Shape-v0: one step is one round; MultiDiscrete([A, D + 1]), which entry of a menu of
    A trees to draft and how many levels of it, clamped to the room and to the entry's own.

    shapes: the menu, each as traces.shapes.shape.parse_shape reads it. Other arguments, options
    (but `loads`) and observation as LaneEnv: the room is that of the deepest entry. The draft's
    signals are neither shown nor charged. info: view is policies.base.MenuView.
    """

    def __init__(
        self,
        trace: TraceLike | Sequence[TraceLike] | None = None,
        timing: CostsLike | None = None,
        *,
        shapes: Sequence[str] = MENU,
        reward: str = "seconds",
        rho: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.pool = MenuPool(trace, timing, [parse_shape(text) for text in shapes])
        self.action_space = space_of(self.pool)
        self._open(self.pool, reward, rho, render_mode)

    def drafts(self, action: Any) -> int:
        """Levels, once the lane is where the chosen entry is."""
        (entry, levels), arrays = np.asarray(action, dtype=np.int64)[:, None], self.stage.arrays
        return int(self.pool.take(arrays, entry, levels)[0])

    def ask(self, policy: Policy, state: Any, rng: Rng) -> tuple[Any, View, int]:
        """As LaneEnv: the tree first, then how deep."""
        if uses_signals(policy):
            raise InputError(
                f"policy {label(policy)!r} reads the draft's signals, which gammalab/Shape-v0 does "
                "not show; replay it"
            )
        menu, bucket = costs_of_lane(self.stage, 0), int(self.stage.arrays.lanes[0]["bucket"])
        shown, entry = menu_view(self.stage, 0), 0
        if len(shown.levels) > 1:  # nothing to choose, so nobody is asked
            entry = clamp_entry(policy.shape(state, 0, shown, rng), len(shown.levels))
        room = min(shown.room, int(shown.levels[entry]))
        view = view_at(menu, entry, bucket, shown.context_tokens, 1, 0, room)
        cap = clamp_gamma(policy.gamma(state, 0, view, rng), room)
        return np.array([entry, cap]), view, cap

    def _info(self) -> Info:
        return super()._info() | {"view": menu_view(self.stage, 0)}


class ShapeVectorEnv(LaneVectorEnv):
    """gammalab/Shape-v0, many lanes: actions [L, 2]. Arguments as ShapeEnv and LaneVectorEnv."""

    def __init__(
        self,
        num_envs: int = 1,
        trace: TraceLike | Sequence[TraceLike] | None = None,
        timing: CostsLike | None = None,
        *,
        shapes: Sequence[str] = MENU,
        max_episode_steps: int = 0,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        copy: bool = True,
        reward: str = "seconds",
        rho: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        self._begin_as(num_envs, autoreset_mode, copy)
        self.pool = MenuPool(trace, timing, [parse_shape(text) for text in shapes])
        self.choices = self.pool.max_gamma + 1
        self.single_action_space = space_of(self.pool)
        how = {"reward": reward, "rho": rho, "limit": max_episode_steps}
        self._open(self.pool, render_mode, how)

    def step(self, actions: Any) -> tuple[Observation, npt.NDArray[np.float64], Any, Any, Info]:
        """One round in every lane, as LaneVectorEnv."""
        chosen, actions = np.empty((self.num_envs, 2), dtype=np.int64), np.asarray(actions)
        if chosen.shape != actions.shape:
            raise InvalidAction(f"{self.num_envs} pairs of actions are due, not {actions.shape}")
        np.copyto(chosen, actions)
        entries, levels = np.ascontiguousarray(chosen.T)
        done = np.flatnonzero(self.stage.arrays.lanes["done"])
        if len(done) and self.mode is AutoresetMode.DISABLED:
            raise ResetNeeded(f"the episode of lane {done[0]} has ended: reset it")
        bad = np.flatnonzero((entries < 0) | (entries >= len(self.pool.shapes))
                             | (levels < 0) | (levels >= self.choices))  # fmt: skip
        if len(bad):
            raise InvalidAction(f"action {chosen[bad[0]]} of lane {bad[0]} is not in the space")
        return super().step(self.pool.take(self.stage.arrays, entries, levels))

    def view(self, lane: int) -> Any:
        """policies.base.MenuView of a lane before its round."""
        return menu_view(self.stage, lane)


def costs_of_lane(stage: LaneBatch, lane: int) -> StepCosts:
    """The tables of a lane's menu, a row by entry."""
    arrays, entries = stage.arrays, len(pool_of(stage).shapes)
    cost = int(arrays.lanes[lane]["cost"])
    own = slice(cost - cost % entries, cost - cost % entries + entries)
    costs = costs_at(arrays, cost)
    return costs._replace(draft_s=arrays.draft_s[own], verify_s=arrays.verify_s[own])


def menu_view(stage: LaneBatch, lane: int) -> MenuView:
    """The view of a policy that chooses among trees, before a lane's round."""
    row = stage.arrays.lanes[lane]
    context = int(row["prompt"]) + int(row["at"]) - int(row["begin"])
    where = int(row["bucket"]), context, int(row["room"])
    found = menu_view_at(costs_of_lane(stage, lane), *where, pool_of(stage).levels)
    return found._replace(levels=found.levels.copy(), verify_s=found.verify_s.copy())


def pool_of(stage: LaneBatch) -> MenuPool:
    """A stage's, of trees."""
    assert isinstance(stage.pool, MenuPool)
    return stage.pool


def space_of(pool: MenuPool) -> Any:
    """MultiDiscrete: an entry of the menu, and levels."""
    return gymnasium.spaces.MultiDiscrete([len(pool.shapes), pool.max_gamma + 1])
