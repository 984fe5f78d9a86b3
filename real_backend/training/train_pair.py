"""Train the embedded pair: ``python -m real_backend.training.train_pair --out DIR``.

A target and a draft Llama for speculative decoding, made on one CPU core in about an hour from text
that is generated or ships with Python (``real_backend.training.corpus``). Stages, each resumable:

1. tokenizer  byte-level BPE
2. target     next-token training from starting weights that can copy (``training.copying``)
3. draft      distillation from the exported target: Kullback-Leibler divergence to its full
              distribution, half of the dialogues with replies the target wrote itself, in the
              spirit of DistillSpec (Zhou et al. 2024, https://arxiv.org/abs/2310.08461)
4. card       held-out prompts, measured acceptance, model card

Checkpoints and replies live in ``--work``; ``--out`` receives only what is to be shipped.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional

from real_backend.command_line import Result, option, run_module
from real_backend.number_options import count, number, positive
from real_backend.options import seed_of
from real_backend.training import card, core, corpus, export, replies
from real_backend.training.copying import plant_copying
from real_backend.training.core import Llama, LlamaSize, Packer
from real_backend.training.dialogue import Dialogue
from real_backend.training.loop import Recipe, train
from traces.store import write_atomically

STAGES = ("tokenizer", "target", "draft", "card")
HEAD_SIZE = 32
DRILL_PART = 5  # a fifth of the target's steps with many copy drills, then fewer
DATA_SHARE = 0.1  # of the draft's loss: plain cross-entropy next to the divergence


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainPairOptions:
    """Every default is what the shipped pair was made with."""

    out: Path = option("folder of the pair", Path)
    work: Path | None = option(
        "folder of checkpoints (default: OUT with -work appended)", Path, None
    )
    stage: str = option("which stage", default="all", choices=(*STAGES, "all"))
    seed: int = seed_of("all draws")
    vocab: int = option("tokens of the vocabulary", count, 2048)
    target_tokens: float = option("tokens the target is trained on", positive, 3.5e6)
    target_layers: int = option("layers of the target", count, 8)
    target_hidden: int = option(f"a multiple of {HEAD_SIZE}, 96 at least", count, 160)
    target_rate: float = option("peak learning rate of the target", positive, 2e-3)
    draft_tokens: float = option("tokens the draft is trained on", positive, 1.5e6)
    draft_layers: int = option("layers of the draft", count, 1)
    draft_hidden: int = option(f"a multiple of {HEAD_SIZE}", count, 128)
    draft_rate: float = option("peak learning rate of the draft", positive, 4e-3)
    reply_tokens: float = option("tokens the target writes for the draft", positive, 6e4)
    rows: int = option("rows of a batch", count, 3)
    row_tokens: int = option("tokens of a row", count, 384)
    max_new_tokens: int = option("longest reply", count, 128)
    prompts_per_task: int = option("held-out prompts of each task", count, 25)
    checkpoint_s: float = option("seconds between checkpoints", number(0.0, above=False), 60.0)

    @property
    def folder(self) -> Path:
        """Of checkpoints and replies."""
        return self.work or self.out.with_name(self.out.name + "-work")


def train_tokenizer(seed: int, vocab: int, dialogues: int = 9000, windows: int = 300) -> Tokenizer:
    """Byte-level BPE on a sample of the training text; digits stand alone, any text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(core.SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    rng = Random(f"tokenizer {seed}")
    texts: list[str] = []
    for _ in range(dialogues):
        drawn = corpus.dialogue(rng, rng.choice(corpus.CATEGORIES))
        texts += [*drawn.turns, *drawn.replies]
    texts += [corpus.stdlib_window(rng, 4000) for _ in range(windows)]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _shape(layers: int, hidden: int, vocab: int) -> LlamaSize:
    inner = (int(2.7 * hidden) + 15) // 16 * 16
    return LlamaSize(layers, hidden, hidden // HEAD_SIZE, inner, vocab)


def _recipe(options: TrainPairOptions, tokens: float, rate: float) -> Recipe:
    steps = int(tokens / (options.rows * options.row_tokens))
    return Recipe(steps, rate, options.checkpoint_s)


def _packer(options: TrainPairOptions) -> Packer:
    tokenizer = tokenizer_of(options)
    steps = _recipe(options, options.target_tokens, options.target_rate).steps
    return Packer(tokenizer, options.seed, options.rows, options.row_tokens, steps // DRILL_PART)


def tokenizer_of(options: TrainPairOptions) -> Tokenizer:
    """The tokenizer of the work folder."""
    return Tokenizer.from_file(str(options.folder / "tokenizer.json"))


def run_tokenizer(options: TrainPairOptions) -> None:
    """Stage 1."""
    path = options.folder / "tokenizer.json"
    if not path.exists():
        tokenizer = train_tokenizer(options.seed, options.vocab)
        write_atomically(path, lambda to: tokenizer.save(str(to)))


def run_target(options: TrainPairOptions) -> None:
    """Stage 2."""
    packer = _packer(options)
    shape = _shape(options.target_layers, options.target_hidden, options.vocab)
    model = Llama(shape, options.seed)
    plant_copying(model, options.seed)

    def loss_of(step: int) -> Tensor:
        batch = packer.batch(step)
        return core.weighted_loss(model(batch.ids[:, :-1]), batch)

    recipe = _recipe(options, options.target_tokens, options.target_rate)
    train(model, loss_of, recipe, options.folder / "target.ckpt.safetensors")
    export.export(model, packer.tokenizer, options.out / "target")


class MixedPacker(Packer):
    """Half of the dialogues come from a list: those with the target's own replies."""

    own: list[Dialogue]

    def dialogue(self, rng: Random, held_out: bool) -> Dialogue:
        """The next dialogue of a row."""
        if not held_out and rng.random() < 0.5:
            return rng.choice(self.own)
        return super().dialogue(rng, held_out)


def distillation_loss(draft: Llama, target: Llama, batch: core.TokenBatch) -> Tensor:
    """Forward divergence to the target with a share of cross-entropy; nats, weighted mean."""
    ids = batch.ids[:, :-1]
    with torch.no_grad():
        target_logs = target(ids).log_softmax(-1)  # (B, T, V)
    logits = draft(ids)
    divergence = functional.kl_div(
        logits.log_softmax(-1), target_logs, reduction="none", log_target=True
    ).sum(-1)
    distilled = (divergence * batch.weights).sum() / batch.weights.sum()
    return (1 - DATA_SHARE) * distilled + DATA_SHARE * core.weighted_loss(logits, batch)


def _mixed_packer(options: TrainPairOptions) -> MixedPacker:
    """Batches of the draft; the target writes its replies first, if they are not there yet."""
    tokenizer = tokenizer_of(options)
    packer = MixedPacker(tokenizer, options.seed + 1, options.rows, options.row_tokens)
    packer.own = replies.on_policy_dialogues(
        export.load_for_generation(options.out / "target"),
        tokenizer,
        options.seed,
        int(options.reply_tokens),
        options.folder / "replies",
        options.max_new_tokens,
    )
    return packer


def run_draft(options: TrainPairOptions) -> None:
    """Stage 3."""
    packer = _mixed_packer(options)
    target = export.read_back(options.out / "target")
    draft = Llama(
        _shape(options.draft_layers, options.draft_hidden, options.vocab), options.seed + 1
    )

    def loss_of(step: int) -> Tensor:
        return distillation_loss(draft, target, packer.batch(step))

    recipe = _recipe(options, options.draft_tokens, options.draft_rate)
    train(draft, loss_of, recipe, options.folder / "draft.ckpt.safetensors")
    export.export(draft, packer.tokenizer, options.out / "draft")


def run_card(options: TrainPairOptions) -> None:
    """Stage 4."""
    prompts = corpus.held_out_prompts(options.seed, options.prompts_per_task)
    packer, mixed = _packer(options), _mixed_packer(options)
    for rows, tokens in ((packer, options.target_tokens), (mixed, options.draft_tokens)):
        steps = _recipe(options, tokens, options.target_rate).steps
        corpus.assert_disjoint(prompts, rows.training_text(steps))
    card.write_prompts(prompts, options.out / "prompts.jsonl")
    card.write_card(options, packer, prompts)


def run(options: TrainPairOptions) -> Result:
    """Run the stages asked for."""
    options.out.mkdir(parents=True, exist_ok=True)
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    stages = STAGES if options.stage == "all" else (options.stage,)
    work = {
        "tokenizer": run_tokenizer,
        "target": run_target,
        "draft": run_draft,
        "card": run_card,
    }
    for stage in stages:
        work[stage](options)
    return Result()


def main(argv: list[str] | None = None) -> int:
    """Run from the command line; the exit code."""
    return run_module("real_backend.training.train_pair", __doc__, TrainPairOptions, run, argv)


if __name__ == "__main__":
    sys.exit(main())
