"""Seconds that the rounds of a log should have taken, all at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from traces.costs.pricing import StepCosts
from traces.roundlog import RoundLog

FloatArray = npt.NDArray[np.float64]


def price_log(log: RoundLog, costs: StepCosts, row: int = 0) -> FloatArray:
    """[K] seconds that the rounds of a log should have taken at these costs: `round_seconds` (or
    `kept_seconds`) of all at once, in the same order of operations.

    costs: what the log's policy pays (policies.overhead.charged). Rounds of a request are in order.
    """
    lag = lags_of(log, costs.reads_states)
    bucket = np.minimum(log.context_tokens // costs.bucket_tokens, costs.buckets - 1)
    drafted, some = log.drafted.astype(np.int64), log.drafted > 0
    draft_s, verify_s = costs.draft_s[row], costs.verify_s[row]
    seconds = np.where(some, draft_s[bucket, np.minimum(lag, costs.width - 1)], 0.0)
    seconds += np.where(some, (drafted - 1) * draft_s[bucket, 1], 0.0)
    seconds += np.where(some, drafted * costs.signal_s, 0.0)
    target = verify_s[bucket, log.verified.astype(np.int64) + 1]
    unread = some & (log.verified == 0)
    if unread.any():  # who drops tokens is charged by a table that holds the starts
        assert costs.start_s is not None
        target = target + np.where(unread, costs.start_s[row][bucket], 0.0)
    return np.asarray(seconds + target)


def surplus_draft_s(log: RoundLog, costs: StepCosts) -> FloatArray:
    """[K] seconds of the draft steps behind the last verified token, had every round of a log run
    all its gamma drafts and only the verification been cut: signals are read for each of them.
    """
    bucket = np.minimum(log.context_tokens // costs.bucket_tokens, costs.buckets - 1)
    surplus = (log.gamma - log.drafted).astype(np.int64)
    return np.asarray(surplus * (costs.draft_s[0, bucket, 1] + costs.signal_s))


def lags_of(log: RoundLog, reads_states: bool) -> npt.NDArray[np.int64]:
    """[K] what `lag_after` says before each round of a log."""
    rounds = np.arange(len(log))
    if len(log) == 0:
        return rounds
    first = np.r_[True, log.request[1:] != log.request[:-1]]
    drafted_before = np.r_[False, log.drafted[:-1] > 0]
    accepted, whole = log.accepted[:-1], log.accepted[:-1] == log.drafted[:-1]
    after = np.r_[1, accepted + 1 if reads_states else np.where(whole, 2, 1)]
    begins = first | drafted_before  # here the lag is known; behind it grows by one a round
    since = np.maximum.accumulate(np.where(begins, rounds, 0))
    known = np.where(first, 1, after)
    lags: npt.NDArray[np.int64] = known[since] + rounds - since
    return lags
