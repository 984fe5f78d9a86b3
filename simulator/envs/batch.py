"""Lanes on a pool: the arrays of simulator.envs.kernel, filled, and the calls that move them.

The single environments are a stage of one lane, the vector environments one of thousands: the same
compiled code, so that they agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from policies.base import Draft, Outcome, Policy, View
from policies.learned.observation import DRAFTING, MEMORY, ROUND
from policies.round import view_at
from simulator.envs.dataset import Pool
from simulator.envs.kernel import LANE, OUTCOME, RHO, SIGNAL_S, UNIT_S, Lanes, costs_at
from simulator.envs.pins import Pinned
from traces.errors import InputError

REWARDS = ("seconds", "average")


class LaneBatch:
    """L lanes over a pool.

    tokens: a decision per token instead of per round. mode: as simulator.envs.kernel. limit: steps
    of an episode, 0: none. reward: "seconds", minus the seconds of the step in plain rounds (one
    token, no draft, shortest context, at the lane's own costs); "average", tokens emitted less rho
    (tokens per second; None: those of plain rounds) times the seconds.
    """

    def __init__(
        self,
        pool: Pool,
        lanes: int,
        *,
        tokens: bool,
        mode: int,
        limit: int = 0,
        reward: str = "seconds",
        rho: float | None = None,
    ) -> None:
        if reward not in REWARDS:
            raise InputError(f"reward is {reward!r}; known: {', '.join(REWARDS)}")
        if rho is not None and not 0.0 <= rho < float("inf"):
            raise InputError(f"rho is {rho}; give tokens per second, at least 0")
        self.pool, self.tokens, self.rho = pool, tokens, rho
        self.numbers = len(ROUND) + (len(DRAFTING) if tokens else 0)
        table = next(iter(pool.tables.values()))
        averages, states = int(reward == "average"), int(table.reads_states)
        rules = [mode, limit, table.bucket_tokens, pool.max_gamma, averages, states]
        shown = (lanes, self.numbers)
        obs = np.zeros(shown, dtype=np.float32)
        self.arrays = Lanes(
            requests=pool.requests,
            accept_len=pool.accept_len,
            draft_len=pool.draft_len,
            top1_prob=pool.top1_prob,
            entropy=pool.entropy,
            **self._costs(),
            choices=np.zeros(0, dtype=np.int64),
            rules=np.asarray(rules, dtype=np.int64),
            lanes=np.zeros(lanes, dtype=LANE),
            memory=np.zeros((lanes, MEMORY)),
            seen=np.zeros(shown, dtype=np.float32) if tokens else obs,
            actions=np.zeros(lanes, dtype=np.int64),
            obs=obs,
            final=np.zeros(shown, dtype=np.float32),
            rewards=np.zeros(lanes),
            terminated=np.zeros(lanes, dtype=np.uint8),
            truncated=np.zeros(lanes, dtype=np.uint8),
            played=np.zeros(lanes, dtype=np.uint8),
            outcomes=np.zeros(lanes, dtype=OUTCOME),
        )
        self._first: dict[tuple[int, ...], int] = {}  # of what may be drawn, in choices
        self.allow({}, slice(None))

    def _costs(self) -> dict[str, Any]:
        """The arrays that hang on the pool's tables."""
        tables = self.pool.paid()
        verify_s = np.concatenate([table.verify_s for table in tables])
        units = verify_s[:, 0, 1]
        if not float(units.min()) > 0.0:
            raise InputError("the costs say that a plain round takes no time; measure them")
        rates = np.zeros((len(units), 3))
        rates[:, SIGNAL_S] = [table.signal_s for table in tables for _ in table.verify_s]
        rates[:, UNIT_S] = units
        rates[:, RHO] = 1.0 / units if self.rho is None else self.rho
        return {
            "draft_s": np.concatenate([table.draft_s for table in tables]),
            "verify_s": verify_s,
            "rates": rates,
            "facts": self.pool.facts(),
        }

    def charge(self, player: Policy | None) -> None:
        """From now on this policy plays, and pays for its own arithmetic."""
        self.pool.player = player
        self.arrays = self.arrays._replace(**self._costs())
        self.pinned = Pinned(self.arrays, tokens=self.tokens)

    def allow(self, options: Mapping[str, Any], lanes: Any) -> None:
        """Let the next episodes of some lanes be drawn from what the options name."""
        tables = len(self.pool.tables)
        rows, costs = self.pool.choose(options)
        allowed = tuple(rows + costs)
        if allowed not in self._first:
            self._first[allowed] = len(self.arrays.choices)
            joined = np.concatenate([self.arrays.choices, np.asarray(allowed, dtype=np.int64)])
            changes: dict[str, Any] = {"choices": joined}
            if len(self.pool.tables) > tables:
                changes |= self._costs()
            self.arrays = self.arrays._replace(**changes)
            self.pinned = Pinned(self.arrays, tokens=self.tokens)
        first, states = self._first[allowed], self.arrays.lanes
        states["first_request"][lanes], states["requests"][lanes] = first, len(rows)
        states["first_cost"][lanes], states["costs"][lanes] = first + len(rows), len(costs)

    def seed(self, keys: Sequence[int], lanes: Any) -> None:
        """Give some lanes a key of their draws, and start counting their episodes."""
        self.arrays.lanes["key"][lanes] = keys
        self.arrays.lanes["episode"][lanes] = 0

    def reset(self, lanes: Any) -> None:
        """Begin an episode in some lanes."""
        self.arrays.actions[:] = 0
        self.arrays.actions[lanes] = 1
        self.pinned.reset()

    def view(self, lane: int) -> View:
        """The view of a lane before its round."""
        arrays = self.arrays
        state = arrays.lanes[lane]
        cost, room = int(state["cost"]), int(state["room"])
        context = int(state["prompt"]) + int(state["at"]) - int(state["begin"])
        costs, batch_size = costs_at(arrays, cost), self.pool.load(cost)
        view = view_at(costs, cost, int(state["bucket"]), context, batch_size, 0, room)
        return view._replace(verify_s=view.verify_s.copy())

    def outcome(self, lane: int) -> Outcome:
        """The last round of a lane."""
        row = self.arrays.outcomes[lane]
        return Outcome(
            gamma=int(row["gamma"]),
            drafted=int(row["drafted"]),
            accepted=int(row["accepted"]),
            emitted=int(row["emitted"]),
            ended=bool(row["ended"]),
            elapsed_s=float(row["elapsed_s"]),
            priced_s=float(row["priced_s"]),
        )

    def unit_s(self, lane: int) -> float:
        """Seconds that count as 1 in the reward of a lane's episode."""
        return float(self.arrays.rates[self.arrays.lanes[lane]["cost"], UNIT_S])

    def draft(self, drafted: int, at: int) -> Draft:
        """The draft's signals with token number `drafted` of the round at this position."""
        top1 = float(self.arrays.top1_prob[at, drafted - 1])
        return Draft(drafted, top1, float(self.arrays.entropy[at, drafted - 1]))
