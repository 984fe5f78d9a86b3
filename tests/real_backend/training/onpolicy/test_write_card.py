"""A card by hand: agreement by task and depth, and what training.json says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from real_backend.training.onpolicy.write_card import WriteCardOptions, by_depth, run
from tests.results import make_trace
from traces.errors import InputError
from traces.store import write_trace

TRAINING = {"tokens": 1234, "epochs": 2.0, "train_s": 120, "losses": [[25, 9.5], [50, 4.25]]}


def test_agreement_by_depth_by_hand() -> None:
    # Of five drafts three agree once, of these two twice, of these none three times.
    assert by_depth(np.asarray([0, 2, 1, 0, 2]), 4) == [3 / 5, 2 / 3, 0.0, None]


def test_the_card(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text(json.dumps(TRAINING | {"held_out_agreement": [0.5]}))
    write_trace(
        make_trace([[2, 1, 0], [1, 0]], ["1.1", "2.1"], ["qa", "rag"]), tmp_path / "t.parquet"
    )
    options = WriteCardOptions(drafter=tmp_path, trace=(tmp_path / "t.parquet",), about="A draft.")
    run(options)
    text = (tmp_path / "README.md").read_text()
    assert "1,234 tokens" in text and "loss 9.50 -> 4.25 nats" in text and "50.0 %" in text
    assert "| qa | 1 | 3 | 66.7 % | 50.0 % | 0.0 % | - | 1.00 |" in text
    assert "| all | 2 | 5 | 60.0 % | 33.3 % | 0.0 % | - | 0.80 |" in text


@pytest.mark.parametrize("content", [None, "{", "[]", json.dumps(TRAINING | {"losses": []})])
def test_training_that_cannot_be_read_is_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "training.json").write_text(content)
    with pytest.raises(InputError, match=r"training\.json cannot be read"):
        run(WriteCardOptions(drafter=tmp_path, trace=(), about="A draft."))
