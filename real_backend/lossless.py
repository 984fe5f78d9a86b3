"""Is greedy output independent of draft length and batch? `python -m real_backend.lossless`.

The reference decodes token by token, one request at a time, in a loop of its own. Every policy at
every batch size decodes the same requests with the engine, and so does transformers' own generate.
A forward of another shape adds up the same products in another order, so where two logits are close
a reply may leave the reference. The first position where it does is weighed: the gap between the
logits of both tokens there, in spacings of the number format, against the noise of such logits.

If forwards differ by at most e, a token can win that is at most 2 e behind: a difference is a tie
if its gap is at most twice the largest noise of this run. For the engine, noise is what
transformers alone shows between one token and many at a time: it shares no mask, cache or accept
rule with the engine, so that a mistake there cannot excuse itself. For generate, noise is what the
reference shows against transformers, since a lean forward also rounds in other places; but a wrong
one is off everywhere, so that noise does not count if its median is above all of the other's.

Letters: L positions of a reply, V vocabulary.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise, product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from policies.base import Policy
from policies.registry import label, parse_policies
from real_backend.decoding.engine import Engine
from real_backend.models.finite import check_finite
from real_backend.models.kvcache import GeneralReader
from real_backend.models.pair import Pair, pair_from_args, resolve_pair
from real_backend.options import (
    add_lossless_arguments,
    add_pair_arguments,
    refuse_shape,
    run_module,
)
from real_backend.progress import progress
from real_backend.prompts import EMBEDDED_PROMPTS, Request, read_questions, request_for
from traces.costs.pricing import make_step_costs
from traces.errors import InputError
from traces.store import write_atomically

END = -1  # in the place of a token: this reply has ended
NEAR = (1.0, 2.0, 4.0, 8.0)  # spacings within which a position's two best tokens are counted
_MAX_GAMMA = 16


@dataclasses.dataclass(frozen=True)
class Noise:
    """Spacings between two forwards at the two best logits of every position."""

    median: float
    largest: float

    @property
    def bound(self) -> float:
        """The widest gap that noise alone turns over, spacings."""
        return 2.0 * self.largest


@dataclasses.dataclass(frozen=True)
class Difference:
    """The first position at which a reply leaves the reference, and the token of each there.

    gap, spacings: how much the reference prefers its own, in logits and in spacings of the format;
    None, and no tie, if one of the replies just ends.
    """

    request_id: str
    position: int
    token: int
    other: int
    gap: float | None = None
    spacings: float | None = None
    tie: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to decode; bound: spacings up to which its differences are ties."""

    policy: str
    batch: int
    replies: int
    bound: float
    differences: list[Difference]


@dataclasses.dataclass(frozen=True)
class Report:
    """near: share of all positions whose two best tokens are within so many spacings. shape,
    program: the two kinds of noise, see the module docstring.
    """

    positions: int
    near: dict[float, float]
    shape: Noise
    program: Noise
    rows: list[Row]

    @property
    def lossless(self) -> bool:
        """True if nothing differs but ties."""
        return all(d.tie for row in self.rows for d in row.differences)


class Reference(NamedTuple):
    """replies: the plain loop's; generated: those of generate, at most as long. gaps [positions]:
    spacings between the two best tokens. shape, program: see Report.
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


def weigh(
    pair: Pair, request: Request, reply: list[int], other: list[int], noise: Noise
) -> Difference:
    """How the reference's reply and another one part."""
    at = parting(reply, other)
    ours, theirs = [*reply, END][at], [*other, END][at]
    if END in (ours, theirs):
        return Difference(request.request_id, at, ours, theirs)
    # The reference once more, up to there: the logits of all positions were too many to keep.
    logits = next(islice(plain(pair, request, len(reply)), at, None)).double()
    gap = float(logits[ours] - logits[theirs])
    spacings = gap / float(spacing(logits[ours], getattr(torch, pair.dtype)))
    return Difference(request.request_id, at, ours, theirs, gap, spacings, spacings <= noise.bound)


@torch.inference_mode()
def check(
    pair: Pair,
    requests: Sequence[Request],
    policies: Sequence[Policy],
    batches: Sequence[int],
    max_new_tokens: int,
) -> Report:
    """Decode all requests in every way and weigh what differs."""
    # Some policies look at prices, but what is decoded must not depend on them: any will do.
    price = np.ones((1, _MAX_GAMMA + 2))
    engine = Engine(pair, make_step_costs(0.1 * price, price), max_gamma=_MAX_GAMMA)
    ways = list(product(batches, policies))
    total = (1 + len(ways)) * len(requests)
    with progress(total, "lossless") as step:
        reference = decode_reference(pair, requests, max_new_tokens, step)
        runs = []
        for batch, policy in ways:
            run = engine.decode(
                policy, requests, max_new_tokens=max_new_tokens, batch=batch, progress=step
            )
            runs.append((label(policy), batch, run.tokens, reference.shape))
    gaps, shape, program = reference.gaps, reference.shape, reference.program
    theirs = program if program.median <= shape.largest else shape
    runs.append(("transformers generate", 1, reference.generated, theirs))
    rows = []
    for name, batch, replies, noise in runs:
        cases = zip(requests, reference.replies, replies, strict=True)
        found = [weigh(pair, r, a, b, noise) for r, a, b in cases if a != b]
        rows.append(Row(name, batch, len(replies), noise.bound, found))
    bounds = sorted({*NEAR, shape.bound, program.bound})
    near = {bound: float((gaps <= bound).double().mean()) for bound in bounds}
    return Report(len(gaps), near, shape, program, rows)


def text_of(report: Report) -> str:
    """A table of the rows; the noise; how often a position's two best tokens are that close."""
    form = "{:24}{:>6}{:>8}{:>8}{:>6}{:>5}{:>5}{:>5}{:>6}{:>9}{:>8}{:>8}"
    heads = ("batch", "replies", "differ", "0", "<=1", "<=2", "<=4", "more", "largest", "tie<=")
    lines = [form.format("gaps in spacings", *heads, "no tie")]
    for row in report.rows:
        gaps = [math.inf if d.spacings is None else d.spacings for d in row.differences]
        edges = pairwise((-1, 0, 1, 2, 4, math.inf))
        counts = [sum(low < gap <= high for gap in gaps) for low, high in edges]
        largest = f"{max(gaps):.1f}" if gaps else "-"
        no_ties = sum(not d.tie for d in row.differences)
        cells = (row.policy, row.batch, row.replies, len(gaps), *counts, largest)
        lines.append(form.format(*cells, f"{row.bound:.1f}", no_ties))
    for between, noise in (
        ("one token and many at a time, transformers", report.shape),
        ("the reference and transformers", report.program),
    ):
        lines.append(f"noise, {between}: median {noise.median:.1f}, largest {noise.largest:.1f}")
    shares = ", ".join(f"{bound:g}: {share:.2%}" for bound, share in report.near.items())
    lines.append(f"two best tokens of {report.positions} positions within {shares}")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """The lossless command; see real_backend.options. 1 if anything differs that is no tie."""
    refuse_shape(args.pair, "lossless")
    policies = parse_policies(args.policies)
    spec = resolve_pair(args.pair, args.target, args.draft)
    if args.prompts is None and spec.name != "embedded":
        raise InputError("--prompts is missing; only the embedded pair brings its own")
    if args.out is not None and args.out.exists() and not args.force:
        raise InputError(f"{args.out} exists; choose another name or pass --force")
    questions = read_questions(args.prompts or EMBEDDED_PROMPTS, args.limit)
    pair = pair_from_args(args)
    requests = [request_for(pair, question, 0, []) for question in questions]
    report = check(pair, requests, policies, args.batch, args.max_new_tokens)
    meta = pair.describe() | {"max_new_tokens": args.max_new_tokens}
    print(f"{pair.name}, {pair.dtype}, {meta['engine']} forward, {meta['device_name']}")
    print(text_of(report))
    if args.out is not None:
        raw = {"kind": "lossless", "meta": meta, **dataclasses.asdict(report)}
        text = json.dumps(raw | {"lossless": report.lossless}, indent=1, allow_nan=False)
        write_atomically(args.out, lambda path: path.write_text(text + "\n", "utf-8"), args.force)
    return 0 if report.lossless else 1


if __name__ == "__main__":
    sys.exit(run_module("lossless", __doc__, [add_pair_arguments, add_lossless_arguments], run))
