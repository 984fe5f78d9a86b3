"""The confirmation: policies on the real engine, measured beside predicted.

The real runs are made by `real_backend.passes`, now and here or earlier and elsewhere; the
prediction is the replay of the same requests, chunk by chunk with fresh state as they ran. In the
exact pass policies are told the cost model's seconds instead of the clock's: in it every round of
a greedy run should be the replay's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from experiments.agreement import (
    Agreement,
    Cell,
    Residual,
    agree,
    fit_residual,
    residual_cells,
)
from experiments.statistics import divide, kendall_tau
from policies.base import Policy, uses_signals
from policies.overhead import charged
from policies.shelf import DEFAULT, label
from real_backend.passes import Measured, Passes, Step, chunks_of
from simulator.metrics import per_request
from simulator.replay import replay
from traces.costs import price_log
from traces.errors import InputError
from traces.roundlog import RoundLog, join_logs
from traces.schema import Trace
from traces.timing import StepCosts

FloatArray = npt.NDArray[np.float64]

DEFAULT_POLICIES = (
    "gammatune",
    "gammatune+",
    "hf-heuristic",
    "hf-confidence",
    "hf-roc",
    "tail-pruning",
    "ucb",
    "goodput",
    DEFAULT,
)


@dataclasses.dataclass(frozen=True)
class Check:
    """One policy, measured beside predicted; tokens/s without prefill.

    measured_tokens_per_s: from the median over repeats of every request's seconds; repeats_low,
    repeats_high: slowest and fastest repeat. error: predicted / measured - 1, positive if the
    simulator promised too much; request_error: median over requests of its absolute value.
    exact: the pass with the cost model's clock against the replay, None if there was none or the
    run was sampled.
    clock_rounds: rounds of the timed passes that differ from the replay (all repeats).
    replies_equal: replies whose tokens are the trace's. reads_clock: decisions follow elapsed_s.
    Seconds (per request the median over repeats), measured - predicted = costs_s + decisions_s: the
    rounds that ran cost more than the model says, and other rounds ran than were replayed.
    joules_per_token (prompts included) and peak_memory_bytes: None where the device reports none.
    """

    policy: str
    predicted_tokens_per_s: float
    measured_tokens_per_s: float
    repeats_low: float
    repeats_high: float
    error: float
    request_error: float
    exact: Agreement | None
    timed_rounds: int
    clock_rounds: int
    replies_equal: int | None
    reads_clock: bool
    measured_s: float
    predicted_s: float
    costs_s: float
    decisions_s: float
    joules_per_token: float | None
    peak_memory_bytes: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Validation:
    """All policies, and what they say together.

    median_error, max_error: absolute, over policies. machine_factor: median over policies of
    measured / predicted seconds, one number for "the machine is slower today"; median_error_scaled,
    max_error_scaled: what remains once predictions are divided by it. tau: Kendall's tau of the two
    rankings. cells, residual: where the cost model is off, per round. prefill_*: seconds of all
    prompts, not part of the speeds. acceptance: "own", or whose trace stood in for it, the forwards
    being real. measured: see Measured; predicted: one log per policy.
    """

    checks: tuple[Check, ...]
    median_error: float
    max_error: float
    machine_factor: float
    median_error_scaled: float
    max_error_scaled: float
    tau: float
    cells: tuple[Cell, ...]
    residual: Residual
    prefill_predicted_s: float
    prefill_measured_s: float
    requests: int
    repeats: int
    seed: int
    acceptance: str
    exactness: str
    measured: Measured
    predicted: dict[str, RoundLog]


def validate(
    passes: Passes,
    costs: StepCosts,
    policies: Sequence[Policy],
    *,
    repeats: int = 3,
    step: Step = lambda: None,
) -> Validation:
    """Run the policies and set them beside their replay; see the module docstring.

    The backend must allow the trace's depth as max_gamma. step: called passes.units times.
    """
    exact = {label(policy): passes.exact(policy, step) for policy in policies}  # also a warm-up
    timed = [passes.timed(policies, repeat, repeats, step) for repeat in range(repeats)]
    measured = Measured(exact, {name: [logs[name] for logs in timed] for name in exact})
    return judge(measured, passes.trace, costs, policies, seed=passes.seed, chunk=passes.chunk)


def judge(
    measured: Measured,
    trace: Trace,
    costs: StepCosts,
    policies: Sequence[Policy],
    *,
    seed: int,
    chunk: int,
) -> Validation:
    """Set what ran beside its replay; `trace` holds the rows that ran, in their order."""
    parts = [trace.select(list(rows)) for rows in chunks_of(trace.requests, chunk)]
    predicted, priced, reads = {}, {}, {}
    for policy in policies:
        name = label(policy)
        predicted[name] = join_logs([replay(policy, part, costs, seed=seed) for part in parts])
        reads[name] = uses_signals(policy)
        own = charged(policy, costs)
        priced[name] = [price_log(log, own, reads[name]) for log in measured.timed[name]]
    acceptance = _acceptance(measured)
    repeatable = trace.meta.temperature == 0.0 or acceptance != "own"
    checks = [
        _check(name, predicted[name], measured, priced[name], repeatable) for name in predicted
    ]
    cells = residual_cells(
        [log for name in predicted for log in measured.timed[name]],
        [seconds for name in predicted for seconds in priced[name]],
        [reads[name] for name in predicted for _ in measured.timed[name]],
    )
    return _together(trace, checks, cells, measured, predicted, seed, acceptance)


def _acceptance(measured: Measured) -> str:
    """Whose acceptance the runs had: "own" or "trace of PAIR"; raises InputError if both."""
    logs = [*measured.exact.values(), *(log for some in measured.timed.values() for log in some)]
    found = {log.meta.get("acceptance", "own") for log in logs}
    if len(found) > 1:
        raise InputError("some of the runs took their acceptance from a trace and some did not")
    return str(found.pop())


def _check(
    name: str, predicted: RoundLog, runs: Measured, priced: list[FloatArray], repeatable: bool
) -> Check:
    measured = runs.timed[name]
    exact = agree(runs.exact[name], predicted) if repeatable and name in runs.exact else None
    ours, theirs = per_request(predicted), [per_request(log) for log in measured]
    seconds = np.median([sums.decode_s for sums in theirs], axis=0)
    tokens = np.median([sums.tokens for sums in theirs], axis=0)
    speeds = [float(sums.tokens.sum() / sums.decode_s.sum()) for sums in theirs]
    predicted_speed = float(ours.tokens.sum() / ours.decode_s.sum())
    measured_speed = float(tokens.sum() / seconds.sum())
    by_request = divide(ours.tokens_per_s, divide(tokens, seconds)) - 1.0
    differing = [agree(log, predicted).differing for log in measured] if exact else [0]
    energy = [log.meta["energy_j"] / int(log.emitted.sum()) for log in measured if _metered(log)]
    peaks = [log.meta["peak_memory_bytes"] for log in measured if "peak_memory_bytes" in log.meta]
    modelled = [
        np.bincount(log.request, weights=cost, minlength=len(seconds))
        for log, cost in zip(measured, priced, strict=True)
    ]
    # Sampled replies are not the trace's: predict as many tokens as were measured.
    measured_s, predicted_s = float(seconds.sum()), float(tokens.sum()) / predicted_speed
    priced_s = float(np.median(modelled, axis=0).sum())
    return Check(
        policy=name,
        predicted_tokens_per_s=predicted_speed,
        measured_tokens_per_s=measured_speed,
        repeats_low=min(speeds),
        repeats_high=max(speeds),
        error=predicted_speed / measured_speed - 1.0,
        request_error=float(np.nanmedian(np.abs(by_request))),
        exact=exact,
        timed_rounds=sum(len(log) for log in measured),
        clock_rounds=sum(differing),
        replies_equal=runs.exact[name].meta.get("replies_equal") if exact else None,
        reads_clock=exact is not None and exact.differing == 0 and sum(differing) > 0,
        measured_s=measured_s,
        predicted_s=predicted_s,
        costs_s=measured_s - priced_s,
        decisions_s=priced_s - predicted_s,
        joules_per_token=float(np.median(energy)) if energy else None,
        peak_memory_bytes=max(peaks, default=None),
    )


def _metered(log: RoundLog) -> bool:
    return log.meta.get("energy_j") is not None


def _together(
    trace: Trace,
    checks: Sequence[Check],
    cells: Sequence[Cell],
    measured: Measured,
    predicted: dict[str, RoundLog],
    seed: int,
    acceptance: str,
) -> Validation:
    ours = np.asarray([check.predicted_tokens_per_s for check in checks])
    theirs = np.asarray([check.measured_tokens_per_s for check in checks])
    factor = float(np.median(ours / theirs))
    errors, scaled = np.abs(ours / theirs - 1.0), np.abs(ours / factor / theirs - 1.0)
    prefills = [float(log.prefill_s.sum()) for logs in measured.timed.values() for log in logs]
    expected = [float(log.prefill_s.sum()) for log in predicted.values()]
    return Validation(
        checks=tuple(checks),
        median_error=float(np.median(errors)),
        max_error=float(errors.max()),
        machine_factor=factor,
        median_error_scaled=float(np.median(scaled)),
        max_error_scaled=float(scaled.max()),
        tau=kendall_tau(ours.tolist(), theirs.tolist()) if len(checks) > 1 else float("nan"),
        cells=tuple(cells),
        residual=fit_residual(cells),
        prefill_predicted_s=float(np.median(expected)),
        prefill_measured_s=float(np.median(prefills)),
        requests=trace.requests,
        repeats=max(len(logs) for logs in measured.timed.values()),
        seed=seed,
        acceptance=acceptance,
        exactness=trace.meta.exactness,
        measured=measured,
        predicted=predicted,
    )
