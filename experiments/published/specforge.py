"""SpecForge's chains, k = 3, 5 and 7 drafted tokens: what k = 5 gives, predicted from the others.

The table holds means per run, no rounds. With S_j = P(at least j drafted tokens are accepted),
tokens per round at k are E_k = 1 + S_1 + ... + S_k, so two published values fix two sums:
S_1 + S_2 + S_3 and S_4 + ... + S_7. What S_4 + S_5 is follows only with a law of two parameters, or
as bounds, since S never rises. The seconds of a round are batch * E_k / throughput, and affine in k
between the two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common.text_table import number, percent, table
from experiments.options import PublishedOptions
from experiments.published.laws import LAWS, MAIN_LAW, fit_alpha, fit_survival
from experiments.published.table import (
    CsvRow,
    Errors,
    FloatArray,
    error_table,
    errors,
    errors_by,
    read_csv,
    relative,
)
from simulator.replay.theory import expected_emitted
from traces.errors import InputError

STEPS = (3, 5, 7)
COLUMNS = (
    *("model", "dataset", "batch_size", "draft", "steps", "topk"),
    *("accept_length", "output_throughput", "speedup"),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Chains:
    """n series that were published at every k; arrays [n, 3] in the order of STEPS.

    model, dataset, draft, batch: of each series.
    accept_length: tokens per round.
    throughput, speedup: tokens/s of the whole batch, and over no speculation.
    incomplete, other_rows: series that lack a k; rows that are no chains.
    """

    model: tuple[str, ...]
    dataset: tuple[str, ...]
    draft: tuple[str, ...]
    batch: tuple[int, ...]
    accept_length: FloatArray
    throughput: FloatArray
    speedup: FloatArray
    incomplete: int
    other_rows: int

    @property
    def round_s(self) -> FloatArray:
        """[n, 3] seconds of a round of the batch."""
        return np.asarray(self.batch)[:, None] * self.accept_length / self.throughput


def read_chains(rows: Sequence[CsvRow]) -> Chains:
    """The chains (topk 1) among the rows; trees and other k are counted and left out.

    Names are compared by letters and digits only, since the public table breaks one of them.
    """
    series: dict[tuple[str, ...], dict[int, tuple[float, float, float]]] = {}
    shown: dict[tuple[str, ...], tuple[str, str, str, int]] = {}
    other = 0
    for row in rows:
        steps, batch = row.count("steps"), row.count("batch_size")
        if row.count("topk") != 1 or steps not in STEPS:
            other += 1
            continue
        names = [row.text(column) for column in ("model", "dataset", "draft")]
        key = (*("".join(filter(str.isalnum, n)).casefold() for n in names), str(batch))
        if steps in series.setdefault(key, {}):
            raise row.bad("steps", f"is {steps} again for the same model, dataset, draft and batch")
        series[key][steps] = _measured(row, steps)
        shown.setdefault(key, (names[0], names[1], names[2], batch))
    whole = [key for key, points in series.items() if len(points) == len(STEPS)]
    if not whole:
        raise InputError(f"{rows[0].path}: no chain was published at k = 3, 5 and 7 alike")
    values = np.array([[series[key][k] for k in STEPS] for key in whole])
    model, dataset, draft, batches = zip(*(shown[key] for key in whole), strict=True)
    return Chains(
        model, dataset, draft, batches,
        accept_length=values[:, :, 0], throughput=values[:, :, 1], speedup=values[:, :, 2],
        incomplete=len(series) - len(whole), other_rows=other,
    )  # fmt: skip


def _measured(row: CsvRow, steps: int) -> tuple[float, float, float]:
    accept_length, throughput = row.number("accept_length"), row.number("output_throughput")
    if not 1 <= accept_length <= steps + 1:
        raise row.bad(
            "accept_length", f"holds {accept_length:g}; {steps} steps give 1..{steps + 1}"
        )
    return accept_length, throughput, row.number("speedup")


def predict_tokens(chains: Chains) -> dict[str, FloatArray]:
    """[n] tokens per round at k = 5 by every law, fitted at k = 3 and 7, and by i.i.d. alphas."""
    ends = chains.accept_length[:, [0, 2]].tolist()
    found = {
        name: np.array([1 + fit_survival(name, *pair)[:5].sum() for pair in ends]) for name in LAWS
    }
    for name, alphas in iid_alphas(chains).items():
        found[name] = np.array([expected_emitted(a, 5) for a in alphas])
    return found


def iid_alphas(chains: Chains) -> dict[str, list[float]]:
    """The i.i.d. control fitted at k = 3, at k = 7, and at both."""
    ends = chains.accept_length[:, [0, 2]].tolist()
    return {
        "iid at 3": [fit_alpha({3: e3}) for e3, _ in ends],
        "iid at 7": [fit_alpha({7: e7}) for _, e7 in ends],
        "iid at both": [fit_alpha({3: e3, 7: e7}) for e3, e7 in ends],
    }


def bounds_at_5(chains: Chains) -> tuple[FloatArray, FloatArray]:
    """[n] lowest and highest E_5 that any law allows, given E_3 and E_7: S never rises, so
    S_4 + S_5 is at least half of S_4 + ... + S_7, at most all of it, and at most 2 S_3.
    """
    at_3, at_7 = chains.accept_length[:, 0], chains.accept_length[:, 2]
    late = at_7 - at_3
    return at_3 + late / 2, at_3 + np.minimum(late, 2 * (at_3 - 1) / 3)


def predict_speedup(chains: Chains, tokens: FloatArray) -> FloatArray:
    """[n] speed-up at k = 5 with `tokens` per round, its seconds half way between k = 3 and 7."""
    middle_s = (chains.round_s[:, 0] + chains.round_s[:, 2]) / 2
    baseline = chains.throughput[:, 0] / chains.speedup[:, 0]
    return np.asarray(chains.batch) * tokens / middle_s / baseline


@dataclasses.dataclass(frozen=True)
class Choice:
    """Taking the fastest of k = 3, 5, 7 by predicted speed-ups: how often right, and what the wrong
    choices cost, as a share of the published best.
    """

    right: int
    mean_loss: float
    largest_loss: float


def choose(chains: Chains, predicted: FloatArray) -> Choice:
    """predicted: [n, 3] speed-ups."""
    rows = np.arange(len(predicted))
    best = chains.speedup.max(axis=1)
    loss = 1 - chains.speedup[rows, predicted.argmax(axis=1)] / best
    return Choice(int((loss == 0).sum()), float(loss.mean()), float(loss.max()))


def iid_speedups(chains: Chains, alphas: Sequence[float]) -> FloatArray:
    """[n, 3] what an i.i.d. planner expects; seconds of a round as in `predict_speedup`."""
    tokens = np.array([[expected_emitted(a, k) for k in STEPS] for a in alphas])
    ratio = tokens / chains.accept_length  # the published rounds at k = 3 and 7, other tokens
    expected = chains.speedup * ratio
    expected[:, 1] = predict_speedup(chains, tokens[:, 1])
    return expected


def study(options: PublishedOptions) -> tuple[str, dict[str, Any]]:
    """The suite: text and result."""
    chains = read_chains(read_csv(options.data, COLUMNS))
    tokens = predict_tokens(chains)
    speedups = {name: predict_speedup(chains, values) for name, values in tokens.items()}
    at_5, fast_5 = chains.accept_length[:, 1], chains.speedup[:, 1]
    token_error = {name: relative(values, at_5) for name, values in tokens.items()}
    speed_error = {name: relative(values, fast_5) for name, values in speedups.items()}
    groups = {"model": chains.model, "dataset": chains.dataset, "batch": chains.batch}
    result: dict[str, Any] = {
        "series": len(at_5),
        "incomplete_series": chains.incomplete,
        "other_rows": chains.other_rows,
        "main_law": MAIN_LAW,
        "accept_length": {name: errors(signed) for name, signed in token_error.items()},
        "speedup": {name: errors(signed) for name, signed in speed_error.items()},
        "speedup_if_published_tokens": errors(relative(predict_speedup(chains, at_5), fast_5)),
        # With the published seconds of a round, a speed-up is wrong by as much as its tokens.
        "speedup_if_published_seconds": errors(token_error[MAIN_LAW]),
        "bounds": bounds_dict(chains),
        "by": {
            by: {
                "accept_length": errors_by(token_error[MAIN_LAW], names),
                "speedup": errors_by(speed_error[MAIN_LAW], names),
                "iid_accept_length": errors_by(token_error["iid at 3"], names),
            }
            for by, names in groups.items()
        },
        **control_dict(chains),
        "rows": _series(chains, tokens[MAIN_LAW], speedups[MAIN_LAW]),
    }
    middle = np.column_stack([chains.speedup[:, 0], speedups[MAIN_LAW], chains.speedup[:, 2]])
    result["fastest_k"] = {MAIN_LAW: choose(chains, middle), **result["fastest_k"]}
    return text_of(result), result


def bounds_dict(chains: Chains) -> dict[str, Any]:
    """How many published values lie in the interval of `bounds_at_5`, and its median width."""
    low, high = bounds_at_5(chains)
    at_5, slack = chains.accept_length[:, 1], 1e-9
    inside = (at_5 >= low - slack) & (at_5 <= high + slack)
    return {"inside": int(inside.sum()), "width": float(np.median((high - low) / at_5))}


def control_dict(chains: Chains) -> dict[str, Any]:
    """Where one acceptance rate for every depth goes wrong, beyond the prediction of k = 5."""
    alphas = iid_alphas(chains)

    def beyond(fit: str, column: int) -> Errors:
        told = np.array([expected_emitted(a, STEPS[column]) for a in alphas[fit]])
        return errors(relative(told, chains.accept_length[:, column]))

    pairs = zip(alphas["iid at 3"], alphas["iid at 7"], strict=True)
    return {
        "acceptance_falls_with_depth": sum(at_7 < at_3 for at_3, at_7 in pairs),
        "iid_beyond": {
            "k = 7 from k = 3": beyond("iid at 3", 2),
            "k = 3 from k = 7": beyond("iid at 7", 0),
        },
        "fastest_k": {fit: choose(chains, iid_speedups(chains, a)) for fit, a in alphas.items()},
    }


def _series(chains: Chains, tokens: FloatArray, speedups: FloatArray) -> list[dict[str, Any]]:
    return [
        {
            **{name: getattr(chains, name)[n] for name in ("model", "dataset", "draft", "batch")},
            "accept_length": chains.accept_length[n].tolist(),
            "accept_length_predicted": float(tokens[n]),
            "speedup": chains.speedup[n].tolist(),
            "speedup_predicted": float(speedups[n]),
        }
        for n in range(len(tokens))
    ]


def text_of(result: dict[str, Any]) -> str:
    """The result for a terminal."""
    rows, count, bounds = result["rows"], result["series"], result["bounds"]
    spread = sorted(rows, key=lambda r: abs(r["speedup_predicted"] / r["speedup"][1] - 1))
    picked = [spread[round(q * (count - 1) / 7)] for q in range(8)] if count > 8 else spread
    examples = [
        [r["model"][:28], r["dataset"], str(r["batch"]),
         number(r["accept_length"][1]), number(r["accept_length_predicted"]),
         number(r["speedup"][1]), number(r["speedup_predicted"]),
         percent(r["speedup_predicted"] / r["speedup"][1] - 1, 1)]
        for r in picked
    ]  # fmt: skip
    parts: dict[str, Errors] = {
        "as predicted": result["speedup"][MAIN_LAW],
        "published tokens, our seconds": result["speedup_if_published_tokens"],
        "our tokens, published seconds": result["speedup_if_published_seconds"],
    }
    choices = [
        [name, f"{c.right} of {count}", percent(c.mean_loss, 1), percent(c.largest_loss, 1)]
        for name, c in result["fastest_k"].items()
    ]
    sections = [
        f"{count} chains published at k = 3, 5 and 7 ({result['incomplete_series']} incomplete, "
        f"{result['other_rows']} rows of trees or other k left out).\nPredicted: k = 5, from "
        f"k = 3 and 7 alone; law {MAIN_LAW!r} where none is named.\nError: predicted / published.",
        error_table("tokens per round, law", result["accept_length"]),
        "Every law that agrees with k = 3 and 7 lies in an interval; its width is "
        f"{percent(bounds['width'], 1)} of the value\n(median); {bounds['inside']} of {count} "
        "published values lie in theirs.",
        error_table("speed-up, law", result["speedup"]),
        error_table("speed-up, where the error is", parts),
        *(
            error_table(f"{what} by {by}", result["by"][by][key])
            for by in result["by"]
            for what, key in (("tokens per round", "accept_length"), ("speed-up", "speedup"))
        ),
        "Published beside predicted, from the best to the worst speed-up in equal steps:\n"
        + table(
            ("model", "dataset", "batch", "tokens", "predicted", "speed-up", "predicted", "error"),
            [("", examples)],
            left=2,
        ),
        "Control: one acceptance rate for every depth. In "
        f"{result['acceptance_falls_with_depth']} of {count} series\nthe rate fitted at k = 7 is "
        "below the one fitted at k = 3.",
        error_table("tokens per round, i.i.d.", result["iid_beyond"]),
        error_table("i.i.d. at 3, k = 5 by model", result["by"]["model"]["iid_accept_length"]),
        error_table("i.i.d. at 3, k = 5 by dataset", result["by"]["dataset"]["iid_accept_length"]),
        table(
            ("fastest of k = 3, 5, 7, chosen by", "right", "mean loss", "largest"), [("", choices)]
        ),
    ]
    return "\n\n".join(sections)
