"""The affine cost model by hand."""

from __future__ import annotations

import pytest

from traces.costs.affine import Affine
from traces.costs.pricing import round_seconds, tabulate


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


@pytest.mark.parametrize(
    ("kind", "start_s", "step_s", "lagging_s", "round_s"),
    [
        # A forward per token: 1 s, 100 s for the second row, 0.5 s for each token more.
        ("step", 0.0, 101.0, 102.0, 3 * 101.0 + 116.0),
        # One forward, then the target over 4 tokens: 10 + 2 * 3 + 100, and a draft of 101 s.
        ("block", 101.0, 0.0, 1.0, 101.0 + 116.0),
        # Look-up: a second in each of two rows, one after the other.
        ("host", 2.0, 0.0, 1.0, 2.0 + 116.0),
    ],
)
def test_a_draft_costs_what_its_kind_says(
    kind: str, start_s: float, step_s: float, lagging_s: float, round_s: float
) -> None:
    model = Affine(
        draft_fixed=1.0, draft_token=0.5, target_fixed=10.0, target_token=2.0, row=100.0,
        draft_kind=kind,
    )  # fmt: skip
    assert model.draft_start_s(2, 0) == start_s
    assert (model.draft_step_s(2, 0), model.draft_step_s(2, 0, tokens=3)) == (step_s, lagging_s)
    costs = tabulate(model, (2,), max_context=0, width=6)
    assert round_seconds(costs, 0, 0, drafted=3, lag=1) == round_s
