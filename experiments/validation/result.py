"""The result of a validation: a check for every policy, and what they say together."""

from __future__ import annotations

import dataclasses

from experiments.common.verdict import Ranking, Ratio
from experiments.validation.agreement import Agreement, Residual, RoundKind
from experiments.validation.drift import Drift
from real_backend.decoding.measured import Measured
from traces.roundlog import RoundLog


@dataclasses.dataclass(frozen=True)
class PolicyCheck:
    """One policy of the sitting, measured beside predicted; tokens/s without prefill, all tokens
    over all seconds of all repeats.

    ratio: over the baseline's two copies, None for the baseline itself. measured, predicted: on the
        judging clock.
    wall_tokens_per_s: measured on the wall's.
    recalibrated_tokens_per_s: predicted with the step times of the sitting's own anchors, None
        without anchors.
    error: predicted / measured - 1, positive if the simulator promised too much.
    request_error: median over requests of its absolute value.
    agreement: its rounds against the replay's, None if the run was sampled.
    reads_clock: the policy looks at elapsed seconds, so that its decisions may differ from the
        replay's.
    replies_equal: replies of the first repeat whose tokens are the trace's, None if that cannot be
        asked. Seconds of one repeat, measured - predicted = costs_s + decisions_s: the rounds that
        ran cost more than the model says, and other rounds ran than were replayed.
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
    placebo: the second copy of the baseline over the baseline.
    placebo_tie: it cannot be told from 1, and if it can, no word but "too noisy to say" is given.
    clock: "cpu", the processor's, "events" in a GPU's stream, or "wall": the one that all is judged
        by.
    median_error, max_error: absolute, over policies.
    machine_factor: median over policies of measured / predicted seconds, one number for "the
        machine is slower today".
    median_error_scaled, max_error_scaled: what remains once predictions are divided by it.
    waiting: share of the wall's seconds in which the processor was not ours, NaN without its clock.
    ranking: agreement of the two orders, `never` left out.
    tau: Kendall's over all pairs.
    cells, residual: where the cost model is off, per round.
    drift: of the anchors.
    course: request by request, when (seconds since the sitting began) and the measured over the
        priced seconds of all policies together.
    prefill_*: wall seconds of all prompts, not part of the speeds.
    sitting_s: from its begin to its last round.
    timing_draws: how many resampled timings the timing errors rest on, 0 if it has no repeats.
    acceptance: "own", or whose trace stood in for it, the forwards being real.
    measured: see Measured.
    predicted: one log per policy.
    """

    checks: tuple[PolicyCheck, ...]
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
    cells: tuple[RoundKind, ...]
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

    def check(self, policy: str) -> PolicyCheck:
        """The check of that policy."""
        return next(check for check in self.checks if check.policy == policy)
