"""Measure on a tiny pair: every cell is there, the file is usable, a slow step is seen as slow."""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policies.base import Policy, chooses_shapes, uses_signals
from policies.confidence.thresholds import HFConfidence
from policies.fixed import Fixed
from policies.registry import REGISTRY
from real_backend.decoding.bench import DRAFTED, LAGS, Bench
from real_backend.decoding.steps import GREEDY, Sampling
from real_backend.models import finite
from real_backend.recording import round_overheads
from real_backend.recording.measure import (
    PREFILL_TOKENS,
    _cells,
    _sample,
    _signal_repeats,
    control_effort,
    measure,
)
from tests.specimens import few_or_slow
from traces.costs.pricing import tabulate
from traces.costs.table import Table
from traces.errors import InputError
from traces.timing import Cell, Repeats, Timing, read_timing


@pytest.fixture
def one_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one rule's arithmetic is timed: that of all takes a second."""
    monkeypatch.setattr("real_backend.recording.measure.REGISTRY", {"fixed": Fixed})


@pytest.fixture
def few_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of three lengths are timed instead of fifteen."""
    monkeypatch.setattr("real_backend.recording.measure.DRAFTED", (0, 1, 8))


@pytest.fixture
def one_visit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep visits every kind of round once: three timed rounds."""
    monkeypatch.setattr("real_backend.recording.measure._VISITS", 1)


@pytest.mark.parametrize("lean", few_or_slow([True, False], [True]), ids=["lean", "general"])
def test_timing_is_complete_and_usable(
    pair: Any, general_pair: Any, tmp_path: Path, lean: bool
) -> None:
    subject = pair if lean else general_pair
    timing = measure(subject, batches=[1, 2], contexts=[16, 64], repeats=10)  # fewer may take 0 s
    timing.write(tmp_path / "t.json")
    timing = read_timing(tmp_path / "t.json")
    fitting = [n for n in PREFILL_TOKENS if n < 256]
    assert timing.grid("prefill").seconds.shape == (2, 1, len(fitting))
    assert timing.grid("first").seconds.shape == (2, 2, len(LAGS))
    assert timing.grid("draft").seconds.shape == (2, 2, 1)
    assert timing.grid("verify").seconds.shape == (2, 2, len(DRAFTED))
    assert all(0 < c.q25_s <= c.median_s <= c.q75_s for c in timing.cells)
    assert timing.signal_s >= 0 and timing.meta["engine"] == ("lean" if lean else "general")
    assert (timing.clocks, timing.sweeps) == (("wall", "cpu"), 1)
    assert all(len(c.blocks_s) == len(c.cpu_blocks_s) == 1 for c in timing.cells)
    assert all(0 < cpu <= 1.5 * c.q75_s for c in timing.on("cpu").cells for cpu in [c.median_s])
    choosers = [f"{name}/entry" for name, cls in REGISTRY.items() if chooses_shapes(cls)]
    assert set(timing.own_s) == {*REGISTRY, *choosers} and len(choosers) == 1
    for rule, (round_s, token_s) in timing.own_s.items():
        assert 0 < round_s < 0.1 and (token_s > 0) == uses_signals(
            REGISTRY[rule.removesuffix("/entry")]()
        )
    costs = tabulate(Table(timing), max_context=256)
    assert costs.own_s == timing.own_s
    assert (costs.verify_s[..., 1:] > timing.control_s).all()


@pytest.mark.usefixtures("one_rule", "few_lengths")
@pytest.mark.slow
def test_a_slow_target_shows_in_verify_only(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lean, forward = pair.target.lean, pair.target.lean.forward

    def slow(*args: Any, **keywords: Any) -> torch.Tensor:
        time.sleep(0.002)
        return forward(*args, **keywords)

    monkeypatch.setattr(lean, "forward", slow)
    timing = measure(pair, batches=[1], contexts=[16], repeats=10)
    assert timing.grid("verify").seconds.min() > 0.002
    assert timing.grid("first").seconds.max() < 0.002
    assert timing.grid("draft").seconds.max() < 0.002


def test_a_sweep_visits_usual_rounds_five_times_a_few_at_a_time(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    real = Bench.round

    def noted(
        self: Bench, drafted: int, lag: int, context: int, reads_signals: bool = False
    ) -> None:
        ran.append(drafted)
        real(self, drafted, lag, context, reads_signals)

    monkeypatch.setattr(Bench, "round", noted)
    with torch.inference_mode():
        (first, second) = _sample(pair, [1], [16], repeats=20)
    blocks = [(drafted, len(list(rounds))) for drafted, rounds in itertools.groupby(ran)]
    assert max(rounds for drafted, rounds in blocks if 1 < drafted < 9) <= 2 * 8
    assert min(rounds for drafted, rounds in blocks if drafted == 0) == 13  # it settles first
    assert [ran.count(drafted) for drafted in (0, 2, 8, 10, 32)] == [130, 80, 80, 16, 16]
    for sweep in (first, second):
        assert len(sweep["verify", 1, 3, 16]) == 15 and len(sweep["verify", 1, 33, 16]) == 3
        assert len(sweep["first", 1, 9, 16]) == 3


def test_cells_keep_the_median_of_every_sweep() -> None:
    key = ("verify", 1, 2, 64)
    wall, cpu = [[1.0, 2.0, 9.0], [4.0], [5.0, 7.0]], [[0.5, 1.0, 1.5], [2.0], [3.0, 3.0]]
    sweeps: list[Any] = [
        {key: list(zip(w, c, strict=True))} for w, c in zip(wall, cpu, strict=True)
    ]
    (cell,) = _cells([*sweeps, {}])
    assert cell.blocks_s[:3] == (2.0, 4.0, 6.0) and np.isnan(cell.blocks_s[3])
    assert cell.cpu_blocks_s[:3] == (1.0, 2.0, 3.0) and cell.median_s == 4.0
    assert (cell.q25_s, cell.q75_s, cell.repeats) == (2.5, 6.5, 6)
    (cell,) = _cells([{key: [(1.0, np.nan), (2.0, np.nan)]}])  # a GPU's events
    assert (cell.blocks_s, cell.cpu_blocks_s) == ((1.5,), ())


def test_a_slow_model_times_overheads_on_shorter_replies() -> None:
    """Fifty replies in a quarter of the seconds: 30 s / (50 x 60 ms) = 10 tokens."""
    cells = [Cell("verify", 1, t, 64, 0.06 * t, 0.0, 1.0, 9) for t in (1, 1, 2)]
    slow = Timing({}, tuple(cells), 0.0, 0.0)
    assert control_effort(slow, 30, 120.0) == (5, 10)
    assert control_effort(slow, 9, 120.0) == (5, 9)
    assert control_effort(slow, 30, 40.0) == (3, 4)
    assert control_effort(slow, 30, math.inf) == (5, 30)
    assert control_effort(slow, 100, math.inf) == (5, 64)


def test_short_seconds_leave_two_visits_and_three_repeats(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.inference_mode():
        (sweep,) = _sample(pair, [1], [16], repeats=90, seconds=0.0, deepest=8)
        assert len(sweep["verify", 1, 3, 16]) == 2 * 3 and ("verify", 1, 11, 16) not in sweep
        bench = Bench(pair, 1, 30, {}, deepest=4)
        monkeypatch.setattr(bench, "signal_s", lambda context: (float(context), 2.0))
        assert _signal_repeats(bench, 16, 0.0) == Repeats((16.0,) * 3, (2.0,) * 3)
        assert len(_signal_repeats(bench, 16, math.inf).wall_s) == 8


def busy(seconds: float) -> None:
    """Arithmetic for so long, by the processor's clock."""
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        pass


@pytest.mark.slow
@pytest.mark.usefixtures("few_lengths")
def test_no_rules_arithmetic_is_in_control(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither that of rules of the registry, nor that of the one that plays the timed rounds."""
    timing = measure(pair, batches=[1], contexts=[16], repeats=10)

    def control() -> float:
        found = round_overheads.round_overheads(pair, timing, 16, 5, 16, GREEDY)
        assert len(found.cpu_s) == len(found.wall_s) > 2
        return float(np.median(found.cpu_s))

    def slow(cls: type[Policy], hook: str) -> None:
        fast = getattr(cls, hook)

        def hooked(*args: Any) -> Any:
            busy(5e-3)
            return fast(*args)

        monkeypatch.setattr(cls, hook, hooked)

    before = control()
    for rule in (HFConfidence, Fixed):
        for hook in ("proceed", "gamma", "learn"):
            slow(rule, hook)
    slow(round_overheads._Length, "gamma")
    assert control() - before < 1e-3


def test_what_reading_signals_costs(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of four tokens read 4 ms slower: 3 ms a token, on both clocks. No rule takes part."""
    bench = Bench(pair, 1, 32, {})
    first, following, looking = bench.steps.draft_first, bench.steps.draft_next, [False]

    def draft_first(feeds: Any, sampling: Any, reads_signals: bool, uniforms: Any) -> Any:
        looking[0] = reads_signals
        return first(feeds, sampling, reads_signals, uniforms)

    def draft_next(rows: Any) -> Any:
        busy(4e-3 if looking[0] else 0.0)
        return following(rows)

    bench.block(1, (1,), 16)
    before = bench.signal_s(16)
    monkeypatch.setattr(bench.steps, "draft_first", draft_first)
    monkeypatch.setattr(bench.steps, "draft_next", draft_next)
    wall, cpu = (slow - plain for slow, plain in zip(bench.signal_s(16), before, strict=True))
    assert 2e-3 < cpu < 6e-3 and wall > 2e-3  # a neighbour may lengthen the wall's
    assert bench.samples  # those of the block are kept


def test_impossible_grids_are_refused(pair: Any) -> None:
    with pytest.raises(InputError, match="--context 240"):
        measure(pair, batches=[1], contexts=[240], repeats=10)
    with pytest.raises(InputError, match="--context 9"):
        measure(pair, batches=[1], contexts=[9], repeats=10)
    with pytest.raises(InputError, match="--repeats"):
        measure(pair, batches=[1], contexts=[16], repeats=0)


@pytest.mark.usefixtures("one_rule", "few_lengths")
def test_trees_are_timed_where_they_are_asked_for(pair: Any, tmp_path: Path) -> None:
    timing = measure(pair, batches=[1], contexts=[16, 64], repeats=10, trees=9)
    timing.write(tmp_path / "t.json")
    timing = read_timing(tmp_path / "t.json")
    assert timing.grid("level").tokens.tolist() == [1, 2, 4]
    assert timing.grid("tree").tokens.tolist() == [1, 3, 5, 9]
    assert (timing.grid("tree").seconds > 0).all() and timing.knows_trees
    kept = tmp_path / "t.json.partial"
    with pytest.raises(InputError, match="the smallest tree"):
        measure(pair, batches=[1], contexts=[16], repeats=1, trees=1, partial_file=kept)
    assert not kept.exists()  # refused before anything is kept
    drawn = measure(pair, batches=[1], contexts=[16], repeats=1, trees=2, sampling=Sampling(1.0))
    assert drawn.knows_trees and drawn.meta["temperature"] == 1.0


@pytest.mark.usefixtures("one_rule", "few_lengths", "one_visit")
def test_sampled_rounds_are_timed_as_sampled(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    real = finite.distribution

    def noted(logits: Any, temperature: float, top_p: float) -> Any:
        seen.add((temperature, top_p))
        return real(logits, temperature, top_p)

    monkeypatch.setattr(finite, "distribution", noted)
    sampling = Sampling(0.7, 0.9)
    timing = measure(pair, batches=[1], contexts=[16], repeats=1, sampling=sampling)
    assert seen == {(0.7, 0.9)}
    assert (timing.meta["temperature"], timing.meta["top_p"]) == sampling


class Stopped(Exception):
    """The power went off."""


@pytest.mark.long
@pytest.mark.usefixtures("one_rule", "few_lengths", "one_visit")
def test_a_stopped_measurement_goes_on(
    pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three sweeps are there, a third was cut off: only that one is run again."""
    kept = tmp_path / "t.json.partial"

    def timed(repeats: int) -> Any:
        return measure(pair, batches=[1], contexts=[16], repeats=repeats, partial_file=kept)

    def dead(*_: Any) -> Any:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr("real_backend.recording.measure.round_overheads", dead)
        with pytest.raises(Stopped):
            timed(6)
    assert len(kept.read_text().splitlines()) == 3
    before = kept.read_text()
    kept.write_text(before + '[["verify", 1')
    sweeps = []
    real = Bench.prefill
    monkeypatch.setattr(Bench, "prefill", lambda self, n: (sweeps.append(n), real(self, n))[1])
    timing = timed(9)
    assert kept.read_text().startswith(before) and timing.sweeps == 3
    ((sweeps_before, away_s),) = timing.meta["gaps"]
    assert sweeps_before == 2 and away_s >= 0
    assert sweeps.count(16) == 2  # warm-up, and once in the third sweep
    with pytest.raises(InputError, match="other settings"):
        measure(pair, batches=[1], contexts=[17], repeats=3, partial_file=kept)
    written = kept.read_text()
    kept.write_text(written + '[["verify", 1')
    with monkeypatch.context() as patch:  # killed while what was cut off is taken away
        patch.setattr(Path, "write_text", lambda *_: dead())
        patch.setattr("os.replace", dead)
        with pytest.raises(Stopped):
            timed(3)
    assert kept.read_text().startswith(written)  # nothing that was finished is lost
    kept.write_text("{")
    with pytest.raises(InputError, match="damaged"):
        timed(3)
