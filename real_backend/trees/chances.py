"""How often one of several independent drafts is accepted at the places of recorded replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from real_backend.load_pair import Pair
from real_backend.prompts import Request
from real_backend.trees.rules import sequential_chances, transport_bound
from traces.schema import Trace

FloatArray = npt.NDArray[np.float64]


class Chances(NamedTuple):
    """Of m = 1..K drafts at every position, all [K, N].

    mean, bound: that one is accepted; that the best rule accepts one. likeliest: that the target
    draws one of the draft's m likeliest tokens. given: the same as mean,
    given that the reply's token came out. alone: that a draft is accepted, for itself; token: that
    it is the reply's token; token_kept: that the latter is then accepted.
    """

    mean: FloatArray
    bound: FloatArray
    likeliest: FloatArray
    given: FloatArray
    alone: FloatArray
    token: FloatArray
    token_kept: FloatArray


def chances_of(pair: Pair, requests: Sequence[Request], trace: Trace, most: int) -> Chances:
    """Both models read every reply once. most: K."""
    assert trace.token_ids is not None
    parts: list[FloatArray] = []
    with torch.inference_mode():
        for request, at, end in zip(requests, trace.offsets, trace.offsets[1:], strict=False):
            reply = trace.token_ids[int(at) : int(end)].tolist()
            ids = torch.tensor([request.prompt_ids + reply], device=pair.device)
            laws = [
                model.watch.probs(
                    model.reader(ids.shape[1]).read(ids[:, :-1], 0, last=len(reply))[
                        0, :, : pair.vocab_size
                    ],
                    trace.meta.temperature,
                    trace.meta.top_p,
                )
                for model in (pair.target, pair.draft)
            ]
            parts.append(chances_of_reply(laws[0], laws[1], ids[0, -len(reply) :], most))
    return Chances(*np.concatenate(parts, axis=2))


def chances_of_reply(target: Tensor, draft: Tensor, tokens: Tensor, most: int) -> FloatArray:
    """[7, K, L] the fields of Chances of one reply; laws [L, V], tokens [L]."""

    def of(law: Tensor) -> Tensor:
        return law.gather(-1, tokens[:, None])[:, 0].double()

    rows = []
    for drafts in range(1, most + 1):
        found = sequential_chances(target, draft, drafts)
        token = of(draft)
        kept = torch.where(token > 0, (of(target) / (found.rho * token)).clamp(max=1.0), 0.0)
        given = (of(found.by_token) / of(target)).clamp(max=1.0)
        bound = transport_bound(target, draft, drafts)
        likeliest = target.gather(-1, draft.topk(drafts, -1).indices).double().sum(-1)
        rows.append(torch.stack([found.any, bound, likeliest, given, found.one, token, kept]))
    return np.asarray(torch.stack(rows, 1).cpu().numpy(), dtype=np.float64)
