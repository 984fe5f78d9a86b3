"""The embedded pair's data and training script, in miniature."""

import json
from pathlib import Path
from random import Random

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from real_backend.training import copying, core, corpus, export, loop, train_pair
from real_backend.training.card import lag1_correlation, score_reply
from real_backend.training.dialogue import Dialogue

pytestmark = pytest.mark.long

MINIATURE = [
    *("--vocab=300", "--target-layers=2", "--target-hidden=96", "--draft-hidden=32"),
    *("--rows=2", "--row-tokens=64", "--target-tokens=1.6e3", "--draft-tokens=1e3"),
    *("--reply-tokens=400", "--max-new-tokens=4", "--prompts-per-task=1", "--checkpoint-s=0"),
]
PAIR = Path(train_pair.__file__).parents[1] / "pair"


@pytest.fixture(scope="module")
def small_tokenizer() -> Tokenizer:
    return train_pair.train_tokenizer(seed=0, vocab=300, dialogues=50, windows=2)


@pytest.fixture(autouse=True)
def cheap_tokenizer(monkeypatch: pytest.MonkeyPatch, small_tokenizer: Tokenizer) -> None:
    """The miniature runs differ in steps, not in their vocabulary."""
    monkeypatch.setattr(train_pair, "train_tokenizer", lambda seed, vocab: small_tokenizer)


def files_of(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if p.name != "README.md"}


@pytest.mark.slow
def test_corpus_is_a_function_of_the_seed() -> None:
    for category in corpus.CATEGORIES:
        first, again, other = (corpus.dialogue(Random(s), category) for s in (1, 1, 2))
        assert first == again != other
        assert len(first.turns) == len(first.replies) == (2 if category == "conversation" else 1)
    assert corpus.held_out_prompts(0, 2) == corpus.held_out_prompts(0, 2)


@pytest.mark.long
def test_batches_are_a_function_of_seed_and_step(small_tokenizer: Tokenizer) -> None:
    packer = core.Packer(small_tokenizer, seed=0, rows=2, length=96)
    twin = core.Packer(small_tokenizer, seed=0, rows=2, length=96)
    assert all(map(torch.equal, packer.batch(3), twin.batch(3)))
    assert not torch.equal(packer.batch(3).ids, packer.batch(4).ids)
    assert packer.batch(0).ids.shape == (2, 97)
    assert packer.batch(0).weights.shape == packer.batch(0).replies.shape == (2, 96)


def test_both_sides_of_the_split_are_disjoint() -> None:
    """One side's content keys never reach the other, and the verbatim check can fail."""
    rng = Random(0)
    for category in corpus.CATEGORIES:
        keys = [
            {key for _ in range(300) for key in corpus.dialogue(rng, category, side).keys}
            for side in (False, True)
        ]
        assert keys[0].isdisjoint(keys[1])
    prompts = corpus.held_out_prompts(0, 3)
    training = [
        text
        for _ in range(600)
        for drawn in [corpus.dialogue(rng, rng.choice(corpus.CATEGORIES))]
        for text in (*drawn.turns, *drawn.replies)
    ]
    corpus.assert_disjoint(prompts, training)
    with pytest.raises(AssertionError, match="held-out turn"):
        corpus.assert_disjoint(prompts, ["before " + prompts[0].turns[1] + " after"])


def test_any_text_round_trips(small_tokenizer: Tokenizer) -> None:
    text = "Größe 12 345\n\tx = 'naïve ☃ 日本'  \r\n"
    assert small_tokenizer.decode(small_tokenizer.encode(text).ids) == text


def test_chat_template_is_the_training_format(small_tokenizer: Tokenizer, tmp_path: Path) -> None:
    shape = core.LlamaSize(1, 32, 1, 48, 300)
    export.export(core.Llama(shape, seed=0), small_tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    drawn = corpus.dialogue(Random(0), "conversation")
    messages = [
        {"role": role, "content": content}
        for pair in zip(drawn.turns, drawn.replies, strict=True)
        for role, content in zip(("user", "assistant"), pair, strict=True)
    ]
    ids = loaded.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert ids == core.encode_dialogue(small_tokenizer, drawn)[0]
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (1, 2, 0)


class KilledError(Exception):
    """Stands for a kill in the middle of a run."""


@pytest.mark.slow
def test_killed_and_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop.Recipe, "log_steps", 1, raising=False)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_pair.main([f"--out={whole}", *MINIATURE])

    batch, calls = core.Packer.batch, {"left": 0}

    def dying(self: core.Packer, step: int, held_out: bool = False) -> core.TokenBatch:
        calls["left"] -= 1
        if calls["left"] == 0:
            raise KilledError
        return batch(self, step, held_out)

    with monkeypatch.context() as patch:
        patch.setattr(core.Packer, "batch", dying)
        for _ in range(2):  # once in the target, once in the draft
            calls["left"] = 9
            with pytest.raises(KilledError):
                train_pair.main([f"--out={broken}", *MINIATURE])
    train_pair.main([f"--out={broken}", *MINIATURE])
    assert files_of(broken) == files_of(whole)
    assert "| conversation |" in (whole / "README.md").read_text(encoding="utf-8")


def check_folder(folder: Path) -> None:
    """transformers and the training module read the same logits out of an exported folder."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([Tokenizer.from_file(str(folder / "tokenizer.json")).encode("A test.").ids])
    with torch.no_grad():
        torch.testing.assert_close(
            export.read_back(folder)(ids), network(ids).logits, rtol=1e-4, atol=1e-4
        )


def test_exported_miniature_has_equal_logits(small_tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = core.Llama(core.LlamaSize(2, 64, 2, 96, 300), seed=1)
    export.export(model, small_tokenizer, tmp_path)
    check_folder(tmp_path)


@pytest.mark.parametrize("name", ["target", "draft"])
def test_shipped_pair_has_equal_logits(name: str) -> None:
    check_folder(PAIR / name)


def test_shipped_prompts_and_size() -> None:
    lines = (PAIR / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    counts = {c: sum(row["category"] == c for row in rows) for c in corpus.CATEGORIES}
    assert min(counts.values()) >= 20 and sum(counts.values()) == len(rows) >= 120
    for row in rows:
        assert len(row["turns"]) == (2 if row["category"] == "conversation" else 1)
    assert len({turn for row in rows for turn in row["turns"]}) == sum(
        len(row["turns"]) for row in rows
    )
    assert sum(p.stat().st_size for p in PAIR.rglob("*") if p.is_file()) < 12e6


def test_scores_of_a_model_against_itself_are_one() -> None:
    model = core.Llama(core.LlamaSize(1, 32, 1, 48, 50), seed=0).requires_grad_(False)
    score = score_reply(model, model, [1, 7, 9], [4, 8, 2])
    assert score.agree == [True, True, True]
    assert score.overlap == pytest.approx(1.0, abs=1e-6)


def test_lag1_correlation_by_hand() -> None:
    assert lag1_correlation([[True, False, True, False]]) == pytest.approx(-1.0)
    assert lag1_correlation([[True, True], [False, False]]) == pytest.approx(1.0)
    assert lag1_correlation([[True]]) == 0.0


def drill_loss(model: core.Llama) -> float:
    """Mean loss in nats on the echoes of a copy drill."""
    ids, weights = core.copy_drill(Random(0), vocab=2048, size=257)
    rows, marks = torch.tensor([ids]), torch.tensor([weights[1:]])
    batch = core.TokenBatch(rows, marks, marks)
    with torch.no_grad():
        return float(core.weighted_loss(model(rows[:, :-1]), batch))


def test_planted_heads_copy_before_any_training() -> None:
    model = core.Llama(core.LlamaSize(3, 160, 5, 432, 2048), seed=0)
    before = drill_loss(model)
    copying.plant_copying(model, seed=0)
    assert before > 7.5  # log(2048) = 7.62: nothing but guessing
    assert drill_loss(model) < before - 0.7


def test_planting_needs_room() -> None:
    model = core.Llama(core.LlamaSize(1, 160, 5, 432, 300), seed=0)
    with pytest.raises(ValueError, match="2 layers"):
        copying.plant_copying(model, seed=0)


def test_copy_drill_weighs_only_echoes() -> None:
    ids, weights = core.copy_drill(Random(1), vocab=10**9, size=400)
    assert len(ids) == len(weights) == 400
    seen: set[int] = set()
    for token, weight in zip(ids, weights, strict=True):
        assert weight == float(token in seen)  # too many tokens for accidental repeats
        seen.add(token)


def test_dialogue_weights_mark_replies(small_tokenizer: Tokenizer) -> None:
    drawn = Dialogue("qa", ("ab",), ("cd",), ("k",))
    ids, weights = core.encode_dialogue(small_tokenizer, drawn)
    said = len(small_tokenizer.encode("cd").ids) + 1  # EOS is learnt like a word of the reply
    assert weights == [core.PROMPT_WEIGHT] * (len(ids) - said) + [1.0] * said
