"""Greedy replies without the engine, and the noise between forwards of other shapes: what
lossless.py compares with.

Letters: L positions of a reply, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from real_backend.load_pair import Pair
from real_backend.models.kvcache import GeneralReader
from real_backend.not_finite import check_finite
from real_backend.prompts import Request


@dataclasses.dataclass(frozen=True)
class Noise:
    """Spacings between two forwards at the two best logits of every position."""

    median: float
    largest: float

    @property
    def bound(self) -> float:
        """The widest gap that noise alone turns over, spacings."""
        return 2.0 * self.largest


class Reference(NamedTuple):
    """replies: the plain loop's; generated: those of generate, at most as long. gaps [positions]:
    spacings between the two best tokens. shape, program: see lossless.Report.
    """

    replies: list[list[int]]
    generated: list[list[int]]
    gaps: Tensor
    shape: Noise
    program: Noise


def spacing(x: Tensor, dtype: torch.dtype) -> Tensor:
    """From |x| to the next number of the format, in float64."""
    exponent = torch.frexp(x.double()).exponent - 1
    return torch.finfo(dtype).eps * torch.exp2(exponent.double())


def plain(pair: Pair, request: Request, max_new_tokens: int) -> Iterator[Tensor]:
    """The target's logits [V] at one position of its greedy reply after another."""
    ids = list(request.prompt_ids)
    reader = pair.target.reader(len(ids) + max_new_tokens)
    if len(ids) > 1:
        reader.read(torch.tensor([ids[:-1]], device=pair.device), 0, last=1)
    end = min(len(ids) + max_new_tokens, pair.max_context or sys.maxsize)
    while len(ids) < end:
        newest = torch.tensor([ids[-1:]], device=pair.device)
        logits = reader.read(newest, len(ids) - 1, last=1)[0, -1, : pair.vocab_size]
        yield logits
        ids.append(int(pair.target.watch.best(logits)))
        if ids[-1] in pair.eos_ids:
            return


def generate(pair: Pair, request: Request, tokens: int) -> tuple[list[int], Tensor]:
    """The first `tokens` tokens of transformers' greedy reply, and its own logits [L, V]."""
    prompt = torch.tensor([request.prompt_ids], device=pair.device)
    output = pair.target.module.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        repetition_penalty=1.0,  # some checkpoints bring another one
        max_new_tokens=tokens,
        eos_token_id=sorted(pair.eos_ids) or None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logits = torch.cat(output.logits)[:, : pair.vocab_size]
    return output.sequences[0, prompt.shape[1] :].tolist(), logits


def decode_reference(
    pair: Pair, requests: Sequence[Request], max_new_tokens: int, step: Callable[[], object]
) -> Reference:
    """The plain loop, generate, and one forward of transformers over every plain reply."""
    dtype = getattr(torch, pair.dtype)
    replies, generated = [], []
    gaps, shape, program = [], [], []
    for request in requests:
        ours = torch.stack(list(plain(pair, request, max_new_tokens)))
        reply: list[int] = ours.argmax(-1).tolist()
        check_finite(pair, {request.request_id: request.prompt_ids + reply})
        other, theirs = generate(pair, request, len(reply))
        ids = torch.tensor([request.prompt_ids + reply[:-1]], device=pair.device)
        reader = GeneralReader(pair.target.module, ids.shape[1])
        wide = reader.read(ids, 0, last=len(reply))[0, :, : pair.vocab_size]
        best = ours.topk(2).values.double()
        gaps.append(((best[:, 0] - best[:, 1]) / spacing(best[:, 0], dtype)).cpu())
        alike = min(parting(reply, other) + 1, len(other))  # positions behind the same tokens
        shape.append(_apart(theirs[:alike], wide[:alike], dtype))
        program.append(_apart(ours, wide, dtype))
        replies.append(reply)
        generated.append(other)
        step()
    return Reference(replies, generated, torch.cat(gaps), _noise(shape), _noise(program))


def _apart(logits: Tensor, others: Tensor, dtype: torch.dtype) -> Tensor:
    """[2 L] spacings between two forwards [L, V] at the two best logits of each position."""
    best = logits.topk(2)
    difference = best.values.double() - others.gather(-1, best.indices).double()
    return (difference.abs() / spacing(best.values[:, :1], dtype)).flatten().cpu()


def _noise(parts: list[Tensor]) -> Noise:
    spacings = torch.cat(parts)
    return Noise(float(spacings.median()), float(spacings.max()))


def parting(reply: list[int], other: list[int]) -> int:
    """The first position at which two replies differ; the length of the shorter if none does."""
    both = enumerate(zip(reply, other, strict=False))
    return next((at for at, (a, b) in both if a != b), min(len(reply), len(other)))
