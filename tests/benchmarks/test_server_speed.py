"""Simulated requests per second of processor time: our server, the same system as one simpy process
per request, and the compiled iterations alone; what each part of the server costs on top; a million
requests. Prints, never asserts a time; that both servers end every reply at the same moment, bit
for bit, is asserted first.

    python -m pytest -m benchmarks -s tests/benchmarks/test_server_speed.py
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import simpy

from policies.base import Outcome, Policy, View, clamp_gamma
from policies.randomness import Rng, round_key
from policies.registry import parse_policy
from policies.round import room_at
from simulator.serving.costs import draft_seconds, verify_seconds
from simulator.serving.options import Server, check
from simulator.serving.result import ServingResult
from simulator.serving.server import SharedState, serve
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.pricing import StepCosts, bucket_of, lag_after, tabulate
from traces.schema import Trace
from traces.workload.arrivals import Demand, demand
from traces.workload.workload import Workload

ROOT = Path(__file__).parents[2]
MODEL = Affine(
    draft_fixed=1e-3, target_fixed=10e-3, target_token=1e-3, prefill_fixed=2e-3, prefill_token=2e-5,
    row=1e-4, context_token=1e-6,
)  # fmt: skip
REQUESTS = {1: 2000, 8: 10_000, 64: 40_000, 256: 40_000}  # by slots: about 0.2 s each
POLICIES = ("fixed:gamma=3", "gammatune")
LOOPS = ("poisson", "closed")
LOAD = 0.9  # of what the closed loop gets through
REPEATS = 3
PROMPT_TOKENS, REPLY_TOKENS, DEPTH = 128, 256, 8


@dataclasses.dataclass(eq=False)
class Row:
    """A row of the batch; steps (draft tokens of this iteration) and lag as draft_seconds reads
    them.
    """

    context: int = 0
    steps: int = 0
    lag: int = 1


class PlainServer:
    """The server as one writes it down on simpy: every request is a process that comes, waits for a
    slot, takes part in iterations and goes; another process leads the batch. The hooks, and the
    functions that price an iteration, are ours, as plain Python.

    begun: an iteration begins, with so many rows; over: it has ended, after so many seconds; a new
    event each for every iteration. left: requests that wait during it.
    """

    def __init__(
        self, policy: Policy, trace: Trace, asked: Demand, costs: StepCosts, slots: int
    ) -> None:
        self.policy, self.trace, self.asked, self.costs = policy, trace, asked, costs
        self.limits = check(policy, trace, asked, costs, Server(slots=slots))
        self.state = policy.new_state(slots)
        self.places = [SimpleNamespace(decoding=k) for k in range(slots)]
        self.free = collections.deque(range(slots))
        self.waiting: collections.deque[tuple[simpy.Event, int]] = collections.deque()
        self.running: list[Row] = []
        self.left, self.rounds = 0, 0
        self.finish_s = np.full(len(asked.row), np.nan)
        self.sent = min(asked.users or len(asked.row), len(asked.row))
        self.env = simpy.Environment()
        self.arrival, self.begun, self.over = (self.env.event() for _ in range(3))

    def run(self) -> None:
        for query in range(self.sent):
            self.env.process(self.request(query, float(self.asked.arrival_s[query])))
        self.env.process(self.lead())
        self.env.run()

    def request(self, query: int, pause_s: float) -> Generator[simpy.Event, Any, None]:
        if pause_s > 0.0:
            yield self.env.timeout(pause_s)
        row, source = Row(), int(self.asked.row[query])
        prompt = int(self.trace.prompt_tokens[source])
        turn = self.env.event()
        self.waiting.append((turn, prompt))
        if not self.arrival.triggered:
            self.arrival.succeed()
        slot = yield turn
        self.running.append(row)
        self.policy.admit(self.state, slot)
        begin, end = int(self.trace.offsets[source]), int(self.trace.offsets[source + 1])
        at, index = begin, 0
        while at < end:
            batch = yield self.begun
            row.context = prompt + at - begin
            room = room_at(self.limits, prompt, at - begin, 1 << 15)
            view = self.view(row, batch, room)
            rng = Rng(round_key(0, query, index))
            row.steps = clamp_gamma(self.policy.gamma(self.state, slot, view, rng), room)
            elapsed_s = yield self.over
            accepted = min(row.steps, int(self.trace.accept_len[at]))
            emitted = min(accepted + 1, end - at)
            outcome = Outcome(
                row.steps, row.steps, accepted, emitted, emitted <= accepted, elapsed_s, elapsed_s
            )
            self.policy.learn(self.state, slot, view, outcome)
            row.lag = lag_after(row.lag, row.steps, accepted, False)
            at, index = at + emitted, index + 1
        self.finish_s[query] = self.env.now
        self.rounds += index
        self.running.remove(row)
        self.free.append(slot)
        if self.sent < len(self.asked.row):  # a closed loop: its user sends another one
            pause_s = float(self.asked.think_s[self.sent])
            self.env.process(self.request(self.sent, pause_s))
            self.sent += 1

    def view(self, row: Row, batch: int, room: int) -> View:
        bucket = bucket_of(self.costs, row.context)
        step_s = float(self.costs.draft_s[batch - 1, bucket, 1]) + self.costs.signal_s
        verify_s = self.costs.verify_s[batch - 1, bucket]
        return View(row.context, batch, self.left, room, step_s, verify_s)

    def lead(self) -> Generator[simpy.Event, Any, None]:
        while True:
            if not self.waiting and not self.running:
                self.arrival = self.env.event()
                yield self.arrival
            entering = min(len(self.waiting), len(self.free))
            self.left = len(self.waiting) - entering
            for _ in range(entering):
                turn, prompt = self.waiting.popleft()
                turn.succeed(self.free.popleft())
                prefill_s = self.costs.prefill_s[bucket_of(self.costs, prompt)]
                yield self.env.timeout(float(prefill_s))
            begun, self.begun = self.begun, self.env.event()
            begun.succeed(len(self.running))
            yield self.env.timeout(0.0)  # by then every row has chosen
            elapsed_s = self.elapsed_s()
            yield self.env.timeout(elapsed_s)
            over, self.over = self.over, self.env.event()
            over.succeed(elapsed_s)
            yield self.env.timeout(0.0)  # by then every row has learnt, and gone if it is done

    def elapsed_s(self) -> float:
        rows, n = self.running, len(self.running)
        bucket = bucket_of(self.costs, sum(row.context for row in rows) // n)
        tokens = n + sum(row.steps for row in rows)
        draft_s = draft_seconds(self.costs, bucket, self.places, n, rows)
        return draft_s + verify_seconds(self.costs.verify_s[n - 1, bucket], tokens / n)


@dataclasses.dataclass(frozen=True)
class Case:
    """A policy before a server, and what is asked of it."""

    policy: Policy
    trace: Trace
    costs: StepCosts
    server: Server
    asked: Demand

    def ours(self, log: bool = False, events: bool = False) -> ServingResult:
        return serve(
            self.policy, self.trace, self.asked, self.costs, self.server, log=log, events=events
        )

    def plain(self) -> PlainServer:
        server = PlainServer(self.policy, self.trace, self.asked, self.costs, self.server.slots)
        server.run()
        return server

    def bare(self) -> Callable[[], object]:
        """The compiled iterations with nothing around them, ready to be called once."""
        limits = check(self.policy, self.trace, self.asked, self.costs, self.server)
        run = SharedState(
            self.policy, self.trace, self.asked, self.costs, self.server, limits, 0, math.inf,
            False, True,
        )  # fmt: skip
        state, world = self.policy.new_state(self.server.slots), run.new_world()
        return lambda: run.advance(state, world, math.inf)


def a_trace() -> Trace:
    return synthetic.constant(
        0.7, np.random.default_rng(1), requests=512, reply_tokens=REPLY_TOKENS, depth=DEPTH,
        signals=True, prompt_tokens=PROMPT_TOKENS,
    )  # fmt: skip


def costs_of(slots: int) -> StepCosts:
    return tabulate(MODEL, range(1, slots + 1), max_context=512, width=DEPTH + 2)


def closed(trace: Trace, requests: int, users: int) -> Demand:
    return demand(Workload(requests, "closed", users=users), trace.category, 0)


def poisson(trace: Trace, requests: int, rate_per_s: float) -> Demand:
    return demand(Workload(requests, "poisson", rate_per_s=rate_per_s), trace.category, 0)


def cpu_s(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def user_and_system_s(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the processor, those of the system apart: fresh pages for big arrays."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime


def rows_running(served: ServingResult) -> float:
    """Mean batch while the machine works."""
    return float(served.bins.running_s.sum() / served.busy_s.sum())


def a_line(name: str, loop: str, case: Case, few: Case) -> str:
    """One line of the table of servers; `few`: the same with fewer requests."""
    served, plain = few.ours(), few.plain()
    np.testing.assert_array_equal(served.finish_s, plain.finish_s)
    assert plain.rounds == int(served.rounds.sum())
    served = case.ours()
    seconds = [(cpu_s(case.ours), cpu_s(case.bare()), cpu_s(few.plain)) for _ in range(REPEATS)]
    ours, bare, theirs = (statistics.median(side) for side in zip(*seconds, strict=True))
    requests, rounds = len(case.asked.row), int(served.rounds.sum())
    ours_ns, bare_ns = ours / rounds * 1e9, bare / rounds * 1e9
    plain_ns = theirs / plain.rounds * 1e9
    return (
        f"{case.server.slots:5d} {name:14}{loop:8}{rows_running(served):6.1f}"
        f"{requests / ours:12,.0f}{len(few.asked.row) / theirs:8,.0f}"
        f"{ours_ns:9.1f}{bare_ns:8.1f}{plain_ns:8.0f}"
        f"{plain_ns / ours_ns:9.0f}x{ours_ns / bare_ns:8.2f}x"
    )


@pytest.mark.benchmarks
def test_requests_per_cpu_second(capsys: pytest.CaptureFixture[str]) -> None:
    """The plain server gets fewer requests, so its ratio is that of nanoseconds per row and round;
    what is bare lacks what happens once per run: the tape, the requests, the result.
    """
    trace = a_trace()
    lines = [
        f"{'':33}{'requests/s':>20}{'ns per row and round':>25}\n"
        f"{'slots':5} {'policy':14}{'loop':8}{'rows':>6}{'ours':>12}{'plain':>8}"
        f"{'ours':>9}{'bare':>8}{'plain':>8}{'to plain':>10}{'to bare':>9}"
    ]
    for slots, name in itertools.product(REQUESTS, POLICIES):
        policy, costs, server = parse_policy(name), costs_of(slots), Server(slots=slots)
        many, few = REQUESTS[slots], max(100, 4 * slots)
        full = Case(policy, trace, costs, server, closed(trace, many, slots)).ours()
        rate_per_s = LOAD * many / full.end_s
        for loop in LOOPS:
            cases = [
                Case(
                    policy, trace, costs, server,
                    closed(trace, requests, slots)
                    if loop == "closed"
                    else poisson(trace, requests, rate_per_s),
                )
                for requests in (many, few)
            ]  # fmt: skip
            lines.append(a_line(name, loop, *cases))
    with capsys.disabled():
        print("\n" + "\n".join(lines))


SLOTS = 64
ENOUGH = SLOTS * ((PROMPT_TOKENS + REPLY_TOKENS + DEPTH) // 16 + 1)  # blocks
ON_TOP: dict[str, tuple[str, Server]] = {
    "gammatune": ("gammatune", Server(slots=SLOTS)),
    "gammatune once more": ("gammatune", Server(slots=SLOTS)),
    "fixed:gamma=3": ("fixed:gamma=3", Server(slots=SLOTS)),
    "tail-pruning, asked per token": ("tail-pruning", Server(slots=SLOTS)),
    "ucb, a bandit": ("ucb", Server(slots=SLOTS)),
    "memory counted, plenty": ("gammatune", Server(slots=SLOTS, blocks=ENOUGH)),
    "memory counted, scarce": ("gammatune", Server(slots=SLOTS, blocks=ENOUGH // 2)),
    "prompts read in chunks": ("gammatune", Server(slots=SLOTS, chunk_tokens=PROMPT_TOKENS)),
    "every round logged": ("gammatune", Server(slots=SLOTS)),
    "16 slots, 16 users": ("gammatune", Server(slots=SLOTS // 4)),
    "4 replicas of 16 slots": ("gammatune", Server(slots=SLOTS // 4, replicas=4)),
    "the same as simpy processes": ("gammatune", Server(slots=SLOTS // 4, replicas=4)),
}


@pytest.mark.benchmarks
def test_what_comes_on_top(capsys: pytest.CaptureFixture[str]) -> None:
    """A closed loop of 64 users, so that slots are full where memory allows. The second line is the
    first once more: what differs is noise. Replicas of 16 slots have four times the iterations, as
    one server of 16 slots has for as many requests; as processes each is an event of simpy.
    """
    trace, costs = a_trace(), costs_of(SLOTS)
    runs: dict[str, Callable[[], ServingResult]] = {}
    for title, (name, server) in ON_TOP.items():
        asked = closed(trace, 20_000, server.slots * server.replicas)
        case = Case(parse_policy(name), trace, costs, server, asked)
        options = "logged" in title, "processes" in title
        runs[title] = lambda case=case, options=options: case.ours(*options)  # type: ignore[misc]
    served = {title: run() for title, run in runs.items()}
    loop, processes = served["4 replicas of 16 slots"], served["the same as simpy processes"]
    assert loop.finish_s.tobytes() == processes.finish_s.tobytes()
    seconds = [
        {title: user_and_system_s(run) for title, run in runs.items()} for _ in range(REPEATS)
    ]
    taken = {title: statistics.median(sum(s[title]) for s in seconds) for title in runs}
    system = {title: statistics.median(s[title][1] for s in seconds) for title in runs}
    nanoseconds = {title: taken[title] / served[title].rounds.sum() * 1e9 for title in runs}
    lines = [
        f"{'64 slots, 64 users':31}{'rows':>6}{'preempted':>11}{'requests/s':>12}"
        f"{'ns/row-round':>14}{'ratio':>8}{'per request':>13}{'system':>8}"
    ]
    for title, result in served.items():
        lines.append(
            f"{title:31}{rows_running(result):6.1f}{result.totals['preemptions']:11d}"
            f"{len(asked.row) / taken[title]:12,.0f}{nanoseconds[title]:14.1f}"
            f"{nanoseconds[title] / nanoseconds['gammatune']:7.2f}x"
            f"{taken[title] / taken['gammatune']:12.2f}x"
            f"{system[title] / taken[title]:8.0%}"
        )
    with capsys.disabled():
        print("\n" + "\n".join(lines))


# VmHWM, for ru_maxrss of a child begins at what its parent held when it started the child (Linux).
MILLION = """
import time
import numpy as np
from policies.registry import parse_policy
from simulator.serving.server import serve
from simulator.serving.options import Server
from traces import synthetic
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate
from traces.workload.arrivals import demand
from traces.workload.workload import Workload

def peak_mib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

trace = synthetic.constant(0.7, np.random.default_rng(1), requests=512, reply_tokens=64, depth=8)
model = Affine(target_token=1e-3, row=1e-4, prefill_token=2e-5)
costs = tabulate(model, range(1, 65), max_context=128, width=10)
policy, server = parse_policy("fixed:gamma=3"), Server(slots=64)
for requests in (100, 1_000_000):
    wall, cpu = time.perf_counter(), time.process_time()
    asked = demand(Workload(requests, "closed", users=64), trace.category, 0)
    drawn = time.process_time()
    served = serve(policy, trace, asked, costs, server)
    done = time.process_time()
    assert np.isfinite(served.finish_s).all() and served.totals["emitted"] == 64 * requests
    print(
        f"{requests:9,d} requests of 64 tokens, {served.totals['iterations']:,d} iterations: drawn "
        f"in {drawn - cpu:.2f} s, served in {done - drawn:.2f} s of the processor "
        f"({time.perf_counter() - wall:.2f} s by the clock), peak {peak_mib():.0f} MiB"
    )
"""


@pytest.mark.benchmarks
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' /proc")
def test_a_million_requests(capsys: pytest.CaptureFixture[str]) -> None:
    """In a process of its own; a hundred requests first, to compile and to see what is there
    anyway.
    """
    found = subprocess.run(
        [sys.executable, "-c", MILLION], cwd=ROOT, check=True, capture_output=True, text=True
    )
    with capsys.disabled():
        print("\n" + found.stdout, end="")
