"""The result of a comparison: a row for every schedule, and what the rows rest on."""

from __future__ import annotations

import dataclasses

from experiments.censoring.intervals import Censoring
from experiments.common.statistics import Estimate
from experiments.comparison.robust import Orders
from experiments.comparison.sensitivity import Sensitivity
from traces.roundlog import RoundLog

ROLES = {
    "never": "baseline: plain autoregressive decoding",
    "tuned": "best fixed gamma, chosen on the training half",
    "policy": "controllers",
    "hindsight": "ceiling: best fixed gamma, chosen on the held-out half itself",
    "clairvoyant": "ceiling: knows how many tokens will be accepted",
}


@dataclasses.dataclass(frozen=True)
class ScheduleResult:
    """One schedule on the held-out requests.

    speedup: tokens/s over never drafting, token-weighted (all tokens over all seconds); its
        interval and that of vs_fixed are over other questions and other timings.
    speedup_by_question: the convention of Spec-Bench, mean tokens/s of the questions over the
        baseline's mean.
    vs_fixed: tokens/s over the tuned fixed gamma's, with the interval of this row alone.
    adjusted_p: of vs_fixed among all controllers; a controller's verdict follows it, any other
        row's its own interval; see experiments.common.statistics.VERDICTS.
    detectable_percent: the difference to the tuned fixed gamma that a test of this controller alone
        would have found 8 times in 10, NaN without spread. Both are NaN for what is not a
        controller, adjusted_p also where too few questions differ.
    headroom: share of the seconds between the tuned fixed gamma and the clairvoyant schedule that
        it saves.
    saving: the same, counted from never drafting.
    regret_s: decode seconds above the clairvoyant schedule.
    uncharged: vs_fixed where no policy pays for its own arithmetic.
    orders: vs_fixed in shuffled orders of the replies; None for a ceiling.
    timing_error: standard error of log vs_fixed from the timing alone, NaN if not known.
    twin: the first row of the comparison that takes the same rounds at the same cost; None if it is
        this one.
    """

    name: str
    role: str
    speedup: Estimate
    speedup_by_question: float
    vs_fixed: Estimate
    adjusted_p: float
    verdict: str
    detectable_percent: float
    headroom: Estimate
    saving: Estimate
    regret_s: float
    tokens_per_s: float
    tokens_per_round: float
    mean_gamma: float
    mean_drafted: float
    acceptance: float
    ttft_s: float
    tpot_s: float
    rounds: int
    tasks: dict[str, Estimate]
    uncharged: float
    orders: Orders | None
    timing_error: float
    twin: str | None


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Rows, and what they rest on.

    logs: simulated rounds by row name.
    tuning_first: the row with the fewest seconds on the training half, ceilings left out: the mean
        over its recorded order and `orders` shuffled ones.
    recommended: the same, but never drafting if it is not faster than that on the held-out half.
    runner_up: the next one that takes other rounds (recommended itself if there is none).
    simplest: the simplest row that cannot be told from the recommended one on the held-out half.
    timing_draws: resampled timings in the intervals; 0: its spread is not known.
    censoring: of a censored trace, what it leaves open; rows and logs are then about one of its
        imputations. None for every other trace.
    fixed_curve: speed-up of every fixed gamma 0, 1, ... on the held-out half.
    detectable_percent: median over the controllers of the difference to the tuned fixed gamma that
        would have been found 8 times in 10.
    detectable_among_percent: the same where their number is corrected for.
    sensitivity: of the ranking to the costs.
    shape: the draft tree that the recording is under, if any.
    unpriced: controllers whose own arithmetic the costs do not know, and which paid nothing.
    """

    rows: tuple[ScheduleResult, ...]
    detectable_percent: float
    detectable_among_percent: float
    sensitivity: Sensitivity
    tuning_first: str
    recommended: str
    runner_up: str
    simplest: str
    orders: int
    timing_draws: int
    tuned_gamma: int
    hindsight_gamma: int
    fixed_curve: tuple[float, ...]
    train_rows: tuple[int, ...]
    test_rows: tuple[int, ...]
    test_categories: tuple[str, ...]
    test_requests: tuple[str, ...]
    questions: int
    tasks: tuple[str, ...]
    exactness: str
    censored_positions: int
    seed: int
    resamples: int
    logs: dict[str, RoundLog]
    unpriced: tuple[str, ...]
    censoring: Censoring | None = None
    shape: str = ""

    def row(self, name: str) -> ScheduleResult:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)
