"""The confirmation: policies on the real engine in one sitting, measured beside predicted.

The sitting is made by `real_backend.decoding.sitting`, now and here or earlier and elsewhere; the
prediction is the replay of the same held-out replies in the same order with one state, at the
timing's seconds on the clock that the sitting is judged by. Most of what is said is about *ratios*:
to the baseline and to the runner-up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from experiments.common.statistics import RESAMPLES, bootstrap_weights, divide, enough
from experiments.common.verdict import (
    Ranking,
    Ratio,
    Turns,
    is_tie,
    rank_agreement,
    ratio_of,
    tau_of_all,
)
from experiments.comparison.compare import step_costs
from experiments.validation.agreement import (
    Agreement,
    Cell,
    Residual,
    agree,
    fit_residual,
    residual_cells,
)
from experiments.validation.drift import Drift, drift_of, recalibrated
from policies.base import Policy, reads_seconds, uses_signals
from policies.fixed import Never
from policies.overhead import charged
from policies.registry import DEFAULT, label
from real_backend.decoding.measured import PLACEBO, Measured
from simulator.replay.metrics import per_request, same_rounds
from simulator.replay.replay import replay
from traces.costs.pricing import price_log
from traces.errors import InputError
from traces.roundlog import RoundLog
from traces.schema import Trace
from traces.split import named_generator, question_of
from traces.timing import Timing

FloatArray = npt.NDArray[np.float64]

CLOCK_READERS = frozenset({"elapsed_s"})  # fields of Outcome that the real clock fills
TIMING_DRAWS = 60

DEFAULT_POLICIES = (
    DEFAULT,
    "tail-pruning",
    "payback",
    "goodput",
    "hf-roc",
    "gammatune",
    "gammatune+",
    "hf-heuristic",
    "ucb",
)


@dataclasses.dataclass(frozen=True)
class Check:
    """One policy of the sitting, measured beside predicted; tokens/s without prefill, all tokens
    over all seconds of all repeats.

    ratio: over the baseline's two copies, None for the baseline itself. measured, predicted: on the
    judging clock; wall_tokens_per_s: measured on the wall's. recalibrated_tokens_per_s: predicted
    with the step times of the sitting's own anchors, None without anchors. error: predicted /
    measured - 1, positive if the simulator promised too much; request_error: median over requests
    of its absolute value.
    agreement: its rounds against the replay's, None if the run was sampled. reads_clock: the policy
    looks at elapsed seconds, so that its decisions may differ from the replay's. replies_equal:
    replies of the first repeat whose tokens are the trace's, None if that cannot be asked.
    Seconds of one repeat, measured - predicted = costs_s + decisions_s: the rounds that ran cost
    more than the model says, and other rounds ran than were replayed.
    joules_per_token (prompts included) and peak_memory_bytes: None where the device reports none.
    """

    policy: str
    ratio: Ratio | None
    predicted_tokens_per_s: float
    measured_tokens_per_s: float
    wall_tokens_per_s: float
    recalibrated_tokens_per_s: float | None
    error: float
    request_error: float
    agreement: Agreement | None
    reads_clock: bool
    replies_equal: int | None
    measured_s: float
    predicted_s: float
    costs_s: float
    decisions_s: float
    joules_per_token: float | None
    peak_memory_bytes: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Validation:
    """All policies, and what they say together.

    claims: the winner over the baseline and over the runner-up, where these are different policies.
    placebo: the second copy of the baseline over the baseline; placebo_tie: it cannot be told from
    1, and if it can, no word but "too noisy to say" is given. clock: "cpu", the processor's,
    "events" in a GPU's stream, or "wall": the one that all is judged by.
    median_error, max_error: absolute, over policies. machine_factor: median over policies of
    measured / predicted seconds, one number for "the machine is slower today"; median_error_scaled,
    max_error_scaled: what remains once predictions are divided by it. waiting: share of the wall's
    seconds in which the processor was not ours, NaN without its clock.
    ranking: agreement of the two orders, `never` left out; tau: Kendall's over all pairs.
    cells, residual: where the cost model is off, per round. drift: of the anchors. course: request
    by request, when (seconds since the sitting began) and the measured over the priced seconds of
    all policies together. prefill_*: wall seconds of all prompts, not part of the
    speeds. sitting_s:
    from its begin to its last round.
    timing_draws: how many resampled timings the timing errors rest on, 0 if it has no repeats.
    acceptance: "own", or whose trace stood in for it, the forwards being real. measured: see
    Measured; predicted: one log per policy.
    """

    checks: tuple[Check, ...]
    baseline: str
    claims: tuple[Ratio, ...]
    placebo: Ratio
    placebo_tie: bool
    clock: str
    median_error: float
    max_error: float
    machine_factor: float
    median_error_scaled: float
    max_error_scaled: float
    waiting: float
    ranking: Ranking
    tau: float
    cells: tuple[Cell, ...]
    residual: Residual
    drift: tuple[Drift, ...]
    course: tuple[tuple[float, float], ...]
    prefill_predicted_s: float
    prefill_measured_s: float
    sitting_s: float
    requests: int
    questions: int
    repeats: int
    seed: int
    timing_draws: int
    acceptance: str
    exactness: str
    measured: Measured
    predicted: dict[str, RoundLog]

    def check(self, policy: str) -> Check:
        """The check of that policy."""
        return next(check for check in self.checks if check.policy == policy)


def judging_clock(timing: Timing, measured: Measured) -> str:
    """The clock that both the timing and the sitting have kept: the processor's, where one thread
    did the work; events in the stream, on a GPU; else the wall's.
    """
    logs = [log for some in measured.timed.values() for log in some]
    if any(log.cpu_s is None or not bool(np.isfinite(log.cpu_s).all()) for log in logs):
        return "wall"
    devices = {str(log.meta.get("device", "")).partition(":")[0] for log in logs}
    if devices == {"cuda"} and str(timing.meta.get("device", "")).startswith("cuda"):
        return "events"
    alone = devices == {"cpu"} and {log.meta.get("threads") for log in logs} == {1}
    return timing.clock if alone else "wall"


def on_clock(log: RoundLog, clock: str) -> RoundLog:
    """The log with elapsed_s on that clock: cpu_s holds the processor's seconds or the events'."""
    if clock == "wall":
        return log
    assert log.cpu_s is not None
    return dataclasses.replace(log, elapsed_s=log.cpu_s)


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
    """What `judge` needs again and again."""

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
        self.acceptance = _acceptance(measured)
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
        self.tie = is_tie(self.turns[PLACEBO], self.turns[measured.baseline])
        self.draws = self._timing_draws()
        drift = drift_of(self.timing, measured.anchors, self.clock)
        self.drift = drift
        self.calibrated = step_costs(recalibrated(self.timing, drift), trace) if drift else None

    def policy(self, seat: str) -> Policy:
        """Who sits there."""
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
        """What `ours` is held against: of the baseline both copies, unless `ours` is one."""
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
            waiting=_waiting(every) if self.clock == "cpu" else float("nan"),
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
            exactness=self.trace.meta.exactness,
            measured=self.measured,
            predicted=self.predicted,
        )

    def _twins(self, one: str, other: str) -> bool:
        """They take the same rounds: nothing can be claimed of one over the other."""
        return same_rounds(self.predicted[one], self.predicted[other])

    def _check(self, name: str) -> Check:
        predicted, logs, turns = self.predicted[name], self.logs[name], self.turns[name]
        raw = self.measured.timed[name]
        agreement = None if self.redrawn else agree(logs[0], predicted)
        ours, theirs = per_request(predicted), [per_request(log) for log in logs]
        tokens = np.mean([sums.tokens for sums in theirs], axis=0)
        seconds = np.mean([sums.decode_s for sums in theirs], axis=0)
        by_reply = divide(ours.tokens_per_s, divide(tokens, seconds)) - 1.0
        metered = [log for log in raw if _metered(log)]
        energy_j = sum(float(log.meta["energy_j"]) for log in metered)
        energy_tokens = sum(int(log.emitted.sum()) for log in metered)
        peaks = [log.meta["peak_memory_bytes"] for log in raw if "peak_memory_bytes" in log.meta]
        # Sampled replies are not the trace's: predict as many tokens as were measured.
        measured_s, predicted_s = float(seconds.sum()), float(tokens.sum()) / self.speed(name)
        priced_s = float(turns.priced.sum()) / len(logs)
        base = self.measured.baseline
        return Check(
            policy=name,
            ratio=None if name == base else self.ratio(name, base),
            predicted_tokens_per_s=self.speed(name),
            measured_tokens_per_s=turns.tokens_per_s,
            wall_tokens_per_s=_speed(raw),
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
        """See Validation."""
        spent = np.sum([turns.seconds for turns in self.turns.values()], axis=0)
        priced = np.sum([turns.priced for turns in self.turns.values()], axis=0)
        starts = [
            np.concatenate([log.start_s[_first_rounds(log)] for log in logs])
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


def _first_rounds(log: RoundLog) -> npt.NDArray[np.intp]:
    """[R] the first round of every request."""
    first: npt.NDArray[np.intp] = np.unique(log.request, return_index=True)[1]
    return first


def _speed(logs: Sequence[RoundLog]) -> float:
    tokens = sum(int(log.emitted.sum()) for log in logs)
    return tokens / sum(float(log.elapsed_s.sum()) for log in logs)


def _waiting(logs: Sequence[RoundLog]) -> float:
    """Share of the wall's seconds of all rounds that the processor's clock did not count."""
    if any(log.cpu_s is None for log in logs):
        return float("nan")
    wall = sum(float(log.elapsed_s.sum()) for log in logs)
    cpu = sum(float(log.cpu_s.sum()) for log in logs if log.cpu_s is not None)
    return 1.0 - cpu / wall


def _acceptance(measured: Measured) -> str:
    """Whose acceptance the runs had: "own" or "trace of PAIR"; raises InputError if both."""
    logs = [log for some in measured.timed.values() for log in some]
    found = {log.meta.get("acceptance", "own") for log in logs}
    if len(found) > 1:
        raise InputError("some of the runs took their acceptance from a trace and some did not")
    return str(found.pop())


def _metered(log: RoundLog) -> bool:
    return log.meta.get("energy_j") is not None
