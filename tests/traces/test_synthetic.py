"""Synthetic traces: the law they promise, and signals that a real capture could have produced."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import synthetic
from traces.schema import Trace


def make(kind: str, seed: int = 0, **size: object) -> Trace:
    generator = np.random.default_rng(seed)
    if kind == "constant":
        return synthetic.constant(0.7, generator, **size)  # type: ignore[arg-type]
    if kind == "drifting":
        return synthetic.drifting(0.2, 0.9, generator, **size)  # type: ignore[arg-type]
    return synthetic.bursty(0.95, 0.35, generator, **size)  # type: ignore[arg-type]


KINDS = pytest.mark.parametrize("kind", ["constant", "drifting", "bursty"])


def acceptable(trace: Trace) -> np.ndarray:
    """[R, L] the coins behind accept_len."""
    return (trace.accept_len > 0).reshape(trace.requests, -1)


def test_run_lengths_by_hand() -> None:
    flags = np.asarray([[1, 1, 0, 1], [0, 1, 1, 1]], dtype=bool)
    assert synthetic.run_lengths(flags).tolist() == [[2, 1, 0, 1], [0, 3, 2, 1]]


@KINDS
def test_accept_len_is_a_run_clipped_at_the_end_of_the_reply(kind: str) -> None:
    trace = make(kind, requests=5, reply_tokens=40)
    for r in range(5):
        run = trace.accept_len[trace.offsets[r] : trace.offsets[r + 1]]
        for i, length in enumerate(run):
            assert length == 0 or length == 1 + (run[i + 1] if i + 1 < 40 else 0)


def test_shape_and_meta() -> None:
    trace = make("bursty", requests=3, reply_tokens=7, depth=5, prompt_tokens=11, signals=True)
    assert trace.meta.exactness == "synthetic" and trace.meta.depth == 5
    assert trace.meta.max_new_tokens == 7
    assert trace.prompt_tokens.tolist() == [11] * 3 and trace.positions == 21
    assert trace.top1_prob is not None and trace.top1_prob.shape == (21, 5)
    assert not make("constant").has_signals


@KINDS
def test_the_same_generator_state_gives_the_same_trace(kind: str) -> None:
    one, two, other = (make(kind, seed, signals=True) for seed in (1, 1, 2))
    assert one.accept_len.tobytes() == two.accept_len.tobytes()
    assert one.top1_prob is not None and two.top1_prob is not None
    assert one.top1_prob.tobytes() == two.top1_prob.tobytes()
    assert one.accept_len.tobytes() != other.accept_len.tobytes()


def test_the_extremes() -> None:
    generator = np.random.default_rng(0)
    never = synthetic.constant(0.0, generator, requests=2, reply_tokens=5)
    always = synthetic.constant(1.0, generator, requests=1, reply_tokens=5)
    assert never.accept_len.tolist() == [0] * 10
    assert always.accept_len.tolist() == [5, 4, 3, 2, 1]


def test_rates_and_memory() -> None:
    size = {"requests": 200, "reply_tokens": 200}
    constant, drifting, bursty = (
        acceptable(make(k, **size)) for k in ("constant", "drifting", "bursty")
    )
    # 40,000 coins: four standard errors of a rate near 0.7 are 0.01.
    assert abs(constant.mean() - 0.7) < 0.01
    assert abs(drifting[:, :20].mean() - (0.2 + 0.7 * 9.5 / 199)) < 0.03
    assert abs(drifting[:, -20:].mean() - (0.9 - 0.7 * 9.5 / 199)) < 0.03
    assert abs(bursty.mean() - 0.65) < 0.03

    def lag1(flags: np.ndarray) -> float:
        return float(np.corrcoef(flags[:, :-1].ravel(), flags[:, 1:].ravel())[0, 1])

    # Two states 0.3 from the mean, kept with chance 0.95: 0.3^2 * 0.9 / (0.65 * 0.35) = 0.356.
    assert abs(lag1(constant)) < 0.02
    assert abs(lag1(bursty) - 0.356) < 0.03


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 30))
def test_signals_are_shared_between_starts(seed: int, depth: int, length: int) -> None:
    trace = make("bursty", seed, requests=2, reply_tokens=length, depth=depth, signals=True)
    assert trace.top1_prob is not None and trace.entropy is not None
    for signal in (trace.top1_prob, trace.entropy):
        for i in range(trace.positions):
            same_reply = (i + 1) % length != 0
            if same_reply and trace.accept_len[i] > 0:
                # The first draft is the reply's own token, so both starts go on alike.
                assert signal[i, 1:].tobytes() == signal[i + 1, :-1].tobytes()
            elif same_reply and depth > 1:
                # The first draft is rejected: its continuation is another text.
                assert signal[i, 1] != signal[i + 1, 0]


def test_signals_tell_something_about_acceptance() -> None:
    trace = make("constant", requests=20, reply_tokens=100, signals=True)
    assert trace.top1_prob is not None and trace.entropy is not None
    flags = acceptable(trace).ravel()
    top1, entropy = trace.top1_prob[:, 0], trace.entropy[:, 0]
    assert top1[flags].mean() > top1[~flags].mean() + 0.2
    assert entropy[flags].mean() < entropy[~flags].mean() - 0.2
    # ... but not everything: some rejected tokens looked safe.
    assert (top1[~flags] > 0.8).any() and (top1[flags] < 0.4).any()
