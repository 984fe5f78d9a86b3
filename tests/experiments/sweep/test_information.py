"""The ceilings of information where it is known what information is worth."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from experiments.cli import main
from experiments.sweep.information import AFTER, BEFORE, COUNTS, TARGET, information
from simulator.replay.hindsight import best_fixed, clairvoyant
from traces import synthetic
from traces.costs.pricing import StepCosts, make_step_costs
from traces.errors import InputError
from traces.schema import Trace
from traces.store import write_trace

DEPTH = 2


def world(seed: int = 0) -> tuple[Trace, StepCosts]:
    """Acceptance by the toss of a coin; a draft step costs a tenth of a plain round, and verifying
    anything half of one.
    """
    generator = np.random.default_rng(seed)
    trace = synthetic.constant(
        0.5, generator, requests=40, reply_tokens=60, depth=DEPTH, signals=True
    )
    costs = make_step_costs([[0.0, 1.0, 1.0, 1.0]], [[0.0, 10.0, 15.0, 16.0]])
    return trace, costs


def told(trace: Trace) -> Trace:
    """Signals that say of every token whether it will pass."""
    passes = trace.accept_len[:, None] > np.arange(DEPTH)
    return dataclasses.replace(
        trace,
        top1_prob=np.where(passes, 0.99, 0.01).astype(np.float32),
        entropy=np.where(passes, 0.1, 2.0).astype(np.float32),
    )


def seconds(trace: Trace, costs: StepCosts) -> dict[str, float]:
    return {one.sees: one.decode_s for one in information(trace, costs, range(trace.requests))}


@pytest.mark.slow
def test_what_says_nothing_is_worth_nothing() -> None:
    trace, costs = world()
    blind = dataclasses.replace(
        trace,
        top1_prob=np.full_like(trace.top1_prob, 0.5),
        entropy=np.full_like(trace.entropy, 0.7),
    )
    found = seconds(blind, costs)
    assert set(found) == {COUNTS, BEFORE, AFTER}  # no target_entropy, no such ceiling
    fixed_s = best_fixed(blind, costs)[1].elapsed_s.sum()
    for level in found:
        assert found[level] == pytest.approx(fixed_s, rel=0.03), level


@pytest.mark.slow
def test_whoever_is_told_after_the_token_pays_a_step_for_it() -> None:
    trace, costs = world()
    trace = told(trace)
    trace = dataclasses.replace(trace, target_entropy=np.zeros(trace.positions, np.float32))
    found, known = seconds(trace, costs), clairvoyant(trace, costs).elapsed_s.sum()
    # Told, a rule drafts a token, drops it if it will fail (11 s), goes on if it will pass: behind
    # one half of the looks a second, verified in half of these (2 + 16 s), else dropped (2 + 15 s).
    # Tokens 1 + 1/2 + 1/4 a round, seconds 11/2 + 17/4 + 18/4.
    told_s = trace.positions / (1 + 1 / 2 + 1 / 4) * (11 / 2 + 17 / 4 + 18 / 4)
    assert found[AFTER] == pytest.approx(told_s, rel=0.02)
    assert found[TARGET] == pytest.approx(found[AFTER], rel=0.01)
    assert known < found[AFTER] < found[BEFORE] * 0.95 < found[COUNTS]


def test_signals_are_asked_for() -> None:
    trace, costs = world()
    with pytest.raises(InputError, match="--information needs a trace with the draft's signals"):
        information(dataclasses.replace(trace, top1_prob=None, entropy=None), costs, range(3))


def test_a_sweep_says_so_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, _ = world()
    write_trace(dataclasses.replace(trace, top1_prob=None, entropy=None), tmp_path / "t.parquet")
    argv = ["sweep", "quick", "--trace", str(tmp_path / "t.parquet"), "--cost", "c=5"]
    assert main([*argv, "--information", "--out", str(tmp_path / "out")]) == 2
    assert "needs a trace with the draft's signals" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
