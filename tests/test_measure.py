"""Measure on a tiny pair: every cell is there, the file is usable, a slow step is seen as slow."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from real_backend.measure import DRAFTED, LAGS, PREFILL_TOKENS, measure
from real_backend.models import load_pair, resolve_pair
from traces.costs import Table, tabulate
from traces.errors import InputError
from traces.timing import read_timing


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "general"])
def test_timing_is_complete_and_usable(pair_folder: Path, tmp_path: Path, lean: bool) -> None:
    pair = load_pair(resolve_pair(str(pair_folder), None, None), device="cpu", lean=lean)
    timing = measure(pair, batches=[1, 2], contexts=[16, 64], repeats=10)
    timing.write(tmp_path / "t.json")
    timing = read_timing(tmp_path / "t.json")
    fitting = [n for n in PREFILL_TOKENS if n < 256]
    assert timing.grid("prefill").seconds.shape == (2, 1, len(fitting))
    assert timing.grid("first").seconds.shape == (2, 2, len(LAGS))
    assert timing.grid("draft").seconds.shape == (2, 2, 1)
    assert timing.grid("verify").seconds.shape == (2, 2, len(DRAFTED))
    assert all(0 < c.q25_s <= c.median_s <= c.q75_s for c in timing.cells)
    assert timing.signal_s >= 0 and timing.meta["engine"] == ("lean" if lean else "general")
    costs = tabulate(Table(timing), max_context=256)
    assert (costs.verify_s[:, 1:] > timing.control_s).all()


def test_a_slow_target_shows_in_verify_only(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lean, forward = pair.target.lean, pair.target.lean.forward

    def slow(*args: Any, **keywords: Any) -> torch.Tensor:
        time.sleep(0.02)
        return forward(*args, **keywords)

    monkeypatch.setattr(lean, "forward", slow)
    timing = measure(pair, batches=[1], contexts=[16], repeats=10)
    assert timing.grid("verify").seconds.min() > 0.02
    assert timing.grid("first").seconds.max() < 0.02
    assert timing.grid("draft").seconds.max() < 0.02


def test_impossible_grids_are_refused(pair: Any) -> None:
    with pytest.raises(InputError, match="--context 240"):
        measure(pair, batches=[1], contexts=[240], repeats=10)
    with pytest.raises(InputError, match="--context 9"):
        measure(pair, batches=[1], contexts=[9], repeats=10)
    with pytest.raises(InputError, match="--repeats"):
        measure(pair, batches=[1], contexts=[16], repeats=0)
