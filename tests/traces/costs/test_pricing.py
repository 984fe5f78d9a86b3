"""The table of step costs by hand, and its buckets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.results import lively_trace
from traces.costs.affine import Affine
from traces.costs.log_prices import lags_of
from traces.costs.of_trace import tabulate_for
from traces.costs.pricing import (
    bucket_end,
    bucket_of,
    lag_after,
    make_step_costs,
    prices_of,
    tabulate,
)
from traces.errors import InputError
from traces.roundlog import ROUND_DTYPES, RoundLog


def test_tabulate_by_hand() -> None:
    model = Affine(
        draft_fixed=1.0, target_fixed=10.0, target_token=2.0, draft_token=0.5,
        prefill_token=1.0, context_token=0.125, control=1000.0, signal=0.25,
    )  # fmt: skip
    costs = tabulate(model, max_context=40, width=4, bucket_tokens=16)
    assert costs.draft_s.shape == costs.verify_s.shape == (1, 3, 4)
    assert costs.prefill_s.tolist() == [8.0, 24.0, 40.0]  # the middles of the buckets
    assert costs.draft_s[0, 1].tolist() == [0.0, 4.0, 4.5, 5.0]  # 24 tokens of context: 3 s
    assert costs.verify_s[0, 0].tolist() == [0.0, 1011.0, 1013.0, 1015.0]  # control included
    assert (costs.batch_sizes.tolist(), costs.bucket_tokens, costs.signal_s) == ([1], 16, 0.25)


def test_tabulate_at_a_batch_uses_that_batch() -> None:
    costs = tabulate(Affine(row=1.0, prefill_token=1.0), (1, 3), max_context=0, width=3)
    assert costs.verify_s[:, 0, 1] == pytest.approx([0.01, 2.01])
    assert costs.prefill_s.tolist() == [16.0]  # of one prompt
    assert costs.batch_sizes.tolist() == [1, 3]


@pytest.mark.parametrize("wrong", [{"width": 1}, {"bucket_tokens": 0}, {"max_context": -1}])
def test_tabulate_refuses_impossible_sizes(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError):
        tabulate(Affine(), **wrong)


@pytest.mark.parametrize(("bucket_tokens", "max_context"), [(32, 100), (7, 20), (1, 5), (32, 0)])
def test_a_bucket_ends_where_the_next_one_begins(bucket_tokens: int, max_context: int) -> None:
    costs = tabulate(Affine(), max_context=max_context, bucket_tokens=bucket_tokens)
    prices, beyond = prices_of(costs, signals=False), 10 * max_context + 100
    buckets = [bucket_of(prices, context) for context in range(beyond)]
    for context, bucket in enumerate(buckets):
        others = [later for later in range(context, beyond) if buckets[later] != bucket]
        assert min(others, default=beyond) == min(bucket_end(prices, bucket), beyond)


def test_a_context_of_millions_needs_no_more_rows() -> None:
    """Rows that are wider, and still the price at their middle; up to 131,072 tokens as ever."""
    model = Affine(context_token=1e-6)
    costs = tabulate(model, max_context=1 << 31, width=2)
    assert costs.bucket_tokens == 1 << 19 and costs.verify_s.shape == (1, 4097, 2)
    assert costs.verify_s[0, 3, 1] == pytest.approx(1e-2 + 1e-6 * 3.5 * (1 << 19))
    assert tabulate(model, max_context=1 << 17, width=2).bucket_tokens == 32


@pytest.mark.parametrize(
    ("draft", "verify", "sizes"),
    [
        ((3, 2), (2, 3), (1,)),
        ((2, 3), (2, 3), (1, 2)),
        ((2, 2, 3), (1, 2, 3), (1,)),
        ((3,), (3,), (1,)),
    ],
)
def test_tables_of_other_shapes_are_refused(
    draft: tuple[int, ...], verify: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="must be"):
        make_step_costs(np.ones(draft), np.ones(verify), batch_sizes=sizes)


def test_nothing_left_to_charge_is_kept() -> None:
    assert make_step_costs([[0.0, 1.0]], [[0.0, 1.0]]).own_s == {}
    assert make_step_costs([[0.0, 1.0]], [[0.0, 1.0]], own_s=None).own_s is None
    with pytest.raises(InputError, match="verify_s holds a negative"):
        make_step_costs([[0.0, 1.0]], [[0.0, -1.0]])


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=6),
        min_size=0, max_size=4,
    ),
    st.booleans(),
)  # fmt: skip
def test_lags_of_a_log_are_those_that_a_draft_runs_up(
    requests: list[list[tuple[int, int]]], reads_states: bool
) -> None:
    """Against `lag_after`, round by round; rounds that draft nothing let the draft fall behind."""
    rounds, lags = [], []
    for request, played in enumerate(requests):
        lag = 1
        for drafted, accepted in played:
            accepted = min(accepted, drafted)
            lags.append(lag)
            rounds.append((request, drafted, accepted))
            lag = lag_after(lag, drafted, accepted, reads_states)
    columns = {name: np.zeros(len(rounds)) for name in ROUND_DTYPES}
    for at, name in enumerate(("request", "drafted", "accepted")):
        columns[name] = np.asarray([row[at] for row in rounds], dtype=np.int64)
    columns["verified"] = columns["drafted"]
    log = RoundLog(**columns, prefill_s=np.zeros(len(requests)), meta={})
    assert lags_of(log, reads_states).tolist() == lags


def test_the_tables_of_a_trace_hold_all_that_it_needs() -> None:
    trace = lively_trace()
    costs = tabulate_for(trace, Affine())
    assert costs.bucket_tokens == 32 and costs.sizes == [1]
    assert costs.width > trace.meta.depth + 1
    assert costs.buckets * 32 > trace.longest_context
