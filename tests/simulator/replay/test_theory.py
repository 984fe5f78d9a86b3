"""The closed forms, and replays against them."""

from __future__ import annotations

import numpy as np
import pytest

from policies.fixed import Fixed, Never
from simulator.replay.replay import replay_interpreted
from simulator.replay.theory import expected_emitted, gammatune_seconds
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate


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
