"""Headlines of the figures: they say no more than the numbers do."""

from __future__ import annotations

import math

import pytest

from experiments.common.statistics import Interval
from experiments.serving.figures import bars_figure, series_figure
from simulator.serving.state import BIN, records


@pytest.mark.parametrize(
    ("waiting", "headline"),
    [
        ((0.0, 0.0), "Nobody waits for a slot under any policy"),
        ((0.02, 0.08), "Hardly anybody waits for a slot: at most 0.020 requests"),
        ((2.0, 8.0), "The queue is shortest under b (0.50 requests), longest under a (2.00)"),
    ],
)
def test_a_queue_of_nobody_is_no_finding(waiting: tuple[float, float], headline: str) -> None:
    series = {}
    for name, waits in zip("ba", waiting, strict=True):
        bins = records(BIN, 1, 3)
        bins["busy_s"][0], bins["running_s"][0] = [1.0, 1.0, 2.0], [1.0, 1.0, 2.0]
        bins["waiting_s"][0, 1] = waits
        series[name] = bins
    assert series_figure(series, 1.0).title == headline


def test_a_mean_over_seeds_is_told_with_its_interval() -> None:
    values = {"never": Interval(1.0, 1.0, 1.0), "fixed:gamma=3": Interval(3.9, -2.0, 9.8)}
    picture = bars_figure("bursts", values, "seconds", "times as fast")
    assert picture.title.endswith("3.90 times as fast (-2.00-9.80), never last with 1.00")
    alone = {name: Interval(value.mean, math.nan, math.nan) for name, value in values.items()}
    assert "(" not in bars_figure("bursts", alone, "seconds", "times as fast").title
