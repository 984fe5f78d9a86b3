"""The confirmation: policies on the real engine in one sitting, measured beside predicted.

The sitting is made by `real_backend.decoding.sitting`, now and here or earlier and elsewhere; the
prediction is the replay of the same held-out replies in the same order with one state, at the
timing's seconds on the clock that the sitting is judged by. Most of what is said is about *ratios*:
to the baseline and to the runner-up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from experiments.common.cost_sources import step_costs
from experiments.common.results import under_tree
from experiments.common.statistics import RESAMPLES, bootstrap_weights, divide, enough
from experiments.common.verdict import Ratio, Turns, is_tie, rank_agreement, ratio_of, tau_of_all
from experiments.validation.agreement import agree, fit_residual, residual_cells
from experiments.validation.drift import drift_of, recalibrated
from experiments.validation.result import PolicyCheck, Validation
from experiments.validation.sitting_logs import (
    acceptance_of,
    first_rounds,
    has_energy,
    judging_clock,
    on_clock,
    speed_of,
    waiting_share,
)
from policies.base import Policy, reads_seconds, uses_signals
from policies.fixed import Never
from policies.overhead import charged
from policies.registry import label
from real_backend.decoding.measured import PLACEBO, Measured
from simulator.replay.metrics import per_request, same_rounds
from simulator.replay.replay import replay
from traces.costs.log_prices import price_log
from traces.roundlog import RoundLog
from traces.schema import Trace
from traces.split import named_generator, question_of
from traces.timing import Timing

FloatArray = npt.NDArray[np.float64]

CLOCK_READERS = frozenset({"elapsed_s"})  # fields of Outcome that the real clock fills
TIMING_DRAWS = 60


def judge(
    measured: Measured,
    trace: Trace,
    timing: Timing,
    policies: Sequence[Policy],
    *,
    seed: int,
    winner: str | None = None,
    runner_up: str | None = None,
) -> Validation:
    """Set a sitting beside its replay; `trace` holds the rows that ran, in their order.

    policies: those of the sitting, the baseline among them. winner, runner_up: whose claims are
    judged, default the two that are predicted to be fastest.
    """
    return _Judge(measured, trace, timing, policies, seed).judge(winner, runner_up)


class _Judge:
    """Quantities that `judge` needs again and again."""

    def __init__(
        self,
        measured: Measured,
        trace: Trace,
        timing: Timing,
        policies: Sequence[Policy],
        seed: int,
    ) -> None:
        self.measured, self.trace, self.seed = measured, trace, seed
        self.policies = {label(policy): policy for policy in policies}
        self.clock = judging_clock(timing, measured)
        self.wall = timing.on("wall")  # on a GPU events, as its steps are timed
        self.timing = timing.on("cpu") if self.clock == "cpu" else self.wall
        self.costs = step_costs(self.timing, trace)
        self.acceptance = acceptance_of(measured)
        self.redrawn = trace.meta.temperature > 0.0 and self.acceptance == "own"
        self.predicted = {
            name: replay(policy, trace, self.costs, seed=seed)
            for name, policy in self.policies.items()
        }
        self.logs = {
            seat: [on_clock(log, self.clock) for log in logs]
            for seat, logs in measured.timed.items()
        }
        self.priced = {
            seat: [self._price(seat, log) for log in self.logs[seat]] for seat in self.logs
        }
        self.turns = {seat: self._turns(seat) for seat in self.logs}
        questions = [question_of(request_id) for request_id in trace.request_id]
        self.questions = len(set(questions))
        self.weights = bootstrap_weights(questions, seed=seed, resamples=RESAMPLES)
        if self.questions == 1:  # it tells nothing about others
            self.weights = np.full_like(self.weights, np.nan)
        self.tie = is_tie(self.turns[PLACEBO], self.turns[measured.baseline])
        self.draws = self._timing_draws()
        drift = drift_of(self.timing, measured.anchors, self.clock)
        self.drift = drift
        self.calibrated = step_costs(recalibrated(self.timing, drift), trace) if drift else None

    def policy(self, seat: str) -> Policy:
        """The policy of a seat."""
        return self.policies[self.measured.baseline if seat == PLACEBO else seat]

    def _price(self, seat: str, log: RoundLog) -> FloatArray:
        policy = self.policy(seat)
        return price_log(log, charged(policy, self.costs))

    def _turns(self, seat: str) -> Turns:
        count = self.trace.requests

        def total(column: FloatArray, log: RoundLog) -> FloatArray:
            return np.bincount(log.request, weights=column, minlength=count).astype(np.float64)

        logs = self.logs[seat]
        return Turns(
            np.concatenate([total(log.emitted.astype(np.float64), log) for log in logs]),
            np.concatenate([total(log.elapsed_s, log) for log in logs]),
            np.concatenate(
                [total(cost, log) for cost, log in zip(self.priced[seat], logs, strict=True)]
            ),
        )

    def _timing_draws(self) -> dict[str, FloatArray]:
        """Seconds of the replayed rounds at resampled timings, by policy; empty without repeats.

        The rounds stay: the policies of the sitting decided by the timing as it is.
        """
        if self.timing.sweeps < 2:
            return {}
        generator = named_generator(self.seed, "timing")
        seconds: dict[str, list[float]] = {name: [] for name in self.predicted}
        for _ in range(TIMING_DRAWS):
            costs = step_costs(self.timing.resampled(generator), self.trace)
            for name, log in self.predicted.items():
                policy = self.policies[name]
                at = price_log(log, charged(policy, costs))
                seconds[name].append(float(at.sum()))
        return {name: np.log(found) for name, found in seconds.items()}

    def speed(self, name: str) -> float:
        """Predicted tokens/s."""
        log = self.predicted[name]
        return float(log.emitted.sum() / log.elapsed_s.sum())

    def _reference(self, ours: str, theirs: str) -> Turns:
        """The reference of `ours`: of the baseline both copies, unless `ours` is one."""
        turns = self.turns[theirs]
        if theirs == self.measured.baseline and ours != PLACEBO:
            return turns.plus(self.turns[PLACEBO])
        return turns

    def ratio(self, ours: str, theirs: str) -> Ratio:
        """One seat over another."""
        mine = self.measured.baseline if ours == PLACEBO else ours
        error = float("nan")
        if self.draws:
            error = float(np.std(self.draws[mine] - self.draws[theirs], ddof=1))
        return ratio_of(
            (ours, theirs),
            self.turns[ours],
            self._reference(ours, theirs),
            self.speed(mine) / self.speed(theirs),
            error,
            self.weights,
            redrawn=self.redrawn,
            judgeable=self.tie and enough(self.questions),
        )

    def judge(self, winner: str | None, runner_up: str | None) -> Validation:
        """All of it."""
        base = self.measured.baseline
        by_speed = sorted(self.policies, key=self.speed, reverse=True)
        first = winner if winner in self.policies else by_speed[0]
        second = runner_up if runner_up in self.policies else None
        second = second or next((name for name in by_speed if name != first), first)
        pairs = dict.fromkeys(
            (first, other) for other in (base, second) if not self._twins(first, other)
        )
        checks = [self._check(name) for name in self.policies]
        ours = np.asarray([check.predicted_tokens_per_s for check in checks])
        theirs = np.asarray([check.measured_tokens_per_s for check in checks])
        factor = float(np.median(ours / theirs))
        errors, scaled = np.abs(ours / theirs - 1.0), np.abs(ours / factor / theirs - 1.0)
        ranked = {name: self.speed(name) for name in self.policies if name != "never"}
        reads = {seat: uses_signals(self.policy(seat)) for seat in self.logs}
        cells = residual_cells(
            [log for seat in self.logs for log in self.logs[seat]],
            [seconds for seat in self.logs for seconds in self.priced[seat]],
            [reads[seat] for seat in self.logs for _ in self.logs[seat]],
        )
        every = [log for logs in self.measured.timed.values() for log in logs]
        prompts = replay(Never(), self.trace, step_costs(self.wall, self.trace)).prefill_s
        return Validation(
            checks=tuple(checks),
            baseline=base,
            claims=tuple(self.ratio(*pair) for pair in pairs),
            placebo=self.ratio(PLACEBO, base),
            placebo_tie=self.tie,
            clock=self.clock,
            median_error=float(np.median(errors)),
            max_error=float(errors.max()),
            machine_factor=factor,
            median_error_scaled=float(np.median(scaled)),
            max_error_scaled=float(scaled.max()),
            waiting=waiting_share(every) if self.clock == "cpu" else float("nan"),
            ranking=rank_agreement(ranked, self.turns, self.weights),
            tau=tau_of_all(ours.tolist(), theirs.tolist()),
            cells=tuple(cells),
            residual=fit_residual(cells),
            drift=self.drift,
            course=self._course(),
            prefill_predicted_s=float(prompts.sum()),
            prefill_measured_s=float(np.median([log.prefill_s.sum() for log in every])),
            sitting_s=max(float((log.start_s + log.elapsed_s).max()) for log in every),
            requests=self.trace.requests,
            questions=self.questions,
            repeats=len(self.measured.timed[base]),
            seed=self.seed,
            timing_draws=TIMING_DRAWS if self.draws else 0,
            acceptance=self.acceptance,
            exactness=self.trace.meta.exactness + under_tree(self.trace.meta.shape),
            measured=self.measured,
            predicted=self.predicted,
        )

    def _twins(self, one: str, other: str) -> bool:
        """They take the same rounds: nothing can be claimed of one over the other."""
        return same_rounds(self.predicted[one], self.predicted[other])

    def _check(self, name: str) -> PolicyCheck:
        predicted, logs, turns = self.predicted[name], self.logs[name], self.turns[name]
        raw = self.measured.timed[name]
        agreement = None if self.redrawn else agree(logs[0], predicted)
        ours, theirs = per_request(predicted), [per_request(log) for log in logs]
        tokens = np.mean([sums.tokens for sums in theirs], axis=0)
        seconds = np.mean([sums.decode_s for sums in theirs], axis=0)
        by_reply = divide(ours.tokens_per_s, divide(tokens, seconds)) - 1.0
        metered = [log for log in raw if has_energy(log)]
        energy_j = sum(float(log.meta["energy_j"]) for log in metered)
        energy_tokens = sum(int(log.emitted.sum()) for log in metered)
        peaks = [log.meta["peak_memory_bytes"] for log in raw if "peak_memory_bytes" in log.meta]
        # Sampled replies are not the trace's: predict as many tokens as were measured.
        measured_s, predicted_s = float(seconds.sum()), float(tokens.sum()) / self.speed(name)
        priced_s = float(turns.priced.sum()) / len(logs)
        base = self.measured.baseline
        return PolicyCheck(
            policy=name,
            ratio=None if name == base else self.ratio(name, base),
            predicted_tokens_per_s=self.speed(name),
            measured_tokens_per_s=turns.tokens_per_s,
            wall_tokens_per_s=speed_of(raw),
            recalibrated_tokens_per_s=self._recalibrated(name),
            error=self.speed(name) / turns.tokens_per_s - 1.0,
            request_error=float(np.nanmedian(np.abs(by_reply))),
            agreement=agreement,
            reads_clock=reads_seconds(self.policies[name], CLOCK_READERS),
            replies_equal=raw[0].meta.get("replies_equal"),
            measured_s=measured_s,
            predicted_s=predicted_s,
            costs_s=measured_s - priced_s,
            decisions_s=priced_s - predicted_s,
            joules_per_token=energy_j / energy_tokens if metered else None,
            peak_memory_bytes=max(peaks, default=None),
        )

    def _course(self) -> tuple[tuple[float, float], ...]:
        """The course of the sitting, as in Validation."""
        spent = np.sum([turns.seconds for turns in self.turns.values()], axis=0)
        priced = np.sum([turns.priced for turns in self.turns.values()], axis=0)
        starts = [
            np.concatenate([log.start_s[first_rounds(log)] for log in logs])
            for logs in self.logs.values()
        ]
        at_s = np.min(starts, axis=0)
        return tuple(zip(at_s.tolist(), (spent / priced).tolist(), strict=True))

    def _recalibrated(self, name: str) -> float | None:
        """Tokens/s of the replayed rounds at the anchors' step times."""
        if self.calibrated is None:
            return None
        log, policy = self.predicted[name], self.policies[name]
        seconds = price_log(log, charged(policy, self.calibrated))
        return float(log.emitted.sum() / seconds.sum())
