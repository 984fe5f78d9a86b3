"""Record a Trace from real models: `python -m real_backend.capture`.

Per request: decode the reply, then one teacher-forced pass and one batched rollout of the draft
(`rollout.py`) for its signals. Greedy: the reply is the target's own, a position is accepted where
the draft's arg-max is the reply's token. Sampling: at every position the draft's token x ~ q is
accepted with min(1, p/q), else replaced from the residual; so each emitted token has the target's
law whether or not it was drafted, and the recorded flags have the right joint law for every causal
policy. Draws depend on (seed, request_id, position) alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from real_backend.kvcache import Reader
from real_backend.models import Pair, pair_from_args, resolve_pair, versions
from real_backend.options import add_capture_arguments, add_pair_arguments, run_module
from real_backend.prompts import (
    EMBEDDED_PROMPTS,
    Question,
    Request,
    decode_reply,
    questions_hash,
    read_questions,
    request_for,
)
from real_backend.rollout import roll_out, spread
from real_backend.verify import accept_probability, distribution, draw, residual, signals
from traces.errors import InputError
from traces.schema import Trace, TraceMeta
from traces.store import TraceWriter

FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to record; see real_backend.options for the meaning of each field."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    depth: int = 16
    seed: int = 0
    batch: int = 1

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "depth", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} must be at least 1")
        if self.max_new_tokens > 32_000:
            raise InputError("--max-new-tokens must be at most 32000")
        if not self.temperature >= 0.0:
            raise InputError("--temperature must be 0 (greedy) or positive")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError("--top-p must lie in (0, 1]")
        if self.seed < 0:
            raise InputError("--seed must not be negative")


class Uniforms(NamedTuple):
    """All draws of one request: path [L, 3] (draft, accept, residual); branch [L, G]."""

    path: FloatArray
    branch: FloatArray


def draw_uniforms(seed: int, request_id: str, positions: int, depth: int) -> Uniforms:
    """The draws of one request for `positions` positions, a function of its identity and the
    seed.
    """
    identity = int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "little")
    generator = np.random.default_rng([seed, identity])
    return Uniforms(generator.random((positions, 3)), generator.random((positions, depth)))


class Decoded(NamedTuple):
    """A reply [L] and, if sampled, what the draft proposed on its path and p/q there [L] each."""

    tokens: list[int]
    proposals: list[int]
    accept_prob: list[float]


class _Row:
    """One prompt of a batch being decoded."""

    def __init__(self, pair: Pair, request: Request, settings: Settings) -> None:
        self.uniforms = draw_uniforms(
            settings.seed, request.request_id, settings.max_new_tokens + 1, settings.depth
        )
        room = pair.max_context - len(request.prompt_ids) if pair.max_context else 1 << 30
        self.limit = min(settings.max_new_tokens, room)
        self.decoded = Decoded([], [], [])
        self.eos_ids = pair.eos_ids

    @property
    def finished(self) -> bool:
        tokens = self.decoded.tokens
        return len(tokens) >= self.limit or bool(tokens and tokens[-1] in self.eos_ids)

    def extend(self, target_row: Tensor, draft_row: Tensor | None) -> None:
        """Add one token given the laws [V] (logits if greedy) at the newest position."""
        if draft_row is None:
            self.decoded.tokens.append(int(target_row.argmax()))
            return
        u_draft, u_accept, u_residual = self.uniforms.path[len(self.decoded.tokens)]
        proposal = int(draw(draft_row, float(u_draft)))
        probability = accept_probability(target_row, draft_row, proposal)
        token = proposal
        if u_accept >= probability:
            token = int(draw(residual(target_row, draft_row), float(u_residual)))
        self.decoded.tokens.append(token)
        self.decoded.proposals.append(proposal if u_accept < probability else -1 - proposal)
        self.decoded.accept_prob.append(probability)


class _Batch:
    """B prompts in one cache, padded on the left so that all rows grow in step."""

    def __init__(self, prompts: list[list[int]], device: str, max_context: int) -> None:
        self.last = max_context - 1 if max_context else 1 << 30
        self.width = max(len(p) for p in prompts)
        pads = [self.width - len(p) for p in prompts]
        rows = [[0] * pad + p for pad, p in zip(pads, prompts, strict=True)]
        self.tokens = torch.tensor(rows, device=device)  # (B, width)
        self.pads = torch.tensor(pads, device=device)[:, None] if any(pads) else None

    def read(self, reader: Reader, tokens: Tensor, start: int) -> Tensor:
        """Logits [B, V] behind the last of tokens [B, T]."""
        if self.pads is None:
            return reader.read(tokens, start)[:, -1]
        width = tokens.shape[1]
        slots = torch.arange(start + width, device=tokens.device)
        queries = slots[start:]
        visible = (slots[None, None] >= self.pads[:, None]) & (slots[None] <= queries[:, None])
        visible |= slots[None, None] == queries[None, :, None]  # padding sees itself, not nothing
        # Rows that are done are read on with the others, beyond their context if need be.
        positions = (queries[None] - self.pads).clamp(min=0, max=self.last)
        return reader.read(tokens, start, positions, visible[:, None])[:, -1]


def decode_coupled(pair: Pair, requests: list[Request], settings: Settings) -> list[Decoded]:
    """Decode a batch token by token on the path described in the module docstring."""
    rows = [_Row(pair, request, settings) for request in requests]
    batch = _Batch([r.prompt_ids for r in requests], pair.device, pair.max_context)
    capacity = batch.width + settings.max_new_tokens
    greedy = settings.temperature == 0.0
    models = [pair.target] if greedy else [pair.target, pair.draft]
    readers = [model.reader(capacity, len(rows)) for model in models]
    feed, start = batch.tokens, 0
    while not all(row.finished for row in rows):
        laws = [batch.read(reader, feed, start)[:, : pair.vocab_size] for reader in readers]
        if not greedy:
            laws = [distribution(law, settings.temperature, settings.top_p) for law in laws]
        for index, row in enumerate(rows):
            if not row.finished:
                row.extend(laws[0][index], None if greedy else laws[1][index])
        start += feed.shape[1]
        feed = torch.tensor([[row.decoded.tokens[-1]] for row in rows], device=pair.device)
    return [row.decoded for row in rows]


def run_lengths(accepted: npt.NDArray[np.bool_]) -> npt.NDArray[np.int16]:
    """[L] how many positions in a row, from each on, are accepted."""
    lengths = np.zeros(len(accepted), dtype=np.int16)
    run = 0
    for i in range(len(accepted) - 1, -1, -1):
        run = run + 1 if accepted[i] else 0
        lengths[i] = run
    return lengths


def annotate(
    pair: Pair, request: Request, decoded: Decoded, settings: Settings, meta: TraceMeta
) -> Trace:
    """The trace of one decoded request: the draft's view of every position, G steps deep."""
    length, prompt, depth = len(decoded.tokens), len(request.prompt_ids), settings.depth
    greedy = settings.temperature == 0.0
    ids = torch.tensor([request.prompt_ids + decoded.tokens], device=pair.device)
    capacity = prompt + length + (depth - 1) * (length + 1) + depth
    draft = pair.draft.reader(capacity)
    logits = draft.read(ids, 0)[0, prompt - 1 :, : pair.vocab_size]  # (L + 1, V)
    tokens = torch.tensor(decoded.tokens, device=pair.device)
    uniforms = draw_uniforms(
        settings.seed, request.request_id, settings.max_new_tokens + 1, settings.depth
    )

    def law(row: Tensor) -> Tensor:
        if greedy:
            return torch.softmax(row.float(), -1)
        return distribution(row, settings.temperature, settings.top_p)

    def choose(row: Tensor, at: npt.NDArray[np.int64], step: int) -> tuple[Tensor, Tensor]:
        laws = law(row)
        if greedy:
            return row.argmax(-1), laws
        return draw(laws, torch.from_numpy(uniforms.branch[at, step])), laws

    on_path = law(logits)
    if greedy:
        proposals = logits.argmax(-1)
        accepted = (proposals[:-1] == tokens).cpu().numpy()
    else:
        # Rejected proposals were stored as -1 - token.
        stored = torch.tensor(decoded.proposals, device=pair.device)
        accepted = (stored >= 0).cpu().numpy()
        behind = draw(on_path[-1:], float(uniforms.path[length, 0]))
        proposals = torch.cat([torch.where(stored < 0, -1 - stored, stored), behind])
    at = np.append(np.flatnonzero(~accepted), length).astype(np.int64)
    first = proposals[torch.from_numpy(at).to(proposals.device)]
    branches = roll_out(draft, prompt, at, first, depth, choose, pair.max_context)
    accept_len = run_lengths(accepted)
    dense = spread(signals(on_path).cpu().numpy(), accept_len, branches)
    return Trace(
        meta=meta,
        offsets=np.asarray([0, length], dtype=np.int64),
        prompt_tokens=np.asarray([prompt], dtype=np.int32),
        request_id=(request.request_id,),
        category=(request.category,),
        accept_len=accept_len,
        token_ids=np.asarray(decoded.tokens, dtype=np.int32),
        top1_prob=np.ascontiguousarray(dense[:, :, 0]),
        entropy=np.ascontiguousarray(dense[:, :, 1]),
        accept_prob=None if greedy else _spread_labels(decoded.accept_prob, accept_len, depth),
    )


def _spread_labels(
    on_path: list[float], accept_len: npt.NDArray[np.int16], depth: int
) -> npt.NDArray[np.float32]:
    """[L, G] min(1, p/q) at each depth from each start, NaN behind the first rejection."""
    length = len(on_path)
    labels = np.full((length, depth), np.nan, dtype=np.float32)
    padded = np.asarray([*on_path, np.nan], dtype=np.float32)
    start = np.arange(length)
    for k in range(depth):
        seen = k <= accept_len
        labels[seen, k] = padded[np.minimum(start + k, length)[seen]]
    return labels


def make_meta(pair: Pair, questions: list[Question], settings: Settings) -> TraceMeta:
    """The trace's provenance; no clock in it, so that a resumed capture has the same bytes."""
    about = pair.describe()
    return TraceMeta(
        pair=pair.name,
        target=about["target"],
        draft=about["draft"],
        tokenizer_sha256=pair.tokenizer_sha256,
        weights_sha256=pair.weights_sha256,
        device=about["device_name"],
        dtype=pair.dtype,
        exactness="exact" if settings.temperature == 0.0 else "in-law",
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
        depth=settings.depth,
        max_new_tokens=settings.max_new_tokens,
        max_context=pair.max_context,
        prompts_sha256=questions_hash(questions),
        versions=versions(),
    )


def _capture_batch(
    pair: Pair,
    batch: list[tuple[int, Question]],
    settings: Settings,
    writer: TraceWriter,
    bar: tqdm,
) -> None:
    """All turns of a few questions; `batch` pairs each with the row of its first turn."""
    replies: dict[int, list[str]] = {first: [] for first, _ in batch}
    for turn in range(max(len(question.turns) for _, question in batch)):
        live = [(first, question) for first, question in batch if turn < len(question.turns)]
        requests = _requests_of_turn(pair, live, turn, replies)
        live = [(first, question) for first, question in live if first in requests]
        # A batch is kept or redone as a whole: padding may change the last bits of its neighbours.
        if all(writer.has(first + turn) for first, _ in live):
            for first, _ in live:
                tokens = writer.read(first + turn).token_ids
                assert tokens is not None
                replies[first].append(decode_reply(pair, tokens.tolist()))
            continue
        decoded = decode_coupled(pair, list(requests.values()), settings)
        for (first, request), one in zip(requests.items(), decoded, strict=True):
            writer.append(first + turn, annotate(pair, request, one, settings, writer.meta))
            replies[first].append(decode_reply(pair, one.tokens))
            bar.update()


def _requests_of_turn(
    pair: Pair, live: list[tuple[int, Question]], turn: int, replies: dict[int, list[str]]
) -> dict[int, Request]:
    """The requests of one turn by the row of their question's first turn.

    A dialogue that has outgrown the context ends, with a warning; what it has given stays.
    """
    requests: dict[int, Request] = {}
    for first, question in live:
        if len(replies[first]) < turn:  # ended before
            continue
        try:
            requests[first] = request_for(pair, question, turn, replies[first])
        except InputError as error:
            if turn == 0:
                raise
            tqdm.write(f"capture: {error}; this dialogue ends before it", file=sys.stderr)
    return requests


@torch.inference_mode()
def capture(
    pair: Pair,
    questions: list[Question],
    out: Path,
    settings: Settings,
    *,
    resume: bool = False,
    force: bool = False,
) -> Trace:
    """Record every turn of every question into the Parquet file `out`.

    Each finished request is on disk at once; after a kill, resume=True goes on and ends with the
    same bytes. Raises InputError if `out` exists (unless force), a prompt does not fit, the disk is
    full.
    """
    if out.exists() and not force:
        raise InputError(f"{out} exists; choose another name or pass --force")
    for question in questions:  # find a prompt that does not fit before hours of decoding
        request_for(pair, question, 0, [])
    meta = make_meta(pair, questions, settings)
    if force and not resume:
        TraceWriter.discard_partial(out)
    about = pair.describe()
    conditions = {"batch": settings.batch, "threads": about["threads"], "engine": about["engine"]}
    writer = TraceWriter(out, meta, resume=resume, conditions=conditions)
    first_rows = np.cumsum([0] + [len(q.turns) for q in questions])
    total = int(first_rows[-1])
    work = list(zip(first_rows[:-1].tolist(), questions, strict=True))
    done = sum(writer.has(row) for row in range(total))
    with tqdm(total=total, initial=done, desc="capture", unit="reply", disable=None) as bar:
        for begin in range(0, len(work), settings.batch):
            _capture_batch(pair, work[begin : begin + settings.batch], settings, writer, bar)
    return writer.finish(total, overwrite=force)


def run(args: argparse.Namespace) -> Trace:
    """The capture command; see real_backend.options."""
    settings = Settings(
        args.max_new_tokens, args.temperature, args.top_p, args.depth, args.seed, args.batch
    )
    spec = resolve_pair(args.pair, args.target, args.draft)
    if args.prompts is None and spec.name != "embedded":
        raise InputError("--prompts is missing; only the embedded pair brings its own")
    questions = read_questions(args.prompts or EMBEDDED_PROMPTS, args.limit)
    if args.out.exists() and not args.force:
        raise InputError(f"{args.out} exists; choose another name or pass --force")
    pair = pair_from_args(args)
    trace = capture(pair, questions, args.out, settings, resume=args.resume, force=args.force)
    print(f"{args.out}: {trace.requests} replies, {trace.positions} tokens", file=sys.stderr)
    return trace


if __name__ == "__main__":
    sys.exit(run_module("capture", __doc__, [add_pair_arguments, add_capture_arguments], run))
