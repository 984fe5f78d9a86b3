"""Measure the embedded pair on its held-out prompts and write the model card."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from tokenizers import Tokenizer

from real_backend.training import core, corpus, export, replies
from real_backend.training.core import EOS, Llama, Packer, token_id
from real_backend.training.dialogue import Dialogue
from real_backend.training.loop import TrainingProgress, read_progress
from traces.store import write_atomically

if TYPE_CHECKING:
    from real_backend.training.train_pair import TrainPairOptions

HELD_OUT_BATCHES = 16


class ReplyScore(NamedTuple):
    """One reply of the target, scored position by position by both models."""

    agree: list[bool]  # draft arg-max == target arg-max
    overlap: float  # mean over positions of sum_x min(p(x), q(x))
    ended: bool  # the reply ends with EOS


class TaskScore(NamedTuple):
    """A task's means over its replies.

    category: the task.
    replies: how many.
    reply_tokens: their mean length.
    ended: share that ended by themselves.
    greedy, sampled: acceptance of the draft, mean over positions.
    spread: standard deviation of a reply's greedy acceptance.
    lag1: correlation of acceptance at neighbouring positions.
    """

    category: str
    replies: int
    reply_tokens: float
    ended: float  # share of greedy replies that end by themselves
    greedy: float  # acceptance of a drafted token, greedy decoding
    spread: float  # standard deviation over replies of their mean greedy acceptance
    lag1: float  # autocorrelation of neighbouring greedy flags
    sampled: float  # acceptance at temperature 1, on sampled replies


def write_prompts(prompts: Sequence[Dialogue], path: Path) -> None:
    """JSON lines in the layout of Spec-Bench's question file."""
    lines = [
        json.dumps({"question_id": index + 1, "category": p.category, "turns": list(p.turns)})
        for index, p in enumerate(prompts)
    ]
    write_atomically(path, lambda to: to.write_text("\n".join(lines) + "\n", "utf-8"), True)


def score_reply(target: Llama, draft: Llama, context: list[int], reply: list[int]) -> ReplyScore:
    """Teacher-force both models along context and reply (token ids; EOS is id 2)."""
    ids = torch.tensor([context + reply[:-1]])
    with torch.no_grad():
        p, q = (model(ids)[0, len(context) - 1 :] for model in (target, draft))  # (T, V)
    overlap = torch.minimum(p.softmax(-1), q.softmax(-1)).sum(-1).mean()
    agree: list[bool] = (p.argmax(-1) == q.argmax(-1)).tolist()
    return ReplyScore(agree, float(overlap), False)


def lag1_correlation(runs: Sequence[Sequence[bool]]) -> float:
    """Correlation of neighbouring flags, pairs pooled over the runs."""
    pairs = torch.tensor([pair for run in runs for pair in pairwise(run)])
    if len(pairs) < 2:
        return 0.0
    return float(torch.nan_to_num(torch.corrcoef(pairs.double().T)[0, 1]))


def score_task(
    out: Path, tokenizer: Tokenizer, prompts: Sequence[Dialogue], seed: int, max_new_tokens: int
) -> TaskScore:
    """Greedy and sampled replies of the target to prompts of one task, scored."""
    network = export.load_for_generation(out / "target")
    target, draft = (export.read_back(out / name) for name in ("target", "draft"))
    eos = token_id(tokenizer, EOS)
    scores: dict[bool, list[ReplyScore]] = {}
    for sampled in (False, True):
        sample_seed = seed if sampled else None
        spoken = replies.answer(network, tokenizer, prompts, max_new_tokens, sample_seed)
        scores[sampled] = [
            score_reply(target, draft, context, reply)._replace(ended=reply[-1] == eos)
            for turns in spoken
            for context, reply in turns
        ]
    greedy, drawn = scores[False], scores[True]
    flags = torch.tensor([flag for s in greedy for flag in s.agree]).double()
    means = torch.tensor([sum(s.agree) / len(s.agree) for s in greedy]).double()
    sizes = torch.tensor([len(s.agree) for s in drawn]).double()
    overlaps = torch.tensor([s.overlap for s in drawn]).double()
    return TaskScore(
        prompts[0].category,
        len(greedy),
        len(flags) / len(greedy),
        sum(s.ended for s in greedy) / len(greedy),
        float(flags.mean()),
        float(means.std(correction=0)),
        lag1_correlation([s.agree for s in greedy]),
        float((overlaps * sizes).sum() / sizes.sum()),
    )


def held_out_loss(model: Llama, packer: Packer) -> tuple[float, float]:
    """Mean loss on held-out batches in nats: training weights, and replies only."""
    total, replies = [], []
    for step in range(HELD_OUT_BATCHES):
        batch = packer.batch(step, held_out=True)
        with torch.no_grad():
            logits = model(batch.ids[:, :-1])
        total.append(float(core.weighted_loss(logits, batch)))
        only = batch._replace(weights=batch.replies)
        replies.append(float(core.weighted_loss(logits, only)))
    return sum(total) / len(total), sum(replies) / len(replies)


def _score_table(scores: Sequence[TaskScore]) -> str:
    lines = [
        "| task | replies | tokens a reply | end by themselves | greedy acceptance "
        "| spread over replies | lag-1 autocorrelation | acceptance at temperature 1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for s in scores:
        lines.append(
            f"| {s.category} | {s.replies} | {s.reply_tokens:.0f} | {s.ended:.0%} | {s.greedy:.3f} "
            f"| {s.spread:.3f} | {s.lag1:.2f} | {s.sampled:.3f} |"
        )
    return "\n".join(lines)


def _model_table(options: TrainPairOptions, packer: Packer) -> str:
    lines = [
        "| model | layers x hidden | parameters | trained on, tokens | minutes "
        "| training loss, last 100 steps | held-out loss | held-out loss, replies only |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in ("target", "draft"):
        model = export.read_back(options.out / name)
        note: TrainingProgress = read_progress(options.folder / f"{name}.ckpt.safetensors")
        count = sum(weight.numel() for weight in model.parameters())
        tokens = note.step * options.rows * options.row_tokens
        recent = [loss for _, loss in note.losses[-4:]]
        every, replies = held_out_loss(model, packer)
        lines.append(
            f"| {name} | {model.shape.layers} x {model.shape.hidden} | {count:,} | {tokens:,} "
            f"| {note.train_s / 60:.0f} | {sum(recent) / len(recent):.3f} | {every:.3f} "
            f"| {replies:.3f} |"
        )
    return "\n".join(lines)


def _command(options: TrainPairOptions) -> str:
    skipped = {"out", "work", "stage", "checkpoint_s"}
    parts = [
        f"--{name.replace('_', '-')} {value:g}"
        for name, value in vars(options).items()
        if name not in skipped
    ]
    return "python -m real_backend.training.train_pair --out DIR \\\n    " + " ".join(parts)


CARD = """# The embedded pair

A target and a draft model for speculative decoding, small enough to travel with the source. They
are a laboratory specimen: their acceptance differs between tasks and comes in bursts, as that of
large pairs does. The target answers in the form asked for and picks names, numbers and quotations
out of the prompt, but its arithmetic and its facts are often wrong, some replies drift off, and a
few repeat themselves up to the limit.

Hugging Face Llama layout, float16, tied embeddings, one byte-level BPE of {vocab} tokens (digits
stand alone, any text round-trips) and one chat template for both. `prompts.jsonl` holds {prompts}
held-out prompts in the layout of Spec-Bench's question file.

## Data

- Dialogues generated for the six Spec-Bench tasks (`real_backend/training/tasks.py`), about 70 % of
  the target's tokens (see below for its copy drills).
- The Python {python} standard library (sources without the tests, `pydoc_data.topics`), which also
  supplies the passages of `rag`, two fifths of `summarization` and a third of `qa`.
- Nothing else, nothing downloaded. Quoted docstrings are under the Python Software Foundation
  licence. The translations are grammatical German, not always sensible German.
- Split: a hash of the content of each user turn (not of its phrasing) decides its side, one in
  {share} is held out; documents and docstrings of the library are split likewise. The run asserted
  that no held-out turn occurs verbatim in any training row of the target or the draft.

## Training

{models}

Held-out loss is cross-entropy in nats a token, user turns weighing {prompt_weight:g} as in
training. The training loss of the target includes its copy drills, that of the draft is its
distillation loss (0.9 divergence to the target + 0.1 cross-entropy); neither compares with the
held-out columns. AdamW (0.9, 0.95; weight decay 0.1 on matrices), clip 1.0, warm-up over 100 steps,
cosine to a tenth. Rows hold whole dialogues and are topped up with library text.

The target starts with copying built in (`real_backend/training/copying.py`: one previous-token
head, four induction heads, all trainable) and sees copy drills, echoes of random tokens, in a third
of the rows during the first fifth of its steps and in a tenth later: without both it learnt the
phrases and ignored the question within this budget. The draft has one layer and no such circuit.
It is distilled from the exported target on fresh training dialogues; half of them carry replies
that the target wrote (half greedy, half sampled at temperature 1).

    {command}

Seed {seed}. The same seed, Python and torch on the same kind of machine give the same weights. Made
with Python {python}, torch {torch}, on one thread of a {cores}-core {machine} CPU.

## Measured on the held-out prompts

{scores}

Greedy acceptance: share of the positions of the target's own greedy reply (at most {longest}
tokens) where the arg-max of the draft is that of the target. Acceptance at temperature 1: mean of
sum_x min(p(x), q(x)) over the positions of replies sampled from the target. Spread: standard
deviation of the mean greedy acceptance of a reply.
"""


def write_card(options: TrainPairOptions, packer: Packer, prompts: Sequence[Dialogue]) -> None:
    """Score every task, write ``README.md`` in the pair's folder."""
    scores = [
        score_task(
            options.out,
            packer.tokenizer,
            [p for p in prompts if p.category == category],
            options.seed,
            options.max_new_tokens,
        )
        for category in corpus.CATEGORIES
    ]
    text = CARD.format(
        vocab=options.vocab,
        prompts=len(prompts),
        python=platform.python_version(),
        share=corpus.HELD_OUT_SHARE,
        models=_model_table(options, packer),
        prompt_weight=core.PROMPT_WEIGHT,
        command=_command(options),
        seed=options.seed,
        torch=torch.__version__,
        cores=os.cpu_count(),
        machine=platform.machine(),
        scores=_score_table(scores),
        longest=options.max_new_tokens,
    )
    write_atomically(options.out / "README.md", lambda to: to.write_text(text, "utf-8"), True)
