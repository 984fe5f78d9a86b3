"""Metrics of a log that fits on a page, every number by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from simulator.replay import metrics
from traces.errors import InputError
from traces.roundlog import RoundLog


def make_log(rows: list[tuple[int, int, int, int, int, float]], prefill: list[float]) -> RoundLog:
    """Rows of (request, gamma, drafted, accepted, emitted, elapsed_s)."""
    columns = list(zip(*rows, strict=True))
    whole = [np.asarray(column, dtype=np.int32) for column in columns[:5]]
    elapsed = np.asarray(columns[5], dtype=np.float64)
    zeros = np.zeros(len(rows), dtype=np.int32)
    return RoundLog(
        whole[0], zeros, np.zeros(len(rows)), zeros, zeros + 1, *whole[1:3], *whole[2:],
        whole[4] <= whole[3], elapsed, np.asarray(prefill), {},
    )  # fmt: skip


LOG = make_log(
    [(0, 4, 4, 1, 2, 2.0), (0, 4, 2, 2, 3, 1.0), (1, 3, 3, 0, 1, 4.0)], prefill=[10.0, 20.0]
)
PLAIN = make_log([(0, 0, 0, 0, 5, 9.0), (1, 0, 0, 0, 1, 2.0)], prefill=[10.0, 20.0])
BEST = make_log([(0, 4, 4, 4, 5, 1.0), (1, 0, 0, 0, 1, 2.0)], prefill=[10.0, 20.0])


def test_per_request() -> None:
    sums = metrics.per_request(LOG)
    assert sums.rounds.tolist() == [2, 1]
    assert sums.tokens.tolist() == [5, 1]
    assert sums.drafted.tolist() == [6, 3] and sums.accepted.tolist() == [3, 0]
    assert sums.gamma.tolist() == [8, 3]
    assert sums.decode_s.tolist() == [3.0, 4.0] and sums.total_s.tolist() == [13.0, 24.0]
    assert sums.tokens_per_s.tolist() == [5 / 3, 0.25]
    assert sums.ttft_s.tolist() == [12.0, 24.0]
    assert sums.tpot_s.tolist() == [0.6, 4.0]


def test_per_request_finds_the_first_round_in_a_mixed_log() -> None:
    mixed = make_log([(1, 1, 1, 1, 2, 7.0), (0, 1, 1, 1, 2, 5.0), (1, 1, 1, 1, 2, 1.0)], [0.0, 1.0])
    assert metrics.per_request(mixed).ttft_s.tolist() == [5.0, 8.0]


def test_summary() -> None:
    summary = metrics.summarize(LOG)
    assert dataclasses.asdict(summary) == {
        "requests": 2,
        "rounds": 3,
        "tokens": 6,
        "decode_s": 7.0,
        "prefill_s": 30.0,
        "tokens_per_s": 6 / 7,
        "tokens_per_total_s": 6 / 37,
        "ttft_s": 18.0,
        "tpot_s": 7 / 6,
        "acceptance_rate": 3 / 9,
        "tokens_per_round": 2.0,
        "mean_gamma": 11 / 3,
        "wasted_drafts": 6,
    }
    assert np.isnan(metrics.summarize(PLAIN).acceptance_rate)


def test_summary_by_category() -> None:
    by = metrics.summarize_categories(LOG, ["math", "chat"])
    assert list(by) == ["math", "chat"]
    assert by["math"].tokens_per_s == 5 / 3 and by["chat"].decode_s == 4.0
    with pytest.raises(InputError, match="1 category names for 2 requests"):
        metrics.summarize_categories(LOG, ["math"])


def test_regret_and_headroom() -> None:
    assert metrics.regret_s(LOG, BEST).tolist() == [2.0, 2.0]
    assert metrics.headroom_captured(LOG, PLAIN, BEST) == (11 - 7) / (11 - 3)
    assert metrics.headroom_captured(BEST, PLAIN, BEST) == 1.0
    assert metrics.headroom_captured(PLAIN, PLAIN, BEST) == 0.0
    assert np.isnan(metrics.headroom_captured(LOG, BEST, BEST))


def test_logs_of_other_replies_are_not_compared() -> None:
    with pytest.raises(InputError, match="2 and 1 requests"):
        metrics.regret_s(LOG, make_log([(0, 0, 0, 0, 5, 1.0)], [0.0]))
    other = make_log([(0, 0, 0, 0, 5, 9.0), (1, 0, 0, 0, 2, 2.0)], [0.0, 0.0])
    with pytest.raises(InputError, match="request 1 has 1 tokens in one log and 2"):
        metrics.regret_s(LOG, other)
