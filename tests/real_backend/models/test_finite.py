"""Logits that are NaN or infinite end in one line: which model, where, and what to try."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from policies.registry import parse_policy
from real_backend.decoding.engine import Engine
from real_backend.decoding.graphs import GraphSteps
from real_backend.huggingface.generate import speculate
from real_backend.load_pair import Pair, load_pair
from real_backend.models.finite import Watch
from real_backend.pair_spec import resolve_pair
from real_backend.prompts import Request
from real_backend.trees.load import steps_of
from tests.command import gammalab, refused
from tests.specimens import save_pair, write_prompts
from traces.costs.pricing import StepCosts
from traces.errors import InputError
from traces.shapes.shape import parse_draft

NAN, INF = float("nan"), float("inf")
UP, DOWN = "model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
REQUESTS = [Request(name, "", [2, 9, 30, 12 + k, 3]) for k, name in enumerate("ab")]
WAYS: dict[str, dict[str, Any]] = {
    "alone": {},
    "sampled": {"temperature": 0.7, "top_p": 0.9},
    "batch": {"batch": 2},
    "batch, sampled": {"batch": 2, "temperature": 0.7},
}

Broken = Callable[..., Path]


@pytest.fixture
def broken(tmp_path: Path) -> Broken:
    """(role, weight, value) -> a tiny pair of which one row of one weight has that value."""

    def make(role: str, weight: str, value: float) -> Path:
        folder = save_pair(tmp_path / "pair")
        file = folder / role / "model.safetensors"
        weights = load_file(file)
        weights[weight][3] = value
        save_file(weights, file, {"format": "pt"})
        return folder

    return make


def load(folder: Path, **how: Any) -> Pair:
    return load_pair(resolve_pair(str(folder), None, None), device="cpu", threads=1, **how)


@pytest.mark.parametrize("role", ["target", "draft"])
def test_the_engine_names_the_model_and_the_weight(
    broken: Broken, costs: StepCosts, role: str
) -> None:
    pair = load(broken(role, UP, NAN))
    told = f"the {role} says NaN .* its weight {UP} is not finite; try an undamaged checkpoint"
    for way in WAYS.values():
        for policy in ("fixed:gamma=3", "hf-confidence"):
            for steps in (None, GraphSteps(pair, way.get("batch", 1), 128)):
                engine = Engine(pair, costs, max_gamma=4)
                if steps is not None:
                    engine.use(steps)
                with pytest.raises(InputError, match=told):
                    engine.decode(parse_policy(policy), REQUESTS, max_new_tokens=6, **way)


@pytest.mark.parametrize("role", ["target", "draft"])
def test_trees_name_the_model_and_the_weight(broken: Broken, costs: StepCosts, role: str) -> None:
    """Before a policy could decide by NaN."""
    pair = load(broken(role, UP, NAN))
    told = f"the {role} says NaN .* its weight {UP} is not finite; try an undamaged checkpoint"
    for shape in (parse_draft("3x2x1"), parse_draft("g3x3x5"), parse_draft("g3x3")):
        for way in WAYS.values():
            for policy in ("fixed:gamma=3", "hf-confidence"):
                engine = Engine(pair, costs, max_gamma=3, make=steps_of([shape]))
                with pytest.raises(InputError, match=told):
                    engine.decode(parse_policy(policy), REQUESTS, max_new_tokens=6, **way)


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "general"])
@pytest.mark.parametrize(
    ("weight", "value", "dtype", "place"),
    [
        (DOWN, 6e4, "float16", "first at token 1 of request a, from layer 1 of 2 on; try --dtype"),
        ("model.embed_tokens.weight", INF, "float32", "at token 5 of request a, from embedding on"),
        ("lm_head.weight", INF, "float32", "first at token 1 of request a, from the head on"),
    ],
)
def test_the_place_and_the_remedy(
    broken: Broken, costs: StepCosts, lean: bool, weight: str, value: float, dtype: str, place: str
) -> None:
    """Row 3 of the embedding is read at the prompt's fifth token; the others at every token."""
    pair = load(broken("target", weight, value), lean=lean, dtype=dtype)
    with pytest.raises(InputError, match=place):
        Engine(pair, costs, max_gamma=4).decode(parse_policy("never"), REQUESTS, max_new_tokens=3)


@pytest.mark.parametrize("role", ["target", "draft"])
@pytest.mark.parametrize(
    "command",
    [
        ("capture", "--max-new-tokens", 4, "--depth", 3),
        ("capture", "--max-new-tokens", 4, "--depth", 3, "--temperature", 1, "--batch", 2),
        ("measure", "--batch", 1, "--context", 16, "--repeats", 1),
    ],
    ids=["capture", "capture sampled", "measure"],
)
def test_commands_say_so_in_one_line_and_write_nothing(
    broken: Broken, tmp_path: Path, command: tuple[Any, ...], role: str
) -> None:
    pair, out = broken(role, UP, INF), tmp_path / "out"
    prompts = ("--prompts", write_prompts(tmp_path / "p.jsonl", 2)) if "capture" in command else ()
    ran = gammalab(*command, "--pair", pair, *prompts, "--threads", 1, "--out", out)
    refused(ran, f"the {role} says NaN or infinity", UP)
    assert not out.exists()


def test_generate_refuses_what_transformers_would_write(broken: Broken) -> None:
    folder = broken("target", UP, NAN)
    target, draft = (
        AutoModelForCausalLM.from_pretrained(folder / r, dtype=torch.float32)
        for r in ("target", "draft")
    )
    with pytest.raises(InputError, match="the target says NaN"):
        target.generate(
            torch.tensor([[2, 9, 30]]), max_new_tokens=5, custom_generate=speculate(draft, "never")
        )


def test_what_is_finite_passes_and_a_failure_is_told_once() -> None:
    watch = Watch("cpu")
    logits = torch.tensor([[0.0, -INF, 2.0], [1.0, 1.0, -5.0]])
    assert watch.best(logits).tolist() == [2, 0]
    assert not watch.broken()
    watch.best(torch.tensor([[0.0, INF]]))
    assert watch.broken() and not watch.broken()
