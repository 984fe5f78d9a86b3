"""The control that is expected to fail: one acceptance rate for every depth and position.

Leviathan et al. (arXiv 2211.17192) expect (1 - a^(g+1)) / (1 - a) tokens per round of g drafts,
each accepted with chance a, independently. Beside it stands the replay of the same trace. Both are
priced alike, so that a difference is one of acceptance: a round of gamma costs what it costs on
average in the replay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.common.cost_sources import step_costs
from experiments.common.results import describe_inputs, read_inputs
from experiments.common.text_table import number, percent, table
from experiments.options import PublishedOptions
from experiments.published.laws import fit_alpha
from policies.fixed import Fixed
from real_backend.progress import progress
from simulator.replay.replay import replay
from simulator.replay.theory import expected_emitted
from traces.censoring.known import refuse_other_drafters
from traces.costs.pricing import StepCosts
from traces.errors import InputError
from traces.schema import Trace

FloatArray = npt.NDArray[np.float64]
MOST_GAMMA = 12


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """Fixed gamma 0..G replayed: tokens, rounds and decode seconds, all [G+1]."""

    tokens: FloatArray
    rounds: FloatArray
    seconds: FloatArray

    @property
    def tokens_per_round(self) -> FloatArray:
        return self.tokens / self.rounds

    @property
    def speedup(self) -> FloatArray:
        """[G+1] over gamma 0, token-weighted."""
        return np.asarray(self.seconds[0] / self.seconds)

    def speedup_with(self, tokens_per_round: FloatArray) -> FloatArray:
        """[G+1] the same seconds per round, but that many tokens in it."""
        return self.speedup * tokens_per_round / self.tokens_per_round


def fixed_curve(trace: Trace, costs: StepCosts, step: Callable[[], object] = lambda: None) -> Curve:
    """Replay every fixed gamma up to MOST_GAMMA or the trace's depth."""
    found = []
    for gamma in range(min(MOST_GAMMA, trace.meta.depth) + 1):
        log = replay(Fixed(gamma), trace, costs)
        found.append((log.emitted.sum(), len(log), log.elapsed_s.sum()))
        step()
    columns = np.asarray(found, dtype=np.float64).T
    return Curve(columns[0], columns[1], columns[2])


def hazards(trace: Trace, deepest: int) -> list[float]:
    """P(draft j accepted | all before it were), j = 1..deepest, over all positions that still have
    j + 1 tokens of the reply before them.
    """
    left = np.repeat(trace.offsets[1:], trace.reply_tokens) - np.arange(trace.positions)
    found = []
    for depth in range(1, deepest + 1):
        at_risk = (trace.accept_len >= depth - 1) & (left > depth)
        accepted = at_risk & (trace.accept_len >= depth)
        found.append(float(accepted.sum() / at_risk.sum()) if at_risk.any() else float("nan"))
    return found


def coin_tokens_per_round(trace: Trace, alpha: FloatArray, gamma: int) -> float:
    """Tokens per round of a fixed gamma, if request r accepts each draft with chance alpha[r]
    independently, and its reply has its own length and the room that a server gives it.

    Expected rounds of the last l tokens: N(l) = 1 + sum_n P(n accepted) N(l - n - 1).
    """
    length = trace.reply_tokens
    longest = int(length.max())
    expected = np.zeros((longest + 1, trace.requests))
    for left in range(1, longest + 1):
        room = np.clip(trace.meta.max_new_tokens - (length - left) - 1, 0, gamma)
        rounds = np.ones(trace.requests)
        for accepted in range(gamma + 1):
            full = alpha**accepted
            chance = np.where(
                accepted < room, full * (1 - alpha), np.where(accepted == room, full, 0)
            )
            rounds += chance * expected[max(0, left - accepted - 1)]
        expected[left] = rounds
    return float(length.sum() / expected[length, np.arange(trace.requests)].sum())


def rates(trace: Trace) -> tuple[FloatArray, FloatArray, FloatArray]:
    """[R] share of positions whose first draft is accepted: of the trace, of the request's task, of
    the request.
    """
    accepted = (trace.accept_len > 0).astype(np.float64)
    count = trace.reply_tokens.astype(np.float64)
    sums = np.add.reduceat(accepted, trace.offsets[:-1])
    _, task = np.unique(np.asarray(trace.category), return_inverse=True)
    by_task = np.bincount(task, sums) / np.bincount(task, count)
    return np.full(trace.requests, sums.sum() / count.sum()), by_task[task], sums / count


def study(options: PublishedOptions) -> tuple[str, dict[str, Any]]:
    """The suite: text and result."""
    if len(options.data) != 1:
        raise InputError(f"iid takes one trace, got {len(options.data)}")
    assert options.timing is not None  # the command refuses to go on without
    (trace,), timing = read_inputs(options.data, options.timing)
    refuse_other_drafters(trace, "a coin a position")
    if trace.meta.depth < 2:
        raise InputError(
            f"{options.data[0]}: depth {trace.meta.depth}; there is nothing to compare"
        )
    costs = step_costs(timing, trace)
    tasks = list(dict.fromkeys(trace.category))
    with progress((min(MOST_GAMMA, trace.meta.depth) + 1) * (1 + len(tasks)), "replay") as step:
        curve = fixed_curve(trace, costs, step)
        by_task = {
            task: _task(
                trace.select([r for r, c in enumerate(trace.category) if c == task]), costs, step
            )
            for task in tasks
        }
    lengths = range(len(curve.tokens))
    pooled, per_task, per_request = rates(trace)
    seen = {gamma: float(curve.tokens_per_round[gamma]) for gamma in lengths if gamma > 0}
    log_gamma = min(5, max(lengths))
    alphas = {
        "all positions": float(pooled[0]),
        "a log of gamma 1": fit_alpha({1: seen[1]}),
        f"a log of gamma {log_gamma}": fit_alpha({log_gamma: seen[log_gamma]}),
    }
    expected = {
        name: np.array([expected_emitted(a, gamma) for gamma in lengths])
        for name, a in alphas.items()
    }
    softer = {
        "the formula": expected["all positions"],
        "and replies end": np.array([coin_tokens_per_round(trace, pooled, g) for g in lengths]),
        "and a rate per task": np.array(
            [coin_tokens_per_round(trace, per_task, g) for g in lengths]
        ),
        "and a rate per request": np.array(
            [coin_tokens_per_round(trace, per_request, g) for g in lengths]
        ),
    }
    result = describe_inputs(trace, options.data[0].name, timing) | {
        "timing": options.timing.name,
        "alpha": alphas,
        "hazard": hazards(trace, max(lengths)),
        "tokens_per_round": curve.tokens_per_round.tolist(),
        "speedup": curve.speedup.tolist(),
        "iid_tokens_per_round": {name: e.tolist() for name, e in expected.items()},
        "iid_speedup": {name: curve.speedup_with(e).tolist() for name, e in expected.items()},
        "softened_tokens_per_round": {name: e.tolist() for name, e in softer.items()},
        "best_gamma": {name: best_gamma(curve, e) for name, e in expected.items()},
        "tasks": by_task,
    }
    return text_of(result), result


def _task(trace: Trace, costs: StepCosts, step: Callable[[], object]) -> dict[str, Any]:
    curve = fixed_curve(trace, costs, step)
    alpha = float(rates(trace)[0][0])
    tokens = np.array([expected_emitted(alpha, gamma) for gamma in range(len(curve.tokens))])
    return {
        "alpha": alpha,
        "error_at_5": float((tokens / curve.tokens_per_round)[min(5, len(tokens) - 1)] - 1),
        **best_gamma(curve, tokens),
    }


def best_gamma(curve: Curve, tokens_per_round: FloatArray) -> dict[str, Any]:
    """The gamma that this model would choose, and what the replay says of it."""
    told = curve.speedup_with(tokens_per_round)
    chosen, best = int(told.argmax()), int(curve.speedup.argmax())
    return {
        "chosen": chosen,
        "promised": float(told[chosen]),
        "replayed": float(curve.speedup[chosen]),
        "best": best,
        "best_replayed": float(curve.speedup[best]),
        "loss": float(1 - curve.speedup[chosen] / curve.speedup[best]),
    }


def text_of(result: dict[str, Any]) -> str:
    """The result for a terminal."""
    seen, speed = result["tokens_per_round"], result["speedup"]
    lengths = range(1, len(seen))
    names = list(result["alpha"])
    tokens, speeds = result["iid_tokens_per_round"], result["iid_speedup"]
    header = ["gamma", "tokens\nreplay", *(f"{n}\ni.i.d. error" for n in names)]
    body = [
        [str(g), number(seen[g], 3), *(percent(tokens[n][g] / seen[g] - 1, 1) for n in names)]
        for g in lengths
    ]
    fast = [
        [str(g), number(speed[g], 3), *(number(speeds[n][g], 3) for n in names)] for g in lengths
    ]
    soft = result["softened_tokens_per_round"]
    softened = [
        [name, *(percent(soft[name][g] / seen[g] - 1, 1) for g in lengths)] for name in soft
    ]
    choices = [
        [name, *_choice(c)] for name, c in (*result["best_gamma"].items(), *result["tasks"].items())
    ]
    alphas = ", ".join(f"{number(a, 3)} from {name}" for name, a in result["alpha"].items())
    return "\n\n".join(
        [
            f"i.i.d. acceptance against the replay of {result['trace']}: {result['requests']} "
            f"replies, {result['positions']} positions.\nalpha: {alphas}",
            table(header, [("", body)]),
            "speed-up over plain decoding, the same seconds per round:\n"
            + table(["gamma", "replay", *names], [("", fast)]),
            "P(draft j accepted | all before it were), j = 1, 2, ...:\n"
            + " ".join(number(h, 3) for h in result["hazard"]),
            "tokens per round, error by gamma, as the i.i.d. model (alpha from positions) learns:\n"
            + table(["", *map(str, lengths)], [("", softened)]),
            table(
                [
                    "gamma chosen with alpha from",
                    "chosen",
                    "promised",
                    "replayed",
                    "best",
                    "replayed",
                    "lost",
                ],
                [("", choices)],
            ),
        ]
    )


def _choice(c: dict[str, Any]) -> list[str]:
    return [
        str(c["chosen"]), number(c["promised"], 3), number(c["replayed"], 3),
        str(c["best"]), number(c["best_replayed"], 3), percent(c["loss"], 1),
    ]  # fmt: skip
