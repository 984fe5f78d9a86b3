"""Train an independent draft for a target on what the target says itself
(``python -m real_backend.training.onpolicy.write_text``): ``python -m
real_backend.training.onpolicy.train_draft --text TEXT --out FOLDER``.

A small Llama with the target's vocabulary learns the target's law behind every token that the
target said, as user and as assistant. Its embedding, which is its output as well, starts as the
principal directions of the target's. Checkpoints live in ``--work``; ``--out`` receives a folder in
Hugging Face layout and what was measured on the way.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from real_backend.command_line import Result, option, run_module
from real_backend.models.checkpoint import (
    VOCABULARY,
    load_model,
    load_tokenizer,
    vocabulary_hash,
)
from real_backend.models.gguf import smollm2_file
from real_backend.number_options import count
from real_backend.training.core import Llama, LlamaSize
from real_backend.training.export import as_transformers, folder_in_place
from real_backend.training.loop import Recipe, train
from real_backend.training.onpolicy.options import TrainingOptions, write_json
from real_backend.training.onpolicy.text import OwnText, Rows
from real_backend.training.onpolicy.write_text import GIVEN, GREEDY

HEAD_SIZE = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainDraftOptions(TrainingOptions):
    """Every default is what the shipped draft was made with."""

    layers: int = option("of the draft", count, 2)
    hidden: int = option(f"width, a multiple of {HEAD_SIZE}", count, 128)
    inner: int = option("inner width", count, 1024)
    rows: int = option("rows of a batch", count, 4)


def new_draft(target: Any, options: TrainDraftOptions) -> Llama:
    """The draft before training."""
    config = target.config
    shape = LlamaSize(
        options.layers,
        options.hidden,
        options.hidden // HEAD_SIZE,
        options.inner,
        config.vocab_size,
        config.max_position_embeddings,
        config.rope_parameters["rope_theta"],
        config.rms_norm_eps,
    )
    draft = Llama(shape, options.seed)
    embedding = target.get_input_embeddings().weight.data.float()
    centred = embedding - embedding.mean(0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -options.hidden :]
    reduced = centred @ directions
    draft.embedding().data.copy_(reduced * (0.02 / reduced.std()))
    return draft


def places_of(rows: Rows) -> tuple[Tensor, Tensor]:
    """Row and place of every token behind which the target said the next one."""
    said = rows.whose[:, 1:] != GIVEN
    row, place = said.nonzero(as_tuple=True)
    return row, place


def loss_of_rows(draft: Llama, rows: Rows) -> Tensor:
    """Cross-entropy to the target's law, nats, mean over the tokens that it said."""
    row, place = places_of(rows)
    states = draft.states(rows.ids)[row, place]  # [N, E]
    logs = functional.linear(states, draft.embedding()).float().log_softmax(-1)
    law = rows.logs[row, place].exp()  # [N, K]
    said = logs.gather(-1, rows.likeliest[row, place])
    return -((law / law.sum(-1, keepdim=True)) * said).sum(-1).mean()


@torch.inference_mode()
def agreement(draft: Llama, text: OwnText, rows: int) -> float:
    """The share of tokens of answers that the draft would have said as the target."""
    right = asked = 0
    for batch in range(len(text) // rows):
        read = text.batch(batch, rows, states=False)
        row, place = (read.whose[:, 1:] >= GREEDY).nonzero(as_tuple=True)
        said = functional.linear(draft.states(read.ids)[row, place], draft.embedding()).argmax(-1)
        right += int((said == read.likeliest[row, place, 0]).sum())
        asked += len(row)
    return right / asked


def write_draft(draft: Llama, target: Any, tokenizer: Any, folder: Path) -> None:
    """Config and float16 weights in Hugging Face layout, every file whole or not at all; of the
    target's tokenizer its name.
    """
    config = target.config
    made = as_transformers(
        draft,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        **{VOCABULARY: vocabulary_hash(tokenizer)},
    )
    with folder_in_place(folder) as room:
        made.half().save_pretrained(room)


def run(options: TrainDraftOptions) -> Result:
    """Train, measure, write."""
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    text = OwnText(options.text, options.tokens, options.seed)
    where = options.target or str(smollm2_file())
    target, tokenizer = load_model(where, "cpu", "float32"), load_tokenizer(where)
    draft = new_draft(target, options)

    def loss_of(step: int) -> Tensor:
        rows = text.batch(step, options.rows, states=False)
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of_rows(draft, rows)

    batches = int(options.epochs * len(text) / options.rows)
    recipe = Recipe(batches, options.rate, options.checkpoint_s)
    progress = train(draft, loss_of, recipe, options.folder / "draft.ckpt.safetensors")
    write_draft(draft, target, tokenizer, options.out)
    said = options.told(text.tokens, progress)
    if options.held_out:
        other = OwnText([options.held_out], 1, options.seed)
        said["held_out_agreement"] = agreement(draft, other, options.rows)
    write_json(said, options.out / "training.json")
    print(f"{options.out}: {said.get('held_out_agreement', 'trained')}", file=sys.stderr)
    return Result()


def main(argv: list[str] | None = None) -> int:
    """Run from the command line; the exit code."""
    name = "real_backend.training.onpolicy.train_draft"
    return run_module(name, __doc__, TrainDraftOptions, run, argv)


if __name__ == "__main__":
    sys.exit(main())
