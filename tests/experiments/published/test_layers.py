"""Rooflines and measured layers: by hand, and the public file where at hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from experiments.published import layers
from experiments.published.table import read_csv
from tests.experiments.published.published_tables import SHARED, arguments, needs, write_layers
from traces.costs.pricing import tabulate
from traces.costs.roofline import Roofline, roofline_s

LAYERS = SHARED / "vidur" / "linear_layer_latency_compact.csv"


def test_roofline_by_hand() -> None:
    assert roofline_s(10, memory_s=3.0, token_s=0.2, fixed_s=1.0) == 4.0
    assert roofline_s(20, memory_s=3.0, token_s=0.2, fixed_s=1.0) == 5.0
    model = Roofline(
        target_bytes=100.0, target_flops=30.0, draft_bytes=10.0, draft_flops=2.0,
        bytes_per_s=10.0, flops_per_s=5.0, target_context_bytes=1.0, draft_context_bytes=0.5,
        fixed=0.25, signal=7.0, control=9.0,
    )  # fmt: skip
    assert model.verify_s(1, 1, 0) == 0.25 + 10.0  # 100 bytes; 30 operations take 6 s
    assert model.verify_s(3, 2, 20) == 0.25 + 36.0  # six tokens; 140 bytes take 14 s
    assert model.verify_s(1, 2, 20) == 0.25 + 14.0
    assert model.draft_step_s(1, 8) == 0.25 + 1.4
    assert model.draft_step_s(1, 8, tokens=5) == 0.25 + 2.0
    assert model.prefill_s(4, 1) == 0.5 + 24.0 + 1.6
    assert (model.signal_s(), model.control_s()) == (7.0, 9.0)
    costs = tabulate(model, max_context=64, width=6)
    assert costs.verify_s[0, 0, 2] == model.verify_s(2, 1, 16) + 9.0


def test_a_roofline_is_found_again() -> None:
    tokens = np.array([1.0, 2, 4, 8, 16, 32, 48, 64, 96, 128, 256])
    seconds = np.array([roofline_s(t, 0.64, 0.01, 0.2) for t in tokens])
    for fit in layers.fit_rooflines(tokens, seconds, 1 - np.eye(len(tokens))):
        assert (fit.memory_s, fit.token_s) == (pytest.approx(0.64), pytest.approx(0.01))
        assert fit.fixed_s == pytest.approx(0.2) and fit.knee_tokens == 64


def slow_roofline(tokens: np.ndarray, seconds: np.ndarray, knees: np.ndarray) -> float:
    """The least sum of squares over these knees, by a general solver for each."""
    lost = []
    for knee in knees:
        parts = np.column_stack([np.ones_like(tokens), np.maximum(0, tokens - knee)])
        (level, slope), *_ = np.linalg.lstsq(parts / seconds[:, None], np.ones_like(tokens))
        if slope < 0 or level < slope * knee:
            bound = np.maximum(tokens, knee)
            slope = (bound / seconds).sum() / ((bound / seconds) ** 2).sum()
            level = slope * knee
        told = level + slope * parts[:, 1]
        lost.append(((told / seconds - 1) ** 2).sum())
    return float(min(lost))


@pytest.mark.parametrize("seed", range(8))
def test_fast_fit_is_the_slow_fit(seed: int) -> None:
    generator = np.random.default_rng(seed)
    tokens = np.sort(generator.choice(np.arange(1.0, 200), 12, replace=False))
    seconds = np.maximum(0.5, 0.01 * tokens) * generator.uniform(0.7, 1.3, 12)
    weight = 1 - np.eye(12)
    knees = np.concatenate([tokens, (tokens[1:] + tokens[:-1]) / 2])
    for keep, fit in zip(weight > 0, layers.fit_rooflines(tokens, seconds, weight), strict=True):
        told = np.array([fit.at(t) for t in tokens[keep]])
        lost = float(((told / seconds[keep] - 1) ** 2).sum())
        assert fit.fixed_s >= -1e-12
        assert lost == pytest.approx(slow_roofline(tokens[keep], seconds[keep], knees), rel=1e-6)


def test_layers_by_hand(tmp_path: Path) -> None:
    """Before its first point a table holds the value, behind its last one the slope goes on."""
    path = write_layers(tmp_path / "t.csv", {1: 1.0, 2: 2.0, 4: 4.0, 8: 16.0})
    rows = read_csv([path], layers.COLUMNS)
    (layer,) = layers.read_layers(rows)
    predicted = layers.predictions(layer)
    # Left out: 1 -> the value at 2; 2 on the line; 4 between 2 and 16; 8 on the line 2-4.
    np.testing.assert_allclose(1000 * predicted["table"], [2.0, 2.0, 2 + 14 / 3, 8.0])
    assert set(predicted) == {"roofline", "table"}  # all are powers of 2, and no shape is known
    _, result = layers.study(arguments(path))
    assert result["errors"]["all"]["table"]["all"].largest == pytest.approx(1.0)
    assert result["worst"]["table"]["tokens"] == 1


def test_table_of_powers_of_two_by_hand(tmp_path: Path) -> None:
    """It never sees 3 and 6, and is not asked for what it holds."""
    path = write_layers(tmp_path / "t.csv", {1: 1.0, 2: 2.0, 3: 9.0, 4: 4.0, 6: 9.0, 8: 6.0})
    (layer,) = layers.read_layers(read_csv([path], layers.COLUMNS))
    sparse = 1000 * layers.predictions(layer)["table of powers of 2"]
    np.testing.assert_allclose(sparse, [np.nan, np.nan, 3.0, np.nan, 5.0, np.nan])


def test_jumps_by_hand() -> None:
    tokens = np.array([64.0, 128, 136, 144])
    layer = layers.Layer("g", "m", 1, tokens, np.ones(4))
    told = [(layer, np.array([1.2, 0.8, 1.11, 1.05]))]
    assert layers.jumps(told) == {"large_errors": 3, "at_multiples_of_128": 2}


def test_data_sheet_by_hand() -> None:
    one = np.ones(1)
    layer = layers.Layer("a100", "microsoft_phi-2", 2, one, one)
    sheet = layers.data_sheet(layer)
    assert sheet is not None  # 78,643,200 weights, two bytes and two operations each, two devices
    assert sheet.at(1) == pytest.approx(78_643_200 / 2.039e12)
    assert sheet.at(4096) == pytest.approx(4096 * 78_643_200 / 312e12)
    assert layers.data_sheet(dataclasses.replace(layer, gpu="b200")) is None


@needs(LAYERS)
@pytest.mark.slow
def test_layers_as_published() -> None:
    _, result = layers.study(arguments(LAYERS))
    assert (result["series"], result["points"]) == (22, 6466)
    found = result["errors"]["all"]
    assert found["table"]["all"].median < found["roofline"]["all"].median < 0.04
    assert found["table"]["1..64"].median < 0.012 and found["table"]["all"].largest > 0.3
    assert found["data sheet"]["all"].mean < -0.3  # no layer runs at the data sheet's rates
