"""Train block heads for a target: ``python -m real_backend.training.train_heads --out FOLDER``.

Medusa heads of one residual layer each, whose output is the target's, made on one CPU core in about
ten minutes. Head k learns, from the target's state behind token p, token p + 2 + k, wherever all
tokens from p + 2 on belong to one reply. Half of the dialogues carry replies that the target wrote
greedily. The target stays as it is, and no user turn is one of the held-out side.

Checkpoints and replies live in ``--work``; ``--out`` receives only what is to be shipped.

Source: Cai et al., Medusa, arXiv 2401.10774, Section 2.2.1 (a frozen backbone).
Letters: B rows, T tokens of a row, N places, K heads, E hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from real_backend.command_line import Result, option, run_module
from real_backend.drafters.block import MedusaHeads
from real_backend.number_options import count, number, positive
from real_backend.options import seed_of
from real_backend.pair_spec import EMBEDDED
from real_backend.training import corpus, export, replies
from real_backend.training.core import Llama
from real_backend.training.loop import Recipe, train
from real_backend.training.train_pair import MixedPacker
from traces.store import write_atomically

SEED_OFFSET = 2  # train_pair draws by its seed and the next one
UNKNOWN = -100  # of cross_entropy: no token to learn


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainHeadsOptions:
    """Every default is what the shipped heads were made with."""

    out: Path = option("folder of the heads", Path)
    work: Path | None = option(
        "folder of checkpoints (default: OUT with -work appended)", Path, None
    )
    target: Path = option("folder of the target", Path, EMBEDDED / "target")
    seed: int = seed_of("all draws")
    heads: int = option("how many", count, 6)
    tokens: float = option("tokens the heads are trained on", positive, 1.5e6)
    rate: float = option("peak learning rate", positive, 4e-3)
    reply_tokens: float = option("tokens the target writes", positive, 8e4)
    rows: int = option("rows of a batch", count, 3)
    row_tokens: int = option("tokens of a row", count, 384)
    max_new_tokens: int = option("longest reply", count, 128)
    prompts_per_task: int = option("held-out prompts of each task", count, 10)
    checkpoint_s: float = option("seconds between checkpoints", number(0.0, above=False), 60.0)

    @property
    def folder(self) -> Path:
        """Of checkpoints and replies."""
        return self.work or self.out.with_name(self.out.name + "-work")


def new_heads(target: Llama, heads: int) -> MedusaHeads:
    """Heads that say what the target says: their layers start at zero."""
    made = MedusaHeads(heads, 1, target.embedding())
    for weight in made.parameters():
        torch.nn.init.zeros_(weight)
    return made


def labels_of(ids: Tensor, replied: Tensor, heads: int) -> Tensor:
    """Tokens (B, T, K) that the heads are to say behind each of ids (B, T), or UNKNOWN.

    replied (B, T): 1.0 on the tokens of replies.
    """
    found = torch.full((*ids.shape, heads), UNKNOWN)
    inside = torch.ones_like(ids, dtype=torch.bool)
    for k in range(min(heads, ids.shape[1] - 2)):
        ahead = k + 2
        inside = inside[:, : ids.shape[1] - ahead] & (replied[:, ahead:] == 1.0)
        found[:, :-ahead, k] = torch.where(inside, ids[:, ahead:], UNKNOWN)
    return found


def loss_of_heads(heads: MedusaHeads, target: Llama, ids: Tensor, replied: Tensor) -> Tensor:
    """Cross-entropy in nats, mean over the heads' tokens."""
    labels = labels_of(ids, replied, heads.heads)
    kept = (labels != UNKNOWN).any(-1)
    with torch.no_grad():
        states = target.states(ids)[kept]  # (N, E)
    logits = heads(states)  # (N, K, V)
    return functional.cross_entropy(
        logits.flatten(0, 1), labels[kept].flatten(), ignore_index=UNKNOWN
    )


def _packer(options: TrainHeadsOptions) -> MixedPacker:
    """Training batches; the target writes its replies first, if they are not there yet."""
    tokenizer = Tokenizer.from_file(str(options.target / "tokenizer.json"))
    seed = options.seed + SEED_OFFSET
    packer = MixedPacker(tokenizer, seed, options.rows, options.row_tokens)
    packer.own = replies.on_policy_dialogues(
        export.load_for_generation(options.target),
        tokenizer,
        seed,
        int(options.reply_tokens),
        options.folder / "replies",
        options.max_new_tokens,
        greedy=True,
    )
    return packer


def accuracy(options: TrainHeadsOptions, heads: MedusaHeads, target: Llama) -> list[float]:
    """Of each head, the share of tokens of the target's greedy replies to held-out prompts that it
    would have said.
    """
    tokenizer = Tokenizer.from_file(str(options.target / "tokenizer.json"))
    network = export.load_for_generation(options.target)
    prompts = corpus.held_out_prompts(options.seed + SEED_OFFSET, options.prompts_per_task)
    right, asked = torch.zeros(heads.heads), torch.zeros(heads.heads)
    spoken = replies.answer(network, tokenizer, prompts, options.max_new_tokens, None)
    for context, reply in (turn for turns in spoken for turn in turns):
        ids = torch.tensor([context + reply])
        replied = torch.tensor([[0.0] * len(context) + [1.0] * len(reply)])
        labels = labels_of(ids, replied, heads.heads)[0]
        with torch.no_grad():
            said = heads(target.states(ids)[0]).argmax(-1)  # (T, K)
        right += (said == labels).sum(0)
        asked += (labels != UNKNOWN).sum(0)
    share: list[float] = (right / asked).tolist()
    return share


def write_heads(heads: MedusaHeads, folder: Path) -> None:
    """config.json and float16 weights in the layout of real_backend.drafters.block."""
    vocab, hidden = heads.outputs[0].shape
    config = {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "num_heads": heads.heads,
        "num_hidden_layers": 1,
        "hidden_size": hidden,
        "vocab_size": vocab,
        "truncated_vocab_size": vocab,
        "original_lm_head": True,
        "medusa_fc_bias": True,
        "dtype": "float16",
    }
    weights = {name: weight.half() for name, weight in heads.state_dict().items()}
    path = folder / "model.safetensors"
    write_atomically(path, lambda to: save_file(weights, to, {"format": "pt"}), overwrite=True)
    text = json.dumps(config, indent=2) + "\n"
    path = folder / "config.json"
    write_atomically(path, lambda to: to.write_text(text, "utf-8"), overwrite=True)


def run(options: TrainHeadsOptions) -> Result:
    """Train, measure, write."""
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    packer, target = _packer(options), export.read_back(options.target)
    heads = new_heads(target, options.heads)

    def loss_of(step: int) -> Tensor:
        batch = packer.batch(step)
        replied = functional.pad(batch.replies, (1, 0))  # that of the first token is not told
        return loss_of_heads(heads, target, batch.ids, replied)

    steps = int(options.tokens / (options.rows * options.row_tokens))
    recipe = Recipe(steps, options.rate, options.checkpoint_s)
    progress = train(heads, loss_of, recipe, options.folder / "heads.ckpt.safetensors")
    write_heads(heads, options.out)
    shares = ", ".join(f"{share:.3f}" for share in accuracy(options, heads, target))
    told = f"{options.out}: trained for {progress.train_s / 60:.1f} minutes"
    print(f"{told}; held-out accuracy of the heads {shares}", file=sys.stderr)
    return Result()


def main(argv: list[str] | None = None) -> int:
    """Run from the command line; the exit code."""
    return run_module("real_backend.training.train_heads", __doc__, TrainHeadsOptions, run, argv)


if __name__ == "__main__":
    sys.exit(main())
