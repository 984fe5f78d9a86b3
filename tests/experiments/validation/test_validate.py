"""Validation with an engine that is known to be off: errors, agreement and budget by hand."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from experiments.common.cost_sources import step_costs
from experiments.common.verdict import CONFIRMED, CONTRADICTED, NOISY
from experiments.validation.agreement import agree, fit_residual, residual_cells
from experiments.validation.result import Validation
from experiments.validation.validate import judge
from experiments.validation.validate_text import findings, validation_dict, validation_text
from policies.base import Policy, State
from policies.fixed import Fixed
from policies.overhead import charged
from policies.registry import label, parse_policies
from real_backend.decoding.interleaving import Sitting
from real_backend.decoding.measured import PLACEBO
from simulator.replay.replay import replay
from tests.results import lively_trace, make_timing
from traces.costs.log_prices import price_log
from traces.costs.pricing import StepCosts
from traces.errors import InputError
from traces.roundlog import OPTIONAL, RoundLog, join_logs
from traces.schema import Trace
from traces.timing import Timing

POLICIES = "never,fixed:gamma=2,gammatune,tail-pruning"


class Run(NamedTuple):
    tokens: list[list[int]]
    log: RoundLog


class FakeEngine:
    """Replays the trace and lies about it: seconds times a factor and plus some a round by policy,
    noise of its own and of the machine's by turn. Requests are rows of the trace.
    """

    def __init__(self, trace: Trace, timing: Timing, **lies: Any) -> None:
        self.trace, self.costs = trace, step_costs(timing, trace)
        self.slower: dict[str, float] = lies.get("slower", {})
        self.extra_s: dict[str, float] = lies.get("extra_s", {})
        self.noise: float = lies.get("noise", 0.0)
        self.random = np.random.default_rng(lies.get("seed", 0))
        self.calls: list[tuple[str, int]] = []
        self.mood = 1.0
        self.wrong_reply = False
        self.clock_s = 0.0

    def decode(
        self,
        policy: Policy,
        requests: Sequence[Any],
        *,
        temperature: float,
        top_p: float,
        seed: int,
        max_new_tokens: int,
        batch: int,
        state: State | None,
        first: int,
        began: float,
        acceptance: Trace | None,
    ) -> Run:
        rows = list(requests)
        assert state is None or rows[0] == first
        self.calls.append((label(policy), rows[0]))
        log = replay(policy, self.trace, self.costs, seed=seed)
        pick = np.isin(log.request, rows)
        columns = {
            f.name: getattr(log, f.name)[pick]
            for f in dataclasses.fields(log)
            if f.name not in ("prefill_s", "meta", *OPTIONAL)
        }
        self.mood *= float(np.exp(0.3 * self.noise * self.random.standard_normal()))
        factor = self.slower.get(label(policy), 1.0) * self.mood
        factor *= float(np.exp(self.noise * self.random.standard_normal()))
        columns["elapsed_s"] = columns["elapsed_s"] * factor + self.extra_s.get(label(policy), 0.0)
        columns["request"] = columns["request"] - rows[0]
        columns["start_s"] = self.clock_s + np.cumsum(columns["elapsed_s"])
        self.clock_s = float(columns["start_s"][-1])
        assert self.trace.token_ids is not None
        replies = np.split(self.trace.token_ids, self.trace.offsets[1:-1])
        tokens = [replies[row].tolist() for row in rows]
        if self.wrong_reply and label(policy) == "never" and rows[0] % 6 == 0:
            tokens[0][-1] += 1
        part = log.prefill_s[rows]
        return Run(tokens, RoundLog(**columns, prefill_s=part, meta=dict(log.meta)))


def sitting_of(engine: FakeEngine, trace: Trace) -> Sitting:
    rows: list[Any] = list(range(trace.requests))
    return Sitting(engine, trace, rows)


def run(
    *,
    trace: Trace | None = None,
    told: Timing | None = None,
    repeats: int = 1,
    policies: str = POLICIES,
    **lies: Any,
) -> Validation:
    """A sitting of the fake engine, which runs at make_timing(), judged by the timing `told`."""
    trace, timing = trace or lively_trace(), make_timing()
    engine = FakeEngine(trace, timing, **lies)
    engine.wrong_reply = bool(lies.get("wrong_reply"))
    chosen = parse_policies(policies)
    measured = sitting_of(engine, trace).run(chosen, Fixed(2), repeats=repeats)
    return judge(measured, trace, told or timing, chosen, seed=0)


def test_an_engine_as_predicted_has_no_error() -> None:
    found = run()
    assert found.max_error == pytest.approx(0.0, abs=1e-12) and found.tau == pytest.approx(1.0)
    assert [check.agreement.differing for check in found.checks if check.agreement] == [0] * 4
    assert [check.replies_equal for check in found.checks] == [24] * 4
    assert not findings(found, 1.0)
    assert found.residual.round_s == pytest.approx(0.0, abs=1e-9)
    assert found.placebo.measured == pytest.approx(1.0) and found.placebo_tie


def test_errors_by_hand() -> None:
    """never 25 % slower: predicted 1.25 times what is measured; gammatune 10 % faster: 0.9."""
    found = run(slower={"never": 1.25, "gammatune": 0.9})
    errors = {check.policy: check.error for check in found.checks}
    assert errors["never"] == pytest.approx(0.25)
    assert errors["gammatune"] == pytest.approx(-0.1)
    assert errors["fixed:gamma=2"] == pytest.approx(0.0, abs=1e-12)
    assert found.max_error == pytest.approx(0.25)
    assert found.median_error == pytest.approx((0.0 + 0.1) / 2)
    never = found.check("never")
    assert never.request_error == pytest.approx(0.25)
    assert never.measured_s == pytest.approx(1.25 * never.predicted_s)
    assert never.costs_s == pytest.approx(0.25 * never.predicted_s)
    assert never.decisions_s == pytest.approx(0.0)
    assert never.ratio is not None
    assert never.ratio.measured == pytest.approx(never.ratio.predicted / 1.25)
    *_, missed = findings(found, 20.0)
    assert missed.endswith("1 of 4 policies are off by more than the allowed 20 %: never +25.0%")
    *_, missed = findings(found, 8.0)
    assert "never +25.0%, gammatune -10.0%" in missed and "2 of 4" in missed


def test_one_factor_for_all_is_the_machine_and_no_ratio() -> None:
    found = run(slower=dict.fromkeys(POLICIES.split(","), 1.5) | {"fixed:gamma=2": 1.5})
    assert found.machine_factor == pytest.approx(1.5)
    assert found.median_error == pytest.approx(0.5)
    assert found.max_error_scaled == pytest.approx(0.0, abs=1e-12)
    for check in found.checks:
        assert check.ratio is None or check.ratio.agrees


def test_a_quiet_sitting_confirms_what_it_promised() -> None:
    trace = lively_trace(questions=40)
    found = run(trace=trace, noise=0.01, policies="never,fixed:gamma=2,fixed:gamma=4,gammatune")
    best = found.claims[0]
    assert best.policy == "gammatune" and best.predicted > 1.03
    assert best.reference == "fixed:gamma=2" and best.word == CONFIRMED
    assert found.placebo_tie and 0.97 < found.placebo.measured < 1.03
    assert best.time.low < best.predicted < best.time.high


def test_a_sabotaged_policy_is_contradicted() -> None:
    """What it promised it does not keep: a second more in rounds of 10 to 14."""
    name = run().claims[0].policy
    found = run(noise=0.01, extra_s={name: 1.0})
    claim = next(c for c in found.checks if c.policy == name).ratio
    assert claim is not None and claim.word == CONTRADICTED and not claim.agrees
    assert any(line.startswith(name) and CONTRADICTED in line for line in findings(found, 1e9))
    others = [c.ratio for c in found.checks if c.ratio is not None and c.policy != name]
    assert all(ratio.word != CONTRADICTED for ratio in others)


def test_a_sabotaged_cost_model_is_contradicted() -> None:
    """Told that verifying four tokens and more costs 20 % more than it does."""
    timing = make_timing()
    cells = []
    for cell in timing.cells:
        if cell.operation == "verify":
            width = (3,) if cell.tokens == 1 else ()
            dear = 1.0 if cell.tokens == 1 else 1.2
            cells.append(dataclasses.replace(cell, median_s=cell.median_s * dear))
            cells += [dataclasses.replace(cell, tokens=n) for n in width]
            cells += [
                dataclasses.replace(cell, tokens=4, median_s=cell.median_s * 1.2) for _ in width
            ]
        else:
            cells.append(cell)
    told = dataclasses.replace(timing, cells=tuple(cells))
    found = run(noise=0.01, told=told, policies="never,fixed:gamma=2,fixed:gamma=4,tail-pruning")
    word = {check.policy: check.ratio.word for check in found.checks if check.ratio}
    assert word["fixed:gamma=4"] == word["tail-pruning"] == CONTRADICTED
    assert word["never"] != CONTRADICTED


def test_four_replies_say_nothing() -> None:
    trace = lively_trace(questions=2)
    found = run(trace=trace, noise=0.01)
    assert found.requests == 4
    assert {check.ratio.word for check in found.checks if check.ratio} == {NOISY}
    text = validation_text(found)
    assert "too few to judge" in text and "smallest gain" not in text


def test_one_question_has_no_interval_for_others() -> None:
    found = run(trace=lively_trace(questions=1), noise=0.01)
    assert found.questions == 1 and found.requests == 2
    for claim in (*found.claims, found.placebo):
        assert np.isfinite(claim.time.low) and np.isnan(claim.others.low)
        assert claim.word == NOISY
    text = " ".join(validation_text(found).split())
    assert "with other questions no interval" in text and "nan" not in text
    assert re.search(r"Kendall's tau \S+ \(no interval\)", text)


def test_a_placebo_that_is_no_tie_confirms_nothing() -> None:
    """The second copy of the baseline is 5 % slower than the first: chance is not that large."""

    class Partial(FakeEngine):
        def decode(self, policy: Policy, requests: Sequence[Any], **rest: Any) -> Run:
            self.seen = getattr(self, "seen", 0)
            ran = super().decode(policy, requests, **rest)
            if label(policy) == "fixed:gamma=2":
                self.seen += 1
                if rest["state"] is not None and id(rest["state"]) == self.second:
                    log = dataclasses.replace(ran.log, elapsed_s=ran.log.elapsed_s * 1.05)
                    return Run(ran.tokens, log)
                if rest["state"] is not None and not hasattr(self, "first"):
                    self.first = id(rest["state"])
                elif rest["state"] is not None and id(rest["state"]) != self.first:
                    self.second = id(rest["state"])
            return ran

        second = 0

    trace, timing = lively_trace(), make_timing()
    chosen = parse_policies(POLICIES)
    engine = Partial(trace, timing, noise=0.005)
    found = judge(sitting_of(engine, trace).run(chosen, Fixed(2)), trace, timing, chosen, seed=0)
    assert not found.placebo_tie
    pair = [found.measured.timed[seat][0] for seat in ("fixed:gamma=2", "placebo")]
    both = sum(log.emitted.sum() for log in pair) / sum(log.elapsed_s.sum() for log in pair)
    never = found.check("never")  # held against both copies, the placebo against the first alone
    assert never.ratio is not None
    assert never.ratio.measured == pytest.approx(never.measured_tokens_per_s / both)
    assert found.placebo.measured < 0.97
    assert {check.ratio.word for check in found.checks if check.ratio} == {NOISY}
    assert "NOT a tie" in validation_text(found) and "NOT a tie" in findings(found, 1e9)[0]


def test_replies_that_differ_are_counted() -> None:
    found = run(wrong_reply=True)
    assert [check.replies_equal for check in found.checks] == [20, 24, 24, 24]


def test_every_request_has_all_policies_in_an_order_of_its_own() -> None:
    trace, timing = lively_trace(), make_timing()
    engine = FakeEngine(trace, timing)
    sitting = sitting_of(engine, trace)
    policies = parse_policies(POLICIES)
    sitting.run(policies, Fixed(2), repeats=2)
    calls = engine.calls[5:]  # the first five warm up
    assert [row for _, row in calls] == [row for row in range(24) for _ in range(5)] * 2
    orders = [tuple(name for name, _ in calls[k : k + 5]) for k in range(0, len(calls), 5)]
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert len(set(orders)) > 20 and {order[0] for order in orders} == set(orders[0])
    again = FakeEngine(trace, timing)
    sitting_of(again, trace).run(policies, Fixed(2), repeats=2)
    assert again.calls == engine.calls  # seeded
    with pytest.raises(InputError, match="baseline"):
        sitting.run(policies, Fixed(9))


def test_repeats_are_new_sittings_of_the_same_requests() -> None:
    found = run(noise=0.02, repeats=3)
    assert found.repeats == 3 and {len(logs) for logs in found.measured.timed.values()} == {3}
    one = run(noise=0.02)
    width = [f.claims[0].time.high / f.claims[0].time.low for f in (one, found)]
    assert width[1] < width[0]


def test_sampled_traces_are_compared_by_speed_alone() -> None:
    trace = lively_trace()
    meta = dataclasses.replace(trace.meta, temperature=1.0, exactness="in-law")
    trace = dataclasses.replace(trace, meta=meta)
    found = run(trace=trace, slower={"never": 2.0})
    assert [check.agreement for check in found.checks] == [None] * 4
    assert [check.replies_equal for check in found.checks] == [None] * 4
    assert found.max_error == pytest.approx(1.0)
    assert "only laws agree" in validation_text(found)


def test_seats_hold_what_was_asked() -> None:
    found = run()
    assert set(found.measured.timed) == {*POLICIES.split(","), PLACEBO}
    assert found.measured.timed[PLACEBO][0].meta["policy"] == "fixed:gamma=2"


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
        verified=table[:, 3],
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
    assert price_log(log, charged(policy, costs)).tolist() == log.elapsed_s.tolist()


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


def test_a_missed_second_is_the_difference_of_what_stands_beside_it() -> None:
    """Rounds of 3, 2 and 9 s, priced at 1, 2 and 2: medians 3 and 2; that of the differences, 2,
    would not fit beside them.
    """
    log = made_log([(0, 8 + k, 1, 1, 0, 1) for k in range(3)])
    log = dataclasses.replace(log, elapsed_s=np.array([3.0, 2.0, 9.0]))
    (cell,) = residual_cells([log], [np.array([1.0, 2.0, 2.0])], [False])
    assert (cell.measured_s, cell.priced_s, cell.residual_s) == (3.0, 2.0, 1.0)


def test_text_fits_a_terminal_and_json_has_no_nan() -> None:
    found = run(slower={"never": 1.25})
    text = validation_text(found)
    assert max(map(len, text.splitlines())) <= 100
    assert "+25.0%" in text and "tail-pruning" in text and "placebo" in text
    raw = validation_dict(found)
    assert raw["checks"][0]["agreement"]["differing"] == 0
    assert len(raw["log_files"]["never"]) == 1
