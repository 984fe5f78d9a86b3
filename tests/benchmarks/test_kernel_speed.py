"""The summing kernels beside C, a sweep of a thousand configurations, a thousand cost models.

Prints, never asserts a time; that C and we find the same bits is asserted first, or the comparison
would be worth nothing. Run with `pytest -m benchmarks -s tests/benchmarks/test_kernel_speed.py`.
"""

from __future__ import annotations

import ctypes
import itertools
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from policies.base import Policy, field_values, uses_signals
from policies.counts.gammatune import GammaTune
from policies.registry import parse_policy
from simulator.replay.kernels import run_policy
from simulator.replay.replay import check_inputs, tape_of
from simulator.replay.totals import (
    Tally,
    add_steps,
    add_up,
    count_steps,
    price_steps,
    tally,
    tally_many,
)
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.pricing import StepCosts, prices_of, tabulate
from traces.schema import Trace

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ["-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC"]
REPEATS = 21


def c_struct(**fields: str) -> type[ctypes.Structure]:
    """A struct of kernels.c: its fields in order, each "pointer", "int" or "double"."""
    kinds = {"pointer": ctypes.c_void_p, "int": ctypes.c_int64, "double": ctypes.c_double}
    members = [(name, kinds[kind]) for name, kind in fields.items()]
    return type("Struct", (ctypes.Structure,), {"_fields_": members})


C_TAPE = c_struct(
    offsets="pointer",
    prompt_tokens="pointer",
    accept_len="pointer",
    top1_prob="pointer",
    requests="int",
    depth="int",
)
C_PRICES = c_struct(
    draft_s="pointer",
    verify_s="pointer",
    signal_s="double",
    bucket_tokens="int",
    buckets="int",
    width="int",
)
C_LIMITS = c_struct(max_gamma="int", max_new_tokens="int", max_context="int")
C_SUMS = c_struct(decode_s="pointer", rounds="pointer", drafted="pointer", accepted="pointer")
C_STEPS = c_struct(draft="pointer", verify="pointer")
C_POLICIES = {
    "fixed": c_struct(gamma_tokens="int"),
    "hf-heuristic": c_struct(gamma0="int", gamma="int"),
    "gammatune": c_struct(
        gamma0="int",
        delta="int",
        gamma_min="int",
        gamma_max="int",
        gamma="int",
        eta="double",
        ema="double",
    ),
    "ucb": c_struct(
        gamma_min="int",
        gamma_max="int",
        exploration="double",
        plays="pointer",
        tokens="pointer",
        seconds="pointer",
    ),
    "tail-pruning": c_struct(theta="double", product="double", gamma_max="int"),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """kernels.c, compiled."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    file = tmp_path_factory.mktemp("c") / "kernels.so"
    subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(file), "-lm"], check=True)
    return ctypes.CDLL(str(file))


class Contest:
    """One policy, played by both sides from the same arrays; recorder: "sums" or "steps"."""

    def __init__(self, name: str, recorder: str, trace: Trace, costs: StepCosts) -> None:
        self.name, self.recorder, self.trace, self.costs = name, recorder, trace, costs
        self.policy = parse_policy(name)
        signals = uses_signals(self.policy)
        self.limits = check_inputs(self.policy, trace, costs)
        self.tape, self.prices = tape_of(trace, signals), prices_of(costs, signals=signals)

    def sinks(self) -> tuple[Tally, Any]:
        """Fresh sums and step counts."""
        whole = (np.zeros(self.trace.requests, dtype=np.int64) for _ in range(3))
        counts = np.zeros((2, self.costs.buckets, self.costs.width), dtype=np.int64)
        return Tally(np.zeros(self.trace.requests), *whole), counts

    def ours(self) -> tuple[float, int, bytes]:
        """Seconds of the call, rounds, and all that was recorded."""
        sums, counts = self.sinks()
        start = time.perf_counter()
        state = self.policy.new_state(1)
        inputs = (state, self.tape, self.prices, self.prices, self.limits, 0)
        if self.recorder == "sums":
            rounds = run_policy(self.policy, add_up, *inputs, sums)
        else:
            rounds = run_policy(self.policy, add_steps, *inputs, counts)
        return time.perf_counter() - start, rounds, recorded(sums, counts)

    def theirs(self, library: ctypes.CDLL) -> tuple[float, int, bytes]:
        """The same from C."""
        sums, counts = self.sinks()
        state, prices = self.policy.new_state(1), self.prices
        function = getattr(library, f"{type(self.policy).__name__}_{self.recorder}")
        function.restype = ctypes.c_int64
        signals = self.tape.top1_prob.ctypes.data
        pointers = [array.ctypes.data for array in self.tape[:3]]
        arguments = [
            c_policy(self.policy, state),
            C_TAPE(*pointers, signals, self.trace.requests, self.trace.meta.depth),
            C_PRICES(
                prices.draft_s.ctypes.data,
                prices.verify_s.ctypes.data,
                prices.signal_s,
                prices.bucket_tokens,
                *prices.draft_s.shape[1:],
            ),
            C_LIMITS(*self.limits),
            C_SUMS(*(array.ctypes.data for array in sums)),
            C_STEPS(*(plane.ctypes.data for plane in counts)),
        ]
        start = time.perf_counter()
        rounds = function(*map(ctypes.byref, arguments))
        return time.perf_counter() - start, rounds, recorded(sums, counts)


def recorded(sums: Tally, counts: Any) -> bytes:
    return b"".join(array.tobytes() for array in (*sums, counts))


def c_policy(policy: Policy, state: Any) -> ctypes.Structure:
    """The policy's fields, and its state where C keeps it in arrays; other state starts at 0."""
    struct = C_POLICIES[policy.name]
    arrays = {name: array.ctypes.data for name, array in state._asdict().items()}
    values = field_values(policy)
    known = {
        name: (arrays if kind is ctypes.c_void_p else values).get(name, 0)
        for name, kind in struct._fields_  # type: ignore[misc]
    }
    return struct(**known)


@pytest.mark.benchmarks
def test_nanoseconds_per_round_beside_c(
    library: ctypes.CDLL, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not numba.config.BOUNDSCHECK  # or it times what does not ship
    generator = np.random.default_rng(0)
    trace = synthetic.bursty(0.9, 0.5, generator, requests=1000, reply_tokens=256, signals=True)
    costs = tabulate(Affine(signal=1e-4, control=1e-4, context_token=1e-6))
    lines = [f"{'policy':14}{'records':9}{'rounds':>8}{'ours':>7}{'C':>7}  ns/round"]
    for name, recorder in itertools.product(C_POLICIES, ("sums", "steps")):
        contest = Contest(name, recorder, trace, costs)
        assert contest.ours()[1:] == contest.theirs(library)[1:], name
        seconds = [(contest.ours()[0], contest.theirs(library)[0]) for _ in range(REPEATS)]
        rounds = contest.ours()[1]
        mine, c = (statistics.median(side) / rounds * 1e9 for side in zip(*seconds, strict=True))
        lines.append(f"{name:14}{recorder:9}{rounds:8d}{mine:7.1f}{c:7.1f}  {mine / c:.2f}x")
    with capsys.disabled():
        print("\n" + "\n".join(lines))


def gammatune_grid() -> list[Policy]:
    """1,000 configurations."""
    axes = ((1, 2, 4, 6, 8), np.linspace(0.05, 0.95, 10), (1, 2, 3, 4), (6, 8, 10, 12, 16))
    return [
        GammaTune(gamma0=gamma0, eta=float(eta), delta=delta, gamma_max=gamma_max)
        for gamma0, eta, delta, gamma_max in itertools.product(*axes)
    ]


def timed(run: Callable[[], list[Tally]]) -> tuple[float, list[Tally]]:
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


@pytest.mark.benchmarks
def test_a_thousand_configurations(capsys: pytest.CaptureFixture[str]) -> None:
    from joblib import Parallel, delayed

    trace = synthetic.bursty(0.9, 0.5, np.random.default_rng(0), requests=1000, reply_tokens=1024)
    costs, grid = tabulate(Affine(control=1e-4, context_token=1e-6)), gammatune_grid()
    assert len(set(grid)) == 1000
    halves = grid[::2], grid[1::2]

    def in_processes(parts: tuple[list[Policy], list[Policy]]) -> list[Tally]:
        found = processes(delayed(tally_many)(part, trace, costs) for part in parts)
        return [sums for part in found for sums in part]

    with Parallel(2) as processes:
        in_processes((grid[:1], grid[1:2]))  # started, and compiled or loaded
        tally(grid[0], trace, costs)
        one, found = timed(lambda: tally_many(grid, trace, costs))
        two, again = timed(lambda: tally_many(grid, trace, costs, threads=2))
        apart, halved = timed(lambda: in_processes(halves))
    rounds = sum(int(sums.rounds.sum()) for sums in found)
    for other in (
        again,
        [s for pair in zip(halved[:500], halved[500:], strict=True) for s in pair],
    ):
        for sums, same in zip(found, other, strict=True):
            assert sums.decode_s.tobytes() == same.decode_s.tobytes()
    with capsys.disabled():
        print(
            f"\n1000 GammaTunes x 1000 requests x 1024 tokens, {rounds / 1e6:.0f} M rounds: "
            f"{one:.1f} s ({rounds / one / 1e6:.0f} M rounds/s); two threads {two:.1f} s "
            f"({one / two:.2f}x), two processes {apart:.1f} s ({one / apart:.2f}x)"
        )


@pytest.mark.benchmarks
def test_a_thousand_cost_models(capsys: pytest.CaptureFixture[str]) -> None:
    trace = synthetic.bursty(0.9, 0.5, np.random.default_rng(0), requests=1000, reply_tokens=1024)
    generator = np.random.default_rng(1)
    models = [tabulate(Affine(*generator.uniform(1e-4, 1e-2, 10))) for _ in range(1000)]
    policy = GammaTune()
    count_steps(policy, trace, models[0])
    start = time.perf_counter()
    steps = count_steps(policy, trace, models[0])
    counted = time.perf_counter()
    seconds = price_steps(steps, models)
    priced = time.perf_counter()
    replayed, once = timed(lambda: [tally(policy, trace, models[-1])])
    assert seconds[-1] == pytest.approx(float(once[0].decode_s.sum()), rel=1e-12)
    with capsys.disabled():
        print(
            f"\n1000 cost models: one replay {1e3 * (counted - start):.1f} ms, all prices "
            f"{1e3 * (priced - counted):.1f} ms; one replay per model would take "
            f"{1000 * replayed:.1f} s"
        )
