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

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from itertools import islice, pairwise, product

import numpy as np
import torch

from policies.base import Policy
from policies.registry import label, parse_policies
from real_backend.command_line import Result, run_module
from real_backend.decoding.engine import Engine
from real_backend.greedy_reference import Noise, decode_reference, parting, plain, spacing
from real_backend.load_pair import Pair, pair_from
from real_backend.options import LosslessOptions, refuse_shape
from real_backend.pair_spec import resolve_pair
from real_backend.progress import progress
from real_backend.prompts import EMBEDDED_PROMPTS, Request, read_questions, request_for
from traces.costs.pricing import make_step_costs
from traces.errors import InputError
from traces.store import write_atomically

END = -1  # in the place of a token: this reply has ended
NEAR = (1.0, 2.0, 4.0, 8.0)  # spacings within which a position's two best tokens are counted
_MAX_GAMMA = 16


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
class DecodingCheck:
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
    rows: list[DecodingCheck]

    @property
    def lossless(self) -> bool:
        """True if nothing differs but ties."""
        return all(d.tie for row in self.rows for d in row.differences)


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
        rows.append(DecodingCheck(name, batch, len(replies), noise.bound, found))
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


def run(options: LosslessOptions) -> Result:
    """The lossless command; a finding if anything differs that is no tie."""
    refuse_shape(options.pair, "lossless")
    policies = parse_policies(options.policies)
    named = options.pair
    resolve_pair(named.name, named.target, named.draft)  # one that cannot be is told first
    if options.prompts is None and not named.is_embedded:
        raise InputError("--prompts is missing; only the embedded pair brings its own")
    if options.out is not None and options.out.exists() and not options.force:
        raise InputError(f"{options.out} exists; choose another name or pass --force")
    questions = read_questions(options.prompts or EMBEDDED_PROMPTS, options.limit)
    pair = pair_from(named)
    requests = [request_for(pair, question, 0, []) for question in questions]
    report = check(pair, requests, policies, options.batch, options.max_new_tokens)
    meta = pair.describe() | {"max_new_tokens": options.max_new_tokens}
    about = f"{pair.name}, {pair.dtype}, {meta['engine']} forward, {meta['device_name']}"
    if options.out is not None:
        raw = {"kind": "lossless", "meta": meta, **dataclasses.asdict(report)}
        text = json.dumps(raw | {"lossless": report.lossless}, indent=1, allow_nan=False)
        write_atomically(
            options.out, lambda path: path.write_text(text + "\n", "utf-8"), options.force
        )
    found = () if report.lossless else ("output differs from greedy decoding beyond ties",)
    return Result(f"{about}\n{text_of(report)}", findings=found)


if __name__ == "__main__":
    sys.exit(run_module("real_backend.lossless", __doc__, LosslessOptions, run))
