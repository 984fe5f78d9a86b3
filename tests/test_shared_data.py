"""Other people's files, where they are at hand: ../shared/data beside the checkout."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from experiments.common.cost_sources import REACHED
from experiments.published.layers import COLUMNS, LAYER_WEIGHTS, read_layers
from experiments.published.table import read_csv
from real_backend.prompts import read_questions
from traces.costs.roofline import Roofline

LAYERS = Path(__file__).parents[2] / "shared" / "data" / "vidur"
LAYERS /= "linear_layer_latency_compact.csv"
QUESTIONS = Path(__file__).parents[2] / "shared" / "data" / "spec_bench" / "question.jsonl"


@pytest.mark.skipif(
    not QUESTIONS.exists(), reason="no Spec-Bench question file beside the checkout"
)
def test_spec_bench_questions_work_as_they_are() -> None:
    questions = read_questions(QUESTIONS)
    tasks = Counter(question.task for question in questions)
    assert len(questions) == 480 and set(tasks.values()) == {80}
    assert set(tasks) == {
        "conversation", "translation", "summarization", "qa", "math_reasoning", "rag",
    }  # fmt: skip
    assert all(len(q.turns) == 2 for q in questions if q.task == "conversation")


@pytest.mark.skipif(not LAYERS.exists(), reason="no measured layers beside the checkout")
@pytest.mark.parametrize("gpu", REACHED)
def test_rooflines_of_the_serving_pages_against_measured_layers(gpu: str) -> None:
    """Linear layers of 7 and 8 B models on one device, from 1 token to 512: what a roofline of the
    rates in experiments.common.cost_sources says of them. The rates are fits to one model each; the
    bounds are what a page of rounded ratios can bear.
    """
    bytes_per_s, flops_per_s, knee_tokens = REACHED[gpu]
    errors = []
    for layer in read_layers(read_csv([LAYERS], COLUMNS)):
        weights = LAYER_WEIGHTS[layer.model]
        if layer.gpu != gpu or layer.tp != 1 or not 1.5e8 < weights < 3e8:
            continue
        model = Roofline(
            2.0 * weights, 2.0 * weights, 0.0, 0.0, bytes_per_s, flops_per_s,
            knee_tokens=knee_tokens,
        )  # fmt: skip
        kept = layer.tokens <= 512
        told = np.asarray([model.verify_s(n, 1, 0) for n in layer.tokens[kept]])
        errors.append(told / layer.seconds[kept] - 1)
    found = np.abs(np.concatenate(errors))
    print(f"{gpu}: median {np.median(found):.1%}, 90 % {np.quantile(found, 0.9):.1%}")
    assert np.median(found) < 0.1 and np.quantile(found, 0.9) < 0.3
