"""Anchors against a timing: factors by step and third, and the timing that they make."""

from __future__ import annotations

import dataclasses

import pytest

from experiments.validation.drift import drift_of, recalibrated
from real_backend.decoding.measured import Anchor
from tests.results import make_timing
from traces.costs.table import Table


def anchors() -> list[Anchor]:
    """A verify of one token, 10 s in the timing, grows dearer; a draft step, 1 s, is half."""
    rows = [Anchor(float(k), "verify", 1, 8, 10.0 + k, 5.0) for k in range(9)]
    return [*rows, Anchor(3.0, "draft", 1, 8, 0.5, 0.25), Anchor(4.0, "verify", 5, 8, 1.0, 1.0)]


def test_factors_by_step_and_third() -> None:
    draft, verify = drift_of(make_timing(), anchors(), "wall")
    assert (draft.operation, draft.factor) == ("draft", 0.5)
    assert (verify.operation, verify.tokens, len(verify.points)) == ("verify", 1, 9)
    assert (verify.begin, verify.factor, verify.end) == pytest.approx((1.1, 1.4, 1.7))
    assert [one.factor for one in drift_of(make_timing(), anchors(), "cpu")] == [0.25, 0.5]


def test_a_step_that_the_timing_lacks_is_left_out() -> None:
    assert {one.tokens for one in drift_of(make_timing(), anchors(), "wall")} == {1}


def test_recalibrated_costs_by_hand() -> None:
    """Verify 1.4 and 1.2 times at one and nine tokens: 1.3 at five; drafts half."""
    rows = [*anchors(), Anchor(1.0, "verify", 9, 8, 12.0, 12.0)]
    drift = drift_of(make_timing(), rows, "wall")
    table = Table(recalibrated(make_timing(), drift))
    assert table.verify_s(1, 1, 8) == pytest.approx(14.0)
    assert table.verify_s(9, 1, 8) == pytest.approx(12.0)
    # The first draft step has no anchor: its excess over a further one is paid once a round.
    assert table.draft_start_s(1, 8) == pytest.approx(0.5)
    assert table.draft_step_s(1, 8) == pytest.approx(0.5)
    again = dataclasses.replace(make_timing())
    assert recalibrated(again, ()).cells == again.cells
