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

import argparse
import os
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional

from real_backend.number_options import count, number, positive
from real_backend.options import add_seed
from real_backend.training import card, core, corpus, export, replies
from real_backend.training.copying import plant_copying
from real_backend.training.core import Llama, Packer, Shape
from real_backend.training.dialogue import Dialogue
from real_backend.training.loop import Recipe, train
from traces.store import write_atomically

STAGES = ("tokenizer", "target", "draft", "card")
HEAD_SIZE = 32
DRILL_PART = 5  # a fifth of the target's steps with many copy drills, then fewer
DATA_SHARE = 0.1  # of the draft's loss: plain cross-entropy next to the divergence


def arguments() -> argparse.ArgumentParser:
    """The options; every default is what the shipped pair was made with."""
    parser = argparse.ArgumentParser(
        prog="python -m real_backend.training.train_pair", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the pair")
    add("--work", type=Path, help="folder of checkpoints (default: OUT with -work appended)")
    add("--stage", choices=(*STAGES, "all"), default="all")
    add_seed(parser, "all draws")
    add("--vocab", type=count, default=2048, help="tokens of the vocabulary")
    add("--target-tokens", type=positive, default=3.5e6)
    add("--target-layers", type=count, default=8)
    add("--target-hidden", type=count, default=160, help=f"a multiple of {HEAD_SIZE}, 96 at least")
    add("--target-rate", type=positive, default=2e-3, help="peak learning rate")
    add("--draft-tokens", type=positive, default=1.5e6)
    add("--draft-layers", type=count, default=1)
    add("--draft-hidden", type=count, default=128, help=f"a multiple of {HEAD_SIZE}")
    add("--draft-rate", type=positive, default=4e-3, help="peak learning rate")
    add("--reply-tokens", type=positive, default=6e4, help="tokens the target writes for the draft")
    add("--rows", type=count, default=3, help="rows of a batch")
    add("--row-tokens", type=count, default=384, help="tokens of a row")
    add("--max-new-tokens", type=count, default=128, help="longest reply")
    add("--prompts-per-task", type=count, default=25, help="held-out prompts of each task")
    add(
        "--checkpoint-s",
        type=number(0.0, above=False),
        default=60.0,
        help="seconds between checkpoints",
    )
    return parser


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


def _shape(layers: int, hidden: int, vocab: int) -> Shape:
    inner = (int(2.7 * hidden) + 15) // 16 * 16
    return Shape(layers, hidden, hidden // HEAD_SIZE, inner, vocab)


def _recipe(options: argparse.Namespace, tokens: float, rate: float) -> Recipe:
    steps = int(tokens / (options.rows * options.row_tokens))
    return Recipe(steps, rate, options.checkpoint_s)


def _packer(options: argparse.Namespace) -> Packer:
    tokenizer = tokenizer_of(options)
    steps = _recipe(options, options.target_tokens, options.target_rate).steps
    return Packer(tokenizer, options.seed, options.rows, options.row_tokens, steps // DRILL_PART)


def tokenizer_of(options: argparse.Namespace) -> Tokenizer:
    """The tokenizer of the work folder."""
    return Tokenizer.from_file(str(options.work / "tokenizer.json"))


def run_tokenizer(options: argparse.Namespace) -> None:
    """Stage 1."""
    path = options.work / "tokenizer.json"
    if not path.exists():
        tokenizer = train_tokenizer(options.seed, options.vocab)
        write_atomically(path, lambda to: tokenizer.save(str(to)))


def run_target(options: argparse.Namespace) -> None:
    """Stage 2."""
    packer = _packer(options)
    shape = _shape(options.target_layers, options.target_hidden, options.vocab)
    model = Llama(shape, options.seed)
    plant_copying(model, options.seed)

    def loss_of(step: int) -> Tensor:
        batch = packer.batch(step)
        return core.weighted_loss(model(batch.ids[:, :-1]), batch)

    recipe = _recipe(options, options.target_tokens, options.target_rate)
    train(model, loss_of, recipe, options.work / "target.ckpt.safetensors")
    export.export(model, packer.tokenizer, options.out / "target")


class MixedPacker(Packer):
    """Half of the dialogues come from a list: those with the target's own replies."""

    own: list[Dialogue]

    def dialogue(self, rng: Random, held_out: bool) -> Dialogue:
        """The next dialogue of a row."""
        if not held_out and rng.random() < 0.5:
            return rng.choice(self.own)
        return super().dialogue(rng, held_out)


def distillation_loss(draft: Llama, target: Llama, batch: core.Batch) -> Tensor:
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


def _mixed_packer(options: argparse.Namespace) -> MixedPacker:
    """Batches of the draft; the target writes its replies first, if they are not there yet."""
    tokenizer = tokenizer_of(options)
    packer = MixedPacker(tokenizer, options.seed + 1, options.rows, options.row_tokens)
    packer.own = replies.on_policy_dialogues(
        export.load_for_generation(options.out / "target"),
        tokenizer,
        options.seed,
        int(options.reply_tokens),
        options.work / "replies",
        options.max_new_tokens,
    )
    return packer


def run_draft(options: argparse.Namespace) -> None:
    """Stage 3."""
    packer = _mixed_packer(options)
    target = export.read_back(options.out / "target")
    draft = Llama(
        _shape(options.draft_layers, options.draft_hidden, options.vocab), options.seed + 1
    )

    def loss_of(step: int) -> Tensor:
        return distillation_loss(draft, target, packer.batch(step))

    recipe = _recipe(options, options.draft_tokens, options.draft_rate)
    train(draft, loss_of, recipe, options.work / "draft.ckpt.safetensors")
    export.export(draft, packer.tokenizer, options.out / "draft")


def run_card(options: argparse.Namespace) -> None:
    """Stage 4."""
    prompts = corpus.held_out_prompts(options.seed, options.prompts_per_task)
    packer, mixed = _packer(options), _mixed_packer(options)
    for rows, tokens in ((packer, options.target_tokens), (mixed, options.draft_tokens)):
        steps = _recipe(options, tokens, options.target_rate).steps
        corpus.assert_disjoint(prompts, rows.training_text(steps))
    card.write_prompts(prompts, options.out / "prompts.jsonl")
    card.write_card(options, packer, prompts)


def main(argv: list[str] | None = None) -> None:
    """Run the stages asked for."""
    options = arguments().parse_args(argv)
    options.work = options.work or options.out.with_name(options.out.name + "-work")
    options.out.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    stages = STAGES if options.stage == "all" else (options.stage,)
    run = {
        "tokenizer": run_tokenizer,
        "target": run_target,
        "draft": run_draft,
        "card": run_card,
    }
    for stage in stages:
        run[stage](options)


if __name__ == "__main__":
    main()
