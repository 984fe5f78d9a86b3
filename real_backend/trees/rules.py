"""Accept rules for several drafted tokens at one place, such that the reply has the target's law.

Each judges the children of one node: it returns the index of the accepted one, or -1, and the law
from which the target's own token is then drawn, not scaled. A tree is judged from the root down
until no child is accepted. Letters: V vocabulary, K drafted tokens at this place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from real_backend.decoding.verify import residual

_HALVINGS = 60  # of an interval of length K: then float64 has no more digits


def without_replacement(
    target: Tensor, draft: Tensor, tokens: Sequence[int], uniforms: Sequence[float]
) -> tuple[int, Tensor]:
    """Recursive rejection: tokens [K] were drawn from `draft` [V] one after another, none twice.

    Each is judged by what is left of the target's law after those before it, and by the draft's law
    without them. uniforms [K]: numbers in [0, 1).

    Sources: Miao et al., SpecInfer, arXiv 2305.09781, section 4.3 (several drafts, rejected one by
    one); Li et al., EAGLE, arXiv 2401.15077, and Chen et al., Sequoia, arXiv 2402.12374, section
    3.2 (without replacement).
    """
    left, law = target.double(), draft.double()
    for index, (token, u) in enumerate(zip(tokens, uniforms, strict=True)):
        law = law / law.sum()
        if u * float(law[token]) < float(left[token]):
            return index, left
        left = residual(left, law)
        left = left / left.sum()
        law = law.clone()
        law[token] = 0.0
    return -1, left


def k_sequential(
    target: Tensor, draft: Tensor, tokens: Sequence[int], uniforms: Sequence[float]
) -> tuple[int, Tensor]:
    """SpecTr's k-sequential selection: tokens [K] were drawn from `draft` [V] independently.

    Each is accepted with chance min(1, target / (rho draft)), all alike. Source: Sun et al.,
    SpecTr, arXiv 2310.15141, Algorithm 2 and Theorem 2.
    """
    chances = sequential_chances(target, draft, len(tokens))
    p, q, rho = target.double(), draft.double(), float(chances.rho)
    for index, (token, u) in enumerate(zip(tokens, uniforms, strict=True)):
        if u * rho * float(q[token]) < float(p[token]):
            return index, p
    return -1, (p - chances.by_token).clamp(min=0)


class SequentialChances(NamedTuple):
    """k_sequential of so many drafts, of laws [..., V].

    rho [...]: see `division`. one [...]: the chance that a draft alone is accepted; any [...]: that
    one of them all is. by_token [..., V]: that it is this token.
    """

    rho: Tensor
    one: Tensor
    any: Tensor
    by_token: Tensor


def sequential_chances(target: Tensor, draft: Tensor, drafts: int) -> SequentialChances:
    """Of laws [..., V]."""
    p, q = target.double(), draft.double()
    rho = division(p, q, drafts)
    shared = torch.minimum(q, p / rho[..., None])
    one = shared.sum(-1)
    taken = 1.0 - (1.0 - one) ** drafts
    scale = torch.where(one > 0.0, taken / one.clamp(min=1e-300), 0.0)
    return SequentialChances(rho, one, taken, shared * scale[..., None])


def division(target: Tensor, draft: Tensor, drafts: int) -> Tensor:
    """rho* [...] in 1..K of laws [..., V]: the least factor at which k_sequential keeps the
    target's law, so the one that accepts most: 1 - (1 - beta)^K = rho beta, beta = sum of
    min(draft, target / rho).
    """
    p, q = target.double(), draft.double()
    low = torch.ones(p.shape[:-1], dtype=torch.float64, device=p.device)
    high = low * drafts
    for _ in range(_HALVINGS):
        rho = (low + high) / 2
        beta = torch.minimum(q, p / rho[..., None]).sum(-1)
        larger = 1.0 - (1.0 - beta) ** drafts > rho * beta
        low, high = torch.where(larger, rho, low), torch.where(larger, high, rho)
    return high


def transport_bound(target: Tensor, draft: Tensor, drafts: int) -> Tensor:
    """[...] the most that any rule could accept of so many independent drafts, of laws [..., V]:
    the optimal transport of SpecTr, section 4 (there a linear programme of V^K unknowns).

    By max flow and min cut it is the least of target(A) + 1 - draft(A)^K over sets A of tokens.
    At the least, tokens in A have target / draft <= K draft(A)^(K-1) and the others no less, for
    x^K is convex: so A is a beginning of the tokens in order of target / draft, and V + 1 sets are
    all that need be asked.
    """
    p, q = target.double(), draft.double()
    order = torch.argsort(torch.where(q > 0.0, p / q, torch.inf), -1)
    none = torch.zeros_like(p[..., :1])
    ours = torch.cat([none, p.gather(-1, order).cumsum(-1)], -1)
    theirs = torch.cat([none, q.gather(-1, order).cumsum(-1)], -1)
    return (ours + 1.0 - theirs.clamp(max=1.0) ** drafts).amin(-1).clamp(max=1.0)
