"""The EAGLE-3 head against a plain reading of its layout, and files that do not fit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from policies.registry import REGISTRY
from real_backend.decoding.engine import Engine
from real_backend.load_pair import load_pair
from real_backend.models.llama import NORMED
from real_backend.models.model import Model
from real_backend.pair_spec import resolve_pair
from real_backend.prompts import Request
from real_backend.recording.heads import HeadReader
from tests.real_backend.drafters.plain_eagle3 import LAYERS, Plain, pair_with
from tests.specimens import save_eagle3, save_llama, save_tokenizer
from traces.costs.pricing import StepCosts
from traces.errors import InputError

LAYOUTS: dict[str, dict[str, Any]] = {
    "safeai": {},
    "speculators": {"layout": "speculators"},
    "groups": {"num_key_value_heads": 2},
    "one key": {"layout": "speculators", "num_key_value_heads": 1},
    "wide heads": {"head_dim": 16},
    "outputs": {"eagle_aux_hidden_state_layer_ids": [1, 3, 5]},
    "inputs": {"eagle_aux_hidden_state_layer_ids": [2, 3, 6]},
    "of nvidia": {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 4, 5]}},
    "plain residual": {"layout": "speculators", "norm_before_residual": False},
    "normed residual": {"norm_before_residual": True},
    "normed output": {"layout": "speculators", "norm_output": True},
    "normed before fc": {"layout": "speculators", "norm_before_fc": True},
    "shared": {"without": ("embed_tokens.weight", "lm_head.weight", "t2d")},
    "biases": {"biases": True},
    "some biases": {"biases": True, "without": ("fc.bias", "layers.0.self_attn.o_proj.bias")},
    "far": {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "whole vocabulary": {"draft_vocab_size": 64},
}


@torch.inference_mode()
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_head_says_what_a_plain_reading_of_its_layout_says(
    deep_target: Path, tmp_path: Path, name: str
) -> None:
    """At every place of a sequence, then over three tokens from its own states."""
    folder = save_eagle3(tmp_path / "head", deep_target, **LAYOUTS[name])
    pair = pair_with(deep_target, folder)
    plain, drafter = Plain(folder, pair.target.module), pair.drafter
    ids = torch.randint(64, (1, 14), generator=torch.Generator().manual_seed(1))
    states = plain.target_states(ids[0].tolist())
    expected, _ = plain.read(plain.features(states[:-1]), ids[0, 1:])
    reader = HeadReader(drafter.head, 20, drafter.head.fuse(states[:-1]))
    assert_close(reader.read(ids[:, 1:], 0)[0], expected)

    drafted, further = plain.draft(ids[0].tolist(), 4)
    rows = drafter.rows(2, 32)
    rows.prefill(1, 0, ids[0, :11], states[:11])
    rows.verified(1, 11, states[11:13])
    own = [rows.first([(1, 11, 3)], ids[0, 11:])]
    own += [rows.further([(1, 14 + k, 1)], torch.tensor(drafted[k : k + 1])) for k in range(3)]
    assert_close(torch.cat(own), further)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert torch.equal(ours.isneginf(), theirs.isneginf())
    finite = ~ours.isneginf()
    torch.testing.assert_close(ours[finite], theirs[finite], rtol=2e-4, atol=2e-4)


@torch.inference_mode()
@pytest.mark.parametrize("lean", [True, False])
def test_the_states_kept_are_those_of_transformers(deep_target: Path, lean: bool) -> None:
    module = load_pair(resolve_pair(None, str(deep_target), "lookup"), device="cpu").target.module
    model = Model(module, lean, False)
    last = (LAYERS,) if lean else ()  # what the final norm reads, transformers does not show
    taps = (0, 1, 2, LAYERS - 1, *last, NORMED)
    model.tap(taps, "x")
    ids = torch.randint(64, (1, 11), generator=torch.Generator().manual_seed(1))
    reader = model.reader(32)
    reader.read(ids[:, :5], 0, last=1)
    first = reader.states
    reader.read(ids[:, 5:], 5)
    kept = torch.cat([first, reader.states]).view(11, len(taps), -1)
    hidden = module(ids, output_hidden_states=True).hidden_states
    for at, tap in enumerate(taps):
        said = kept[:, at]
        if tap == LAYERS:
            said = module.model.norm(said)
        torch.testing.assert_close(said, hidden[tap][0], rtol=1e-3, atol=1e-3)


# ---- bad files


def retyped(folder: Path, name: str, tensor: Tensor | None) -> None:
    """Another tensor of this name in the file, or none."""
    path = folder / "model.safetensors"
    tensors = load_file(path) | ({} if tensor is None else {name: tensor})
    save_file({k: t for k, t in tensors.items() if tensor is not None or k != name}, path)


def reset(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def only_bin(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


Q = "midlayer.self_attn.q_proj"
BAD: dict[str, tuple[Any, str]] = {
    "no fc": (lambda f: retyped(f, "fc.weight", None), r"head: no tensor fc\.weight"),
    "shape": (lambda f: retyped(f, f"{Q}.weight", torch.ones(32, 32)), r"q_proj is \[32, 32\], mu"),
    "few rows": (lambda f: retyped(f, "embed_tokens.weight", torch.ones(9, 32)), "embed_tokens is"),
    "bias": (lambda f: retyped(f, f"{Q}.bias", torch.ones(32)), r"no tensor \S+k_proj\.bias"),
    "long bias": (lambda f: retyped(f, "fc.bias", torch.ones(3)), r"fc\.bias is \[3\], must"),
    "lone bias": (lambda f: retyped(f, "lm_head.bias", torch.ones(40)), r"lm_head\.bias is not kn"),
    "unknown": (lambda f: retyped(f, "fc_norm.0.weight", torch.ones(32)), r"fc_norm\.0 is not kno"),
    "no d2t": (lambda f: retyped(f, "d2t", None), "draft_vocab_size is 40, but there is no d2t"),
    "short d2t": (lambda f: retyped(f, "d2t", torch.zeros(9)), r"d2t is \[9\], draft_vocab_size"),
    "far d2t": (lambda f: retyped(f, "d2t", torch.full((40,), 25)), "d2t must name 40 different"),
    "below d2t": (lambda f: retyped(f, "d2t", torch.full((40,), -1)), "d2t must name 40 diff"),
    "twice": (lambda f: retyped(f, "d2t", 5 - torch.arange(40)), "d2t must name 40 different"),
    "t2d": (lambda f: retyped(f, "t2d", torch.ones(64, dtype=torch.bool)), "t2d and d2t name diff"),
    "deep": (
        lambda f: reset(f, eagle_aux_hidden_state_layer_ids=[2, 3, 8]),
        r"head reads the target's layers 2, 3, 8; this target shows 0 to 7",
    ),
    "negative": (
        lambda f: reset(f, eagle_aux_hidden_state_layer_ids=[2, 3, -1]),
        r"config\.json: field eagle_aux_hidden_state_layer_ids is \[2, 3, -1\]",
    ),
    "two layers": (
        lambda f: reset(f, eagle_aux_hidden_state_layer_ids=[2, 3]),
        r"fc is \[32, 96\], must be \[32, 64\]",
    ),
    "no safetensors": (only_bin, r"head holds no \.safetensors file"),
    "cut": (cut, r"model\.safetensors cannot be read .*truncated"),
    "no JSON": (
        lambda f: (f / "config.json").write_text("{"),
        r"head/config\.json cannot be read",
    ),
    "no size": (
        lambda f: reset(f, hidden_size=None),
        r"config\.json: field hidden_size is missing",
    ),
    "odd size": (lambda f: reset(f, draft_vocab_size="40"), "draft_vocab_size is '40', must be"),
    "wide": (lambda f: reset(f, draft_vocab_size=65), "draft_vocab_size is 65, must lie between"),
    "odd heads": (lambda f: reset(f, rms_norm_eps="x"), r"config\.json: .*rms_norm_eps"),
    "rotary": (
        lambda f: reset(f, rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
        r"config\.json: silu or dynamic rotary is not supported",
    ),
    "window": (lambda f: reset(f, layer_types=["sliding_attention"]), "sliding window"),
    "no input norm": (lambda f: reset(f, norm_before_fc=True), r"there is no input_norm\.weight"),
    "parts": (lambda f: reset(f, eagle_config=[1]), "eagle_config must be objects"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line(deep_target: Path, tmp_path: Path, name: str) -> None:
    damage, told = BAD[name]
    folder = save_eagle3(tmp_path / "head", deep_target)
    damage(folder)
    with pytest.raises(InputError, match=told) as caught:
        pair_with(deep_target, folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_target_too_shallow_for_the_usual_layers(tmp_path: Path) -> None:
    save_llama(tmp_path / "target", seed=7)
    save_tokenizer(tmp_path / "target", 60)
    folder = save_eagle3(tmp_path / "head", tmp_path / "target")
    with pytest.raises(InputError, match=r"layer_ids is \[2, 1, -1\], .* a target that has 2"):
        pair_with(tmp_path / "target", folder)


def test_nan_in_a_head_is_named(deep_target: Path, tmp_path: Path, costs: StepCosts) -> None:
    folder = save_eagle3(tmp_path / "head", deep_target)
    retyped(folder, "norm.weight", torch.full((32,), math.nan))
    engine = Engine(pair_with(deep_target, folder), costs, max_gamma=4)
    with pytest.raises(InputError, match=r"the draft says NaN .* its weight norm is not finite"):
        engine.decode(REGISTRY["fixed"](), [Request("a", "", [2, 9, 4])], max_new_tokens=8)


def test_another_draft_vocabulary_is_another_head(deep_target: Path, tmp_path: Path) -> None:
    """Heads alike but for their d2t, which shifts every proposal, have other names in a trace."""
    folder = save_eagle3(tmp_path / "head", deep_target, without=("t2d",))
    before = pair_with(deep_target, folder).weights_sha256
    retyped(folder, "d2t", torch.full((40,), 7))
    assert pair_with(deep_target, folder).weights_sha256 != before
