"""Replies of an exported model: training material for the draft and the subject of the card."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from real_backend.training import corpus
from real_backend.training.core import ASSISTANT, BOS, EOS, PAD, USER, token_id
from real_backend.training.dialogue import Dialogue
from traces.store import write_atomically

CHUNK = 64  # dialogues generated together, and saved together


def opening(tokenizer: Tokenizer, turns: Sequence[str], replies: Sequence[str]) -> list[int]:
    """Token ids up to where the next reply starts: one more turn than replies."""
    text = BOS
    for index, turn in enumerate(turns):
        text += USER + turn + "\n" + ASSISTANT
        text += replies[index] + EOS if index < len(replies) else ""
    ids: list[int] = tokenizer.encode(text).ids
    return ids


def generate(
    network: LlamaForCausalLM,
    tokenizer: Tokenizer,
    contexts: Sequence[list[int]],
    max_new_tokens: int,
    sample_seed: int | None,
) -> list[list[int]]:
    """Replies (token ids, EOS included) to all contexts in one batch; greedy without a seed."""
    pad, eos = token_id(tokenizer, PAD), token_id(tokenizer, EOS)
    longest = max(map(len, contexts))
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in contexts])
    if sample_seed is not None:
        torch.manual_seed(sample_seed)
    out = network.generate(
        inputs=ids,
        attention_mask=ids.ne(pad).long(),
        max_new_tokens=max_new_tokens,
        do_sample=sample_seed is not None,
        temperature=None if sample_seed is None else 1.0,
        top_k=None if sample_seed is None else 0,
    )
    replies: list[list[int]] = []
    for row in out[:, longest:].tolist():
        replies.append(row[: row.index(eos) + 1] if eos in row else row)
    return replies


def answer(
    network: LlamaForCausalLM,
    tokenizer: Tokenizer,
    asked: Sequence[Dialogue],
    max_new_tokens: int,
    sample_seed: int | None,
) -> list[list[tuple[list[int], list[int]]]]:
    """(context, reply) token ids of every turn; later turns see the model's own earlier replies."""
    spoken: list[list[tuple[list[int], list[int]]]] = [[] for _ in asked]
    for turn in range(max(len(drawn.turns) for drawn in asked)):
        active = [i for i, drawn in enumerate(asked) if turn < len(drawn.turns)]
        contexts = []
        for i in active:
            before = [tokenizer.decode(reply) for _, reply in spoken[i]]
            contexts.append(opening(tokenizer, asked[i].turns[: turn + 1], before))
        replies = generate(network, tokenizer, contexts, max_new_tokens, sample_seed)
        for i, context, reply in zip(active, contexts, replies, strict=True):
            spoken[i].append((context, reply))
    return spoken


def _chunk(
    network: LlamaForCausalLM,
    tokenizer: Tokenizer,
    seed: int,
    index: int,
    max_new_tokens: int,
    greedy: bool,
) -> list[Dialogue]:
    """Training dialogues with the model's own replies: greedy, or even chunks sampled."""
    rng = Random(f"on-policy {seed} {index}")
    asked = [corpus.dialogue(rng, rng.choice(corpus.CATEGORIES)) for _ in range(CHUNK)]
    sample_seed = None if greedy or index % 2 else rng.randrange(2**31)
    spoken = answer(network, tokenizer, asked, max_new_tokens, sample_seed)
    return [
        drawn._replace(replies=tuple(tokenizer.decode(reply) for _, reply in turns))
        for drawn, turns in zip(asked, spoken, strict=True)
    ]


def on_policy_dialogues(
    network: LlamaForCausalLM,
    tokenizer: Tokenizer,
    seed: int,
    tokens: int,
    folder: Path,
    max_new_tokens: int,
    greedy: bool = False,
) -> list[Dialogue]:
    """At least ``tokens`` tokens of the model's own replies, half of them sampled unless
    ``greedy``; ``folder`` keeps finished chunks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Dialogue] = []
    count, index = 0, 0
    while count < tokens:
        path = folder / f"{index:04d}.json"
        if path.exists():
            rows = json.loads(path.read_text(encoding="utf-8"))
            chunk = [Dialogue(row[0], *(tuple(part) for part in row[1:])) for row in rows]
        else:
            chunk = _chunk(network, tokenizer, seed, index, max_new_tokens, greedy)
            text = json.dumps(chunk)
            write_atomically(path, functools.partial(Path.write_text, data=text, encoding="utf-8"))
        found += chunk
        count += sum(len(tokenizer.encode(r).ids) + 1 for drawn in chunk for r in drawn.replies)
        index += 1
    return found
