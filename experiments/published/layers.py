"""Measured milliseconds of a layer's linear operators against our cost models, by token count.

Each token count is predicted from the others (leave one out): by a roofline fitted to them, by a
Table of them, and by a Table of the powers of two alone, which is how coarsely one measures. Where
shape and device are known, a roofline of the data sheet's figures stands beside, nothing fitted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from experiments.common.text_table import number, percent, table
from experiments.options import PublishedOptions
from experiments.published.table import CsvRow, Errors, FloatArray, errors, read_csv, relative
from traces.costs.roofline import roofline_s
from traces.costs.table import Table
from traces.errors import InputError
from traces.timing import OPERATIONS, Cell, Timing

COLUMNS = ("gpu", "model", "tp", "num_tokens", "linear_ms_per_layer")
RANGES = {"1..64": (1, 64), "65..512": (65, 512), "above": (513, None)}
LEAST_POINTS = 4
TILE = 128

# Weights of one layer's linear operators: attention's two projections and the feed-forward part,
# from the models' config.json.
LAYER_WEIGHTS = {
    "meta-llama_Llama-2-7b-hf": 4 * 4096**2 + 3 * 4096 * 11008,
    "meta-llama_Llama-2-70b-hf": 2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672,
    "meta-llama_Meta-Llama-3-8B": 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336,
    "microsoft_phi-2": 4 * 2560**2 + 2 * 2560 * 10240,
}
# Bytes/s and dense 16-bit operations/s of NVIDIA's data sheets (A100 80GB SXM, H100 SXM).
DATA_SHEET = {"a100": (2.039e12, 312e12), "h100": (3.35e12, 989e12)}


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One gpu, model and tensor-parallel width: n token counts, rising, and seconds [n]."""

    gpu: str
    model: str
    tp: int
    tokens: FloatArray
    seconds: FloatArray


@dataclasses.dataclass(frozen=True)
class RooflineFit:
    """Arguments of traces.costs.roofline.roofline_s, and the token count at which arithmetic takes
    over from memory.
    """

    memory_s: float
    token_s: float
    fixed_s: float
    knee_tokens: float

    def at(self, tokens: float) -> float:
        """Seconds."""
        return roofline_s(tokens, self.memory_s, self.token_s, self.fixed_s)


def read_layers(rows: Sequence[CsvRow]) -> list[Layer]:
    """The series of a file; raises InputError if a token count comes twice or a series is short."""
    series: dict[tuple[str, str, int], dict[int, float]] = {}
    for row in rows:
        key = (row.text("gpu"), row.text("model"), row.count("tp"))
        tokens = row.count("num_tokens")
        points = series.setdefault(key, {})
        if tokens in points:
            raise row.bad("num_tokens", f"is {tokens} again for the same gpu, model and tp")
        points[tokens] = row.number("linear_ms_per_layer") / 1000
    for (gpu, model, tp), points in series.items():
        if len(points) < LEAST_POINTS:
            raise InputError(
                f"{rows[0].path}: {gpu}, {model}, tp {tp} has {len(points)} token counts; leaving "
                f"one out takes {LEAST_POINTS}"
            )
    return [
        Layer(*key, np.array(sorted(p), dtype=np.float64), np.array([p[t] for t in sorted(p)]))
        for key, p in series.items()
    ]


def fit_rooflines(tokens: FloatArray, seconds: FloatArray, weight: FloatArray) -> list[RooflineFit]:
    """For every row of weight [m, n] the roofline with the least sum of squared relative errors.

    Seconds are level + token_s * max(0, tokens - knee), with level - token_s * knee = fixed_s >= 0.
    Knees tried: every token count and the middle between two; the rest is linear in closed form.
    """
    knees = np.unique(np.concatenate([tokens, (tokens[1:] + tokens[:-1]) / 2]))
    level_part = 1 / seconds
    token_part = np.maximum(0, tokens[:, None] - knees) / seconds[:, None]  # (n, knees)
    bound_part = np.maximum(tokens[:, None], knees) / seconds[:, None]
    one, total = weight @ level_part, weight.sum(axis=1)[:, None]  # (m,), (m, 1)
    one_one = (weight @ level_part**2)[:, None]
    rise, rise_rise = weight @ token_part, weight @ token_part**2  # (m, knees)
    one_rise = weight @ (level_part[:, None] * token_part)
    determinant = one_one * rise_rise - one_rise**2
    safe = np.where(determinant > 0, determinant, 1.0)
    level = (one[:, None] * rise_rise - rise * one_rise) / safe
    slope = (one_one * rise - one_rise * one[:, None]) / safe
    # Else no fixed part: seconds are token_s * max(tokens, knee).
    bare = (weight @ bound_part) / (weight @ bound_part**2)
    good = (determinant > 0) & (slope >= 0) & (level >= slope * knees)
    level, slope = np.where(good, level, bare * knees), np.where(good, slope, bare)
    lost = (
        total - 2 * (level * one[:, None] + slope * rise)
        + level**2 * one_one + 2 * level * slope * one_rise + slope**2 * rise_rise
    )  # fmt: skip
    rows, best = np.arange(len(weight)), lost.argmin(axis=1)
    chosen = zip(level[rows, best], slope[rows, best], knees[best], strict=True)
    return [RooflineFit(float(s * k), float(s), float(p - s * k), float(k)) for p, s, k in chosen]


def table_of(tokens: FloatArray, seconds: FloatArray) -> Callable[[float], float]:
    """traces.costs.table.Table of these measurements, as seconds by token count."""
    free = [Cell(name, 1, 1, 0, 0.0, 0.0, 0.0, 1) for name in OPERATIONS if name != "verify"]
    cells = [
        Cell("verify", 1, int(t), 0, float(s), float(s), float(s), 1)
        for t, s in zip(tokens, seconds, strict=True)
    ]
    model = Table(Timing({}, (*free, *cells), signal_s=0.0, control_s=0.0))
    return lambda count: model.verify_s(count, 1, 0)


def predictions(layer: Layer) -> dict[str, FloatArray]:
    """[n] seconds of every token count by each cost model, itself left out; NaN: not predicted."""
    tokens, seconds = layer.tokens, layer.seconds
    count = len(tokens)
    fits = fit_rooflines(tokens, seconds, 1 - np.eye(count))
    tables = [table_of(np.delete(tokens, i), np.delete(seconds, i)) for i in range(count)]
    powers = np.log2(tokens) % 1 == 0
    found = {
        "roofline": np.array([fit.at(t) for fit, t in zip(fits, tokens, strict=True)]),
        "table": np.array([others(float(t)) for others, t in zip(tables, tokens, strict=True)]),
    }
    if 1 < powers.sum() < count:
        sparse = table_of(tokens[powers], seconds[powers])
        found["table of powers of 2"] = np.array(
            [np.nan if known else sparse(float(t)) for t, known in zip(tokens, powers, strict=True)]
        )
    if sheet := data_sheet(layer):
        found["data sheet"] = np.array([sheet.at(float(t)) for t in tokens])
    return found


def data_sheet(layer: Layer) -> RooflineFit | None:
    """The roofline of 16-bit weights on the device's rated figures, where both are known."""
    if layer.model not in LAYER_WEIGHTS or layer.gpu not in DATA_SHEET:
        return None
    bytes_per_s, flops_per_s = DATA_SHEET[layer.gpu]
    weights = LAYER_WEIGHTS[layer.model] / layer.tp
    memory_s, token_s = 2 * weights / bytes_per_s, 2 * weights / flops_per_s
    return RooflineFit(memory_s, token_s, 0.0, memory_s / token_s)


def by_range(layers: Iterable[tuple[Layer, FloatArray]]) -> dict[str, Errors]:
    """The errors of predictions [n] over several layers, in all and by range of token counts."""
    pairs = [(layer.tokens, relative(p, layer.seconds)) for layer, p in layers]
    tokens, signed = (np.concatenate(column) for column in zip(*pairs, strict=True))
    told = np.isfinite(signed)
    parts = {"all": told} | {
        name: told & (tokens >= low) & (tokens <= (high or np.inf))
        for name, (low, high) in RANGES.items()
    }
    return {name: errors(signed[part]) for name, part in parts.items() if part.any()}


def study(options: PublishedOptions) -> tuple[str, dict[str, Any]]:
    """The suite: text and result."""
    layers = read_layers(read_csv(options.data, COLUMNS))
    told = [(layer, predictions(layer)) for layer in layers]
    groups: dict[str, list[tuple[Layer, dict[str, FloatArray]]]] = {"all": told}
    for layer, predicted in told:
        groups.setdefault(f"{layer.gpu} {layer.model}", []).append((layer, predicted))
    models = list(dict.fromkeys(name for _, predicted in told for name in predicted))
    result: dict[str, Any] = {
        "series": len(layers),
        "points": sum(len(layer.tokens) for layer in layers),
        "errors": {
            group: {
                model: by_range([(layer, p[model]) for layer, p in members if model in p])
                for model in models
                if any(model in p for _, p in members)
            }
            for group, members in groups.items()
        },
        "jumps": jumps([(layer, p["table"]) for layer, p in told]),
        "worst": {model: _worst(told, model) for model in models},
        "fits": [_fit_dict(layer) for layer in layers],
    }
    return text_of(result), result


def jumps(told: Sequence[tuple[Layer, FloatArray]]) -> dict[str, int]:
    """Large errors (above 10 %), and how many of them lie at a multiple of 128 tokens or at the
    next count measured: there a matrix product takes another tile of its rows.
    """
    found = {"large_errors": 0, "at_multiples_of_128": 0}
    for layer, predicted in told:
        at = layer.tokens % TILE == 0
        beside = at | np.concatenate([[False], at[:-1]])
        large = np.abs(relative(predicted, layer.seconds)) > 0.1
        found["large_errors"] += int(large.sum())
        found["at_multiples_of_128"] += int((large & beside).sum())
    return found


def _worst(told: Sequence[tuple[Layer, dict[str, FloatArray]]], model: str) -> dict[str, Any]:
    """The single worst prediction of a model."""
    cases = [
        (abs(float(p[model][i] / layer.seconds[i] - 1)), layer, i, float(p[model][i]))
        for layer, p in told
        if model in p
        for i in np.flatnonzero(np.isfinite(p[model])).tolist()
    ]
    _, layer, i, predicted = max(cases, key=lambda case: case[0])
    return {
        "gpu": layer.gpu, "model": layer.model, "tp": layer.tp, "tokens": int(layer.tokens[i]),
        "measured_s": float(layer.seconds[i]), "predicted_s": predicted,
    }  # fmt: skip


def _fit_dict(layer: Layer) -> dict[str, Any]:
    """The roofline fitted to all token counts; the rates it stands for where the shape is known.

    fixed_s and memory_s cannot be told apart by a series whose knee is not sharp; their sum can.
    """
    (fit,) = fit_rooflines(layer.tokens, layer.seconds, np.ones((1, len(layer.tokens))))
    weights = LAYER_WEIGHTS.get(layer.model, float("nan")) / layer.tp
    return {
        "gpu": layer.gpu, "model": layer.model, "tp": layer.tp, **dataclasses.asdict(fit),
        "bytes_per_s": 2 * weights / (fit.fixed_s + fit.memory_s),
        "flops_per_s": 2 * weights / fit.token_s if fit.token_s > 0 else float("nan"),
    }  # fmt: skip


def text_of(result: dict[str, Any]) -> str:
    """The result for a terminal."""
    ranges = ("all", "1..64", "65..512")  # the JSON has what is above, too
    header = ["", *(f"{part}\n{column}" for part in ranges for column in ("median", "90%", "max"))]
    groups = [
        (
            group,
            [
                [model, *(cell for part in ranges for cell in _cells(found.get(part)))]
                for model, found in models.items()
            ],
        )
        for group, models in result["errors"].items()
    ]
    worst = [
        [model, w["gpu"], w["model"], str(w["tp"]), str(w["tokens"]),
         number(1000 * w["measured_s"], 3), number(1000 * w["predicted_s"], 3)]
        for model, w in result["worst"].items()
    ]  # fmt: skip
    fits = [
        [f["gpu"], f["model"], str(f["tp"]), number(1000 * (f["fixed_s"] + f["memory_s"]), 3),
         number(1e6 * f["token_s"], 2), number(f["knee_tokens"], 0),
         number(f["bytes_per_s"] / 1e12), number(f["flops_per_s"] / 1e12, 0)]
        for f in result["fits"]
    ]  # fmt: skip
    return "\n\n".join(
        [
            f"{result['points']} measured token counts in {result['series']} series (gpu, model, "
            "tp); each predicted from the\nothers, 'data sheet' from none. Errors by token count:",
            table(header, groups),
            f"Errors of the table above 10 %: {result['jumps']['large_errors']}, of them at a "
            f"multiple of {TILE} tokens or the next count: "
            f"{result['jumps']['at_multiples_of_128']}.",
            "the worst prediction of each:\n"
            + table(
                ("", "gpu", "model", "tp", "tokens", "measured ms", "predicted ms"),
                [("", worst)],
                left=3,
            ),
            "the roofline of each series (TB/s: weights over the level; TFLOP/s: over the slope):\n"
            + table(
                ("gpu", "model", "tp", "level ms", "us/token", "knee", "TB/s", "TFLOP/s"),
                [("", fits)],
                left=2,
            ),
        ]
    )


def _cells(found: Errors | None) -> list[str]:
    if found is None:
        return ["-"] * 3
    return [percent(v, 1) for v in (found.median, found.p90, found.largest)]
