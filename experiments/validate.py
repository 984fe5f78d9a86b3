"""The confirmation: chosen policies on the real engine, measured beside predicted.

Every policy decodes the same requests. Requests run in chunks that mix the tasks; all policies take
a chunk before the next one starts, in an order that rotates from chunk to chunk and repeat to
repeat, so that a machine that slows down slows all policies alike. A policy starts every chunk with
fresh state, in the engine and in the replay. A first pass hands policies the cost model's seconds
instead of the clock's: in it every round of a greedy run should be the replay's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from experiments.agreement import (
    Agreement,
    Cell,
    Residual,
    agree,
    fit_residual,
    join_logs,
    residual_cells,
)
from experiments.statistics import divide, kendall_tau
from policies.base import Policy, uses_signals
from policies.shelf import label
from simulator.metrics import per_request
from simulator.replay import replay
from traces.costs import price_log
from traces.roundlog import RoundLog
from traces.schema import Trace
from traces.timing import StepCosts

if TYPE_CHECKING:
    from real_backend.prompts import Request

FloatArray = npt.NDArray[np.float64]
Step = Callable[[], object]

CHUNK_REQUESTS = 12
DEFAULT_POLICIES = (
    "gammatune",
    "gammatune+",
    "hf-heuristic",
    "hf-confidence",
    "hf-roc",
    "tail-pruning",
    "ucb",
    "goodput",
)


class Backend(Protocol):
    """What validation needs of real_backend.engine.Engine."""

    def decode(
        self,
        policy: Policy,
        requests: Sequence[Request],
        *,
        temperature: float,
        top_p: float,
        seed: int,
        max_new_tokens: int,
        clock: str,
    ) -> Any:
        """Decode in order with fresh policy state; the result has `tokens` and `log`."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One policy, measured beside predicted; tokens/s without prefill.

    measured_tokens_per_s: from the median over repeats of every request's seconds; repeats_low,
    repeats_high: slowest and fastest repeat. error: predicted / measured - 1, positive if the
    simulator promised too much; request_error: median over requests of its absolute value.
    exact: the pass with the cost model's clock against the replay, None for sampled traces.
    clock_rounds: rounds of the timed passes that differ from the replay (all repeats).
    replies_equal: replies whose tokens are the trace's. reads_clock: decisions follow elapsed_s.
    Seconds (per request the median over repeats), measured - predicted = costs_s + decisions_s: the
    rounds that ran cost more than the model says, and other rounds ran than were replayed.
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


@dataclasses.dataclass(frozen=True, eq=False)
class Validation:
    """All policies, and what they say together.

    median_error, max_error: absolute, over policies. machine_factor: median over policies of
    measured / predicted seconds, one number for "the machine is slower today"; median_error_scaled,
    max_error_scaled: what remains once predictions are divided by it. tau: Kendall's tau of the two
    rankings. cells, residual: where the cost model is off, per round. prefill_*: seconds of all
    prompts, not part of the speeds. measured: one log per policy and repeat; predicted: per policy.
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
    exactness: str
    measured: dict[str, list[RoundLog]]
    predicted: dict[str, RoundLog]


@dataclasses.dataclass(frozen=True)
class _Bench:
    """The requests in chunks, and how to run one."""

    backend: Backend
    trace: Trace
    requests: Sequence[Request]
    costs: StepCosts
    seed: int
    chunks: tuple[range, ...]

    def decode(self, policy: Policy, chunk: range, clock: str, repeat: int = 0) -> Any:
        """One chunk; sampled repeats draw anew, greedy ones repeat the same decisions."""
        meta = self.trace.meta
        return self.backend.decode(
            policy,
            [self.requests[row] for row in chunk],
            temperature=meta.temperature,
            top_p=meta.top_p,
            seed=self.seed + (repeat if meta.temperature > 0 else 0),
            max_new_tokens=meta.max_new_tokens,
            clock=clock,
        )

    def predict(self, policy: Policy) -> RoundLog:
        """The replay, chunk by chunk as the engine runs."""
        parts = [self.trace.select(list(chunk)) for chunk in self.chunks]
        return join_logs([replay(policy, part, self.costs, seed=self.seed) for part in parts])

    def equal_replies(self, replies: Sequence[Sequence[int]]) -> int | None:
        """How many replies are the trace's own, token by token."""
        if self.trace.token_ids is None:
            return None
        expected = np.split(self.trace.token_ids, self.trace.offsets[1:-1])
        pairs = zip(replies, expected, strict=True)
        return sum(int(list(reply) == tokens.tolist()) for reply, tokens in pairs)


def work_units(policies: int, requests: int, repeats: int, chunk: int = CHUNK_REQUESTS) -> int:
    """How often `validate` calls step: one exactness pass and the repeats, chunk by chunk."""
    return policies * (repeats + 1) * -(-requests // chunk)


def validate(
    backend: Backend,
    trace: Trace,
    requests: Sequence[Request],
    costs: StepCosts,
    policies: Sequence[Policy],
    *,
    repeats: int = 3,
    seed: int = 0,
    chunk: int = CHUNK_REQUESTS,
    step: Step = lambda: None,
) -> Validation:
    """Run the policies on the backend and set them beside their replay; see the module docstring.

    requests: one per row of the trace. The backend must allow the trace's depth as max_gamma.
    """
    starts = range(0, trace.requests, chunk)
    chunks = tuple(range(start, min(start + chunk, trace.requests)) for start in starts)
    bench = _Bench(backend, trace, requests, costs, seed, chunks)
    names = [label(policy) for policy in policies]
    predicted = {label(policy): bench.predict(policy) for policy in policies}
    exact: dict[str, Agreement | None] = {}
    equal: dict[str, int | None] = {}
    for policy, name in zip(policies, names, strict=True):  # also warms the machine up
        exact[name], equal[name] = _exactness_pass(bench, policy, predicted[name], step)
    measured = _timed_passes(bench, policies, repeats, step)
    reads = {label(policy): uses_signals(policy) for policy in policies}
    priced = {
        name: [price_log(log, costs, reads[name]) for log in logs]
        for name, logs in measured.items()
    }
    checks = [
        _check(name, predicted[name], measured[name], priced[name], exact[name], equal[name])
        for name in names
    ]
    cells = residual_cells(
        [log for name in names for log in measured[name]],
        [seconds for name in names for seconds in priced[name]],
        [reads[name] for name in names for _ in measured[name]],
    )
    return _together(bench, checks, cells, measured, predicted, repeats)


def _exactness_pass(
    bench: _Bench, policy: Policy, predicted: RoundLog, step: Step
) -> tuple[Agreement | None, int | None]:
    logs, replies = [], []
    for chunk in bench.chunks:
        run = bench.decode(policy, chunk, "model")
        logs.append(run.log)
        replies += run.tokens
        step()
    if bench.trace.meta.temperature > 0:
        return None, None
    return agree(join_logs(logs), predicted), bench.equal_replies(replies)


def rotated(count: int, repeat: int, chunk: int, repeats: int) -> list[int]:
    """The order in which `count` policies take a chunk: a rotation by chunk and by repeat."""
    shift = (chunk + repeat * -(-count // repeats)) % count
    return [(k + shift) % count for k in range(count)]


def _timed_passes(
    bench: _Bench, policies: Sequence[Policy], repeats: int, step: Step
) -> dict[str, list[RoundLog]]:
    measured: dict[str, list[RoundLog]] = {label(policy): [] for policy in policies}
    for repeat in range(repeats):
        parts: dict[str, list[RoundLog]] = {name: [] for name in measured}
        for number, chunk in enumerate(bench.chunks):
            for index in rotated(len(policies), repeat, number, repeats):
                run = bench.decode(policies[index], chunk, "wall", repeat)
                parts[label(policies[index])].append(run.log)
                step()
        for name, logs in parts.items():
            measured[name].append(join_logs(logs))
    return measured


def _check(
    name: str,
    predicted: RoundLog,
    measured: list[RoundLog],
    priced: list[FloatArray],
    exact: Agreement | None,
    equal: int | None,
) -> Check:
    ours, theirs = per_request(predicted), [per_request(log) for log in measured]
    seconds = np.median([sums.decode_s for sums in theirs], axis=0)
    tokens = np.median([sums.tokens for sums in theirs], axis=0)
    speeds = [float(sums.tokens.sum() / sums.decode_s.sum()) for sums in theirs]
    predicted_speed = float(ours.tokens.sum() / ours.decode_s.sum())
    measured_speed = float(tokens.sum() / seconds.sum())
    by_request = divide(ours.tokens_per_s, divide(tokens, seconds)) - 1.0
    differing = [agree(log, predicted).differing for log in measured] if exact else [0]
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
        replies_equal=equal,
        reads_clock=exact is not None and exact.differing == 0 and sum(differing) > 0,
        measured_s=measured_s,
        predicted_s=predicted_s,
        costs_s=measured_s - priced_s,
        decisions_s=priced_s - predicted_s,
    )


def _together(
    bench: _Bench,
    checks: Sequence[Check],
    cells: Sequence[Cell],
    measured: dict[str, list[RoundLog]],
    predicted: dict[str, RoundLog],
    repeats: int,
) -> Validation:
    ours = np.asarray([check.predicted_tokens_per_s for check in checks])
    theirs = np.asarray([check.measured_tokens_per_s for check in checks])
    factor = float(np.median(ours / theirs))
    errors, scaled = np.abs(ours / theirs - 1.0), np.abs(ours / factor / theirs - 1.0)
    prefills = [float(log.prefill_s.sum()) for logs in measured.values() for log in logs]
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
        requests=bench.trace.requests,
        repeats=repeats,
        seed=bench.seed,
        exactness=bench.trace.meta.exactness,
        measured=measured,
        predicted=predicted,
    )
