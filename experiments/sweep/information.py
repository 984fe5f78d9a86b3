"""The ceilings of information: how much any rule could gain that sees so much and no more.

Chances of acceptance come from boosted trees, cross-fitted over questions, and the best stopping
rule is put on top of them, by backward induction on what was realised. What it takes is a rule that
nobody can have: it knows the prices, pays for no arithmetic and was fitted to other replies of the
same recording. It is an estimate from below of the true ceiling, as good as the trees.

Letters: N positions, G depth, w seconds that a token is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from policies.fixed import Never
from policies.overhead import uncharged
from policies.round import settle
from simulator.replay.replay import replay
from traces.costs.pricing import StepCosts, bucket_of, kept_seconds, lag_after, prices_of
from traces.errors import InputError, missing
from traces.schema import Trace
from traces.split import named_generator, question_of

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

COUNTS, BEFORE, AFTER, TARGET = "counts", "before", "after", "target"
SEES = {
    COUNTS: "counts alone",
    BEFORE: "the draft's signals, before a token is drafted",
    AFTER: "the draft's signals, after it: free to drop it",
    TARGET: "after it, and the target's last entropy",
}
FOLDS = 5
PASSES = 2  # over w, which the rule itself decides
TREES = {"max_iter": 60, "max_leaf_nodes": 15, "min_samples_leaf": 40, "random_state": 0}
DROP, KEEP, GO = range(3)


class Information(NamedTuple):
    """A ceiling. sees: the level; decode_s: seconds of the requests judged."""

    sees: str
    decode_s: float


def information(
    trace: Trace, costs: StepCosts, rows: Sequence[int], seed: int = 0
) -> list[Information]:
    """The ceilings of a recording at these costs, of every level that it has the columns for.

    rows: requests that are judged; the others only teach.

    Raises InputError without signals, or without scikit-learn.
    """
    known = _Known(trace, seed)
    paid = prices_of(uncharged(costs), signals=True, starts=True)
    blind = prices_of(uncharged(costs), signals=False, starts=True)
    plain_s = float(replay(Never(), trace, uncharged(costs)).elapsed_s.sum())
    levels = [level for level in SEES if level != TARGET or trace.target_entropy is not None]
    found = []
    for level in levels:
        table = blind if level == COUNTS else paid
        decide = _by_counts(known, table) if level == COUNTS else _by_signals(known, table, level)
        worth_s, best = plain_s / trace.positions, None
        for _ in range(PASSES):
            spent = _play(trace, table, *decide(worth_s))
            if best is None or spent.sum() < best.sum():
                best = spent
            worth_s = min(worth_s, float(spent.sum()) / trace.positions)
        assert best is not None
        found.append(Information(level, float(best[list(rows)].sum())))
    return found


def check_known(trace: Trace) -> Any:
    """The class of the trees; raises InputError if `information` cannot be had of this trace here:
    without signals, or without scikit-learn.
    """
    if trace.top1_prob is None or trace.entropy is None:
        raise InputError("--information needs a trace with the draft's signals")
    try:
        from sklearn.ensemble import HistGradientBoostingRegressor
    except ImportError:
        raise missing("--information", "scikit-learn", "scikit-learn>=1.5") from None
    return HistGradientBoostingRegressor


Decide = Callable[[float], tuple[IntArray, IntArray]]
"""w -> tokens drafted and tokens verified in a round at every position, [N] each."""


class _Known:
    """A recording as features: what is known at every position, and what came of it."""

    def __init__(self, trace: Trace, seed: int) -> None:
        self.trees = check_known(trace)
        assert trace.top1_prob is not None and trace.entropy is not None
        self.depth, count = trace.meta.depth, trace.positions
        self.request = np.repeat(np.arange(trace.requests), np.diff(trace.offsets))
        self.place = np.arange(count) - trace.offsets[self.request]
        self.context = trace.prompt_tokens[self.request] + self.place
        self.top1 = trace.top1_prob.astype(np.float64)
        self.entropy = trace.entropy.astype(np.float64)
        self.accepted = np.minimum(trace.accept_len.astype(np.int64), self.depth)
        offered = np.full(count, self.depth) if trace.draft_len is None else trace.draft_len
        self.offered = np.minimum(offered.astype(np.int64), self.depth)
        self.target = trace.target_entropy
        questions = np.asarray([question_of(name) for name in trace.request_id])
        names = np.unique(questions)
        order = named_generator(seed, "folds").permutation(len(names))
        self.fold = (order % FOLDS)[np.searchsorted(names, questions)][self.request]

    def counts(self) -> FloatArray:
        """[N, 10] of what was accepted before, had every position been tried: none knows more."""
        first = (self.accepted >= 1).astype(np.float64)
        rows = np.empty((len(first), 5))
        for i, passed in enumerate(first.tolist()):
            if self.place[i] == 0:
                fast, slow, run, misses, total = 0.5, 0.5, 0.0, 0.0, 0.0
            rows[i] = fast, slow, run, misses, (total + 1.0) / (self.place[i] + 2.0)
            fast += 0.2 * (passed - fast)
            slow += 0.05 * (passed - slow)
            run, misses = (run + 1.0, 0.0) if passed else (0.0, misses + 1.0)
            total += passed
        lately = np.column_stack([self.behind(first, k) for k in (1, 2)])
        facts = np.column_stack([self.place, self.context, self.offered])
        return np.column_stack([facts, lately, rows])

    def behind(self, values: npt.ArrayLike, steps: int) -> FloatArray:
        """[N] values of `steps` positions earlier; NaN before the reply."""
        found = np.roll(np.asarray(values, dtype=np.float64), steps)
        found[self.place < steps] = np.nan
        return found

    def fitted(self, features: FloatArray, wanted: FloatArray, rows: BoolArray) -> FloatArray:
        """[N] expectations of `wanted`, each from the other folds; fitted where `rows` says."""
        found = np.zeros(len(wanted))
        for fold in range(FOLDS):
            fit, out = rows & (self.fold != fold), self.fold == fold
            if not fit.any() or not out.any():
                continue
            if np.ptp(wanted[fit]) == 0.0:
                found[out] = wanted[fit][0]
                continue
            found[out] = self.trees(**TREES).fit(features[fit], wanted[fit]).predict(features[out])
        return found


def _step_prices(known: _Known, costs: StepCosts) -> tuple[float, FloatArray]:
    """Seconds of a draft step and of target steps [G + 2] by width, at the mean context: what a
    decision is made by. Rounds are played at their own.
    """
    bucket = bucket_of(costs, int(known.context.mean()))
    step_s = float(costs.draft_s[0, bucket, 1]) + costs.signal_s
    return step_s, np.asarray(costs.verify_s[0, bucket, : known.depth + 2])


def _by_counts(known: _Known, costs: StepCosts) -> Decide:
    features, step_s, verify_s = known.counts(), *_step_prices(known, costs)
    everywhere = np.ones(len(known.place), dtype=bool)
    lengths = np.arange(known.depth + 1)
    expected = np.column_stack(
        [
            known.fitted(features, np.minimum(known.accepted, k).astype(np.float64), everywhere)
            for k in lengths
        ]
    )

    def decide(worth_s: float) -> tuple[IntArray, IntArray]:
        gain = worth_s * expected - (lengths * step_s + verify_s[1:])
        gain[lengths > known.offered[:, None]] = -np.inf
        chosen = gain.argmax(axis=1)
        return chosen, chosen

    return decide


def _by_signals(known: _Known, costs: StepCosts, level: str) -> Decide:
    before = [
        known.counts(),
        known.behind(known.top1[:, 0], 1),
        known.behind(known.entropy[:, 0], 1),
    ]
    if level == TARGET:
        assert known.target is not None
        before.append(known.behind(known.target, 1))
    history, (step_s, verify_s) = np.column_stack(before), _step_prices(known, costs)
    product = np.cumsum(np.log(np.clip(known.top1, 1e-6, 1.0)), axis=1)
    shown = [
        np.column_stack([history, known.top1[:, : k + 1], known.entropy[:, k], product[:, k]])
        for k in range(known.depth)
    ]

    def decide(worth_s: float) -> tuple[IntArray, IntArray]:
        """Backwards from the deepest token: what a reply would have gained by each choice, and
        which of them the features expect to gain most.
        """
        depth, count = known.depth, len(known.place)
        lengths = np.arange(depth + 1)
        reached = np.minimum(known.accepted[:, None], lengths)
        stop = worth_s * reached - verify_s[1:] - lengths * step_s  # all of k verified
        drop = np.full_like(stop, -np.inf)  # all but the last of k
        drop[:, 1:] = worth_s * reached[:, :-1] - verify_s[1:-1] - lengths[1:] * step_s
        choice, value = np.zeros((count, depth + 1), dtype=np.int64), stop[:, depth]
        for k in range(depth, 0, -1):
            there, further = known.offered >= k, known.offered > k
            least = stop[:, k] if level == BEFORE else drop[:, k]
            keeps = known.fitted(shown[k - 1], stop[:, k] - least, there)
            goes = np.full(count, -np.inf)
            if k < depth:
                goes = np.where(further, known.fitted(shown[k - 1], value - least, further), goes)
            options = np.column_stack([np.zeros(count), keeps, goes])
            if level == BEFORE:
                options[:, DROP] = -np.inf
            choice[:, k] = options.argmax(axis=1)
            value = np.choose(choice[:, k], [drop[:, k], stop[:, k], value])
        begins = known.fitted(history, value - stop[:, 0], known.offered > 0) > 0.0
        drafted, verified = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        going = begins & (known.offered > 0)
        for k in range(1, depth + 1):
            drafted[going] = k
            verified[going] = k - (choice[going, k] == DROP)
            going = going & (choice[:, k] == GO)
        return drafted, verified

    return decide


def _play(trace: Trace, costs: StepCosts, drafted: IntArray, verified: IntArray) -> FloatArray:
    """[R] decode seconds if a round at position i drafts and verifies so many tokens."""
    accept_len, spent = trace.accept_len.tolist(), np.zeros(trace.requests)
    drafts, kept = drafted.tolist(), verified.tolist()
    for request in range(trace.requests):
        at, end = int(trace.offsets[request]), int(trace.offsets[request + 1])
        prompt, begin, lag, seconds = int(trace.prompt_tokens[request]), at, 1, 0.0
        while at < end:
            bucket = bucket_of(costs, prompt + at - begin)
            seconds += kept_seconds(costs, 0, bucket, drafts[at], kept[at], lag)
            accepted, emitted, _ = settle(kept[at], accept_len[at], end - at)
            lag = lag_after(lag, drafts[at], accepted, costs.reads_states)
            at += emitted
        spent[request] = seconds
    return spent
