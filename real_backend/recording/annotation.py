"""The offers of a drafter at every position of a reply, and how much the target takes.

A draft model sees tokens only: one teacher-forced pass over the reply and one batched rollout
(`rollout.py`) serve every start. A position is accepted where, greedy, the draft's arg-max is the
reply's token, or, sampled, the coupled draw accepted (`coupling.py`), so that the recorded flags
have the right joint law for every causal policy. Look-ups and heads have files of their own.

Letters: L reply tokens, G depth.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from real_backend.decoding.verify import draw, signals
from real_backend.drafters.block import BlockDrafter
from real_backend.drafters.drafter import LooksUp
from real_backend.drafters.eagle3 import Eagle3Drafter
from real_backend.drafters.model import ModelDrafter
from real_backend.load_pair import Pair
from real_backend.not_finite import check_finite
from real_backend.prompts import Request
from real_backend.recording.coupling import CaptureSettings, Decoded, draw_uniforms
from real_backend.recording.heads import of_block, of_eagle3
from real_backend.recording.lookups import of_lookup
from real_backend.recording.offers import Offers, ranks
from real_backend.recording.rollout import roll_out, spread
from traces.schema import Trace, TraceMeta


def annotate(
    pair: Pair, request: Request, decoded: Decoded, settings: CaptureSettings, meta: TraceMeta
) -> Trace:
    """The trace of one decoded request: the drafter's view of every position, G steps deep."""
    drafter = pair.drafter
    if isinstance(drafter, LooksUp):
        offers = of_lookup(drafter.index(), request.prompt_ids, decoded.tokens, settings.depth)
    elif isinstance(drafter, Eagle3Drafter):
        offers = of_eagle3(pair, drafter, request, decoded, settings)
    elif isinstance(drafter, BlockDrafter):
        offers = of_block(pair, drafter, request, decoded, settings)
    else:
        assert isinstance(drafter, ModelDrafter)
        offers = of_model(pair, request, decoded, settings)
    check_finite(pair, {request.request_id: request.prompt_ids + decoded.tokens})
    length = len(decoded.tokens)
    return Trace(
        meta=meta,
        offsets=np.asarray([0, length], dtype=np.int64),
        prompt_tokens=np.asarray([len(request.prompt_ids)], dtype=np.int32),
        request_id=(request.request_id,),
        category=(request.category,),
        token_ids=np.asarray(decoded.tokens, dtype=np.int32),
        target_entropy=np.asarray(decoded.target_entropy, dtype=np.float32),
        **offers._asdict(),
    )


def run_lengths(accepted: npt.NDArray[np.bool_]) -> npt.NDArray[np.int16]:
    """[L] how many positions in a row, from each on, are accepted."""
    lengths = np.zeros(len(accepted), dtype=np.int16)
    run = 0
    for i in range(len(accepted) - 1, -1, -1):
        run = run + 1 if accepted[i] else 0
        lengths[i] = run
    return lengths


def of_model(pair: Pair, request: Request, decoded: Decoded, settings: CaptureSettings) -> Offers:
    """The offers of an independent model."""
    length, prompt, depth = len(decoded.tokens), len(request.prompt_ids), settings.depth
    greedy = settings.temperature == 0.0
    ids = torch.tensor([request.prompt_ids + decoded.tokens], device=pair.device)
    capacity = prompt + length + (depth - 1) * (length + 1) + depth
    draft = pair.draft.reader(capacity)
    logits = draft.read(ids, 0, last=length + 1)[0, :, : pair.vocab_size]  # (L + 1, V)
    tokens = torch.tensor(decoded.tokens, device=pair.device)
    uniforms = draw_uniforms(
        settings.seed, request.request_id, settings.max_new_tokens + 1, settings.depth
    )

    watch = pair.draft.watch

    def probs_of(row: Tensor) -> Tensor:
        if greedy:
            return torch.softmax(row.float(), -1)
        return watch.probs(row, settings.temperature, settings.top_p)

    def choose(row: Tensor, at: npt.NDArray[np.int64], step: int) -> tuple[Tensor, Tensor]:
        probs = probs_of(row)
        if greedy:
            return watch.best(row), probs
        return draw(probs, torch.from_numpy(uniforms.branch[at, step])), probs

    on_path = probs_of(logits)
    if greedy:
        proposals = watch.best(logits)
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
    return Offers(
        accept_len=accept_len,
        top1_prob=np.ascontiguousarray(dense[:, :, 0]),
        entropy=np.ascontiguousarray(dense[:, :, 1]),
        accept_prob=None if greedy else _spread_labels(decoded.accept_prob, accept_len, depth),
        target_rank=ranks(logits[:-1], tokens),
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
