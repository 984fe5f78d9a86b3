"""Replies of another trace, on which a drafter is recorded in its turn.

A greedy reply is the target's whatever drafts. A sampled one came of the target's law p; given its
token y, a draft model's token is y, and accepted, with probability min(1, q(y) / p(y)), and else
one of the residual (q - p)+ that was rejected: the joint law of a coupled decode, whoever recorded
the reply.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from real_backend.decoding.verify import accept_probability, draw, residual
from real_backend.drafters.model import ModelDrafter
from real_backend.load_pair import Pair
from real_backend.prompts import Request
from real_backend.recording.coupling import (
    CaptureSettings,
    Decoded,
    draw_uniforms,
    entropies,
    judged,
)
from traces.errors import InputError
from traces.schema import Trace
from traces.store import read_trace


class Replies:
    """The replies of a trace by request. Raises InputError if it has no tokens, or another target
    than the pair.
    """

    def __init__(self, path: Path, pair: Pair) -> None:
        self.path, self.trace = path, read_trace(path)
        meta, target = self.trace.meta, pair.describe()["target"]
        if self.trace.token_ids is None:
            raise InputError(f"--replies {path}: the trace holds no token ids")
        if (meta.target, meta.tokenizer_sha256) != (target, pair.tokenizer_sha256):
            raise InputError(
                f"--replies {path}: its target is {meta.target!r} with another tokenizer or name "
                f"than {target!r}; give the target that it was captured from"
            )
        self._rows = {name: row for row, name in enumerate(self.trace.request_id)}

    def settings(self, asked: CaptureSettings) -> CaptureSettings:
        """As asked, with the trace's sampling and limit."""
        meta = self.trace.meta
        return dataclasses.replace(
            asked,
            temperature=meta.temperature,
            top_p=meta.top_p,
            max_new_tokens=meta.max_new_tokens,
        )

    def of(self, pair: Pair, request: Request, settings: CaptureSettings) -> Decoded:
        """The recorded reply as if decoded beside the drafter."""
        row = self._rows.get(request.request_id)
        if row is None:
            raise InputError(f"--replies {self.path}: request {request.request_id} is not in it")
        if int(self.trace.prompt_tokens[row]) != len(request.prompt_ids):
            raise InputError(
                f"--replies {self.path}: request {request.request_id} has a prompt of "
                f"{int(self.trace.prompt_tokens[row])} tokens there, {len(request.prompt_ids)} here"
            )
        return _decoded(pair, request, self.trace.select([row]), settings)


def _decoded(pair: Pair, request: Request, one: Trace, settings: CaptureSettings) -> Decoded:
    assert one.token_ids is not None
    tokens = one.token_ids.tolist()
    greedy = settings.temperature == 0.0
    coupled = not greedy and isinstance(pair.drafter, ModelDrafter)
    if one.target_entropy is not None and not coupled:
        return Decoded(tokens, one.target_entropy.tolist(), [], [])
    ids = torch.tensor([request.prompt_ids + tokens[:-1]], device=pair.device)
    models = [pair.target, pair.draft] if coupled else [pair.target]
    said = [
        model.reader(ids.shape[1]).read(ids, 0, last=len(tokens))[0, :, : pair.vocab_size]
        for model in models
    ]
    if greedy:
        return Decoded(tokens, entropies(torch.softmax(said[0].float(), -1)), [], [])
    sampling = settings.temperature, settings.top_p
    laws = [m.watch.probs(logits, *sampling) for m, logits in zip(models, said, strict=True)]
    decoded = Decoded(tokens, entropies(laws[0]), [], [])
    if coupled:
        stream = judged(request.request_id)
        uniforms = draw_uniforms(settings.seed, stream, len(tokens), 0).path
        for at, token in enumerate(tokens):
            target, draft = laws[0][at], laws[1][at]
            u_draft, u_accept, _ = uniforms[at]
            if u_accept < min(1.0, float(draft[token]) / float(target[token])):
                decoded.proposals.append(token)
            else:
                token = int(draw(residual(draft, target), float(u_draft)))
                decoded.proposals.append(-1 - token)
            decoded.accept_prob.append(accept_probability(target, draft, token))
    return decoded
