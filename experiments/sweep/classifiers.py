"""Weights of the trained controllers (disco, specdec++, speckv), fitted to a trace.

A trace knows the fate of every draft that could have been made, so the training data are all of
them: every position counts as the start of a round. In play rounds start only behind the last one's
tokens, more often right after a rejection than inside an accepted run, and long drafts are cut by
the controller itself. Deep tokens of easy stretches therefore weigh more here than in play; a token
is seen once from each start before it, so the rows are far from independent.

`gammalab studies classifiers` prints the weights that are the controllers' defaults.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from experiments.studies import ClassifiersOptions
from policies.base import Draft, Policy, field_values
from policies.confidence import speckv
from policies.confidence.classifiers import WEIGHTS, Disco, SpecDecPlusPlus, features
from real_backend.command_line import Result
from traces.errors import InputError
from traces.schema import Trace, refuse_censored
from traces.split import split_rows
from traces.store import read_trace

FloatArray = npt.NDArray[np.float64]
P = TypeVar("P", bound=Policy)

RIDGE = 1e-6
MISMATCH_WEIGHT = 6.0
_STEPS = 100


class Examples(NamedTuple):
    """M observations of F features. inputs [M, 1 + F], a column of ones first; labels [M], 0..1."""

    inputs: FloatArray
    labels: FloatArray


def fit_disco(trace: Trace) -> Disco:
    """Disco with the weights that make the trace's drafted tokens most likely."""
    return _with_weights(Disco(), WEIGHTS, fit_logistic(*judged_tokens(trace)))


def fit_specdec(trace: Trace, mismatch_weight: float = MISMATCH_WEIGHT) -> SpecDecPlusPlus:
    """SpecDec++ with weights fitted like Disco's, but every rejected token counts for several."""
    tokens = judged_tokens(trace)
    weights = np.where(tokens.labels > 0.0, 1.0, mismatch_weight)
    return _with_weights(SpecDecPlusPlus(), WEIGHTS, fit_logistic(*tokens, weights))


def fit_speckv(trace: Trace) -> speckv.SpecKV:
    """SpecKV with a regression of the share accepted on the signals of the round before."""
    weights = fit_logistic(*consecutive_rounds(trace))
    return _with_weights(speckv.SpecKV(), speckv.WEIGHTS, weights)


FITS: dict[str, Callable[[Trace], Policy]] = {
    Disco.name: fit_disco,
    SpecDecPlusPlus.name: fit_specdec,
    speckv.SpecKV.name: fit_speckv,
}
"""Trainers of controllers on a trace, by name."""


def _with_weights(policy: P, names: Sequence[str], weights: FloatArray) -> P:
    return dataclasses.replace(policy, **dict(zip(names, weights.tolist(), strict=True)))


def _remaining(trace: Trace) -> npt.NDArray[np.int64]:
    """[N] tokens left of the reply at each position, its own included."""
    return np.repeat(trace.offsets[1:], trace.reply_tokens) - np.arange(trace.positions)


def _signals(trace: Trace) -> tuple[FloatArray, FloatArray]:
    """top1_prob and entropy [N, G]; InputError if the trace cannot train a controller."""
    refuse_censored(trace, "training a controller")
    if trace.top1_prob is None or trace.entropy is None:
        raise InputError("training a controller needs a trace with top1_prob and entropy")
    return trace.top1_prob.astype(np.float64), trace.entropy.astype(np.float64)


def judged_tokens(trace: Trace) -> Examples:
    """Every drafted token from every position, up to and including the first rejected one.

    What lies behind the end of a reply was never judged and is left out. Inputs are the features
    that the policies compute at draft time, by their own function.
    """
    top1, entropy = _signals(trace)
    depth, accepted = np.arange(trace.meta.depth), trace.accept_len[:, None]
    offered = np.minimum(_remaining(trace), trace.offered)
    judged = (depth <= accepted) & (depth < offered[:, None])
    drafted = np.broadcast_to(depth + 1, judged.shape)[judged]
    signals = zip(drafted.tolist(), top1[judged].tolist(), entropy[judged].tolist(), strict=True)
    rows = np.array([(1.0, *features(Draft(*one))) for one in signals])
    return Examples(rows, (depth < accepted)[judged].astype(np.float64))


def consecutive_rounds(trace: Trace) -> Examples:
    """From every position a round of each length, behind it one of each length.

    Inputs: the first round's mean and maximum entropy, mean and minimum top-1 probability, and the
    second's gamma. Labels: the share of the second's drafts that was accepted. Second rounds that
    the end of the reply leaves unjudged are left out.
    """
    top1, entropy = _signals(trace)
    remaining, start = _remaining(trace), np.arange(trace.positions)
    inputs, labels = [], []
    for last in speckv.GAMMAS:
        after = start + np.minimum(last, trace.accept_len) + 1
        first = start[(after < start + remaining) & (trace.offered >= last)]
        second = after[first]
        seen = (
            entropy[first, :last].mean(axis=1),
            entropy[first, :last].max(axis=1),
            top1[first, :last].mean(axis=1),
            top1[first, :last].min(axis=1),
        )
        run = trace.accept_len[second]
        for gamma in speckv.GAMMAS:
            judged = (run >= gamma) | (run < remaining[second])
            judged &= trace.offered[second] >= gamma
            columns = (np.ones(len(run)), *seen, np.full(len(run), float(gamma)))
            inputs.append(np.stack(columns, axis=1)[judged])
            labels.append(np.minimum(run, gamma)[judged] / gamma)
    return Examples(np.concatenate(inputs), np.concatenate(labels))


def fit_logistic(
    inputs: FloatArray,
    labels: FloatArray,
    weights: FloatArray | None = None,
    ridge: float = RIDGE,
) -> FloatArray:
    """Coefficients [1 + F] of a logistic regression, by Newton's method with halved steps.

    inputs [M, 1 + F], a column of ones first; labels [M] in 0..1, shares allowed; weights [M].
    ridge / 2 times the squared coefficients, but that of the ones, is added to the log loss, so
    that useless columns get 0. Raises InputError if the labels do not differ.
    """
    if len(labels) == 0 or float(labels.min()) == float(labels.max()):
        raise InputError("the trace holds no rejected or no accepted draft: nothing to learn from")
    counts = np.ones(len(labels)) if weights is None else weights
    penalty = np.full(inputs.shape[1], ridge)
    penalty[0] = 0.0

    def loss(coefficients: FloatArray) -> float:
        odds = inputs @ coefficients
        misses = counts @ (np.logaddexp(0.0, odds) - labels * odds)
        return float(misses + 0.5 * penalty @ coefficients**2)

    found = np.zeros(inputs.shape[1])
    for _ in range(_STEPS):
        odds = inputs @ found
        chance = np.exp(odds - np.logaddexp(0.0, odds))
        gradient = inputs.T @ (counts * (chance - labels)) + penalty * found
        curvature = (inputs.T * (counts * chance * (1.0 - chance))) @ inputs + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        here, size = loss(found), 1.0
        while size > 1e-6 and loss(found - size * step) > here:
            size /= 2.0
        found = found - size * step
        if float(gradient @ step) < 1e-10 * max(1.0, here):  # what is left to gain, before the step
            return found
    raise InputError("the weights did not settle: signals and acceptance of the trace are odd")


def run(options: ClassifiersOptions) -> Result:
    """`gammalab studies classifiers`: the weights fitted to the tuning half of a trace."""
    trace = read_trace(options.trace)
    train, lines = trace.select(split_rows(trace)[0]), []
    for name, fit in FITS.items():
        lines.append(name)
        for field, value in field_values(fit(train)).items():
            if field == "bias" or field.startswith("w_"):
                lines.append(f"    {field}: float = hyper({value:.4f}, WEIGHT, _TRAINED)")
    return Result("\n".join(lines))
