"""Validation with an engine that is known to be off: errors, agreement and budget by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from experiments.agreement import agree, fit_residual, residual_cells
from experiments.compare import step_costs
from experiments.validate import validate
from experiments.validate_text import findings, validation_dict, validation_text
from policies.base import Policy
from policies.shelf import label, parse_policies
from real_backend.passes import Passes, rotated
from simulator.replay import replay
from tests.results import lively_trace, make_timing
from traces.costs import price_log
from traces.roundlog import RoundLog, join_logs
from traces.schema import Trace
from traces.timing import StepCosts

POLICIES = "never,fixed:gamma=2,gammatune,tail-pruning"


class Run(NamedTuple):
    tokens: list[list[int]]
    log: RoundLog


class FakeEngine:
    """Replays the trace and lies about it: seconds scaled by policy and repeat, rounds changed.

    Requests are rows of the trace. slower: factor on the seconds of a policy; lie: changes a log.
    """

    def __init__(self, trace: Trace, costs: StepCosts, slower: dict[str, float]) -> None:
        self.trace, self.costs, self.slower = trace, costs, slower
        self.calls: list[tuple[str, str, int]] = []
        self.wrong_reply = False

    def decode(
        self,
        policy: Policy,
        requests: Sequence[Any],
        *,
        temperature: float,
        top_p: float,
        seed: int,
        max_new_tokens: int,
        clock: str,
        batch: int,
        acceptance: Trace | None,
    ) -> Run:
        rows = list(requests)
        part = self.trace.select(rows)
        self.calls.append((label(policy), clock, rows[0]))
        log = replay(policy, part, self.costs, seed=seed)
        factor = self.slower.get(label(policy), 1.0)
        assert part.token_ids is not None
        replies = [r.tolist() for r in np.split(part.token_ids, part.offsets[1:-1])]
        if self.wrong_reply and label(policy) == "never":
            replies[0][-1] += 1
        return Run(replies, dataclasses.replace(log, elapsed_s=log.elapsed_s * factor))


def setup(slower: dict[str, float]) -> tuple[Trace, StepCosts, FakeEngine]:
    trace = lively_trace()
    costs = step_costs(make_timing(), trace)
    return trace, costs, FakeEngine(trace, costs, slower)


def run(slower: dict[str, float], engine: FakeEngine | None = None) -> Any:
    trace, costs, fresh = setup(slower)
    passes = passes_of(engine or fresh, trace, chunk=7)
    return validate(passes, costs, parse_policies(POLICIES), repeats=2)


def passes_of(engine: FakeEngine, trace: Trace, chunk: int = 12) -> Passes:
    rows: list[Any] = list(range(trace.requests))
    return Passes(engine, trace, rows, chunk=chunk)


def test_an_engine_as_predicted_has_no_error() -> None:
    found = run({})
    assert found.max_error == 0.0 and found.tau == pytest.approx(1.0)
    assert [check.exact.differing for check in found.checks] == [0, 0, 0, 0]
    assert [check.replies_equal for check in found.checks] == [24, 24, 24, 24]
    assert not findings(found, 1.0)
    assert found.residual.round_s == pytest.approx(0.0, abs=1e-9)


def test_errors_by_hand() -> None:
    """never 25 % slower: predicted 1.25 times what is measured; gammatune 10 % faster: 0.9."""
    found = run({"never": 1.25, "gammatune": 0.9})
    errors = {check.policy: check.error for check in found.checks}
    assert errors["never"] == pytest.approx(0.25)
    assert errors["gammatune"] == pytest.approx(-0.1)
    assert errors["fixed:gamma=2"] == pytest.approx(0.0)
    assert found.max_error == pytest.approx(0.25)
    assert found.median_error == pytest.approx((0.0 + 0.1) / 2)
    never = found.checks[0]
    assert never.request_error == pytest.approx(0.25)
    assert never.measured_s == pytest.approx(1.25 * never.predicted_s)
    assert never.costs_s == pytest.approx(0.25 * never.predicted_s)
    assert never.decisions_s == pytest.approx(0.0)
    assert [line.split(":")[0] for line in findings(found, 20.0)] == ["never"]
    assert [line.split(":")[0] for line in findings(found, 8.0)] == ["never", "gammatune"]


def test_one_factor_for_all_is_the_machine() -> None:
    found = run(dict.fromkeys(("never", "fixed:gamma=2", "gammatune", "tail-pruning"), 1.5))
    assert found.machine_factor == pytest.approx(1.5)
    assert found.median_error == pytest.approx(0.5)
    assert found.max_error_scaled == pytest.approx(0.0, abs=1e-12)


def test_tau_counts_swapped_ranks() -> None:
    """Make the fastest policy the slowest: it leaves its place in all 3 of 6 pairs."""
    base = {check.policy: check.predicted_tokens_per_s for check in run({}).checks}
    fastest = max(base, key=lambda name: base[name])
    assert run({fastest: 100.0}).tau == pytest.approx((3 - 3) / 6)


def test_replies_that_differ_are_counted() -> None:
    engine = setup({})[2]
    engine.wrong_reply = True
    found = run({}, engine)
    # Chunks of 7 rows: 4 of them, the first reply of each is wrong.
    assert [check.replies_equal for check in found.checks] == [20, 24, 24, 24]


def test_chunks_are_interleaved_and_the_order_rotates() -> None:
    trace, costs, engine = setup({})
    steps: list[int] = []
    policies = parse_policies(POLICIES)
    passes = passes_of(engine, trace)
    validate(passes, costs, policies, repeats=2, step=lambda: steps.append(1))
    assert len(steps) == passes.units(4, 2) == len(engine.calls) == 24
    timed = [(name, row) for name, clock, row in engine.calls if clock == "wall"]
    assert [row for _, row in timed] == ([0] * 4 + [12] * 4) * 2
    firsts = [timed[k][0] for k in range(0, 16, 4)]
    assert len(set(firsts)) == 4  # every policy begins once
    for k in range(0, 16, 4):
        assert len({name for name, _ in timed[k : k + 4]}) == 4


def test_sampled_traces_are_compared_by_speed_alone() -> None:
    trace, costs, _ = setup({})
    meta = dataclasses.replace(trace.meta, temperature=1.0, exactness="in-law")
    trace = dataclasses.replace(trace, meta=meta)
    passes = passes_of(FakeEngine(trace, costs, {"never": 2.0}), trace)
    found = validate(passes, costs, parse_policies(POLICIES), repeats=1)
    assert [check.exact for check in found.checks] == [None] * 4
    assert [check.replies_equal for check in found.checks] == [None] * 4
    assert found.max_error == pytest.approx(1.0)
    assert "only laws agree" in validation_text(found)


def test_rotation_is_a_permutation() -> None:
    for count in (1, 3, 10):
        seen = [rotated(count, repeat, 0, 3) for repeat in range(3)]
        assert all(sorted(order) == list(range(count)) for order in seen)
        assert count == 1 or len({order[0] for order in seen}) == min(count, 3)


def made_log(rows: Sequence[tuple[int, int, int, int, int, int]]) -> RoundLog:
    """Rounds from (request, context, gamma, drafted, accepted, emitted), one second each."""
    table = np.asarray(rows, dtype=np.int32)
    count = len(rows)
    return RoundLog(
        request=table[:, 0],
        slot=np.zeros(count, np.int32),
        start_s=np.arange(count, dtype=np.float64),
        context_tokens=table[:, 1],
        batch_size=np.ones(count, np.int32),
        gamma=table[:, 2],
        drafted=table[:, 3],
        accepted=table[:, 4],
        emitted=table[:, 5],
        ended=table[:, 5] <= table[:, 4],
        elapsed_s=np.ones(count),
        prefill_s=np.zeros(int(table[:, 0].max()) + 1),
        meta={},
    )


def test_disagreements_by_hand() -> None:
    replayed = made_log(
        [
            (0, 8, 3, 3, 3, 4),
            (0, 12, 3, 3, 1, 2),
            (1, 8, 2, 2, 0, 1),
            (1, 9, 2, 1, 1, 2),
            (2, 8, 2, 2, 2, 3),
        ]
    )
    real = made_log(
        [
            (0, 8, 3, 3, 2, 3),  # another acceptance
            (0, 11, 3, 3, 1, 2),  # displaced by it
            (1, 8, 2, 2, 0, 1),  # the same
            (1, 9, 2, 2, 1, 2),  # stopped elsewhere, gamma the same
            (2, 8, 3, 2, 2, 3),  # another cap in force, but the same tokens: the same
        ]
    )
    found = agree(real, replayed)
    assert (found.rounds, found.same, found.other, found.displaced) == (5, 2, 2, 1)
    assert found.differing == 3 and found.requests == 2
    assert found.first == {"gamma": 0, "stop": 1, "acceptance": 1, "end": 0}


def test_a_reply_that_ends_early_is_a_disagreement() -> None:
    replayed = made_log([(0, 8, 1, 1, 1, 2), (0, 10, 1, 1, 1, 2), (0, 12, 1, 1, 0, 1)])
    real = made_log([(0, 8, 1, 1, 1, 2)])
    found = agree(real, replayed)
    assert (found.same, found.other, found.missing, found.differing) == (1, 0, 2, 2)
    assert found.requests == 1 and found.first["end"] == 1


def test_joined_logs_number_requests_on() -> None:
    one = made_log([(0, 8, 1, 1, 1, 2), (1, 8, 1, 1, 0, 1)])
    both = join_logs([one, one])
    assert both.request.tolist() == [0, 1, 2, 3]
    assert both.start_s.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert len(both.prefill_s) == 4 and both.request.dtype == np.int32


@pytest.mark.parametrize("spec", POLICIES.split(","))
def test_price_of_replayed_rounds_is_what_the_replay_charged(spec: str, costs: StepCosts) -> None:
    trace = lively_trace()
    (policy,) = parse_policies(spec)
    log = replay(policy, trace, costs)
    assert price_log(log, costs, spec == "tail-pruning").tolist() == log.elapsed_s.tolist()


def test_residual_is_blamed_on_the_right_term() -> None:
    """A miss of 2 s a round, 0.5 s a draft and 0.25 s a signal is found again."""
    logs, prices = [], []
    for reads in (False, True):
        log = made_log([(0, 8 + k, k % 5, k % 5, 0, 1) for k in range(40)])
        logs.append(log)
        prices.append(log.elapsed_s - 2.0 - log.drafted * (0.5 + 0.25 * reads))
    cells = residual_cells(logs, prices, [False, True])
    assert [(c.signals, c.drafted) for c in cells][:2] == [(False, 0), (False, 1)]
    assert sum(cell.rounds for cell in cells) == 80
    fit = fit_residual(cells)
    assert (fit.round_s, fit.draft_s, fit.signal_s) == pytest.approx((2.0, 0.5, 0.25))


def test_text_fits_a_terminal_and_json_has_no_nan() -> None:
    found = run({"never": 1.25})
    text = validation_text(found)
    assert max(map(len, text.splitlines())) <= 100
    assert "+25.0%" in text and "tail-pruning" in text
    raw = validation_dict(found)
    assert raw["checks"][0]["exact"]["differing"] == 0
    assert len(raw["log_files"]["never"]) == 2
