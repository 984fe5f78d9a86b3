"""Rates by position: by hand, and the bias that they have."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.cli import main
from experiments.published.positions import by_position, positions
from policies.fixed import Fixed
from simulator.replay.replay import replay
from tests.results import make_trace
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate


def test_rates_by_hand() -> None:
    # Length 2: rounds at 0 (accepts 2 of 3), 3 (0), 4 (1 of 2: the reply ends behind it).
    trace = make_trace([[3, 2, 1, 0, 1, 0]], ["1"], ["t"])
    found = by_position(replay(Fixed(2), trace, tabulate(Affine())), 2)
    assert (found.rounds, found.tokens) == (3, 6)
    assert found.rates == pytest.approx((2 / 3, 1 / 3))
    assert found.promised(1) == pytest.approx(5 / 3) and found.promised(2) == 2.0
    # t = 1/2, Z = 6/5, S = 1, 7/10, 7/20, 7/40 ...: (6/5 x 2) / (1 + 7/20 x 4/3) for length 1.
    assert found.corrected == pytest.approx((2.4 / (1 + 7 / 15), 2.0))


def test_longer_rounds_start_at_harder_places() -> None:
    """Where acceptance comes in runs the rate at position 1 falls with the length, and the rates of
    a long one promise too little of a short one, unless the starts are allowed for; where it does
    not, neither.
    """
    generator = np.random.default_rng(2)
    size = {"requests": 60, "reply_tokens": 200, "depth": 8}
    runs = positions(synthetic.bursty(0.97, 0.3, generator, **size), "runs").found
    firsts = [one.rates[0] for one in runs]
    assert firsts == sorted(firsts, reverse=True) and firsts[0] > firsts[-1] + 0.1
    assert runs[-1].promised(1) < runs[0].tokens_per_round - 0.1
    assert runs[-1].corrected[0] == pytest.approx(runs[0].tokens_per_round, abs=0.02)
    coin = positions(synthetic.constant(0.7, generator, **size), "coin").found
    assert max(abs(one.rates[0] - 0.7) for one in coin) < 0.02


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["studies", "positions", "--trace", "embedded-greedy", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    firsts = {one["length"]: one["rates"][0] for one in found["found"]}
    assert firsts[1] == pytest.approx(0.677, abs=0.02) and firsts[8] < firsts[1] - 0.1
    told = {one["length"]: one["corrected"][0] for one in found["found"]}
    assert told[8] == pytest.approx(told[1], rel=0.006) and told[1] == 1 + firsts[1]
    assert main(["studies", "positions", "--trace", "embedded-greedy"]) == 0
    shown = capsys.readouterr().out
    plain, corrected = shown.split("-- allowing for where rounds start")
    assert "-7.2%" in plain and "-7.2%" not in corrected
