"""Cost models against hand-computed seconds, the interpolation of Timing, and the closed forms."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.fixed import Fixed, Never
from simulator.costs import Affine, Roofline, expected_emitted, gammatune_seconds
from simulator.replay.replay import replay_interpreted
from traces import synthetic
from traces.costs import Table, bucket_end, bucket_of, prices_of, round_seconds, tabulate
from traces.errors import InputError
from traces.timing import OPERATIONS, Cell, Grid, Timing


def make_timing(generator: np.random.Generator, batches: int, contexts: int, tokens: int) -> Timing:
    """Random seconds on a random full grid, falling here and there."""
    cells = []
    for operation in OPERATIONS:
        axes = [
            np.sort(generator.choice(np.arange(low, 300), size, replace=False)).tolist()
            for low, size in ((1, batches), (0, contexts), (1, tokens))
        ]
        for batch in axes[0]:
            for context in axes[1]:
                for count in axes[2]:
                    seconds = float(generator.exponential(1e-3))
                    cells.append(
                        Cell(operation, batch, count, context, seconds, seconds, seconds, 3)
                    )
    return Timing({}, tuple(cells), signal_s=1e-5, control_s=2e-5)


def test_affine_by_hand() -> None:
    model = Affine(
        draft_fixed=1.0, draft_token=0.5, target_fixed=10.0, target_token=2.0,
        prefill_fixed=3.0, prefill_token=0.25, row=100.0, context_token=1000.0,
        signal=7.0, control=9.0,
    )  # fmt: skip
    assert model.prefill_s(8, batch=2) == 3.0 + 0.25 * 16
    assert model.draft_step_s(1, 0) == 1.0
    assert model.draft_step_s(3, 2, tokens=4) == 1.0 + 1.5 + 200.0 + 2000.0
    assert model.verify_s(1, 1, 0) == 10.0
    assert model.verify_s(5, 2, 1) == 10.0 + 8.0 + 100.0 + 1000.0
    assert (model.signal_s(), model.control_s()) == (7.0, 9.0)


def along(points: np.ndarray, values: np.ndarray, x: float) -> float:
    """The slow reference on one axis: constant before the grid, last slope (if up) behind it."""
    if x > points[-1] and len(points) > 1:
        slope = (values[-1] - values[-2]) / (points[-1] - points[-2])
        return float(values[-1] + max(0.0, float(slope)) * (x - points[-1]))
    return float(np.interp(x, points, values))


def reference(grid: Grid, batch: float, context: float, tokens: float) -> float:
    planes = []
    for plane in grid.seconds:
        rows = np.asarray([along(grid.tokens, row, tokens) for row in plane])
        planes.append(along(grid.context, rows, context))
    return along(grid.batch, np.asarray(planes), batch)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.tuples(*[st.integers(1, 4)] * 3),
    st.tuples(*[st.floats(0, 400, allow_subnormal=False)] * 3),
)
def test_table_is_the_interpolation_of_the_timing(
    world: int, sizes: tuple[int, int, int], point: tuple[float, float, float]
) -> None:
    timing = make_timing(np.random.default_rng(world), *sizes)
    model, (batch, context, tokens) = Table(timing), point
    # np.interp rounds the weights in another order; in between, both are the same line.
    near = {"rel": 1e-9, "abs": 1e-15}
    verify, first = timing.grid("verify"), timing.grid("first")
    further = reference(timing.grid("draft"), batch, context, 1)
    alone = reference(first, batch, context, 1)
    assert model.verify_s(1, batch, context) == pytest.approx(
        reference(verify, batch, context, 1), **near
    )
    tokens += 1.5
    assert model.verify_s(tokens, batch, context) == pytest.approx(
        reference(verify, batch, context, tokens) + max(0.0, alone - further), **near
    )
    assert model.draft_step_s(batch, context) == pytest.approx(further, **near)
    assert model.draft_step_s(batch, context, tokens) == pytest.approx(
        further + max(0.0, reference(first, batch, context, tokens) - alone), **near
    )


def test_table_keeps_what_was_measured() -> None:
    # Verify falls from two tokens to three; beyond the grid a falling slope is not continued.
    seconds = {1: 5.0, 2: 9.0, 3: 7.0}
    cells = [Cell("verify", 1, t, 0, s, s, s, 1) for t, s in seconds.items()]
    cells += [Cell(name, 1, 1, 0, 1.0, 1.0, 1.0, 1) for name in ("first", "draft", "prefill")]
    model = Table(Timing({}, tuple(cells), 0.125, 0.25))
    assert [model.verify_s(n, 1, 64) for n in (1, 2, 2.5, 3, 9)] == [5.0, 9.0, 8.0, 7.0, 7.0]
    assert (model.signal_s(), model.control_s()) == (0.125, 0.25)


def test_a_round_of_the_table_is_the_sum_of_its_measured_steps() -> None:
    """First step (lag 2) 4 s, further steps 1 s, verify of 4 tokens 9 s: 4 + 1 + 1 + 9."""
    seconds = {("first", 1): 3.0, ("first", 2): 4.0, ("draft", 1): 1.0, ("prefill", 1): 1.0}
    seconds |= {("verify", 1): 6.0, ("verify", 4): 9.0}
    cells = tuple(Cell(op, 1, t, 0, s, s, s, 1) for (op, t), s in seconds.items())
    prices = prices_of(tabulate(Table(Timing({}, cells, 0.0, 0.0)), width=6), signals=False)
    assert round_seconds(prices, 0, drafted=3, lag=2) == 4.0 + 1.0 + 1.0 + 9.0
    assert round_seconds(prices, 0, drafted=3, lag=1) == 3.0 + 1.0 + 1.0 + 9.0
    assert round_seconds(prices, 0, drafted=0, lag=1) == 6.0


def test_a_timing_with_a_hole_is_refused() -> None:
    timing = make_timing(np.random.default_rng(0), 2, 2, 2)
    with pytest.raises(InputError, match="lacks"):
        Table(dataclasses.replace(timing, cells=timing.cells[1:]))


def test_tabulate_by_hand() -> None:
    model = Affine(
        draft_fixed=1.0, target_fixed=10.0, target_token=2.0, draft_token=0.5,
        prefill_token=1.0, context_token=0.125, control=1000.0, signal=0.25,
    )  # fmt: skip
    costs = tabulate(model, max_context=40, width=4, bucket_tokens=16)
    assert costs.draft_s.shape == costs.verify_s.shape == (3, 4)
    assert costs.prefill_s.tolist() == [8.0, 24.0, 40.0]  # the middles of the buckets
    assert costs.draft_s[1].tolist() == [0.0, 4.0, 4.5, 5.0]  # 24 tokens of context: 3 s
    assert costs.verify_s[0].tolist() == [0.0, 1011.0, 1013.0, 1015.0]  # control included
    assert (costs.batch, costs.bucket_tokens, costs.signal_s) == (1, 16, 0.25)


def test_tabulate_at_a_batch_uses_that_batch() -> None:
    costs = tabulate(Affine(row=1.0, prefill_token=1.0), batch=3, max_context=0, width=3)
    assert costs.verify_s[0, 1] == pytest.approx(2.01)
    assert costs.prefill_s.tolist() == [48.0]
    assert costs.batch == 3


@pytest.mark.parametrize("wrong", [{"width": 1}, {"bucket_tokens": 0}, {"max_context": -1}])
def test_tabulate_refuses_impossible_sizes(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError):
        tabulate(Affine(), **wrong)


def test_expected_emitted() -> None:
    assert expected_emitted(0.5, 2) == 1.75  # 1 + 1/2 + 1/4
    assert expected_emitted(1.0, 4) == 5.0
    assert expected_emitted(0.0, 4) == 1.0
    assert expected_emitted(1.0 - 1e-9, 4) == pytest.approx(5.0, abs=1e-6)


def test_gammatune_seconds_by_hand() -> None:
    # 120 tokens, half of 4 drafts accepted: 3 per round, 40 rounds of (10 + 4) draft steps.
    assert gammatune_seconds(120, 0.5, 4, 10.0, 2.0) == 40 * 14 * 2.0


def test_the_papers_time_is_what_a_replay_costs() -> None:
    gamma, draft_s, target_s = 3, 1e-3, 8e-3
    trace = synthetic.constant(0.7, np.random.default_rng(1), requests=1, reply_tokens=20000)
    costs = tabulate(Affine(draft_fixed=draft_s, target_fixed=target_s), max_context=0)
    log = replay_interpreted(Fixed(gamma), trace, costs)
    acceptance = log.accepted.sum() / log.drafted.sum()
    paper = gammatune_seconds(20000, acceptance, gamma, target_s / draft_s, draft_s)
    assert log.elapsed_s.sum() == pytest.approx(paper, rel=1e-3)  # the last round is cut short
    plain = replay_interpreted(Never(), trace, costs)
    assert plain.elapsed_s.sum() == pytest.approx(gammatune_seconds(20000, 0, 0, 8.0, draft_s))


@pytest.mark.parametrize(("bucket_tokens", "max_context"), [(32, 100), (7, 20), (1, 5), (32, 0)])
def test_a_bucket_ends_where_the_next_one_begins(bucket_tokens: int, max_context: int) -> None:
    costs = tabulate(Affine(), max_context=max_context, bucket_tokens=bucket_tokens)
    prices, beyond = prices_of(costs, False), 10 * max_context + 100
    buckets = [bucket_of(prices, context) for context in range(beyond)]
    for context, bucket in enumerate(buckets):
        others = [later for later in range(context, beyond) if buckets[later] != bucket]
        assert min(others, default=beyond) == min(bucket_end(prices, bucket), beyond)


def test_a_knee_lets_tokens_behind_it_pay_in_full() -> None:
    # 8 bytes at 4 a second take 2 s, a token 0.5 s: the textbook's knee is at 4 tokens.
    plain = Roofline(8.0, 1.0, 0.0, 0.0, 4.0, 2.0)
    early = dataclasses.replace(plain, knee_tokens=2.0)
    late = dataclasses.replace(plain, knee_tokens=9.0)  # no more can hide than the reading takes
    tokens = (1, 2, 3, 4, 6)
    assert [plain.verify_s(n, 1, 0) for n in tokens] == [2.0, 2.0, 2.0, 2.0, 3.0]
    assert [early.verify_s(n, 1, 0) for n in tokens] == [2.0, 2.0, 2.5, 3.0, 4.0]
    assert [late.verify_s(n, 1, 0) for n in tokens] == [2.0, 2.0, 2.0, 2.0, 3.0]


def test_a_context_of_millions_needs_no_more_rows() -> None:
    """Rows that are wider, and still the price at their middle; up to 131,072 tokens as ever."""
    model = Affine(context_token=1e-6)
    costs = tabulate(model, max_context=1 << 31, width=2)
    assert costs.bucket_tokens == 1 << 19 and costs.verify_s.shape == (4097, 2)
    assert costs.verify_s[3, 1] == pytest.approx(1e-2 + 1e-6 * 3.5 * (1 << 19))
    assert tabulate(model, max_context=1 << 17, width=2).bucket_tokens == 32
