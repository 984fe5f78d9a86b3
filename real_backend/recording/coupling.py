"""Decode replies on the path that a trace records: the law is the target's, drafted or not.

Greedy: the target's own choice at every position. Sampling beside a draft model: at every position
the draft's token x ~ q is accepted with min(1, p/q), else replaced from the residual. Sampling with
any other drafter: from the target's law; what it would have accepted is found afterwards. Draws
depend on (seed, request_id, position) alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from real_backend.decoding.verify import accept_probability, draw, residual
from real_backend.drafters.model import ModelDrafter
from real_backend.load_pair import Pair, check_caches
from real_backend.models.kvcache import Reader
from real_backend.not_finite import check_finite
from real_backend.prompts import Request
from traces.errors import InputError

FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class CaptureSettings:
    """Settings of a recording, as in real_backend.options.CaptureOptions."""

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


def judged(request_id: str) -> str:
    """The name whose draws judge a reply after the fact: another stream than the reply's own, which
    may have been drawn with the same seed.
    """
    return f"{request_id} judged"


class Decoded(NamedTuple):
    """A reply [L], the entropy of the target's laws that its tokens were taken from [L], nats, and,
    if a draft model was sampled beside, what it proposed on the path and p/q there [L] each.
    """

    tokens: list[int]
    target_entropy: list[float]
    proposals: list[int]
    accept_prob: list[float]


class _Row:
    """One prompt of a batch being decoded."""

    def __init__(self, pair: Pair, request: Request, settings: CaptureSettings) -> None:
        self.uniforms = draw_uniforms(
            settings.seed, request.request_id, settings.max_new_tokens + 1, settings.depth
        )
        room = pair.max_context - len(request.prompt_ids) if pair.max_context else 1 << 30
        self.limit = min(settings.max_new_tokens, room)
        self.decoded = Decoded([], [], [], [])
        self.eos_ids = pair.eos_ids

    @property
    def finished(self) -> bool:
        tokens = self.decoded.tokens
        return len(tokens) >= self.limit or bool(tokens and tokens[-1] in self.eos_ids)

    def extend(self, target_row: Tensor, draft_row: Tensor | None) -> None:
        """Add one token given the laws [V] (greedy: the target's choice []) at the newest
        position.
        """
        u_draft, u_accept, u_residual = self.uniforms.path[len(self.decoded.tokens)]
        if draft_row is None:
            sampled = target_row.ndim > 0
            own = draw(target_row, float(u_residual)) if sampled else target_row
            self.decoded.tokens.append(int(own))
            return
        proposal = int(draw(draft_row, float(u_draft)))
        probability = accept_probability(target_row, draft_row, proposal)
        token = proposal
        if u_accept >= probability:
            token = int(draw(residual(target_row, draft_row), float(u_residual)))
        self.decoded.tokens.append(token)
        self.decoded.proposals.append(proposal if u_accept < probability else -1 - proposal)
        self.decoded.accept_prob.append(probability)


def entropies(laws: Tensor) -> list[float]:
    """Of laws [B, V], nats."""
    found: list[float] = torch.special.entr(laws).sum(-1).tolist()
    return found


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
            return reader.read(tokens, start, last=1)[:, -1]
        width = tokens.shape[1]
        slots = torch.arange(start + width, device=tokens.device)
        queries = slots[start:]
        visible = (slots[None, None] >= self.pads[:, None]) & (slots[None] <= queries[:, None])
        visible |= slots[None, None] == queries[None, :, None]  # padding sees itself, not nothing
        # Rows that are done are read on with the others, beyond their context if need be.
        positions = (queries[None] - self.pads).clamp(min=0, max=self.last)
        return reader.read(tokens, start, positions, visible[:, None], last=1)[:, -1]


def decode_coupled(pair: Pair, requests: list[Request], settings: CaptureSettings) -> list[Decoded]:
    """Decode a batch token by token on the path described in the module docstring.

    Raises InputError if a model says NaN or infinity.
    """
    rows = [_Row(pair, request, settings) for request in requests]
    batch = _Batch([r.prompt_ids for r in requests], pair.device, pair.max_context)
    capacity = batch.width + settings.max_new_tokens
    check_caches(pair, len(rows) * capacity, "a smaller --batch or --max-new-tokens")
    greedy = settings.temperature == 0.0
    coupled = not greedy and isinstance(pair.drafter, ModelDrafter)
    models = [pair.target, pair.draft] if coupled else [pair.target]
    readers = [model.reader(capacity, len(rows)) for model in models]
    feed, start = batch.tokens, 0
    while not all(row.finished for row in rows):
        logits = [batch.read(reader, feed, start)[:, : pair.vocab_size] for reader in readers]
        if greedy:
            probs = [pair.target.watch.best(logits[0])]
            entropy = entropies(torch.softmax(logits[0].float(), -1))
        else:
            sampling = settings.temperature, settings.top_p
            probs = [m.watch.probs(said, *sampling) for m, said in zip(models, logits, strict=True)]
            entropy = entropies(probs[0])
        for index, row in enumerate(rows):
            if not row.finished:
                row.decoded.target_entropy.append(entropy[index])
                row.extend(probs[0][index], probs[1][index] if coupled else None)
        start += feed.shape[1]
        feed = torch.tensor([[row.decoded.tokens[-1]] for row in rows], device=pair.device)
    pairs = zip(requests, rows, strict=True)
    check_finite(pair, {r.request_id: r.prompt_ids + row.decoded.tokens for r, row in pairs})
    return [row.decoded for row in rows]
