"""The one table of step costs, and what a round costs by it: for every runtime, compiled or not.

Letters: S batch sizes, C context buckets, W = widest step + 1. Single requests are S = 1. The
simulator prices rounds with it; the real engine shows policies the same step costs and needs
nothing of the simulator for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from traces.costs.model import CostModel, KnowsDraft, KnowsRules, KnowsTrees, ReadsStates
from traces.errors import InputError
from traces.timing import HOST, OwnSeconds

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_MOST_ROWS = 4096  # of a table, or a context of millions takes minutes
_ENDLESS = 1 << 62  # more context than anybody has
UNKNOWN: OwnSeconds = {}  # own_s where no rule's is known; never written to


class TreeCosts(NamedTuple):
    """Seconds of the steps of draft trees, one request at a time, where they were measured.

    level_s: [C, W], the draft reads the n = index nodes of a level, each among its own ancestors,
        and offers children of all of them. tree_s: [C, W], as verify_s where the n - 1 drafted
        tokens are a tree: with its mask, the way down, and the move of what is accepted in both
        caches.
    """

    level_s: FloatArray
    tree_s: FloatArray


class StepCosts(NamedTuple):
    """Seconds of the steps of a round, by batch size and context.

    batch_sizes: [S] int64, rows of the batch that each plane is about; None as own_s is.
    bucket_tokens: context tokens of a bucket; the last bucket is open.
    prefill_s: [C], both models read one prompt whose length falls into the bucket.
    draft_s: [S, C, W], one more drafted token in each row, for which the draft reads n = index
        tokens (n > 1: its cache lags). Column 0 is 0.
    verify_s: [S, C, W], the target step over n = index tokens per row, with the engine's fixed cost
        per round and, for n > 1, start_s. Column 0: 0.
    start_s: [S, C], what a draft costs once a round whatever its length. A look-up's is 0: it is
        made in every round, and so is in every column. None: of prices of rounds in which all rows
        draft alike, where nobody asks (every array of a table costs a call inside compiled code).
    signal_s: reading top-1 probability and entropy of one drafted token.
    reads_states: the drafter is a feature head, see lag_after.
    own_s: what rules' own arithmetic costs, in none of these yet (policies.overhead adds it); None:
        nothing is left to add, the only form that compiled code takes.
    trees: None where trees were not measured, and once rounds are priced.
    """

    batch_sizes: IntArray | None
    bucket_tokens: int
    prefill_s: FloatArray
    draft_s: FloatArray
    verify_s: FloatArray
    start_s: FloatArray | None
    signal_s: float
    reads_states: bool
    own_s: OwnSeconds | None
    trees: TreeCosts | None

    @property
    def sizes(self) -> list[int]:
        """Of the batches that were tabulated; none where nothing is left to add."""
        return [] if self.batch_sizes is None else [int(size) for size in self.batch_sizes]

    @property
    def buckets(self) -> int:
        """C."""
        return int(self.draft_s.shape[1])

    @property
    def width(self) -> int:
        """W: no step reads more than W - 1 tokens, so no round drafts more than W - 2."""
        return int(self.draft_s.shape[2])


def make_step_costs(
    draft_s: npt.ArrayLike,
    verify_s: npt.ArrayLike,
    *,
    batch_sizes: Sequence[int] = (1,),
    bucket_tokens: int = 32,
    prefill_s: npt.ArrayLike | None = None,
    start_s: npt.ArrayLike | None = None,
    signal_s: float = 0.0,
    reads_states: bool = False,
    own_s: OwnSeconds | None = UNKNOWN,
    trees: TreeCosts | None = None,
) -> StepCosts:
    """The table of these seconds; draft_s, verify_s: [S, C, W], or [C, W] of one batch size.

    prefill_s: [C], default 0. start_s: [S, C], default 0. own_s: as in StepCosts; a rule that is
    unknown there pays what it says of itself. Raises InputError for a negative or infinite time,
    ValueError for tables of other shapes.
    """
    draft, verify = np.asarray(draft_s, np.float64), np.asarray(verify_s, np.float64)
    if draft.ndim == verify.ndim == 2:
        draft, verify = draft[None], verify[None]
    if draft.shape != verify.shape or draft.ndim != 3 or len(draft) != len(batch_sizes):
        sizes = len(batch_sizes)
        raise ValueError(f"draft_s {draft.shape}, verify_s {verify.shape}: must be [{sizes}, C, W]")
    for name, table in (("draft_s", draft), ("verify_s", verify)):
        if not bool((np.isfinite(table) & (table >= 0)).all()):
            raise InputError(f"{name} holds a negative or infinite time")
    prefill = np.zeros(draft.shape[1]) if prefill_s is None else prefill_s
    start = np.zeros(draft.shape[:2]) if start_s is None else start_s
    return StepCosts(
        read_only(batch_sizes, np.int64),
        bucket_tokens,
        read_only(prefill, np.float64),
        read_only(draft, np.float64),
        read_only(verify, np.float64),
        read_only(start, np.float64),
        float(signal_s),
        reads_states,
        own_s,
        trees,
    )


def tabulate(
    model: CostModel,
    batch_sizes: Sequence[int] = (1,),
    *,
    max_context: int = 4096,
    width: int = 34,
    bucket_tokens: int = 32,
) -> StepCosts:
    """The step costs of a model, evaluated at the middle of each context bucket.

    max_context: tokens covered, C = max_context // bucket_tokens + 1 rows, of wider buckets where
    they were too many; longer contexts are priced as the last one. width: W, so gamma <= W - 2.
    """
    if width < 2 or bucket_tokens < 1 or max_context < 0 or min(batch_sizes, default=0) < 1:
        raise InputError("costs need width >= 2, bucket_tokens >= 1, max_context >= 0, batch >= 1")
    bucket_tokens = max(bucket_tokens, -(-max_context // _MOST_ROWS))
    middles = [(c + 0.5) * bucket_tokens for c in range(max_context // bucket_tokens + 1)]
    control = model.control_s()

    def fill(seconds: Callable[[int, float, int], float]) -> list[list[list[float]]]:
        return [
            [[0.0, *(seconds(b, x, n) for n in range(1, width))] for x in middles]
            for b in batch_sizes
        ]

    # A look-up is made in every round, before anybody knows how many tokens it has to offer.
    looks_up = isinstance(model, KnowsDraft) and model.draft_kind == HOST

    def target_s(batch: int, context: float, tokens: int) -> float:
        seconds = model.verify_s(tokens, batch, context)
        if tokens > 1 or looks_up:
            seconds += model.draft_start_s(batch, context)
        return seconds + control

    def start_s(batch: int) -> list[float]:
        return [0.0 if looks_up else model.draft_start_s(batch, x) for x in middles]

    return make_step_costs(
        fill(lambda b, x, n: model.draft_step_s(b, x, n)),
        fill(target_s),
        batch_sizes=batch_sizes,
        bucket_tokens=bucket_tokens,
        prefill_s=[model.prefill_s(x, 1) for x in middles],
        start_s=[start_s(batch) for batch in batch_sizes],
        signal_s=model.signal_s(),
        reads_states=isinstance(model, ReadsStates) and model.reads_states,
        own_s=model.own_s() if isinstance(model, KnowsRules) else UNKNOWN,
        trees=_trees(model, middles, width) if tuple(batch_sizes) == (1,) else None,
    )


def _trees(model: CostModel, middles: Sequence[float], width: int) -> TreeCosts | None:
    """[C, W] of a model that knows them; trees pay what the engine adds to a round, too, and what
    beginning a draft takes.
    """
    if not (isinstance(model, KnowsTrees) and model.knows_trees):
        return None
    level_s, tree_s = np.zeros((2, len(middles), width))
    for c, context in enumerate(middles):
        start_s = model.draft_start_s(1, context)
        for n in range(1, width):
            level_s[c, n] = model.level_s(n, context)
            tree_s[c, n] = model.tree_s(n, context) + model.control_s() + start_s * (n > 1)
    return TreeCosts(level_s, tree_s)


def prices_of(costs: StepCosts, *, signals: bool, starts: bool = False) -> StepCosts:
    """The table as rounds are priced by it, compiled or not: nothing left to charge, and signals at
    their price if they are read, else for nothing. starts: with start_s.
    """
    return StepCosts(
        None,
        int(costs.bucket_tokens),
        read_only(costs.prefill_s, np.float64),
        read_only(costs.draft_s, np.float64),
        read_only(costs.verify_s, np.float64),
        read_only(costs.start_s, np.float64) if starts else None,
        float(costs.signal_s) if signals else 0.0,
        bool(costs.reads_states),
        None,
        None,
    )


def read_only(array: Any, dtype: npt.DTypeLike) -> Any:
    """A C-contiguous read-only view: one compiled type whatever the array came from, and a hook
    that writes into its inputs fails in every runtime.
    """
    view: npt.NDArray[Any] = np.ascontiguousarray(array, dtype=dtype).view()
    view.flags.writeable = False
    return view


def bucket_of(costs: StepCosts, context_tokens: int) -> int:
    """The bucket of the tables for this context; the last one is open."""
    last = int(costs.draft_s.shape[1]) - 1
    return min(context_tokens // costs.bucket_tokens, last)


def bucket_end(costs: StepCosts, bucket: int) -> int:
    """The first context behind that bucket, so that a loop need not divide in every round."""
    if bucket == int(costs.draft_s.shape[1]) - 1:
        return _ENDLESS
    return (bucket + 1) * costs.bucket_tokens


def round_seconds(costs: StepCosts, row: int, bucket: int, drafted: int, lag: int) -> float:
    """Seconds of one round in which every row of the batch drafts alike: the only place where a
    round is priced.

    row: of the tables, by batch size; bucket: of the context; lag: fixed tokens that the draft's
    cache has not read yet, >= 1, which are read for the first drafted token. Runs as plain Python
    and compiled, always in this order of operations.
    """
    drafting = drafting_seconds(costs, row, bucket, drafted, lag)
    return drafting + float(costs.verify_s[row, bucket, drafted + 1])


def kept_seconds(
    costs: StepCosts, row: int, bucket: int, drafted: int, verified: int, lag: int
) -> float:
    """`round_seconds` where the target reads `verified` <= drafted tokens: the others were dropped.

    costs: with start_s, which verify_s lacks where nothing is verified.
    """
    drafting = drafting_seconds(costs, row, bucket, drafted, lag)
    target = float(costs.verify_s[row, bucket, verified + 1])
    if verified < drafted and verified == 0:
        assert costs.start_s is not None
        target += float(costs.start_s[row, bucket])
    return drafting + target


def drafting_seconds(costs: StepCosts, row: int, bucket: int, drafted: int, lag: int) -> float:
    """The draft's part of a round, without its start."""
    if drafted == 0:
        return 0.0
    seconds = float(costs.draft_s[row, bucket, min(lag, costs.draft_s.shape[2] - 1)])
    seconds += (drafted - 1) * float(costs.draft_s[row, bucket, 1])
    return seconds + drafted * costs.signal_s


def lag_after(lag: int, drafted: int, accepted: int, reads_states: bool) -> int:
    """Fixed tokens unread by the draft's cache after a round; 1 at the start of a request.

    The target's own token is always unread; after full acceptance so is the last draft, which was
    proposed but never fed back; a round without a draft leaves one more. reads_states: a feature
    head reads every token anew, with the target's state of it in the place of its own.
    """
    if drafted == 0:
        return lag + 1
    if reads_states:
        return accepted + 1
    return 2 if accepted == drafted else 1
