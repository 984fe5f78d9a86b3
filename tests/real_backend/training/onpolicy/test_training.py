"""From what a target says itself to drafters that load: rows by hand, resumed runs, and the whole
way on a tiny target.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from real_backend.load_pair import load_pair
from real_backend.pair_spec import resolve_pair
from real_backend.training.onpolicy import train_draft, train_eagle3, write_text
from real_backend.training.onpolicy.text import OwnText
from real_backend.training.onpolicy.write_text import ASKED, GIVEN, GREEDY, SAMPLED, Frame, Speaker
from tests.specimens import save_llama, save_tokenizer
from traces.errors import InputError

LAYERS, ROWS, WIDTH, END = 7, 4, 48, 1
TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}{{ ' <u> ' if m['role'] == 'user' else ' <a> ' }}"
    "{{ m['content'] + ' </s>' }}{% endfor %}{% if add_generation_prompt %}{{ ' <a>' }}{% endif %}"
)


class Words:
    """A tokenizer that reads nothing: every opening is one token."""

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [90] if text else []}


def said(speaker: Speaker, tokens: Sequence[int]) -> list[tuple[int, int]]:
    """What a row holds after the model would have said these."""
    for token in tokens:
        speaker.take(token, frozenset([END]))
    return list(zip(speaker.ids, speaker.whose, strict=True))


def test_a_row_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_text, "FREE_SHARE", 0.0)
    frame = Frame([70, 71], [END, 80], [END, 81])
    speaker = Speaker(frame, Words(), Random(0), SAMPLED, 3)
    # Head and opening are given whatever the model says; then it asks 5, 6 and ends; is given what
    # leads to an answer; answers 7 and ends, which is learnt; is asked again.
    row = said(speaker, [9, 9, 9, 5, 6, END, 9, 7, END, 9, 9, 8])
    assert row == [
        (70, GIVEN), (71, GIVEN), (90, GIVEN), (5, ASKED), (6, ASKED), (END, GIVEN), (80, GIVEN),
        (7, SAMPLED), (END, SAMPLED), (81, GIVEN), (90, GIVEN), (8, ASKED),
    ]  # fmt: skip


def test_an_answer_that_does_not_end_is_cut() -> None:
    speaker = Speaker(Frame([], [80], [81]), Words(), Random(0), GREEDY, 2)
    speaker.given.clear()
    speaker.left = 0
    row = said(speaker, [9, 5, 6, 7])
    assert row == [(80, GIVEN), (5, GREEDY), (6, GREEDY), (81, GIVEN)]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talking") / "target"
    save_llama(folder, seed=7, num_hidden_layers=LAYERS, num_key_value_heads=2)
    save_tokenizer(folder, 60, TEMPLATE)
    return folder


def write(target: Path, out: Path, tokens: float, **changes: Any) -> Path:
    options = {"rows": ROWS, "row_tokens": WIDTH, "answer_tokens": 12, "dtype": "float32"}
    write_text.run(
        write_text.WriteTextOptions(out=out, target=str(target), tokens=tokens, **options | changes)
    )
    return out


@pytest.fixture(scope="module")
def text(target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(target, tmp_path_factory.mktemp("text"), 150)


def test_text_goes_on_where_it_stood_and_is_the_targets(
    target: Path, text: Path, tmp_path: Path
) -> None:
    write(target, tmp_path, 1)
    assert len(list(tmp_path.iterdir())) == 1 < len(list(text.iterdir()))
    write(target, tmp_path, 150)
    for path in sorted(text.iterdir()):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
    chunk = load_file(text / "00000.safetensors")
    ids, whose = chunk["ids"].long(), chunk["whose"]
    assert ids.shape == whose.shape == (ROWS, WIDTH) and set(whose.unique().tolist()) >= {
        GIVEN,
        ASKED,
    }
    assert not (whose[0] == SAMPLED).any() and not (whose[1] == GREEDY).any()
    spec = resolve_pair(None, str(target), "lookup")
    module = load_pair(spec, device="cpu", threads=1, lean=False).target.module
    with torch.no_grad():
        told = module(ids, output_hidden_states=True)
    states = torch.cat([told.hidden_states[k] for k in (2, 3, 4)], -1)
    torch.testing.assert_close(chunk["states"], states.bfloat16(), rtol=2e-2, atol=2e-2)
    logs = told.logits.log_softmax(-1).gather(-1, chunk["likeliest"].long())
    torch.testing.assert_close(chunk["logs"].float(), logs, rtol=2e-3, atol=2e-3)
    greedy = whose[:, 1:] == GREEDY
    assert greedy.any()
    assert (told.logits.argmax(-1)[:, :-1] == ids[:, 1:])[greedy].float().mean() > 0.98


def test_chunks_of_other_options_or_cut_ones_are_not_gone_on_from(
    target: Path, text: Path, tmp_path: Path
) -> None:
    shutil.copytree(text, tmp_path / "text")
    with pytest.raises(InputError, match="written with seed 0, now 1; choose another --out"):
        write(target, tmp_path / "text", 150, seed=1)
    first = tmp_path / "text" / "00000.safetensors"
    first.write_bytes(first.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"00000.safetensors: no chunk of write_text .*remove it"):
        write(target, tmp_path / "text", 150)
    save_file(load_file(text / "00000.safetensors"), first)
    with pytest.raises(InputError, match="written with seed None, now 0"):
        write(target, tmp_path / "text", 150)


@pytest.mark.parametrize("damage", ["none", "cut", "few"])
def test_text_that_cannot_be_read_is_one_line(text: Path, tmp_path: Path, damage: str) -> None:
    if damage == "cut":
        whole = (text / "00000.safetensors").read_bytes()
        (tmp_path / "00000.safetensors").write_bytes(whole[: len(whole) // 2])
    folder, told = (text, "holds") if damage == "few" else (tmp_path, "holds 0 tokens")
    with pytest.raises(InputError, match="no chunk of write_text" if damage == "cut" else told):
        OwnText([folder], 1e9, 0)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder of chunks"):
        OwnText([tmp_path / "nowhere"], 1, 0)


def test_every_epoch_reads_every_row_once_in_its_own_order(text: Path) -> None:
    own = OwnText([text], 150, 0)
    rows = [
        tuple(own.batch(step, 2, states=False).ids.flatten().tolist()) for step in range(len(own))
    ]
    half = len(own) // 2
    assert rows[:half] != rows[half:]
    halves = [
        torch.tensor(part).view(len(own), WIDTH).sort(0).values
        for part in (rows[:half], rows[half:])
    ]
    assert torch.equal(*halves)


@pytest.mark.slow
def test_a_head_and_a_draft_load_and_have_the_same_bytes_again(
    target: Path, text: Path, tmp_path: Path
) -> None:
    shared: dict[str, Any] = {
        "text": (text,), "held_out": text, "target": str(target), "tokens": 150, "rows": 2,
    }  # fmt: skip
    for module, cls, extra in (
        (train_eagle3, train_eagle3.TrainEagle3Options, {"vocab": 40, "steps": 2}),
        (train_draft, train_draft.TrainDraftOptions, {"hidden": 32, "inner": 32, "layers": 1}),
    ):
        name = module.__name__.rpartition("_")[2]
        options = cls(out=tmp_path / name, epochs=6, checkpoint_s=0.0, **shared | extra)
        module.run(options)
        (checkpoint,) = options.folder.glob("*.safetensors")
        pair = load_pair(resolve_pair(None, str(target), str(options.out)), device="cpu", threads=1)
        assert pair.drafter.kind == {"eagle3": "eagle3", "draft": "model"}[name]
        first = (options.out / "model.safetensors").read_bytes()
        checkpoint.unlink()
        module.run(options)
        assert (options.out / "model.safetensors").read_bytes() == first
