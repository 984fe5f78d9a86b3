"""What a round costs, for every runtime: cost models of steps, their tables, and the price of a
round.

A round of a batch costs sum_j [draft_step_s(active_j) + signal_s] + verify_s(sum(drafted + 1))
+ control_s, and what the rule's own arithmetic costs (policies.overhead adds it to these tables).
Nothing is hidden in another term. The simulator prices rounds with it; the real engine
shows policies the same step costs and needs nothing of the simulator for that.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from traces.errors import InputError
from traces.roundlog import RoundLog
from traces.timing import OPERATIONS, Grid, OwnSeconds, StepCosts, Timing

FloatArray = npt.NDArray[np.float64]

_MOST_ROWS = 4096  # of a table, or a context of millions takes minutes
_ENDLESS = 1 << 62  # more context than anybody has


class CostModel(Protocol):
    """What a machine and a pair charge, seconds."""

    def prefill_s(self, tokens: float, batch: int) -> float:
        """Both models read a prompt of `tokens` in each of `batch` rows."""

    def draft_step_s(self, batch: int, context_tokens: float, tokens: float = 1) -> float:
        """One draft forward that reads `tokens` per row (more than 1: its cache lags)."""

    def verify_s(self, tokens: float, batch: int, context_tokens: float) -> float:
        """One target forward over `tokens` per row (drafted + 1) and the accept decision."""

    def signal_s(self) -> float:
        """Reading top-1 probability and entropy of one drafted token to the host."""

    def control_s(self) -> float:
        """The engine's own fixed seconds per round, without any rule's arithmetic."""


@runtime_checkable
class KnowsRules(Protocol):
    """A cost model that knows what rules' own arithmetic costs on its machine, too."""

    def own_s(self) -> OwnSeconds:
        """By policy name; see policies.overhead."""


class _Axis:
    """Grid points of one axis; finds the segment in which a point lies."""

    def __init__(self, points: FloatArray) -> None:
        self.points: list[float] = points.tolist()

    def segment(self, x: float) -> tuple[int, int]:
        """Indices of the two grid points that decide the value at x; equal ones: no slope."""
        points = self.points
        last = len(points) - 1
        if x <= points[0] or last == 0:
            return 0, 0
        if x >= points[last]:
            return last - 1, last
        right = bisect.bisect_right(points, x)
        return right - 1, right

    def between(self, x: float, lo: int, hi: int, low: float, high: float) -> float:
        """The value at x on the segment; behind the last point the slope goes on, never down."""
        if lo == hi:
            return low
        slope = (high - low) / (self.points[hi] - self.points[lo])
        if x >= self.points[-1]:
            return high + max(0.0, slope) * (x - self.points[-1])
        return slope * (x - self.points[lo]) + low


class _Surface:
    """A Grid, piecewise linear along each axis; fast enough for thousands of cells in milliseconds.

    Before the first point of an axis the first value holds; behind the last one the last slope goes
    on, never falling.
    """

    def __init__(self, grid: Grid) -> None:
        self.batch, self.context = _Axis(grid.batch), _Axis(grid.context)
        self.tokens = _Axis(grid.tokens)
        self.seconds: list[list[list[float]]] = grid.seconds.tolist()

    def at(self, batch: float, context: float, tokens: float) -> float:
        """Seconds at this point, tokens interpolated first, then context, then batch."""
        t0, t1 = self.tokens.segment(tokens)
        c0, c1 = self.context.segment(context)
        b0, b1 = self.batch.segment(batch)

        def by_tokens(b: int, c: int) -> float:
            row = self.seconds[b][c]
            return self.tokens.between(tokens, t0, t1, row[t0], row[t1])

        def by_context(b: int) -> float:
            low = by_tokens(b, c0)
            high = low if c0 == c1 else by_tokens(b, c1)
            return self.context.between(context, c0, c1, low, high)

        low = by_context(b0)
        high = low if b0 == b1 else by_context(b1)
        return self.batch.between(batch, b0, b1, low, high)


class Table:
    """Measured seconds, interpolated between the grid points of a Timing.

    What was measured is kept: a verify of five tokens that was faster than one of four stays
    faster. The first draft step of a round, right behind the target's, costs more than a further
    one; the excess is part of verify_s where something was drafted, so that draft_step_s is what
    one more token costs. A timing on which no clock was chosen is read on its default one: the
    processor's where one thread did all the work. Raises InputError if it lacks a grid point.
    """

    def __init__(self, timing: Timing) -> None:
        self.timing = timing.settled()
        self._surface = {name: _Surface(self.timing.grid(name)) for name in OPERATIONS}

    def prefill_s(self, tokens: float, batch: int) -> float:
        return self._surface["prefill"].at(batch, 0, tokens)

    def draft_step_s(self, batch: int, context_tokens: float, tokens: float = 1) -> float:
        further = self._surface["draft"].at(batch, context_tokens, 1)
        if tokens == 1:
            return further
        first = self._surface["first"]
        lagging = first.at(batch, context_tokens, tokens) - first.at(batch, context_tokens, 1)
        return further + max(0.0, lagging)

    def verify_s(self, tokens: float, batch: int, context_tokens: float) -> float:
        seconds = self._surface["verify"].at(batch, context_tokens, tokens)
        if tokens == 1:
            return seconds
        further = self._surface["draft"].at(batch, context_tokens, 1)
        return seconds + max(0.0, self._surface["first"].at(batch, context_tokens, 1) - further)

    def signal_s(self) -> float:
        return self.timing.signal_s

    def control_s(self) -> float:
        return self.timing.control_s

    def own_s(self) -> OwnSeconds:
        return self.timing.own_s


def tabulate(
    model: CostModel,
    batch: int = 1,
    *,
    max_context: int = 4096,
    width: int = 34,
    bucket_tokens: int = 32,
) -> StepCosts:
    """The step costs of a model at one batch size, evaluated at the middle of each context bucket.

    max_context: tokens covered, C = max_context // bucket_tokens + 1 rows, of wider buckets where
    they were too many; longer contexts are priced as the last one. width: W, so gamma <= W - 2.
    Engine's fixed cost is inside verify_s.
    """
    if width < 2 or bucket_tokens < 1 or max_context < 0 or batch < 1:
        raise InputError("costs need width >= 2, bucket_tokens >= 1, max_context >= 0, batch >= 1")
    bucket_tokens = max(bucket_tokens, -(-max_context // _MOST_ROWS))
    middles = [(c + 0.5) * bucket_tokens for c in range(max_context // bucket_tokens + 1)]
    control = model.control_s()

    def fill(seconds: Callable[[float, int], float]) -> FloatArray:
        rows = [[0.0, *(seconds(x, n) for n in range(1, width))] for x in middles]
        return np.asarray(rows, dtype=np.float64)

    return StepCosts(
        batch=batch,
        bucket_tokens=bucket_tokens,
        prefill_s=np.asarray([model.prefill_s(x, batch) for x in middles], dtype=np.float64),
        draft_s=fill(lambda x, n: model.draft_step_s(batch, x, n)),
        verify_s=fill(lambda x, n: model.verify_s(n, batch, x) + control),
        signal_s=model.signal_s(),
        own_s=model.own_s() if isinstance(model, KnowsRules) else {},
    )


class Prices(NamedTuple):
    """StepCosts as a round is priced: prefill_s [C]; draft_s, verify_s [C, W]; signal_s, seconds
    per drafted token, 0 for a policy that reads no signals; bucket_tokens.
    """

    prefill_s: FloatArray
    draft_s: FloatArray
    verify_s: FloatArray
    signal_s: float
    bucket_tokens: int


def read_only(array: Any, dtype: npt.DTypeLike) -> Any:
    """A C-contiguous read-only view: one compiled type whatever the array came from, and a hook
    that writes into its inputs fails in every runtime.
    """
    view: npt.NDArray[Any] = np.ascontiguousarray(array, dtype=dtype).view()
    view.flags.writeable = False
    return view


def prices_of(costs: StepCosts, signals: bool) -> Prices:
    """The prices for a policy that reads signals, or for one that does not."""
    return Prices(
        read_only(costs.prefill_s, np.float64),
        read_only(costs.draft_s, np.float64),
        read_only(costs.verify_s, np.float64),
        float(costs.signal_s) if signals else 0.0,
        int(costs.bucket_tokens),
    )


def bucket_of(prices: Prices, context_tokens: int) -> int:
    """The row of the price tables for this context; the last row is open."""
    last = int(prices.draft_s.shape[0]) - 1
    return min(context_tokens // prices.bucket_tokens, last)


def bucket_end(prices: Prices, bucket: int) -> int:
    """The first context behind that row, so that a loop need not divide in every round."""
    if bucket == int(prices.draft_s.shape[0]) - 1:
        return _ENDLESS
    return (bucket + 1) * prices.bucket_tokens


def round_seconds(prices: Prices, bucket: int, drafted: int, lag: int) -> float:
    """Seconds of one round of one request: the only place where a round is priced.

    bucket: row of the tables at the context of the round; lag: fixed tokens that the draft's cache
    has not read yet, >= 1; the first draft step reads them all. Runs as plain Python and compiled,
    always in this order of operations.
    """
    seconds = 0.0
    if drafted > 0:
        seconds += float(prices.draft_s[bucket, min(lag, prices.draft_s.shape[1] - 1)])
        seconds += (drafted - 1) * float(prices.draft_s[bucket, 1])
        seconds += drafted * prices.signal_s
    return seconds + float(prices.verify_s[bucket, drafted + 1])


def lag_after(lag: int, drafted: int, accepted: int) -> int:
    """Fixed tokens unread by the draft's cache after a round; 1 at the start of a request.

    The target's own token is always unread; after full acceptance so is the last draft, which was
    proposed but never fed back; a round without a draft leaves one more.
    """
    if drafted == 0:
        return lag + 1
    return 2 if accepted == drafted else 1


def price_log(log: RoundLog, costs: StepCosts, signals: bool) -> FloatArray:
    """[K] seconds that the rounds of a log should have taken at these costs: `round_seconds` of all
    at once, in the same order of operations.

    signals: the policy reads them, so that they are charged. Rounds of a request are in order.
    """
    prices, lag = prices_of(costs, signals), lags_of(log)
    last = int(prices.draft_s.shape[0]) - 1
    bucket = np.minimum(log.context_tokens // prices.bucket_tokens, last)
    drafted, some = log.drafted.astype(np.int64), log.drafted > 0
    widest = prices.draft_s.shape[1] - 1
    seconds = np.where(some, prices.draft_s[bucket, np.minimum(lag, widest)], 0.0)
    seconds += np.where(some, (drafted - 1) * prices.draft_s[bucket, 1], 0.0)
    seconds += np.where(some, drafted * prices.signal_s, 0.0)
    return seconds + prices.verify_s[bucket, drafted + 1]


def surplus_draft_s(log: RoundLog, costs: StepCosts) -> FloatArray:
    """[K] seconds of the draft steps behind the last verified token, had every round of a log run
    all its gamma drafts and only the verification been cut: signals are read for each of them.
    """
    prices = prices_of(costs, signals=True)
    bucket = np.minimum(log.context_tokens // prices.bucket_tokens, len(prices.draft_s) - 1)
    surplus = (log.gamma - log.drafted).astype(np.int64)
    return np.asarray(surplus * (prices.draft_s[bucket, 1] + prices.signal_s))


def lags_of(log: RoundLog) -> npt.NDArray[np.int64]:
    """[K] what `lag_after` says before each round of a log."""
    rounds = np.arange(len(log))
    if len(log) == 0:
        return rounds
    first = np.r_[True, log.request[1:] != log.request[:-1]]
    drafted_before = np.r_[False, log.drafted[:-1] > 0]
    after = np.r_[1, np.where(log.accepted[:-1] == log.drafted[:-1], 2, 1)]
    begins = first | drafted_before  # here the lag is known; behind it grows by one a round
    since = np.maximum.accumulate(np.where(begins, rounds, 0))
    known = np.where(first, 1, after)
    lags: npt.NDArray[np.int64] = known[since] + rounds - since
    return lags
