"""Has a replay of sampled traces the law of real sampled runs? `python -m
experiments.validation.in_law`.

Under sampling the engine's output depends on what was drafted, so rounds cannot be compared one by
one. Their law can: real runs (their own draws) and replays (the traces' draws) of the same prompts
must show the same accepted lengths. Chi-square and Kolmogorov-Smirnov take rounds as independent,
which the rounds of one reply are not; the permutation test swaps whole replies between the two
sides and needs no such assumption.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from experiments.common.cost_sources import step_costs
from experiments.common.results import read_inputs
from experiments.studies import InLawOptions
from policies.registry import label, parse_policies
from real_backend.command_line import Result
from real_backend.progress import progress
from simulator.replay.replay import replay
from traces.errors import InputError
from traces.roundlog import RoundLog
from traces.split import named_generator

FloatArray = npt.NDArray[np.float64]

PERMUTATIONS = 4000
_FEW = 5  # expected rounds below which neighbouring lengths are pooled


@dataclasses.dataclass(frozen=True)
class LawCheck:
    """One policy, decoded and replayed.

    real_rounds, replayed_rounds: how many there were.
    real_mean, replayed_mean: accepted tokens of a round.
    chi_square_p, ks_p, permutation_p: p-values of "the same law".
    """

    policy: str
    real_rounds: int
    replayed_rounds: int
    real_mean: float
    replayed_mean: float
    chi_square_p: float
    ks_p: float
    permutation_p: float


def accepted_counts(logs: Sequence[RoundLog], lengths: int) -> FloatArray:
    """[U, lengths] rounds by accepted length, one row per reply of every log."""
    rows = []
    for log in logs:
        counts = np.zeros((len(log.prefill_s), lengths))
        np.add.at(counts, (log.request, log.accepted), 1.0)
        rows.append(counts)
    return np.concatenate(rows)


def pool(real: FloatArray, replayed: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Join neighbouring lengths until each side expects a few rounds of every one."""
    total = (real + replayed).sum(0)
    edges, held = [0], 0.0
    for k, rounds in enumerate(total):
        held += rounds
        if held >= 2 * _FEW:
            edges.append(k + 1)
            held = 0.0
    edges = edges[:-1] if len(edges) > 1 and held else edges  # the rest joins the last group
    starts = edges if edges[-1] < len(total) else edges[:-1]
    return np.add.reduceat(real, starts, axis=1), np.add.reduceat(replayed, starts, axis=1)


def chi_square(first: FloatArray, second: FloatArray) -> FloatArray:
    """[...] homogeneity statistic of two count vectors [..., K]."""
    total = first + second
    n, m = first.sum(-1, keepdims=True), second.sum(-1, keepdims=True)
    difference = first * np.sqrt(m / n) - second * np.sqrt(n / m)
    return np.asarray((difference**2 / np.maximum(total, 1e-12)).sum(-1))


def check_law(
    policy: str, real: Sequence[RoundLog], replayed: Sequence[RoundLog], *, seed: int = 0
) -> LawCheck:
    """Compare accepted lengths; logs of equal position hold the same prompts in the same order."""
    ours = np.concatenate([log.accepted for log in real])
    theirs = np.concatenate([log.accepted for log in replayed])
    lengths = int(max(ours.max(), theirs.max())) + 1
    sides = pool(accepted_counts(real, lengths), accepted_counts(replayed, lengths))
    observed = float(chi_square(sides[0].sum(0), sides[1].sum(0)))
    generator = named_generator(seed, "permutation")
    swap = generator.random((PERMUTATIONS, len(sides[0]))) < 0.5
    first = swap @ sides[1] + ~swap @ sides[0]
    permuted = chi_square(first, (sides[0] + sides[1]).sum(0) - first)
    return LawCheck(
        policy=policy,
        real_rounds=len(ours),
        replayed_rounds=len(theirs),
        real_mean=float(ours.mean()),
        replayed_mean=float(theirs.mean()),
        chi_square_p=float(stats.chi2.sf(observed, sides[0].shape[1] - 1)),
        ks_p=float(stats.ks_2samp(ours, theirs).pvalue),
        permutation_p=float((1 + (permuted >= observed).sum()) / (1 + PERMUTATIONS)),
    )


def text_of(checks: Sequence[LawCheck]) -> str:
    """The table, 100 columns at most."""
    lines = [
        f"{'policy':28}{'rounds real':>12}{'replayed':>10}{'mean real':>11}{'replayed':>10}"
        f"{'chi2 p':>9}{'KS p':>8}{'perm. p':>9}"
    ]
    for c in checks:
        lines.append(
            f"{c.policy:28}{c.real_rounds:12}{c.replayed_rounds:10}{c.real_mean:11.4f}"
            f"{c.replayed_mean:10.4f}{c.chi_square_p:9.3f}{c.ks_p:8.3f}{c.permutation_p:9.3f}"
        )
    return "\n".join(lines)


def check(options: InLawOptions) -> list[LawCheck]:
    """Decode every trace's prompts once more with fresh draws, per policy, and compare."""
    from real_backend.decoding.engine import Engine
    from real_backend.load_pair import pair_from
    from real_backend.prompts import questions_of, requests_of_trace

    policies = parse_policies(options.policies)
    traces, timing = read_inputs(options.trace, options.timing)
    for path, trace in zip(options.trace, traces, strict=True):
        if trace.meta.exactness != "in-law":
            raise InputError(f"{path} is {trace.meta.exactness}, not sampled; give sampled traces")
    questions = questions_of(options.pair, options.prompts)
    pair = pair_from(options.pair)
    checks = []
    with progress(len(policies) * sum(t.requests for t in traces), "in law") as step:
        for policy in policies:
            real, replayed = [], []
            for trace in traces:
                costs, meta = step_costs(timing, trace), trace.meta
                run_ = Engine(pair, costs, max_gamma=meta.depth).decode(
                    policy,
                    requests_of_trace(questions, trace, pair),
                    temperature=meta.temperature,
                    top_p=meta.top_p,
                    seed=options.seed + meta.seed,
                    max_new_tokens=meta.max_new_tokens,
                    clock="model",
                    progress=step,
                )
                real.append(run_.log)
                replayed.append(replay(policy, trace, costs))
            checks.append(check_law(label(policy), real, replayed))
    return checks


def run(options: InLawOptions) -> Result:
    """`gammalab studies in-law`."""
    return Result(text_of(check(options)))
