"""The i.i.d. control on a trace: by hand, right about coins, wrong about bursts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from experiments.published import control
from experiments.published.laws import fit_alpha
from simulator.replay.theory import expected_emitted
from tests.results import make_timing
from traces import synthetic
from traces.costs.pricing import tabulate
from traces.costs.table import Table


def test_coin_with_reply_ends_by_hand() -> None:
    """Two tokens, one draft: one round if it is accepted, else two."""
    trace = synthetic.constant(0.5, np.random.default_rng(0), requests=1, reply_tokens=2)
    trace = dataclasses.replace(trace, meta=dataclasses.replace(trace.meta, max_new_tokens=128))
    found = control.coin_tokens_per_round(trace, np.array([0.5]), 1)
    assert found == pytest.approx(2 / 1.5)
    tight = dataclasses.replace(trace, meta=dataclasses.replace(trace.meta, max_new_tokens=2))
    assert control.coin_tokens_per_round(tight, np.array([0.5]), 9) == found
    assert control.coin_tokens_per_round(tight, np.array([0.5]), 0) == 1.0


def test_control_is_right_about_coins_and_wrong_about_bursts() -> None:
    timing = Table(make_timing())
    for world, is_coin in (("constant", True), ("bursty", False)):
        generator = np.random.default_rng(1)
        if is_coin:
            trace = synthetic.constant(0.7, generator, requests=64, reply_tokens=512)
        else:
            trace = synthetic.bursty(0.95, 0.3, generator, requests=64, reply_tokens=512)
        costs = tabulate(timing, max_context=600, width=18)
        curve = control.fixed_curve(trace, costs)
        alpha = fit_alpha({1: float(curve.tokens_per_round[1])})
        told = np.array([expected_emitted(alpha, gamma) for gamma in range(13)])
        wrong = np.abs(told / curve.tokens_per_round - 1)
        assert (wrong.max() < 0.03) == is_coin, (world, wrong)
        hazard = control.hazards(trace, 6)
        assert (abs(hazard[5] - hazard[0]) < 0.03) == is_coin


def test_best_gamma_by_hand() -> None:
    curve = control.Curve(
        tokens=np.array([10.0, 10, 10]), rounds=np.array([10.0, 8, 5]),
        seconds=np.array([10.0, 8, 20]),
    )  # fmt: skip
    found = control.best_gamma(curve, np.array([1.0, 1.25, 6.0]))
    assert (found["chosen"], found["best"]) == (2, 1)
    assert found["promised"] == pytest.approx(1.5)  # thrice the tokens of a round of speed 0.5
    assert (found["replayed"], found["best_replayed"]) == (0.5, 1.25)
    assert found["loss"] == pytest.approx(0.6)
