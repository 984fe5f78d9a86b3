"""The trained controllers' fits: data by hand, solver against scikit-learn, shipped weights."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from experiments.sweep.classifiers import (
    FITS,
    consecutive_rounds,
    fit_disco,
    fit_logistic,
    fit_specdec,
    judged_tokens,
)
from policies.base import Draft, field_values
from policies.confidence.classifiers import WEIGHTS, accept_prob
from policies.confidence.speckv import GAMMAS, SpecKV
from simulator.replay.replay import replay
from tests.command import gammalab
from tests.results import lively_trace
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate
from traces.errors import InputError
from traces.schema import Trace
from traces.shipped import GREEDY
from traces.split import split_rows
from traces.store import read_trace


def trace_of(accept_len: list[int], depth: int) -> Trace:
    """One reply; top-1 probability 0.5 + 0.01 position + 0.001 depth, entropy twice that."""
    count = len(accept_len)
    blank = synthetic.constant(
        0.5, np.random.default_rng(0), requests=1, reply_tokens=count, depth=depth
    )
    top1 = 0.5 + 0.01 * np.arange(count)[:, None] + 0.001 * np.arange(depth)[None, :]
    return dataclasses.replace(
        blank,
        accept_len=np.array(accept_len, dtype=np.int16),
        top1_prob=top1.astype(np.float32),
        entropy=(2.0 * top1).astype(np.float32),
    )


def top1_of(inputs: np.ndarray) -> list[float]:
    return (1.0 / (1.0 + np.exp(-inputs[:, 1]))).round(5).tolist()


def test_judged_tokens_by_hand() -> None:
    # Position 1 is rejected, positions 2 and 3 run to the end of the reply: a draft behind it has
    # no label. Depth 2 cuts the rest.
    tokens = judged_tokens(trace_of([1, 0, 2, 1], depth=2))
    assert tokens.labels.tolist() == [1, 0, 0, 1, 1, 1]
    assert top1_of(tokens.inputs) == pytest.approx([0.5, 0.501, 0.51, 0.52, 0.521, 0.53])
    assert tokens.inputs[:, 0].tolist() == [1.0] * 6
    assert tokens.inputs[:, 2] == pytest.approx([1.0, 1.002, 1.02, 1.04, 1.042, 1.06], abs=1e-6)
    log2 = math.log(2.0)
    assert tokens.inputs[:, 4] == pytest.approx([0.0, log2, 0.0, 0.0, log2, 0.0])


def test_consecutive_rounds_by_hand() -> None:
    # Reply of 10 tokens, rejected at position 2 only. A first round of 2 at 0 accepts 2 and ends at
    # 3, one of 4 accepts 2 and ends there too; at 3 the run of 7 reaches the end of the reply, so
    # a second round of 8 is not judged there and shorter ones accept everything.
    trace = trace_of([2, 1, 0, 7, 6, 5, 4, 3, 2, 1], depth=8)
    rounds = consecutive_rounds(trace)
    # Starts with a second round inside the reply: last = 2: 0..6 (-> 3 3 3 6 7 8 9);
    # last = 4: 0..4 (-> 3 3 3 8 9); last = 6: 0..2; last = 8: 0..2. At 3 gammas 2, 4, 6 are judged,
    # at 6 (4 left) 2 and 4, at 7 and 8 (3 and 2 left) 2, at 9 none.
    pairs = [
        (last, gamma)
        for last, starts in (
            (2, (3, 3, 3, 6, 7, 8, 9)),
            (4, (3, 3, 3, 8, 9)),
            (6, (3,) * 3),
            (8, (3,) * 3),
        )
        for gamma in GAMMAS
        for start in starts
        if start + gamma <= 10
    ]
    assert rounds.inputs[:, 5].tolist() == [gamma for _, gamma in pairs]
    assert rounds.labels.tolist() == [1.0] * len(pairs)
    # First row: from 0, two tokens of top-1 0.5 and 0.501, entropy 1 and 1.002.
    assert rounds.inputs[0] == pytest.approx([1.0, 1.001, 1.002, 0.5005, 0.5, 2.0], abs=1e-6)


def test_a_second_round_that_is_rejected_is_judged() -> None:
    # A first round at 0 accepts none and ends at 1; there 1 is accepted, then a rejection: every
    # gamma is judged, 1 / 2, 1 / 4, 1 / 6, 1 / 8. From 1 the next round starts at 3, accepts all 1.
    rounds = consecutive_rounds(trace_of([0, 1, 0, 1], depth=8))
    by_gamma = {g: rounds.labels[rounds.inputs[:, 5] == g].tolist() for g in GAMMAS}
    # Starts 0 -> 1, 1 -> 3 (unjudged), 2 -> 3 (unjudged), whatever the first round's length.
    assert by_gamma == {g: [1.0 / g] * 4 for g in GAMMAS}


def test_the_regression_is_of_what_the_policy_remembers() -> None:
    trace = synthetic.constant(0.7, np.random.default_rng(3), requests=1, signals=True)
    rounds = consecutive_rounds(trace)
    policy = SpecKV()
    state = policy.new_state(1)
    assert trace.top1_prob is not None and trace.entropy is not None
    for depth in range(GAMMAS[0]):
        top1, entropy = float(trace.top1_prob[0, depth]), float(trace.entropy[0, depth])
        policy.proceed(state, 0, Draft(depth + 1, top1, entropy))
    entropy_sum, entropy_max, top1_sum, top1_min = state.sums[0].tolist()
    drafted = int(state.drafted[0])
    seen = [entropy_sum / drafted, entropy_max, top1_sum / drafted, top1_min]
    assert rounds.inputs[0, 1:5].tolist() == pytest.approx(seen)


def test_logistic_against_scikit_learn() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    generator = np.random.default_rng(1)
    inputs = np.column_stack([np.ones(4000), generator.normal(0.0, (1.0, 5.0, 0.2), (4000, 3))])
    odds = inputs @ np.array([0.5, 1.0, -0.4, 2.0])
    labels = (generator.random(4000) < 1.0 / (1.0 + np.exp(-odds))).astype(np.float64)
    for weights in (None, np.where(labels > 0.0, 1.0, 6.0)):
        for ridge in (1e-6, 30.0):
            ours = fit_logistic(inputs, labels, weights, ridge)
            model = linear.LogisticRegression(C=1.0 / ridge, solver="newton-cholesky", tol=1e-12)
            model.fit(inputs[:, 1:], labels, weights)
            assert ours == pytest.approx([*model.intercept_, *model.coef_[0]], abs=1e-6)


def test_logistic_of_shares_is_that_of_their_counts() -> None:
    inputs = np.array([[1.0, 0.0], [1.0, 1.0]])
    # One column tells the rows apart, so that both shares are met: log odds log 3 and log(1 / 4).
    ours = fit_logistic(inputs, np.array([0.75, 0.2]), ridge=0.0)
    assert ours == pytest.approx([math.log(3.0), math.log(0.25) - math.log(3.0)])


def test_logistic_far_away_and_without_information() -> None:
    labels = np.array([1.0] * 999 + [0.0])
    inputs = np.column_stack([np.ones(1000), np.arange(1000.0) > 997.0, np.zeros(1000)])
    ours = fit_logistic(inputs, labels)
    # Nothing is rejected but one of two marked rows: even odds there, ridge holds the rest.
    assert ours[0] + ours[1] == pytest.approx(0.0, abs=1e-3)
    assert ours[0] > 10.0 and ours[2] == 0.0


def test_nothing_to_learn_from() -> None:
    with pytest.raises(InputError, match="no rejected or no accepted"):
        fit_disco(trace_of([4, 3, 2, 1], depth=2))


def test_what_cannot_train() -> None:
    blind = synthetic.constant(0.5, np.random.default_rng(0), requests=1)
    meta = dataclasses.replace(blind.meta, exactness="censored")
    bound = np.zeros(blind.positions, dtype=np.bool_)
    bound[0] = blind.accept_len[0] < blind.positions
    censored = dataclasses.replace(blind, meta=meta, censored=bound)
    for fit in FITS.values():
        with pytest.raises(InputError, match="needs a trace with top1_prob"):
            fit(blind)
        with pytest.raises(InputError, match="are censored"):
            fit(censored)


def test_signals_that_never_change_settle_too() -> None:
    tokens = judged_tokens(lively_trace())  # three columns are multiples of the ones
    odds = tokens.inputs @ fit_logistic(*tokens)
    assert (1.0 / (1.0 + np.exp(-odds))).mean() == pytest.approx(tokens.labels.mean())


def test_mismatches_weigh_more() -> None:
    trace = synthetic.bursty(0.95, 0.4, np.random.default_rng(4), requests=8, signals=True)
    plain, careful = fit_specdec(trace, mismatch_weight=1.0), fit_specdec(trace)
    for field in WEIGHTS:
        assert getattr(plain, field) == getattr(fit_disco(trace), field)
    # Log odds of acceptance fall by log 6 where only the class weights differ.
    assert accept_prob(careful, Draft(1, 0.9, 0.4)) < accept_prob(plain, Draft(1, 0.9, 0.4)) - 0.05
    drafted = [replay(p, trace, tabulate(Affine())).drafted.sum() for p in (plain, careful)]
    assert drafted[1] < drafted[0]


@pytest.mark.parametrize("name", FITS)
def test_defaults_are_the_fit_of_the_shipped_tuning_half(name: str) -> None:
    """`gammalab studies classifiers` prints them anew when the shipped trace changes."""
    trace = read_trace(GREEDY)
    fitted = FITS[name](trace.select(split_rows(trace, seed=0)[0]))
    assert field_values(fitted) == pytest.approx(field_values(type(fitted)()), abs=1e-3)


def test_command_prints_the_defaults() -> None:
    printed = gammalab("studies", "classifiers").out
    assert [line for line in printed.splitlines() if not line.startswith(" ")] == list(FITS)
    assert f"    w_gamma: float = hyper({SpecKV().w_gamma:.4f}, WEIGHT, _TRAINED)" in printed
