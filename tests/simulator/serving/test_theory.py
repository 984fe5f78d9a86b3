"""Queueing theory: one slot that never drafts is a first-come single server whose service times are
reply tokens times the seconds of a step. M/D/1, M/M/1, M/G/1 (Pollaczek and Khinchine), Lindley's
recursion, Little's law, utilisation.

Every closed form is met by the mean of independent runs, within 5 of its own standard errors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from policies.fixed import Fixed
from simulator.serving.options import Server
from simulator.serving.result import ServingResult
from simulator.serving.server import serve
from tests.specimens import few_or_slow
from traces.costs.affine import Affine
from traces.costs.pricing import StepCosts, tabulate
from traces.schema import Trace, TraceMeta
from traces.workload.arrivals import Demand, demand
from traces.workload.workload import Workload

pytestmark = pytest.mark.long

FloatArray = npt.NDArray[np.float64]

SEEDS = range(10)
SIGMAS = 5.0
WARM_UP = 0.1  # share of the requests that find the server younger than it will be
LOADS = pytest.mark.parametrize("load", few_or_slow([0.3, 0.6, 0.8], [0.6]))


class Law(NamedTuple):
    """Service times S: E[S] seconds, E[S^2] seconds squared."""

    mean_s: float
    square_s2: float

    def wait_s(self, rate_per_s: float) -> float:
        """Mean wait in an M/G/1 queue, lambda E[S^2] / (2 (1 - rho)): Pollaczek 1930, Khinchine
        1932.
        """
        return rate_per_s * self.square_s2 / (2.0 * (1.0 - rate_per_s * self.mean_s))


def trace_of(lengths: npt.NDArray[np.int64], categories: tuple[str, ...] | None = None) -> Trace:
    """Replies of these lengths in which nothing is ever accepted."""
    return Trace(
        meta=TraceMeta(
            "p", "t", "d", "", "none", "none", "synthetic",
            depth=1, max_new_tokens=int(lengths.max()),
        ),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        prompt_tokens=np.zeros(len(lengths), dtype=np.int32),
        request_id=tuple(str(r) for r in range(len(lengths))),
        category=categories or ("c",) * len(lengths),
        accept_len=np.zeros(int(lengths.sum()), dtype=np.int16),
    )  # fmt: skip


def costs_of(step_s: float, slots: int = 1) -> StepCosts:
    """A step of the target costs step_s whatever the batch; prompts are free."""
    return tabulate(Affine(target_fixed=step_s), range(1, slots + 1), max_context=0, width=3)


def poisson(requests: int, rate_per_s: float) -> Workload:
    return Workload(requests, "poisson", rate_per_s=rate_per_s, order="recorded")


def run(trace: Trace, wanted: Demand, step_s: float, **server: float) -> ServingResult:
    settings = Server(**({"slots": 1, "bin_s": 100 * step_s} | server))  # type: ignore[arg-type]
    return serve(Fixed(0), trace, wanted, costs_of(step_s, settings.slots), settings)


def settled(values: FloatArray) -> FloatArray:
    """Without those who came while the server was still emptier than in the long run."""
    return values[int(WARM_UP * len(values)) :]


def agree(means: list[float], expected: float, slack: float = 0.0) -> bool:
    """True if the mean of independent runs is what theory says, up to 5 of its standard errors."""
    error = np.std(means, ddof=1) / np.sqrt(len(means))
    assert error < 0.1 * abs(expected) + 1e-300, "too few requests to tell anything"
    return bool(abs(np.mean(means) - expected) <= SIGMAS * error + slack)


# --- one slot against closed forms


@LOADS
def test_constant_replies_wait_as_in_m_d_1(load: float) -> None:
    step_s = 0.05  # one token per reply: mu = 20 per second
    trace, mu = trace_of(np.ones(1, dtype=np.int64)), 1 / step_s
    waits, wrong = [], load / (mu * (1 - load))  # M/M/1's: twice as long
    for seed in SEEDS:
        served = run(trace, demand(poisson(20_000, load * mu), trace.category, seed), step_s)
        waits.append(float(settled(served.admitted_s - served.arrival_s).mean()))
        assert np.allclose(served.finish_s - served.admitted_s, step_s, rtol=0, atol=1e-9)
    assert agree(waits, load / (2 * mu * (1 - load)))
    assert not agree(waits, wrong)


@LOADS
def test_geometric_replies_wait_as_in_m_m_1(load: float) -> None:
    mean_tokens, step_s = 100.0, 1e-4
    p = 1 / mean_tokens
    law = Law(step_s / p, step_s**2 * (2 - p) / p**2)  # of a geometric number of steps
    mu = 1 / law.mean_s
    rate_per_s = load * mu
    waits, times = [], []
    for seed in SEEDS:
        lengths = np.random.default_rng([7, seed]).geometric(p, 2_000)
        trace = trace_of(lengths)
        served = run(trace, demand(poisson(2_000, rate_per_s), trace.category, seed), step_s)
        waits.append(float(settled(served.admitted_s - served.arrival_s).mean()))
        times.append(float(settled(served.finish_s - served.arrival_s).mean()))
    assert agree(waits, law.wait_s(rate_per_s))
    # The exponential law has E[S^2] = 2 / mu^2: the step makes the wait shorter by the factor
    # (2 - p) / 2, which is all that 1 / (mu - lambda) can be missed by.
    slack = p / 2 * load / (mu - rate_per_s)
    assert abs(law.wait_s(rate_per_s) + law.mean_s - 1 / (mu - rate_per_s)) <= slack * (1 + 1e-9)
    assert agree(times, 1 / (mu - rate_per_s), slack)


@LOADS
def test_two_lengths_wait_as_pollaczek_and_khinchine_say(load: float) -> None:
    # One reply in ten is 22 tokens long, the others 2: mean 4, mean square 52 (constant: 16).
    step_s = 0.01
    trace = trace_of(np.asarray([2, 22], dtype=np.int64), ("short", "long"))
    law = Law(4 * step_s, 52 * step_s**2)
    rate_per_s = load / law.mean_s
    mix = Workload(
        12_000, "poisson", rate_per_s=rate_per_s, weights=(("short", 9.0), ("long", 1.0))
    )
    waits = []
    for seed in SEEDS:
        served = run(trace, demand(mix, trace.category, seed), step_s)
        waits.append(float(settled(served.admitted_s - served.arrival_s).mean()))
    assert agree(waits, law.wait_s(rate_per_s))


@LOADS
def test_waits_follow_lindleys_recursion(load: float) -> None:
    """No statistics: W[q + 1] = max(0, W[q] + S[q] - gap), request by request."""
    step_s = 0.01
    lengths = np.random.default_rng(3).geometric(0.2, 3_000)
    trace = trace_of(lengths)
    wanted = demand(poisson(3_000, load / (5 * step_s)), trace.category, 1)
    served = run(trace, wanted, step_s)
    wait_s, expected = 0.0, [0.0]
    for gap_s, tokens in zip(np.diff(wanted.arrival_s), lengths[:-1], strict=True):
        wait_s = max(0.0, wait_s + tokens * step_s - gap_s)
        expected.append(wait_s)
    assert np.allclose(served.admitted_s - served.arrival_s, expected, rtol=0, atol=1e-8)
    assert (served.admitted_s > served.arrival_s).any()


def test_several_slots_without_waiting_room_to_fill_are_m_d_infinity() -> None:
    """With more slots than anybody needs nobody waits longer than the step under way, and the
    number in system has the mean lambda E[T].
    """
    step_s, tokens, rate_per_s = 0.01, 20, 30.0  # 6 at once in the mean
    trace = trace_of(np.full(1, tokens, dtype=np.int64))
    wanted = demand(poisson(5_000, rate_per_s), trace.category, 0)
    served = run(trace, wanted, step_s, slots=32)
    wait_s = served.admitted_s - served.arrival_s
    assert wait_s.min() >= 0.0 and wait_s.max() <= step_s + 1e-9
    assert np.allclose(served.finish_s - served.admitted_s, tokens * step_s, rtol=0, atol=1e-9)
    # An arrival finds the server asleep with chance exp(-lambda E[T]) < 0.3 %, else it comes
    # anywhere within a step.
    assert abs(wait_s.mean() - step_s / 2) < 5 * step_s / np.sqrt(12 * 5_000) + 0.003 * step_s


# --- Little's law and utilisation


def number_in_system(served: ServingResult) -> float:
    """Time average until the end, from the steps of the counting process."""
    times = np.concatenate([served.arrival_s, served.finish_s])
    change = np.concatenate([np.ones(len(served.row)), -np.ones(len(served.row))])
    order = np.argsort(times, kind="stable")
    count = np.cumsum(change[order])
    assert count.min() >= 0 and count[-1] == 0
    return float((count[:-1] * np.diff(times[order])).sum() / served.end_s)


@pytest.mark.parametrize("slots", [1, 4])
def test_littles_law(slots: int) -> None:
    step_s, requests = 0.01, 4_000
    lengths = np.random.default_rng(5).geometric(0.2, requests)
    trace = trace_of(lengths)
    wanted = demand(poisson(requests, 0.8 * slots / (5 * step_s)), trace.category, 2)
    served = run(trace, wanted, step_s, slots=slots)
    throughput_per_s = requests / served.end_s
    mean_time_s = float((served.finish_s - served.arrival_s).mean())
    assert number_in_system(served) == pytest.approx(throughput_per_s * mean_time_s, rel=1e-9)
    # The time series counts a request from the first iteration that begins after it came: of each
    # less than one step is missing, and nothing is counted twice.
    seconds = float((served.bins.running_s + served.bins.waiting_s).sum())
    missing = number_in_system(served) * served.end_s - seconds
    assert 0.0 < missing < requests * step_s
    # Exactly: what is missing is the time from each arrival to the next iteration. With one slot
    # iterations begin at whole steps after the busy period's start.
    if slots == 1:
        starts = served.admitted_s[served.admitted_s == served.arrival_s]  # of busy periods
        begun = starts[np.searchsorted(starts, served.arrival_s, side="right") - 1]
        behind = -(served.arrival_s - begun) % step_s
        behind[behind > step_s * (1 - 1e-6)] = 0.0
        assert missing == pytest.approx(float(behind.sum()), rel=1e-6)


def test_running_seconds_are_the_time_in_a_slot() -> None:
    step_s = 0.01
    lengths = np.random.default_rng(6).geometric(0.2, 2_000)
    trace = trace_of(lengths)
    served = run(trace, demand(poisson(2_000, 60.0), trace.category, 3), step_s, slots=4)
    in_slot_s = float((served.finish_s - served.admitted_s).sum())
    assert float(served.bins.running_s.sum()) == pytest.approx(in_slot_s, rel=1e-9)
    assert in_slot_s == pytest.approx(step_s * lengths.sum(), rel=1e-9)


@LOADS
def test_utilisation_is_the_load(load: float) -> None:
    step_s = 0.05
    trace = trace_of(np.ones(1, dtype=np.int64))
    shares = []
    for seed in SEEDS:
        served = run(trace, demand(poisson(5_000, load / step_s), trace.category, seed), step_s)
        assert served.busy_s.tolist() == pytest.approx([5_000 * step_s], rel=1e-9)
        assert float(served.bins.busy_s.sum()) == pytest.approx(float(served.busy_s[0]), rel=1e-9)
        shares.append(float(served.busy_s[0]) / served.end_s)
    # The last arrival is a whole gap after the one before, the end a service after it: 1 / Q.
    assert agree(shares, load, slack=1 / 5_000)


def test_a_clock_twice_as_fast_halves_every_time() -> None:
    """Rate and step scaled together, by a power of two: the same queue bit for bit."""
    lengths = np.random.default_rng(8).geometric(0.2, 500)
    trace = trace_of(lengths)
    slow, fast = (
        run(trace, demand(poisson(500, 16.0 * f), trace.category, 4), 0.01 / f) for f in (1.0, 2.0)
    )
    assert np.array_equal(slow.admitted_s, 2 * fast.admitted_s)
    assert np.array_equal(slow.finish_s, 2 * fast.finish_s)
