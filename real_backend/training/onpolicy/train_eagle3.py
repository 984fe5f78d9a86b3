"""Train an EAGLE-3 head for a target on what the target says itself
(``python -m real_backend.training.onpolicy.write_text``): ``python -m
real_backend.training.onpolicy.train_eagle3 --text TEXT --out FOLDER``.

The head is one layer of the target's own width. Its embedding and output are the target's: neither
is trained or stored. Checkpoints live in ``--work``; ``--out`` receives the head in the public
layout and what was measured on the way.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

from real_backend.command_line import Result, option, run_module
from real_backend.drafters.eagle3_checkpoint import default_taps
from real_backend.models.checkpoint import load_model
from real_backend.models.gguf import smollm2_file
from real_backend.number_options import count, whole
from real_backend.training.loop import Recipe, TrainingProgress, train
from real_backend.training.onpolicy.eagle3_trainee import Eagle3Trainee
from real_backend.training.onpolicy.options import TrainingOptions, write_json
from real_backend.training.onpolicy.text import OwnText
from real_backend.training.onpolicy.write_text import GREEDY
from traces.errors import InputError
from traces.store import write_atomically

FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
)
"""Of config.json, as LlamaConfig names them."""
DISCOUNT = 0.8  # of the loss of a later step beside that of the one before


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainEagle3Options(TrainingOptions):
    """Every default is what the shipped head was made with."""

    vocab: int = option("tokens of the draft vocabulary", count, 8192)
    steps: int = option("of a draft while training", count, 3)
    rows: int = option("rows of a batch", count, 2)
    align: int = option(
        "likeliest tokens among which a draft's next one must be for it to go on (0: any)",
        whole(0), 0,
    )  # fmt: skip


def likeliest(text: OwnText, vocab: int, most: int) -> Tensor:
    """The tokens [D] that answers hold most often, in ascending order; of equals the smaller."""
    ids, answered = text.whole("ids"), text.whole("whose") >= GREEDY
    counts = torch.bincount(ids[answered], minlength=vocab)
    order = counts.argsort(descending=True, stable=True)
    return order[:most].sort().values


def head_config(target: Any, vocab: int) -> LlamaConfig:
    """Of one layer as wide as the target's."""
    config = target.config
    return LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=1,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters=config.rope_parameters,
        tie_word_embeddings=False,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        draft_vocab_size=vocab,
    )


def write_head(head: Eagle3Trainee, known: Tensor, layers: int, folder: Path) -> None:
    """config.json and float16 weights in the public layout; layers: of the target."""
    vocab = head.config.vocab_size
    mask = torch.zeros(vocab, dtype=torch.bool)
    mask[known] = True
    weights = {name: weight.detach().half() for name, weight in head.named_parameters()}
    weights |= {"d2t": known - torch.arange(len(known)), "t2d": mask}
    config = {name: getattr(head.config, name) for name in FIELDS} | {
        "rope_theta": head.config.rope_parameters["rope_theta"],
        "architectures": ["LlamaForCausalLMEagle3"],
        "draft_vocab_size": len(known),
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": list(default_taps(layers))},
        "dtype": "float16",
    }
    path = folder / "model.safetensors"
    write_atomically(path, functools.partial(save_file, weights, metadata={"format": "pt"}), True)
    write_json(config, folder / "config.json")


@torch.inference_mode()
def agreement(head: Eagle3Trainee, text: OwnText, steps: int, rows: int) -> list[float]:
    """By step, the share of tokens that the head would have said as the target."""
    right, asked = [0] * steps, [0] * steps
    for batch in range(len(text) // rows):
        for k, step in enumerate(head.steps(text.batch(batch, rows, states=True), steps)):
            right[k], asked[k] = right[k] + step.right, asked[k] + step.tokens
    return [r / a for r, a in zip(right, asked, strict=True)]


def _train(options: TrainEagle3Options, head: Eagle3Trainee, text: OwnText) -> TrainingProgress:
    weights = [DISCOUNT**k for k in range(options.steps)]

    def loss_of(step: int) -> Tensor:
        rows = text.batch(step, options.rows, states=True)
        with torch.autocast("cpu", torch.bfloat16):
            steps = head.steps(rows, options.steps, options.align)
        return sum(w * s.loss for w, s in zip(weights, steps, strict=True)) / sum(weights)  # type: ignore[return-value]

    batches = int(options.epochs * len(text) / options.rows)
    recipe = Recipe(batches, options.rate, options.checkpoint_s)
    return train(head, loss_of, recipe, options.folder / "head.ckpt.safetensors")


def run(options: TrainEagle3Options) -> Result:
    """Train, measure, write."""
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    text = OwnText(options.text, options.tokens, options.seed)
    target = load_model(options.target or str(smollm2_file()), "cpu", "float32")
    if text.batch(0, 1, states=True).states.shape[-1] != 3 * target.config.hidden_size:  # type: ignore[union-attr]
        raise InputError("--text: its states are another target's")
    known = likeliest(text, target.config.vocab_size, options.vocab)
    config = head_config(target, len(known))
    read, said_by = target.get_input_embeddings(), target.get_output_embeddings()
    head = Eagle3Trainee(config, read.weight.data, said_by.weight.data, known, options.seed)
    head.norm.weight.data.copy_(target.model.norm.weight.data)
    progress = _train(options, head, text)
    write_head(head, known, target.config.num_hidden_layers, options.out)
    said = options.told(text.tokens, progress)
    if options.held_out:
        other = OwnText([options.held_out], 1, options.seed)
        said["held_out_agreement"] = agreement(head, other, options.steps, options.rows)
    write_json(said, options.out / "training.json")
    print(f"{options.out}: {said.get('held_out_agreement', 'trained')}", file=sys.stderr)
    return Result()


def main(argv: list[str] | None = None) -> int:
    """Run from the command line; the exit code."""
    name = "real_backend.training.onpolicy.train_eagle3"
    return run_module(name, __doc__, TrainEagle3Options, run, argv)


if __name__ == "__main__":
    sys.exit(main())
