"""The best that any controller could have done on a trace, known only in hindsight."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from policies.base import IntArray, Outcome, Policy, State, View
from policies.confidence.entropy import SVIP
from policies.confidence.thresholds import HFConfidence, TailPruning
from policies.fixed import Fixed
from policies.overhead import charged, uncharged
from policies.randomness import Rng
from policies.registry import label
from policies.round import Limits, room_at, settle
from simulator.replay.kernels import run_function, run_policy
from simulator.replay.replay import check_inputs, replay, run, tape_of
from simulator.replay.rounds import Tape
from simulator.replay.totals import tally_many
from traces.costs.pricing import StepCosts, bucket_of, lag_after, round_seconds
from traces.roundlog import RoundLog
from traces.schema import Trace


class ScheduleState(NamedTuple):
    """choice [N, W] int64: gamma to take at a position if the draft's cache lags by the second
    index; position, lag [1]: where the run is; states [1]: the costs' reads_states.
    """

    choice: IntArray
    position: IntArray
    lag: IntArray
    states: IntArray


@dataclasses.dataclass(frozen=True)
class Clairvoyant(Policy):
    """Follows a schedule that was computed from the trace's future; a ceiling, not a controller.

    The schedule is its state, made by `clairvoyant`.
    """

    name = "clairvoyant"
    rule = "the schedule with the least total seconds, by dynamic programming over the known future"
    source = "ours"

    def new_state(self, slots: int) -> State:
        raise NotImplementedError("the schedule comes from simulator.replay.hindsight.clairvoyant")

    def admit(self, state: ScheduleState, slot: int) -> None:
        state.lag[0] = 1

    def gamma(self, state: ScheduleState, slot: int, view: View, rng: Rng) -> int:
        lag = min(int(state.lag[0]), state.choice.shape[1] - 1)
        return int(state.choice[int(state.position[0]), lag])

    def learn(self, state: ScheduleState, slot: int, view: View, outcome: Outcome) -> None:
        state.position[0] += outcome.emitted
        lag, states = int(state.lag[0]), int(state.states[0]) > 0
        state.lag[0] = lag_after(lag, outcome.drafted, outcome.accepted, states)


def clairvoyant(trace: Trace, costs: StepCosts, *, max_gamma: int | None = None) -> RoundLog:
    """The rounds with the least decode seconds per request, priced as in a replay.

    It pays nothing for knowing. Exact on traces of kind `exact` and `synthetic`: no causal policy,
    with signals or without, can be faster. Raises InputError if the costs do not fit the trace.
    """
    policy = Clairvoyant()
    limits = check_inputs(policy, trace, costs, max_gamma)
    choice = np.zeros((trace.positions, costs.width), dtype=np.int64)
    run_function(plan, tape_of(trace, False), charged(policy, costs), limits, choice)
    states = np.asarray([costs.reads_states], dtype=np.int64)
    zero = np.zeros(1, dtype=np.int64)
    state = ScheduleState(choice, zero, zero.copy(), states)
    return run(policy, run_policy, state, trace, costs, limits, seed=0)


def best_fixed(
    trace: Trace,
    costs: StepCosts,
    gammas: Iterable[int] | None = None,
    *,
    max_gamma: int | None = None,
) -> tuple[int, RoundLog]:
    """The fixed gamma with the least decode seconds on this trace, and its log; ties to the
    smallest.

    gammas: candidates, default 0..max_gamma. On a held-out trace this is a choice in hindsight.
    """
    highest = trace.meta.depth if max_gamma is None else max_gamma
    candidates = sorted(range(highest + 1) if gammas is None else gammas)
    logs = {g: replay(Fixed(g), trace, costs, max_gamma=max_gamma) for g in candidates}
    best = min(candidates, key=lambda g: float(logs[g].elapsed_s.sum()))
    return best, logs[best]


class Ceiling(NamedTuple):
    """Seconds that could have been had with the best setting: a bound, not a controller.

    decode_s: seconds of all requests. setting: which one it was, "" if it differs by request.
    """

    name: str
    setting: str
    decode_s: float


THRESHOLDS = 24  # tried per signal, at quantiles of what the draft shows


def ceilings(trace: Trace, costs: StepCosts) -> list[Ceiling]:
    """Bounds from settings chosen on the very trace they are judged on: the best length of every
    request, and for every signal the best threshold to stop at. Bounds pay for no arithmetic.

    A rule that sees only the *position* in the draft can do no better than stop at one position,
    so its ceiling is the best fixed length. Signals are left out where the trace has none.
    """
    depth, costs = trace.meta.depth, uncharged(costs)
    lengths = [Fixed(gamma) for gamma in range(depth + 1)]
    seconds = np.stack([sums.decode_s for sums in tally_many(lengths, trace, costs)])  # [G + 1, R]
    best = int(seconds.sum(axis=1).argmin())
    found = [
        Ceiling("position in the draft", f"gamma={best}", float(seconds[best].sum())),
        Ceiling("fixed length by request", "", float(seconds.min(axis=0).sum())),
    ]
    if trace.top1_prob is None or trace.entropy is None:
        return found
    levels = (np.arange(THRESHOLDS) + 0.5) / THRESHOLDS
    products = np.cumprod(trace.top1_prob.astype(np.float64), axis=1)
    rules: dict[str, list[Policy]] = {
        "top-1 probability": [
            HFConfidence(depth, float(x)) for x in np.quantile(trace.top1_prob, levels)
        ],
        "product of top-1": [TailPruning(float(x), depth) for x in np.quantile(products, levels)],
        "entropy": [  # scale 1: the threshold is the root of the entropy
            SVIP(depth, 1.0, float(np.sqrt(max(x, 0.0))))
            for x in np.quantile(trace.entropy, levels)
        ],
    }
    for name, policies in rules.items():
        totals = [float(t.decode_s.sum()) for t in tally_many(policies, trace, costs)]
        least = int(np.argmin(totals))
        found.append(Ceiling(f"threshold on {name}", label(policies[least]), totals[least]))
    return found


def plan(tape: Tape, costs: StepCosts, limits: Limits, choice: IntArray) -> None:
    """Fill choice [N, W] backwards over the positions of each request.

    least[i, lag] is the least seconds from position i to the end of the reply; a lag behind the
    last column costs as much as the last column, as in round_seconds. Ties go to the smaller gamma.
    """
    widest = choice.shape[1] - 1
    for request in range(tape.prompt_tokens.shape[0]):
        prompt = int(tape.prompt_tokens[request])
        begin, end = int(tape.offsets[request]), int(tape.offsets[request + 1])
        least = np.zeros((end - begin + 1, widest + 1))
        for i in range(end - begin - 1, -1, -1):
            bucket = bucket_of(costs, prompt + i)
            accept_len, left = int(tape.accept_len[begin + i]), end - begin - i
            room = room_at(limits, prompt, i, int(tape.draft_len[begin + i]))
            for lag in range(1, widest + 1):
                best = np.inf
                for gamma in range(room + 1):
                    accepted, emitted, _ = settle(gamma, accept_len, left)
                    lag_then = lag_after(lag, gamma, accepted, costs.reads_states)
                    lag_then = min(lag_then, widest)
                    total = round_seconds(costs, 0, bucket, gamma, lag)
                    total += least[i + emitted, lag_then]
                    if total < best:
                        best = total
                        choice[begin + i, lag] = gamma
                least[i, lag] = best
