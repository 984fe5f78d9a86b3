"""Let a model hold dialogues with itself: ``python -m real_backend.training.onpolicy.write_text``.

It is given the first words of a user turn (openings.py), goes on from there, answers itself, greedy
in every second row and at temperature 1 in the others, and asks again, until a row is full: no word
comes of anybody's data set. Chunks of rows are files of their own, so that a run stopped anywhere
goes on where it stood, and the same seed gives the same bytes on the same machine.

What a drafter is taught with is kept beside the tokens, since reading them again would cost as much
as writing them: the hidden states that an EAGLE-3 head reads, and the target's likeliest tokens.

Letters: B rows of a chunk, W tokens of a row, K likeliest tokens, E hidden size.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from real_backend.command_line import Result, option, run_module
from real_backend.drafters.eagle3_checkpoint import default_taps
from real_backend.models.checkpoint import DTYPES, load_model, load_tokenizer, weights_hash
from real_backend.models.gguf import smollm2_file
from real_backend.models.llama import LeanLlama
from real_backend.number_options import count, positive
from real_backend.options import seed_of
from real_backend.training.onpolicy.openings import FREE, OPENINGS, Opening
from traces.errors import InputError
from traces.store import write_atomically

GIVEN, ASKED, GREEDY, SAMPLED = range(4)  # whose a token is
ANSWERS = (GREEDY, SAMPLED)
TOP_K = 64  # of the tokens that a user turn may go on with: the tail of a small model is noise
LEAST_ASKED = 4  # tokens, lest a user says nothing
FREE_SHARE = 0.2  # of the user turns begin with nothing
LIKELIEST = 64  # tokens of the target's law that are kept
OF_A_CHUNK = ("seed", "rows", "row_tokens", "answer_tokens", "dtype")
"""Options that a chunk hangs on."""
SETTINGS = "settings"  # metadata of a chunk
SHARED_TOKENS = 2**16  # a vocabulary that uint16 can name


@dataclasses.dataclass(frozen=True, kw_only=True)
class WriteTextOptions:
    """Every default is what the shipped drafters were trained on."""

    out: Path = option("folder of the chunks", Path)
    target: str | None = option("GGUF file or folder of the model (default: SmolLM2)", str, None)
    tokens: float = option("tokens of answers", positive, 3.4e5)
    seed: int = seed_of("all draws")
    rows: int = option("rows of a chunk", count, 64)
    row_tokens: int = option("tokens of a row", count, 384)
    answer_tokens: int = option("longest answer", count, 160)
    dtype: str = option("of the weights while writing", default="bfloat16", choices=sorted(DTYPES))


class Frame(NamedTuple):
    """Token ids between what is said: before the first user turn, behind a user turn, behind an
    answer.
    """

    head: list[int]
    to_answer: list[int]
    to_user: list[int]


def frame_of(tokenizer: Any) -> Frame:
    """The frame of a tokenizer's chat template."""
    marks = ["(first)", "(second)", "(third)"]
    messages = [
        {"role": role, "content": mark}
        for role, mark in zip(("user", "assistant", "user"), marks, strict=True)
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    pieces = []
    for mark in marks:
        piece, _, text = text.partition(mark)
        pieces.append(tokenizer(piece, add_special_tokens=False)["input_ids"])
    return Frame(*pieces)


class Speaker:
    """One row: whose turn it is, what is given to it, and what has been said."""

    def __init__(self, frame: Frame, tokenizer: Any, rng: Random, answers: int, most: int) -> None:
        self.frame, self.tokenizer, self.rng = frame, tokenizer, rng
        self.answers, self.most = answers, most  # GREEDY or SAMPLED; tokens of an answer
        self.ids: list[int] = []
        self.whose: list[int] = []
        self.given: deque[int] = deque(frame.head)
        self._begin_asking()

    def _begin_asking(self) -> None:
        free = self.rng.random() < FREE_SHARE
        opening: Opening = FREE if free else self.rng.choice(OPENINGS)
        self.given.extend(self.tokenizer(opening.text, add_special_tokens=False)["input_ids"])
        self.speaks, self.left, self.said = ASKED, opening.most, 0

    def take(self, token: int, ends: frozenset[int]) -> int:
        """The next token of the row, given the one that the model would say."""
        if not self.given:
            if token not in ends and self.left > 0:
                self.left, self.said = self.left - 1, self.said + 1
                return self._say(token, self.speaks)
            if self.speaks == ASKED:
                self.given.extend(self.frame.to_answer)
                self.speaks, self.left = self.answers, self.most
            else:
                self.given.extend(self.frame.to_user)
                self._begin_asking()
                if token in ends:  # the answer's last token, to be learnt like the others
                    return self._say(self.given.popleft(), self.answers)
        return self._say(self.given.popleft(), GIVEN)

    def _say(self, token: int, whose: int) -> int:
        self.ids.append(token)
        self.whose.append(whose)
        return token


def choose(
    logits: Tensor, speakers: list[Speaker], ends: frozenset[int], numbers: torch.Generator
) -> list[int]:
    """The next token of every row as the model says it, of logits [B, V]."""
    found = logits.argmax(-1)
    drawn = [b for b, s in enumerate(speakers) if not s.given and s.speaks == SAMPLED]
    asked = [b for b, s in enumerate(speakers) if not s.given and s.speaks == ASKED]
    if drawn:
        probs = torch.softmax(logits[drawn], -1)
        found[drawn] = torch.multinomial(probs, 1, generator=numbers)[:, 0]
    if asked:
        few = logits[asked]
        early = [b for b, at in enumerate(asked) if speakers[at].said < LEAST_ASKED]
        few[[[b] for b in early], sorted(ends)] = -torch.inf
        top = few.topk(TOP_K, -1)
        place = torch.multinomial(torch.softmax(top.values, -1), 1, generator=numbers)
        found[asked] = top.indices.gather(-1, place)[:, 0]
    said: list[int] = found.tolist()
    return said


@torch.inference_mode()
def chunk(
    model: LeanLlama, tokenizer: Any, ends: frozenset[int], options: WriteTextOptions, index: int
) -> dict[str, Tensor]:
    """ids and whose [B, W], whose being one of GIVEN to SAMPLED; behind each of ids the states
    [B, W, 3 E] of the tapped layers and the target's likeliest tokens with the logarithms of their
    probabilities, likeliest and logs [B, W, K].
    """
    rng = Random(f"own text {options.seed} {index}")
    numbers = torch.Generator().manual_seed(rng.randrange(2**31))
    frame = frame_of(tokenizer)
    speakers = [
        Speaker(frame, tokenizer, rng, ANSWERS[row % 2], options.answer_tokens)
        for row in range(options.rows)
    ]
    shape, hidden = (options.rows, options.row_tokens), len(model.taps) * model.embedding.shape[1]
    names = torch.uint16 if model.embedding.shape[0] <= SHARED_TOKENS else torch.int32
    states = torch.zeros(*shape, hidden, dtype=torch.bfloat16)
    likeliest = torch.zeros(*shape, LIKELIEST, dtype=names)
    logs = torch.zeros(*shape, LIKELIEST, dtype=torch.float16)
    cache = model.new_cache(options.row_tokens, options.rows)
    tokens = [speaker.take(0, ends) for speaker in speakers]
    for at in range(options.row_tokens):
        logits = model.forward(torch.tensor(tokens)[:, None], cache, at)[:, -1].float()
        top = logits.topk(LIKELIEST, -1)
        states[:, at] = model.states
        likeliest[:, at] = top.indices.to(names)
        logs[:, at] = top.values - logits.logsumexp(-1, keepdim=True)
        if at + 1 < options.row_tokens:
            said = choose(logits, speakers, ends, numbers)
            pairs = zip(speakers, said, strict=True)
            tokens = [speaker.take(token, ends) for speaker, token in pairs]
    return {
        "ids": torch.tensor([speaker.ids for speaker in speakers]).to(names),
        "whose": torch.tensor([speaker.whose for speaker in speakers], dtype=torch.uint8),
        "states": states,
        "likeliest": likeliest,
        "logs": logs,
    }


def answers_in(path: Path, settings: Mapping[str, Any]) -> int:
    """Tokens of answers in a chunk. Raises InputError if it is none, or of other settings."""
    try:
        with safe_open(path, framework="pt") as read:
            told = (read.metadata() or {}).get(SETTINGS)
            answers = int((read.get_tensor("whose") >= GREEDY).sum())
        before = json.loads(told) if told else {}
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: no chunk of write_text ({error}); remove it") from None
    for name, value in settings.items():
        if before.get(name) != value:
            raise InputError(
                f"{path}: written with {name} {before.get(name)}, now {value}; choose another --out"
            )
    return answers


def run(options: WriteTextOptions) -> Result:
    """Write chunks until there are enough tokens; those that are there must be of these options."""
    torch.set_num_threads(1)
    where = options.target or str(smollm2_file())
    tokenizer = load_tokenizer(where)
    module = load_model(where, "cpu", options.dtype)
    settings = {name: getattr(options, name) for name in OF_A_CHUNK}
    settings["weights"] = weights_hash(module)
    metadata = {SETTINGS: json.dumps(settings, sort_keys=True)}
    model = LeanLlama(module, own=True)
    model.taps = default_taps(len(model.layers))
    ends = frozenset({int(tokenizer.eos_token_id)})
    written, index, started = 0, 0, time.monotonic()
    while written < options.tokens:
        path = options.out / f"{index:05d}.safetensors"
        if not path.exists():
            stored = chunk(model, tokenizer, ends, options, index)
            write_atomically(path, functools.partial(save_file, stored, metadata=metadata))
        written += answers_in(path, settings)
        index += 1
        took = time.monotonic() - started
        print(f"{path.name}: {written} tokens of answers, {took:.0f} s", file=sys.stderr)
    return Result()


def main(argv: list[str] | None = None) -> int:
    """Run from the command line; the exit code."""
    name = "real_backend.training.onpolicy.write_text"
    return run_module(name, __doc__, WriteTextOptions, run, argv)


if __name__ == "__main__":
    sys.exit(main())
